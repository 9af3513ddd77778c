//! The API server as its clients have it: over HTTPS, on the embedded store and in memory.
//!
//! `bench/api.sh` prints the tables of `docs/benchmarks.md`. Server and clients share the process and the machine; the
//! embedded store lies in TMPDIR. With `memory` or `definitions` as an argument only that is measured.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "../tests/harness/webhook.rs"]
mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dhow_apiserver::AccessConfig;
use dhow_client::Client;
use dhow_store::{FjallKv, Kv, MemoryKv};
use harness::Cluster;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use webhook::{Hook, Say};

const PODS: usize = 10_000;
const WATCHERS: usize = 1000;
/// Watches that share a connection.
const SHARING: usize = 100;
const MEASURE: Duration = Duration::from_secs(5);

/// A pod such as a Deployment makes.
fn pod(name: &str) -> Bytes {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {
            "app.kubernetes.io/name": "shop", "app.kubernetes.io/component": "web", "pod-template-hash": "5d69b8c7f9"}},
        "spec": {"containers": [{
            "name": "web", "image": "registry.example.com/shop/web:1.27.3",
            "ports": [{"containerPort": 8080, "name": "http"}],
            "env": [{"name": "DATABASE", "value": "postgres://db.default.svc/shop"},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}}}]},
    });
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    pod.to_string().into()
}

async fn send(client: &Client, method: Method, path: &str, body: Bytes) -> Bytes {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json").body(body);
    let answer = client.request(request.unwrap()).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
    body
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Resident set of this process in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn client(cluster: &Cluster) -> Client {
    Client::from_kubeconfig(&cluster.folder.path().join("admin.kubeconfig"), None).unwrap()
}

/// Pods created per second by so many clients that share a connection, with the latencies.
async fn creates(cluster: &Cluster, writers: usize, prefix: &str) -> (f64, Duration, Duration) {
    let client = client(cluster);
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (client, prefix) = (client.clone(), prefix.to_owned());
            tokio::spawn(async move {
                let mut times = Vec::new();
                for n in 0.. {
                    let before = Instant::now();
                    if before - start > MEASURE {
                        break;
                    }
                    let body = pod(&format!("{prefix}-{writer}-{n}"));
                    send(&client, Method::POST, "/api/v1/namespaces/default/pods", body).await;
                    times.push(before.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort();
    (rate, percentile(&times, 50), percentile(&times, 99))
}

/// Brings the number of pods to [`PODS`], and returns the growth of memory per pod and a pod's size as JSON.
async fn fill(cluster: &Cluster) -> (u64, usize) {
    let client = client(cluster);
    let before = resident();
    for n in 0..PODS / 50 {
        let posts = (0..50).map(|i| {
            let (client, body) = (client.clone(), pod(&format!("list-{n}-{i}")));
            async move { send(&client, Method::POST, "/api/v1/namespaces/default/pods", body).await }
        });
        futures::future::join_all(posts).await;
    }
    let grown = resident().saturating_sub(before) / PODS as u64;
    let one = send(&client, Method::GET, "/api/v1/namespaces/default/pods/list-0-0", Bytes::new()).await;
    (grown, one.len())
}

async fn lists(cluster: &Cluster) -> (Duration, Duration, usize) {
    let client = client(cluster);
    let mut times = Vec::new();
    let mut size = 0;
    for _ in 0..30 {
        let before = Instant::now();
        size = send(&client, Method::GET, "/api/v1/pods", Bytes::new()).await.len();
        times.push(before.elapsed());
    }
    times.sort();
    (percentile(&times, 50), percentile(&times, 99), size)
}

/// From a write until the last of all watchers has it, and events delivered per second in a burst.
async fn fan_out(cluster: &Cluster) -> (Duration, f64) {
    let (arrived, mut arrivals) = mpsc::unbounded_channel::<usize>();
    let mut tasks = Vec::new();
    for _ in 0..WATCHERS / SHARING {
        let client = client(cluster);
        for _ in 0..SHARING {
            let path =
                "/api/v1/namespaces/default/configmaps?watch=true&resourceVersion=0&fieldSelector=metadata.name!=none";
            let mut body = client.open(path).await.unwrap();
            let arrived = arrived.clone();
            tasks.push(tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let Ok(data) = frame.into_data() else { continue };
                    let events = data.iter().filter(|byte| **byte == b'\n').count();
                    let _ = arrived.send(events);
                }
            }));
        }
    }
    let client = client(cluster);
    let write = async |n: usize| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "event-"},
            "data": {"n": n.to_string(), "text": "x".repeat(600)}});
        let body: Value = map;
        send(&client, Method::POST, "/api/v1/namespaces/default/configmaps", body.to_string().into()).await;
    };
    let mut wait = async |mut expected: usize| {
        while expected > 0 {
            expected = expected.saturating_sub(arrivals.recv().await.unwrap());
        }
    };
    let mut times = Vec::new();
    for n in 0..50 {
        let before = Instant::now();
        write(n).await;
        wait(WATCHERS).await;
        times.push(before.elapsed());
    }
    times.sort();
    let burst = 200;
    let before = Instant::now();
    for n in 0..burst {
        write(n).await;
    }
    wait(WATCHERS * burst).await;
    let rate = (WATCHERS * burst) as f64 / before.elapsed().as_secs_f64();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    (percentile(&times, 50), rate)
}

