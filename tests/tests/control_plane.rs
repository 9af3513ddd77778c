//! Everything that needs no container to run: the control plane, network and life of a cloud, with the real clients.
//!
//! One test, because each step works on what the one before left, on one cloud. Its pods name an image that nobody
//! can pull, so they are scheduled and stay as they are.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, in_turn, run};

const SOON: Duration = Duration::from_secs(10);

type Step = fn(&Host) -> Result<()>;

#[test]
fn a_cloud_without_containers() {
    let host = Host::new().unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("refuses a second start", refuses_a_second_start),
        ("shows nodes and kinds", shows_nodes_and_kinds),
        ("reconciles a deployment", reconciles_a_deployment),
        ("rolls back", rolls_back),
        ("collects garbage", collects_garbage),
        ("empties a namespace", empties_a_namespace),
        ("reaches services", reaches_services),
        ("answers dns", answers_dns),
        ("reaches the node agent", reaches_the_node_agent),
        ("keeps state", keeps_state),
        ("survives kill", survives_kill),
        ("purges", purges),
    ];
    in_turn(steps, |step| step(&host)).unwrap();
}

/// `count` pods of one Deployment in namespace `demo`, behind a Service.
fn web(count: u32) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: demo}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: demo}}
spec:
  replicas: {count}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: web, image: "image.invalid/web:1", ports: [{{containerPort: 80, name: http}}]}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: demo}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}
"#
    )
}

/// A Service that leads to port 8000 of the host.
const MANUAL: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: manual, namespace: default}
spec:
  type: NodePort
  ports: [{port: 80, targetPort: 8000, nodePort: 30081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: manual-1, namespace: default, labels: {kubernetes.io/service-name: manual}}
addressType: IPv4
endpoints: [{addresses: ["HOST_IP"], conditions: {ready: true}}]
ports: [{port: 8000, protocol: TCP}]
"#;

const HELD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: held, namespace: demo, finalizers: [example.com/hold]}
"#;

fn starts(host: &Host) -> Result<()> {
    let begin = Instant::now();
    host.dhow(&["up"])?;
    eprintln!("start to Ready: {} ms", begin.elapsed().as_millis());
    let nodes = host.kubectl(&["get", "nodes", "-o", "wide"])?;
    ensure!(nodes.contains(" Ready ") && nodes.contains(HOST_IP) && nodes.contains("dhow://"), "{nodes}");
    let status = host.dhow(&["status"])?;
    ensure!(status.contains("running (pid") && status.contains("Ready"), "{status}");
    Ok(())
}

fn refuses_a_second_start(host: &Host) -> Result<()> {
    host.dhow(&["up"]).context("a second up is no failure")?;
    // Another cloud on the same ports is told which, and leaves nothing behind.
    let elsewhere = host.folder().join("elsewhere");
    let mut up = host.dhow_command(&["up"]);
    let output = up.env("DHOW_DATA_DIR", elsewhere.join("data")).env("DHOW_RUN_DIR", elsewhere.join("run")).output()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{}: {message}", output.status);
    ensure!(message.contains("port 6443") && message.contains("--api-port"), "{message}");
    ensure!(!elsewhere.exists(), "a refused start left {}", elsewhere.display());
    // The data folder belongs to one daemon.
    let mut serve = host.dhow_command(&["serve"]);
    let output = serve.env("DHOW_RUN_DIR", elsewhere.join("run")).output()?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(message.contains("another dhow already uses"), "{}: {message}", output.status);
    Ok(())
}

fn shows_nodes_and_kinds(host: &Host) -> Result<()> {
    let kinds = host.kubectl(&["api-resources"])?;
    for kind in ["deployments", "endpointslices", "clusterroles", "leases"] {
        ensure!(kinds.contains(kind), "api-resources lacks {kind}: {kinds}");
    }
    let node = host.kubectl(&["describe", "node", "e2e"])?;
    ensure!(node.contains("KubeletReady") && node.contains("10.42.0.0/24"), "{node}");
    Ok(())
}

