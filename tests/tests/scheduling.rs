//! Scheduling through the real API, with kubectl and `dhow sim` as clients. Nodes are only objects.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_client::Client;
use dhow_e2e::{Server, eventually, kubelets, run};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

fn kubectl(server: &Server, args: &[&str]) -> Result<String> {
    run(server.kubectl().args(args))
}

fn get(server: &Server, args: &[&str]) -> Result<Value> {
    let text = kubectl(server, &[&["get", "-o", "json"], args].concat())?;
    serde_json::from_str(&text).context("read kubectl's answer")
}

fn apply(server: &Server, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let mut kubectl = server.kubectl();
    let mut child = kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("no input")?, list.to_string().as_bytes())?;
    ensure!(child.wait()?.success(), "kubectl apply failed");
    Ok(())
}

/// Nodes with so many CPUs that say they are ready, and whose leases are renewed as long as what is returned is there.
#[must_use = "nodes without heartbeats are tainted after a while"]
fn make_nodes(server: &Server, nodes: &[(&str, &str, &str)]) -> Result<Runtime> {
    let beats = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for (name, cpu, zone) in nodes {
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}});
        apply(server, &[node, lease])?;
        let size = json!({"cpu": cpu, "memory": "8Gi", "pods": "110"});
        let ready = json!([{"type": "Ready", "status": "True", "reason": "Simulated", "message": "only an object"}]);
        let status = json!({"status": {"allocatable": size, "capacity": size, "conditions": ready}}).to_string();
        kubectl(server, &["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status])?;
    }
    eventually(SOON, || {
        for (name, ..) in nodes {
            let taints = get(server, &["node", name])?["spec"]["taints"].clone();
            ensure!(taints.as_array().is_none_or(Vec::is_empty), "{name} has taints: {taints}");
        }
        Ok(())
    })?;
    let (config, names) = (server.kubeconfig(), nodes.iter().map(|(name, ..)| (*name).to_owned()).collect());
    let client = beats.block_on(async { Client::from_kubeconfig(&config, None) })?;
    beats.spawn(kubelets::renew(vec![client], names, CancellationToken::new()));
    Ok(beats)
}

fn pod(name: &str, app: &str, class: &str, cpu: &str, more: Value) -> Value {
    let mut spec = json!({
        "containers": [{"name": "c", "image": "only-an-object", "resources": {"requests": {"cpu": cpu}}}],
        "priorityClassName": class, "terminationGracePeriodSeconds": 17,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        spec[name] = value.clone();
    }
    let metadata = json!({"name": name, "namespace": "default", "labels": {"app": app}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

fn class(name: &str, value: i32, policy: &str) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
        "preemptionPolicy": policy})
}

fn bound_to(server: &Server, pod: &str) -> Result<String> {
    eventually(SOON, || {
        let pod = get(server, &["pod", pod])?;
        Ok(pod["spec"]["nodeName"]
            .as_str()
            .with_context(|| format!("{} has no node", pod["metadata"]["name"]))?
            .to_owned())
    })
}

fn condition(pod: &Value, of: &str) -> Value {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|one| one["type"] == of).cloned().unwrap_or_default()
}

fn events(server: &Server, pod: &str, reason: &str) -> Result<Vec<String>> {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let events = get(server, &["events", "--field-selector", &selector])?;
    let messages = events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
    Ok(messages.map(str::to_owned).collect())
}