/// How long it takes until so many definitions are established whose kinds are of ten groups.
async fn definitions(cluster: &Cluster, count: usize) -> Duration {
    let client = client(cluster);
    let definition = |n: usize| {
        let (group, plural) = (format!("g{}.example.com", n % 10), format!("things{n}"));
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": "Namespaced",
                "names": {"plural": plural, "singular": format!("thing{n}"), "kind": format!("Thing{n}"), "listKind": format!("Thing{n}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                    "properties": {"spec": {"type": "object", "properties": (0..40).map(|field| (format!("field{field}"),
                        json!({"type": "string", "description": "x".repeat(100)}))).collect::<serde_json::Map<_, _>>()}}}}}]}})
    };
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let mut watch = client.open(&format!("{path}?watch=true&resourceVersion=0")).await.unwrap();
    let before = Instant::now();
    let posting = tokio::spawn(async move {
        for n in 0..count {
            send(&client, Method::POST, path, definition(n).to_string().into()).await;
        }
    });
    let mut established = 0;
    while established < count {
        let Ok(data) = watch.frame().await.unwrap().unwrap().into_data() else { continue };
        established += String::from_utf8_lossy(&data).matches("\"reason\":\"InitialNamesAccepted\"").count();
    }
    posting.await.unwrap();
    before.elapsed()
}

/// `fresh` is the first of a process: later ones fill memory that the ones before gave back, so theirs is not shown.
async fn measure(name: &str, kv: Arc<dyn Kv>, fresh: bool) -> String {
    eprintln!("measuring {name}");
    let cluster = Cluster::open(kv, AccessConfig::default()).await;
    send(
        &client(&cluster),
        Method::POST,
        "/api/v1/namespaces/default/serviceaccounts",
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}).to_string().into(),
    )
    .await;
    let (memory, size) = fill(&cluster).await;
    if std::env::args().any(|arg| arg == "memory") {
        cluster.shutdown.cancel();
        return format!("| {name} | {memory} ({size}) |");
    }
    let (list_50, list_99, bytes) = lists(&cluster).await;
    let (latency, events) = fan_out(&cluster).await;
    let many = creates(&cluster, 64, "many").await;
    let one = creates(&cluster, 1, "one").await;
    cluster.shutdown.cancel();
    let memory = if fresh { memory.to_string() } else { "–".to_owned() };
    format!(
        "| {name} | {:.0} ({:.1?}, {:.1?}) | {:.2?}, {:.2?} | {list_50:.1?}, {list_99:.1?} ({:.1} MiB) | {latency:.1?} | {events:.0} \
         | {memory} ({size}) |",
        many.0,
        many.1,
        many.2,
        one.1,
        one.2,
        bytes as f64 / (1 << 20) as f64,
    )
}

