//! What a cluster of 1,000 idle pods asks of its store: operations in a minute, with controllers and scheduler running.
//!
//! `bench/idle.sh` prints the table of `docs/benchmarks.md`. Nodes are played: their pods run, and their leases are
//! renewed as kubelets do, which are the only writes to be seen.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dhow_apiserver::{AccessConfig, UserInfo};
use dhow_client::leader::{self, LeaseSpec, LeaseTiming};
use dhow_client::{Client, Informer, ListParams, Object, Patch};
use dhow_controllers::{ControllersConfig, run_all};
use dhow_scheduler::SchedulerConfig;
use dhow_store::{
    Error, Kv, LeaseId, MemoryKv, RangeRequest, RangeResponse, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NODES: usize = 10;
const DEPLOYMENTS: usize = 10;
const PODS: usize = 1000;
/// As kubelets renew theirs.
const RENEWAL: Duration = Duration::from_secs(10);
/// So long without a write but those of leases means that all is settled.
const SETTLED: Duration = Duration::from_secs(15);
const MEASURE: Duration = Duration::from_secs(60);

/// Counts what reaches the store.
struct Counting {
    inner: MemoryKv,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    /// Those of Lease objects among them.
    lease_writes: AtomicU64,
    reads: AtomicU64,
    /// Reads of nothing but the revision.
    revisions: AtomicU64,
    others: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counts {
    fn now(&self) -> [u64; 5] {
        [&self.writes, &self.lease_writes, &self.reads, &self.revisions, &self.others]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

#[async_trait::async_trait]
impl Kv for Counting {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        count(&self.counts.reads);
        self.inner.range(request).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        count(&self.counts.writes);
        if txn.compare.iter().all(|compare| compare.key.starts_with(b"/registry/coordination.k8s.io/leases/")) {
            count(&self.counts.lease_writes);
        } else if std::env::var_os("DHOW_BENCH_VERBOSE").is_some() {
            eprintln!("writes {:?}", txn.compare);
        }
        self.inner.txn(txn).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        count(&self.counts.others);
        self.inner.watch(request).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        count(&self.counts.others);
        self.inner.compact(revision).await
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        count(&self.counts.revisions);
        self.inner.current_revision().await
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        count(&self.counts.others);
        self.inner.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        count(&self.counts.others);
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        count(&self.counts.others);
        self.inner.lease_revoke(id).await
    }
}

fn object<K: Object>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// How often a thread of the runtime went to sleep, and so was woken.
fn wakes() -> u64 {
    let metrics = tokio::runtime::Handle::current().metrics();
    (0..metrics.num_workers()).map(|worker| metrics.worker_park_count(worker)).sum()
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

async fn fill(client: &Client) {
    let spec = json!({"containers": [{"name": "c", "image": "x"}]});
    for number in 0..NODES {
        let name = format!("n{number}");
        client.create::<Node>(&object(json!({"metadata": {"name": name}}))).await.unwrap();
        let room = json!({"cpu": "64", "memory": "256Gi", "pods": "500"});
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        let status = Patch::Merge(json!({"status": {"conditions": conditions, "allocatable": room, "capacity": room}}));
        client.patch::<Node>(None, &name, status, Some("status")).await.unwrap();
        let lease =
            json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name}});
        client.create::<Lease>(&object(lease)).await.unwrap();
    }
    for number in 0..DEPLOYMENTS {
        let labels = json!({"app": format!("d{number}")});
        let deployment = json!({
            "metadata": {"name": format!("d{number}"), "namespace": "default"},
            "spec": {"replicas": PODS / DEPLOYMENTS, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec}}
        });
        client.create::<Deployment>(&object(deployment)).await.unwrap();
    }
}