#[test]
fn preemption_is_written_and_kept_within_budgets() {
    let server = Server::start().unwrap();
    let server = &server;
    let never = "Never";
    let classes = [
        class("low", 10, "PreemptLowerPriority"),
        class("high", 1000, "PreemptLowerPriority"),
        class("polite", 1000, never),
    ];
    apply(server, &classes).unwrap();
    let _alive = make_nodes(server, &[("n1", "2", "a"), ("n2", "2", "b")]).unwrap();
    // Nothing of it is ready, so its budget allows no disruption.
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "guard", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}});
    apply(server, &[budget]).unwrap();
    apply(server, &[pod("guarded", "guarded", "low", "1500m", json!({}))]).unwrap();
    let guarded = bound_to(server, "guarded").unwrap();
    apply(server, &[pod("plain", "plain", "low", "1500m", json!({}))]).unwrap();
    let open = bound_to(server, "plain").unwrap();
    assert_ne!(guarded, open);

    // It may not end others, whatever its priority.
    apply(server, &[pod("polite", "polite", "polite", "1", json!({}))]).unwrap();
    let message = eventually(SOON, || {
        let pod = get(server, &["pod", "polite"])?;
        Ok(condition(&pod, "PodScheduled")["message"].as_str().context("polite is not told")?.to_owned())
    });
    let message = message.unwrap();
    assert!(message.contains("not eligible due to preemptionPolicy=Never"), "{message}");
    assert!(get(server, &["pod", "plain"]).unwrap()["metadata"]["deletionTimestamp"].is_null());

    // The reason is one sentence, in the event and in what kubectl describes.
    let described = kubectl(server, &["describe", "pod", "polite"]).unwrap();
    assert!(
        described.contains("FailedScheduling") && described.contains("0/2 nodes are available: 2 Insufficient cpu."),
        "{described}"
    );
    assert!(described.contains("It can run once a node has 1 of cpu free (the most is 500m on"), "{described}");
    kubectl(server, &["delete", "pod", "polite", "--grace-period=0", "--force"]).unwrap();

    // The pod without a budget ends, with its grace.
    apply(server, &[pod("high", "high", "high", "1", json!({}))]).unwrap();
    let victim = eventually(SOON, || {
        let victim = get(server, &["pod", "plain"])?;
        ensure!(victim["metadata"]["deletionTimestamp"].is_string(), "plain still runs");
        Ok(victim)
    });
    let victim = victim.unwrap();
    assert_eq!(victim["metadata"]["deletionGracePeriodSeconds"], 17);
    let target = condition(&victim, "DisruptionTarget");
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    assert_eq!(target["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    let high = get(server, &["pod", "high"]).unwrap();
    assert_eq!(high["status"]["nominatedNodeName"], json!(open));
    assert!(high["spec"]["nodeName"].is_null(), "the victim is still there");
    let told = format!("Preempted by pod {} on node {open}", high["metadata"]["uid"].as_str().unwrap());
    eventually(SOON, || {
        let messages = events(server, "plain", "Preempted")?;
        ensure!(messages.contains(&told), "{messages:?}");
        Ok(())
    })
    .unwrap();
    // Its room is kept: both do not fit.
    apply(server, &[pod("rival", "rival", "low", "1500m", json!({}))]).unwrap();
    kubectl(server, &["delete", "pod", "plain", "--grace-period=0", "--force"]).unwrap();
    assert_eq!(bound_to(server, "high").unwrap(), open);
    let rival = get(server, &["pod", "rival"]).unwrap();
    assert!(rival["spec"]["nodeName"].is_null(), "{rival}");
    kubectl(server, &["delete", "pod", "rival", "--grace-period=0", "--force"]).unwrap();

    // With no other way, the budget is broken.
    apply(server, &[pod("urgent", "urgent", "high", "1500m", json!({}))]).unwrap();
    eventually(SOON, || {
        let victim = get(server, &["pod", "guarded"])?;
        ensure!(condition(&victim, "DisruptionTarget")["status"] == "True", "guarded still runs");
        Ok(())
    })
    .unwrap();
    kubectl(server, &["delete", "pod", "guarded", "--grace-period=0", "--force"]).unwrap();
    assert_eq!(bound_to(server, "urgent").unwrap(), guarded);
    let done = get(server, &["pod", "urgent"]).unwrap();
    assert_eq!(condition(&done, "PodScheduled")["status"], "True", "{done}");
}

/// A pod that keeps others out of its zone ends, so that one on another node of the zone can run.
#[test]
fn preemption_across_the_nodes_of_a_zone() {
    let server = Server::start().unwrap();
    let server = &server;
    apply(server, &[class("low", 10, "PreemptLowerPriority"), class("high", 1000, "PreemptLowerPriority")]).unwrap();
    let _alive = make_nodes(server, &[("n1", "4", "a"), ("n2", "4", "a")]).unwrap();
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
    apply(server, &[pod("lone", "db", "low", "1", apart)]).unwrap();
    let node = bound_to(server, "lone").unwrap();
    apply(server, &[pod("web", "web", "high", "1", json!({}))]).unwrap();
    eventually(SOON, || {
        let victim = get(server, &["pod", "lone"])?;
        ensure!(victim["metadata"]["deletionTimestamp"].is_string(), "it still runs");
        Ok(())
    })
    .unwrap();
    // Upstream looks for victims on the node itself only, so the promise is for that node.
    assert_eq!(get(server, &["pod", "web"]).unwrap()["status"]["nominatedNodeName"], json!(node));
    kubectl(server, &["delete", "pod", "lone", "--grace-period=0", "--force"]).unwrap();
    bound_to(server, "web").unwrap();
}

#[test]
fn gates_hold_a_pod_until_they_are_gone() {
    let server = Server::start().unwrap();
    let server = &server;
    let _alive = make_nodes(server, &[("n1", "2", "a")]).unwrap();
    let gated = json!({"schedulingGates": [{"name": "example.com/wait"}], "priorityClassName": null});
    apply(server, &[pod("gated", "gated", "", "100m", gated)]).unwrap();
    apply(server, &[pod("free", "free", "", "100m", json!({"priorityClassName": null}))]).unwrap();
    bound_to(server, "free").unwrap();
    let pod = get(server, &["pod", "gated"]).unwrap();
    assert!(pod["spec"]["nodeName"].is_null());
    assert_eq!(condition(&pod, "PodScheduled")["reason"], "SchedulingGated");
    let open = json!([{"op": "remove", "path": "/spec/schedulingGates"}]).to_string();
    kubectl(server, &["patch", "pod", "gated", "--type=json", "-p", &open]).unwrap();
    assert_eq!(bound_to(server, "gated").unwrap(), "n1");
}

fn simulate(server: &Server, args: &[&str]) -> Result<Value> {
    let text = run(server.dhow("sim")?.args(args).args(["-o", "json"]))?;
    serde_json::from_str(&text).context("read the report")
}

/// Volumes go once nobody uses them any more.
fn is_clean(server: &Server) -> Result<()> {
    eventually(SOON, || nothing_is_left(server))
}

fn nothing_is_left(server: &Server) -> Result<()> {
    for kind in ["nodes", "pv", "priorityclasses", "leases -n kube-node-lease"] {
        let args: Vec<&str> =
            ["get", "-o", "name", "-l", "dhow.io/simulated=true"].into_iter().chain(kind.split(' ')).collect();
        let left = kubectl(server, &args)?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
    }
    Ok(())
}

#[test]
fn sim_tells_speed_use_and_what_fits_nowhere() {
    let server = Server::start().unwrap();
    let server = &server;
    // 10 nodes of 4 CPUs, 30 pods of 1: all fit. 50 do not.
    let size = ["--nodes", "10", "--node-cpu", "4", "--pod-cpu", "1"];
    let report = simulate(server, &[&size[..], &["--pods", "30"]].concat()).unwrap();
    assert_eq!((&report["bound"], &report["pending"]), (&json!(30), &json!(0)), "{report}");
    assert!(report["podsPerSecond"].as_f64().unwrap() > 0.0);
    assert!(report["timeToBindMs"]["p50"].as_f64().unwrap() <= report["timeToBindMs"]["p99"].as_f64().unwrap());
    assert!((report["utilisationAtEnd"]["cpu"].as_f64().unwrap() - 0.75).abs() < 1e-9, "{report}");
    assert!(report["memoryBytes"].as_u64().unwrap() > 1 << 20);
    is_clean(server).unwrap();
    let report = simulate(server, &[&size[..], &["--pods", "50", "--namespace", "sim-two"]].concat()).unwrap();
    assert_eq!((&report["bound"], &report["pending"]), (&json!(40), &json!(10)), "{report}");
    assert_eq!(report["unschedulable"][0]["pods"], 10, "{report}");
    let reason = report["unschedulable"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("0/10 nodes are available: 10 Insufficient cpu."), "{reason}");
    is_clean(server).unwrap();
}

#[test]
fn sim_plays_every_shape() {
    let server = Server::start().unwrap();
    let server = &server;
    for shape in [
        "node-affinity",
        "affinity",
        "anti-affinity",
        "spread",
        "preferred-spread",
        "daemonset",
        "unschedulable",
        "volumes",
        "churn",
        "preemption",
    ] {
        let pods = if shape == "preemption" { "4" } else { "10" };
        let namespace = format!("sim-{shape}");
        let args = ["--nodes", "10", "--pods", pods, "--node-cpu", "4", "--shape", shape, "--namespace", &namespace];
        let report = simulate(server, &args).with_context(|| shape.to_owned()).unwrap();
        let bound: usize = pods.parse().unwrap();
        assert_eq!((&report["bound"], &report["pending"]), (&json!(bound), &json!(0)), "{shape}: {report}");
        if shape == "preemption" {
            assert!(report["preempted"].as_u64().unwrap() >= 4, "{report}");
        }
        is_clean(server).unwrap();
    }
}

#[test]
fn sim_replays_a_trace() {
    let server = Server::start().unwrap();
    let server = &server;
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.csv");
    // The second has to wait for the first, which runs for 20 seconds of the trace; the third never fits.
    let text = "name,cpu_milli,memory_mib,creation_time,deletion_time\n\
                a,3000,64,100,120\nb,3000,64,101,121\nc,9000,64,102,110\n";
    std::fs::write(&trace, text).unwrap();
    let size = ["--nodes", "1", "--node-cpu", "4", "--trace", trace.to_str().unwrap()];
    let report = simulate(server, &[&size[..], &["--speed", "10"]].concat()).unwrap();
    assert_eq!((&report["bound"], &report["pending"]), (&json!(2), &json!(1)), "{report}");
    assert!(report["timeToBindMs"]["max"].as_f64().unwrap() >= 1000.0, "{report}");
    assert!((report["utilisationAtMost"]["cpu"].as_f64().unwrap() - 0.75).abs() < 1e-9, "{report}");
    // The scheduler alone comes to the same, without anybody's time.
    let report = simulate(server, &[&size[..], &["--alone"]].concat()).unwrap();
    assert_eq!((&report["bound"], &report["pending"]), (&json!(2), &json!(1)), "{report}");
    assert_eq!(report["waitInTraceMs"]["max"], 19000.0, "{report}");
}