fn reconciles_a_deployment(host: &Host) -> Result<()> {
    host.apply(&web(2))?;
    let scheduled = |count: usize| {
        eventually(SOON, || {
            let pods = host.get(&["-n", "demo", "get", "pods"])?;
            let pods = pods["items"].as_array().context("no list")?;
            ensure!(pods.len() == count, "{} pods", pods.len());
            ensure!(pods.iter().all(|pod| pod["spec"]["nodeName"] == "e2e"), "a pod is not scheduled");
            ensure!(pods.iter().all(|pod| pod["status"]["phase"] == "Pending"), "a pod is not pending");
            Ok(())
        })
    };
    scheduled(2)?;
    host.kubectl(&["-n", "demo", "scale", "deploy/web", "--replicas=4"])?;
    scheduled(4)?;
    host.kubectl(&["-n", "demo", "scale", "deploy/web", "--replicas=3"])?;
    scheduled(3)?;
    let described = host.kubectl(&["-n", "demo", "describe", "deploy,pods"])?;
    for expected in ["Scaled up replica set", "Successfully assigned demo/web-", "ReplicaSet/web-"] {
        ensure!(described.contains(expected), "describe lacks {expected:?}: {described}");
    }
    eventually(SOON, || {
        let slices = host.get(&["-n", "demo", "get", "endpointslices", "-l", "kubernetes.io/service-name=web"])?;
        ensure!(slices["items"].as_array().is_some_and(|all| all.len() == 1), "{slices}");
        Ok(())
    })
}

fn rolls_back(host: &Host) -> Result<()> {
    let image = |wanted: &'static str| {
        eventually(SOON, || {
            let sets = host.get(&["-n", "demo", "get", "rs"])?;
            let newest = sets["items"].as_array().context("no list")?.iter().max_by_key(|set| {
                let revision = &set["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
                revision.as_str().and_then(|text| text.parse::<u32>().ok())
            });
            let newest = newest.context("no replica set")?;
            let image = &newest["spec"]["template"]["spec"]["containers"][0]["image"];
            ensure!(image == wanted && newest["spec"]["replicas"] != 0, "{image}, {}", newest["spec"]["replicas"]);
            Ok(())
        })
    };
    image("image.invalid/web:1")?;
    host.kubectl(&["-n", "demo", "set", "image", "deploy/web", "web=image.invalid/web:2"])?;
    image("image.invalid/web:2")?;
    host.kubectl(&["-n", "demo", "rollout", "undo", "deploy/web"])?;
    image("image.invalid/web:1")?;
    let history = host.kubectl(&["-n", "demo", "rollout", "history", "deploy/web"])?;
    ensure!(history.contains("\n2 ") && history.contains("\n3 "), "{history}");
    Ok(())
}

fn collects_garbage(host: &Host) -> Result<()> {
    for mode in ["background", "foreground", "orphan"] {
        host.apply(&web(2))?;
        let left = |kind: &str| -> Result<usize> {
            Ok(host.get(&["-n", "demo", "get", kind])?["items"].as_array().context("no list")?.len())
        };
        eventually(SOON, || {
            let pods = left("pods")?;
            ensure!(pods >= 2, "{pods} pods");
            Ok(())
        })?;
        host.kubectl(&["-n", "demo", "delete", "deploy", "web", &format!("--cascade={mode}"), "--timeout=30s"])?;
        match mode {
            "background" => eventually(SOON, || {
                let (sets, pods) = (left("rs")?, left("pods")?);
                ensure!(sets == 0 && pods == 0, "{sets} sets and {pods} pods after {mode} deletion");
                Ok(())
            })?,
            // The owner went last, so nothing is there any more.
            "foreground" => ensure!(left("rs")? == 0 && left("pods")? == 0, "dependents outlived their owner"),
            _ => {
                ensure!(left("rs")? == 1 && left("pods")? == 2, "orphans were deleted");
                host.kubectl(&["-n", "demo", "delete", "rs", "--all", "--timeout=30s"])?;
            }
        }
    }
    Ok(())
}