/// Lets every pod run that is bound.
async fn play(client: Client, stop: CancellationToken) {
    let (sender, mut bound) = tokio::sync::mpsc::unbounded_channel();
    let pods = Informer::<Pod>::start(client.clone(), ListParams::default(), None, stop.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let waits = pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Running");
        if waits && pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
            let _ = sender.send(pod.metadata.name.clone().unwrap());
        }
    });
    loop {
        let name = tokio::select! { name = bound.recv() => name.unwrap(), () = stop.cancelled() => return };
        let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now().to_string()}]);
        let status = Patch::Merge(json!({"status": {"phase": "Running", "conditions": ready}}));
        client.patch::<Pod>(Some("default"), &name, status, Some("status")).await.unwrap();
    }
}

async fn renew(client: Client, stop: CancellationToken) {
    loop {
        tokio::select! { () = tokio::time::sleep(RENEWAL) => {}, () = stop.cancelled() => return }
        for number in 0..NODES {
            let patch = Patch::Merge(json!({"spec": {"renewTime": format!("{:.6}", Timestamp::now())}}));
            client.patch::<Lease>(Some("kube-node-lease"), &format!("n{number}"), patch, None).await.unwrap();
        }
    }
}

async fn measure(elected: bool) {
    let counts = Arc::<Counts>::default();
    let kv = Arc::new(Counting { inner: MemoryKv::new(), counts: counts.clone() });
    let cluster = harness::Cluster::open(kv, AccessConfig::default()).await;
    let stop = CancellationToken::new();
    let client = |user: &str, groups: &[&str]| cluster.server.client(UserInfo::new(user, groups));
    let (controllers, scheduler) =
        (client("system:kube-controller-manager", &[]), client("system:kube-scheduler", &[]));
    let election = controllers.clone();
    let work = move |stop: CancellationToken| {
        let controllers = run_all(controllers.clone(), ControllersConfig::default(), stop.clone());
        let scheduler = dhow_scheduler::run(scheduler.clone(), SchedulerConfig::default(), stop);
        async move {
            tokio::join!(controllers, scheduler);
        }
    };
    if elected {
        let spec = LeaseSpec {
            namespace: "kube-system".into(),
            name: "dhow-server".into(),
            identity: "bench".into(),
            timing: LeaseTiming::default(),
        };
        tokio::spawn(leader::lead(election, spec, stop.clone(), work));
    } else {
        tokio::spawn(work(stop.clone()));
    }
    let admin = client("admin", &["system:masters"]);
    tokio::spawn(play(admin.clone(), stop.clone()));
    fill(&admin).await;
    tokio::spawn(renew(admin.clone(), stop.clone()));
    // Settled is when nothing but leases was written for a while, and all pods run.
    let other_writes = || counts.now()[0] - counts.now()[1];
    loop {
        let before = other_writes();
        tokio::time::sleep(SETTLED).await;
        let pods = admin.list::<Pod>(Some("default"), &ListParams::default()).await.unwrap().items;
        let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let running = pods.iter().filter(runs).count();
        eprintln!("{running} of {PODS} pods run, {} writes", other_writes() - before);
        if running == PODS && other_writes() == before {
            break;
        }
    }
    let (before, burnt, woken) = (counts.now(), cpu(), wakes());
    tokio::time::sleep(MEASURE).await;
    let (after, burnt) = (counts.now(), (cpu() - burnt) / MEASURE.as_secs_f64() * 100.0);
    let woken = wakes() - woken;
    let [writes, leases, reads, revisions, others] = std::array::from_fn(|i| after[i] - before[i]);
    let store = if elected { "shared, one leader" } else { "embedded" };
    println!(
        "| {store} | {leases} | {} | {reads} | {revisions} | {others} | {woken} | {burnt:.2} % |",
        writes - leases
    );
    stop.cancel();
}

#[tokio::main]
async fn main() {
    println!("| store | lease writes | other writes | reads | revision checks | others | wake-ups | CPU |");
    println!("|---|---|---|---|---|---|---|---|");
    measure(false).await;
    measure(true).await;
}
