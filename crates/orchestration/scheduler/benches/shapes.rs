//! The scheduler alone, without an API: pods per second in the shapes of Kubernetes' `scheduler_perf`, on 5,000 nodes
//! (or as many as the first argument says). Each pod is told to the engine, decided, and told again as bound.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_scheduler::{Engine, Outcome, PodKey};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

const ZONES: usize = 10;

fn node(i: usize, zone: usize) -> Arc<Node> {
    let name = format!("node-{i}");
    let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{zone}")});
    let allocatable = json!({"cpu": "4", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let node =
        json!({"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"allocatable": allocatable}});
    Arc::new(serde_json::from_value(node).unwrap())
}

fn cluster(nodes: usize) -> Engine {
    let engine = Engine::new("default-scheduler");
    for i in 0..nodes {
        engine.node_changed(node(i, i % ZONES));
    }
    engine
}

/// Upstream's plain pod.
fn pod(name: &str, namespace: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let requests = json!({"cpu": "100m", "memory": "500Mi"});
    let mut pod = json!({
        "metadata": {"name": name, "namespace": namespace, "uid": name, "labels": {}},
        "spec": {"containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10.1", "resources": {"requests": requests}}]},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn key(pod: &Pod) -> PodKey {
    (pod.metadata.namespace.clone().unwrap(), pod.metadata.name.clone().unwrap())
}

#[derive(Default)]
struct Tally {
    bound: usize,
    waiting: usize,
    preempted: usize,
    slowest: Duration,
}

/// Schedules everything that is there to do, and plays the API's answers.
fn drain(engine: &Engine, tally: &mut Tally) {
    loop {
        let start = Instant::now();
        let Some(decided) = engine.next() else { return };
        tally.slowest = tally.slowest.max(start.elapsed());
        for (key, pod, outcome) in decided {
            match outcome {
                Outcome::Bind { node } => {
                    let mut bound = Pod::clone(&pod);
                    bound.spec.as_mut().unwrap().node_name = Some(node);
                    engine.pod_changed(key, &Arc::new(bound));
                    tally.bound += 1;
                }
                Outcome::Preempt { preemption, .. } => {
                    tally.preempted += preemption.victims.len();
                    preemption.victims.iter().for_each(|victim| engine.pod_removed(victim));
                }
                Outcome::Wait(_) => tally.waiting += 1,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn schedule(engine: &Engine, pods: Vec<Pod>) -> (Tally, Duration) {
    let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
    let mut tally = Tally::default();
    let start = Instant::now();
    for few in pods.chunks(100) {
        few.iter().for_each(|pod| engine.pod_changed(key(pod), pod));
        drain(engine, &mut tally);
    }
    (tally, start.elapsed())
}

fn report(shape: &str, nodes: usize, pods: usize, (tally, took): (Tally, Duration)) {
    let rate = pods as f64 / took.as_secs_f64();
    println!(
        "{shape:<34} {nodes:>6} nodes {pods:>6} pods {rate:>9.0} pods/s  bound {:>6} waiting {:>5} preempted {:>5}  slowest {:>6.1} ms",
        tally.bound,
        tally.waiting,
        tally.preempted,
        tally.slowest.as_secs_f64() * 1000.0
    );
}

fn term(key: &str, extra: Value) -> Value {
    let mut term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"color": "green"}}});
    for (name, value) in extra.as_object().unwrap() {
        term[name] = value.clone();
    }
    term
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let nodes = numbers.first().copied().unwrap_or(5000);
    let pods = numbers.get(1).copied().unwrap_or(10_000);
    let only: Option<String> =
        std::env::args().skip(1).find(|word| word.parse::<usize>().is_err() && word != "--bench");
    let wanted = |shape: &str| only.as_ref().is_none_or(|only| shape.contains(only.as_str()));

    let simple = |shape: &str, count: usize, change: &dyn Fn(usize, &mut Value)| {
        if !wanted(shape) {
            return;
        }
        let engine = cluster(nodes);
        let made = (0..count).map(|i| pod(&format!("p{i}"), "default", |p| change(i, p))).collect();
        report(shape, nodes, count, schedule(&engine, made));
    };
    simple("basic", pods, &|_, _| {});
    simple("node affinity", pods, &|_, p| {
        let expression = json!({"key": ZONE, "operator": "In", "values": ["zone-1", "zone-2"]});
        p["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] =
            json!([{"matchExpressions": [expression]}]);
    });
    simple("pod affinity", pods.min(nodes * 2), &|_, p| {
        p["metadata"]["labels"] = json!({"color": "green"});
        p["spec"]["affinity"]["podAffinity"][REQUIRED] = json!([term(ZONE, json!({}))]);
    });
    simple("pod anti-affinity", nodes.min(pods), &|_, p| {
        p["metadata"]["labels"] = json!({"color": "green"});
        p["spec"]["affinity"]["podAntiAffinity"][REQUIRED] = json!([term(HOST, json!({}))]);
    });
    simple("preferred pod affinity", pods, &|_, p| {
        p["metadata"]["labels"] = json!({"color": "green"});
        p["spec"]["affinity"]["podAffinity"][PREFERRED] =
            json!([{"weight": 1, "podAffinityTerm": term(HOST, json!({}))}]);
    });
    simple("preferred pod anti-affinity", pods, &|_, p| {
        p["metadata"]["labels"] = json!({"color": "green"});
        p["spec"]["affinity"]["podAntiAffinity"][PREFERRED] =
            json!([{"weight": 1, "podAffinityTerm": term(HOST, json!({}))}]);
    });
    simple("topology spread", pods, &|_, p| {
        p["metadata"]["labels"] = json!({"color": "green"});
        p["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 5, "topologyKey": ZONE,
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"color": "green"}}}]);
    });
    simple("preferred topology spread", pods, &|_, p| {
        p["metadata"]["labels"] = json!({"color": "green"});
        p["spec"]["topologySpreadConstraints"] = json!([
            {"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"color": "green"}}},
            {"maxSkew": 3, "topologyKey": HOST, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"color": "green"}}}]);
    });
    simple("mixed (50 shapes)", pods, &|i, p| {
        p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(format!("{}m", 50 + i % 50));
    });
    simple("daemon set", nodes, &|i, p| {
        let field = json!({"key": "metadata.name", "operator": "In", "values": [format!("node-{i}")]});
        p["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] = json!([{"matchFields": [field]}]);
    });
    for (shape, kind) in
        [("affinity with namespace selector", "podAffinity"), ("anti-affinity with ns selector", "podAntiAffinity")]
    {
        if !wanted(shape) {
            continue;
        }
        let engine = cluster(nodes);
        let count = nodes.min(pods);
        for i in 0..100 {
            engine.namespace_changed(&format!("ns-{i}"), Some([("team".to_owned(), "devops".to_owned())].into()));
        }
        let topology = if kind == "podAffinity" { ZONE } else { HOST };
        let selector = json!({"namespaceSelector": {"matchLabels": {"team": "devops"}}});
        let made = (0..count).map(|i| {
            pod(&format!("p{i}"), &format!("ns-{}", i * 100 / count), |p| {
                p["metadata"]["labels"] = json!({"color": "green"});
                p["spec"]["affinity"][kind][REQUIRED] = json!([term(topology, selector.clone())]);
            })
        });
        report(shape, nodes, count, schedule(&engine, made.collect()));
    }
    if wanted("unschedulable") {
        let engine = cluster(nodes);
        let large = (0..200).map(|i| {
            pod(&format!("large{i}"), "default", |p| {
                p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("9");
            })
        });
        schedule(&engine, large.collect());
        let made = (0..pods).map(|i| pod(&format!("p{i}"), "default", |_| {})).collect();
        report("basic beside 200 unschedulable", nodes, pods, schedule(&engine, made));
    }
    if wanted("preemption") {
        let engine = cluster(nodes);
        let low = (0..nodes * 4).map(|i| {
            pod(&format!("low{i}"), "default", |p| {
                p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("900m");
            })
        });
        schedule(&engine, low.collect());
        let count = 1000.min(nodes);
        let high = (0..count).map(|i| {
            pod(&format!("high{i}"), "default", |p| {
                p["spec"]["priority"] = json!(10);
                p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("3");
            })
        });
        report("preemption", nodes, count, schedule(&engine, high.collect()));
    }
    if wanted("churn") {
        let engine = cluster(nodes);
        let made: Vec<Pod> = (0..pods).map(|i| pod(&format!("p{i}"), "default", |_| {})).collect();
        let start = Instant::now();
        let mut tally = Tally::default();
        for (i, pod) in made.into_iter().enumerate() {
            // Nodes and pods come and go all the while.
            if i % 10 == 0 {
                engine.node_changed(node(nodes + i % 100, i % ZONES));
            } else if i % 10 == 5 {
                engine.node_removed(&format!("node-{}", nodes + (i - 5) % 100));
            }
            if i >= 500 {
                engine.pod_removed(&("default".to_owned(), format!("p{}", i - 500)));
            }
            engine.pod_changed(key(&pod), &Arc::new(pod));
            drain(&engine, &mut tally);
        }
        report("churn", nodes, pods, (tally, start.elapsed()));
    }
    if wanted("volumes") {
        let engine = cluster(nodes);
        let count = pods.min(nodes);
        for i in 0..count {
            let (volume, claim) = (format!("pv-{i}"), format!("pvc-{i}"));
            let host = json!({"key": HOST, "operator": "In", "values": [format!("node-{}", i % nodes)]});
            let real: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": volume},
                "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "claimRef": {"name": claim, "namespace": "default"},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [host]}]}}},
                "status": {"phase": "Bound"}}))
            .unwrap();
            engine.volume_changed(&volume, Some(Arc::new(real)));
            let real: PersistentVolumeClaim = serde_json::from_value(json!({
                "metadata": {"name": claim, "namespace": "default", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
                "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": volume,
                    "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound"}}))
            .unwrap();
            engine.claim_changed(("default".to_owned(), claim), Some(Arc::new(real)));
        }
        let made = (0..count).map(|i| {
            pod(&format!("p{i}"), "default", |p| {
                p["spec"]["volumes"] =
                    json!([{"name": "v", "persistentVolumeClaim": {"claimName": format!("pvc-{i}")}}]);
            })
        });
        report("volumes", nodes, count, schedule(&engine, made.collect()));
    }
}