/// Policies that all look at every pod.
const POLICIES: usize = 20;

async fn post(cluster: &Cluster, path: &str, object: Value) {
    send(&client(cluster), Method::POST, path, object.to_string().into()).await;
}

/// The write path with admission in the way: one row.
async fn admission(name: &str, policies: usize, webhook: bool, seats: usize) -> String {
    eprintln!("measuring {name}");
    let access = AccessConfig { seats: Some(seats), ..AccessConfig::default() };
    let cluster = Cluster::open(Arc::new(MemoryKv::new()), access).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    post(&cluster, "/api/v1/namespaces/default/serviceaccounts", account).await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let pods =
        json!([{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    for n in 0..policies {
        let name = format!("policy-{n}");
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {"matchConstraints": {"resourceRules": pods}, "validations": [
                {"expression": "object.spec.containers.all(c, c.image.startsWith('registry.example.com/'))"},
                {"expression": "object.spec.containers.all(c, has(c.resources.limits) && 'memory' in c.resources.limits)"},
                {"expression": "!has(object.spec.hostNetwork) || !object.spec.hostNetwork"},
            ]},
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        post(&cluster, &format!("{group}/validatingadmissionpolicies"), policy).await;
        post(&cluster, &format!("{group}/validatingadmissionpolicybindings"), binding).await;
    }
    if webhook {
        let hook = Hook::serve(&cluster, |_, _| Say::Answer(json!({"allowed": true}))).await;
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "w"},
            "webhooks": [{"name": "w.example.com", "rules": pods, "clientConfig": hook.client_config(&cluster, "/"),
                "sideEffects": "None", "admissionReviewVersions": ["v1"]}],
        });
        post(&cluster, &format!("{group}/validatingwebhookconfigurations"), configuration).await;
    }
    let many = creates(&cluster, 64, "many").await;
    let one = creates(&cluster, 1, "one").await;
    cluster.shutdown.cancel();
    format!("| {name} | {:.0} ({:.1?}, {:.1?}) | {:.2?}, {:.2?} |", many.0, many.1, many.2, one.1, one.2)
}

async fn write_path() {
    let rows = [
        admission("nothing", 0, false, 0).await,
        admission("fairness", 0, false, 600).await,
        admission("fairness, 20 policies", POLICIES, false, 600).await,
        admission("fairness, a webhook", 0, true, 600).await,
        admission("fairness, 20 policies, a webhook", POLICIES, true, 600).await,
    ];
    println!("\n| in the way of a write | creates/s, 64 clients (p50, p99) | one client p50, p99 |\n|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
}

fn main() {
    // Under `cargo test` a bench has only to build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if std::env::args().any(|arg| arg == "admission") {
        return runtime.block_on(write_path());
    }
    runtime.block_on(async {
        if std::env::args().any(|arg| arg == "definitions") {
            let cluster = Cluster::open(Arc::new(MemoryKv::new()), AccessConfig::default()).await;
            println!("500 definitions: {:.2?}", definitions(&cluster, 500).await);
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let embedded: Arc<dyn Kv> = Arc::new(FjallKv::open(folder.path().join("store")).unwrap());
        if std::env::args().any(|arg| arg == "memory") {
            println!("| store | memory per pod (its JSON) |\n|---|---|\n{}", measure("embedded", embedded, true).await);
            return;
        }
        let rows = [measure("embedded", embedded, true).await, measure("memory", Arc::new(MemoryKv::new()), false).await];
        println!(
            "| store | creates/s, 64 clients (p50, p99) | one client p50, p99 | LIST of 10k p50, p99 (size) | one event to 1,000 \
             watchers | events/s to 1,000 watchers | memory per pod (its JSON) |\n|---|---|---|---|---|---|---|"
        );
        rows.iter().for_each(|row| println!("{row}"));
        write_path().await;
    });
}