fn empties_a_namespace(host: &Host) -> Result<()> {
    host.apply(&format!("{}---{HELD}", web(2)))?;
    host.kubectl(&["delete", "namespace", "demo", "--wait=false"])?;
    eventually(SOON, || {
        let pods = host.kubectl(&["-n", "demo", "get", "pods,deploy,rs,services", "-o", "name"])?;
        ensure!(pods.trim().is_empty(), "left: {pods}");
        Ok(())
    })?;
    let phase = host.kubectl(&["get", "namespace", "demo", "-o", "jsonpath={.status.phase}"])?;
    ensure!(phase == "Terminating", "{phase}, although a finalizer holds an object in it");
    host.kubectl(&["-n", "demo", "patch", "cm", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":[]}}"#])?;
    host.kubectl(&["wait", "--for=delete", "namespace/demo", "--timeout=10s"])?;
    Ok(())
}

fn reaches_services(host: &Host) -> Result<()> {
    let version = host.curl(&["--insecure", "https://10.43.0.1/version"])?;
    ensure!(version.contains("gitVersion"), "{version}");
    host.apply(&MANUAL.replace("HOST_IP", HOST_IP))?;
    let mut backend = host.serve("served by the backend", 8000)?;
    let address = host.kubectl(&["get", "service", "manual", "-o", "jsonpath={.spec.clusterIP}"])?;
    let reached = (|| {
        for url in [format!("http://{address}/"), format!("http://{HOST_IP}:30081/"), "http://127.0.0.1:30081/".into()]
        {
            let answer = eventually(SOON, || host.curl(&[&url]))?;
            ensure!(answer.contains("served by the backend"), "{url}: {answer}");
        }
        Ok(())
    })();
    backend.kill()?;
    backend.wait()?;
    reached?;
    host.kubectl(&["delete", "service/manual", "endpointslice/manual-1"])?;
    eventually(SOON, || {
        let rules = run(host.command("nft").args(["list", "table", "inet", "dhow"]))?;
        ensure!(!rules.contains("30081"), "the node port outlived its service");
        Ok(())
    })
}

fn answers_dns(host: &Host) -> Result<()> {
    for (server, transport) in [("@10.42.0.1", "+notcp"), ("@10.43.0.10", "+notcp"), ("@10.43.0.10", "+tcp")] {
        let name = "kubernetes.default.svc.cluster.local";
        let answer = run(host.command("dig").args(["+short", "+time=2", transport, server, name]))?;
        ensure!(answer.trim() == "10.43.0.1", "{server} {transport}: {answer}");
    }
    Ok(())
}

fn reaches_the_node_agent(host: &Host) -> Result<()> {
    let health = host.kubectl(&["get", "--raw", "/api/v1/nodes/e2e/proxy/healthz"])?;
    ensure!(health.trim() == "ok", "{health}");
    // Nobody but the API server and administrators may ask it.
    let url = format!("https://{HOST_IP}:10250/pods");
    let answer = run(host.command("curl").args(["-sk", "-w", "%{http_code}", &url]))?;
    ensure!(answer.ends_with("401"), "{answer}");
    Ok(())
}

fn keeps_state(host: &Host) -> Result<()> {
    host.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {a: b}\n")?;
    let uid = || host.kubectl(&["get", "cm", "kept", "-o", "jsonpath={.metadata.uid}"]);
    let before = uid()?;
    host.dhow(&["down"])?;
    ensure!(host.kubectl(&["get", "nodes"]).is_err(), "the API answers after down");
    host.dhow(&["down"]).context("a second down is no failure")?;
    host.dhow(&["up"])?;
    ensure!(uid()? == before, "another object after a restart");
    Ok(())
}

fn survives_kill(host: &Host) -> Result<()> {
    host.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: acknowledged}\n")?;
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"])?;
    host.kubectl(&["get", "cm", "acknowledged"])?;
    let nodes = host.kubectl(&["get", "nodes"])?;
    ensure!(nodes.contains(" Ready "), "{nodes}");
    // The controllers work again, too.
    host.apply(&web(1))?;
    eventually(SOON, || {
        let pods = host.kubectl(&["-n", "demo", "get", "pods", "-o", "wide"])?;
        ensure!(pods.contains("e2e"), "{pods}");
        Ok(())
    })
}

fn purges(host: &Host) -> Result<()> {
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()?;
    let config = std::fs::read_to_string(host.kubeconfig())?;
    ensure!(!config.contains("certificate-authority-data"), "the context is left in the kubeconfig");
    Ok(())
}
