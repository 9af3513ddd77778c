//! A cluster whose controllers and scheduler are real, and whose nodes are played by a task.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, DeleteParams, Informer, Key, ListParams, Patch, Queue};
use dhow_controllers::{ControllersConfig, run_all};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::Cluster;

pub struct Cloud {
    pub cluster: Cluster,
    pub dead: Dead,
    shutdown: CancellationToken,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cloud {
    pub async fn start() -> Self {
        Self::start_with(dhow_apiserver::AccessConfig::default()).await
    }

    pub async fn start_with(access: dhow_apiserver::AccessConfig) -> Self {
        Self::start_configured(access, ControllersConfig::default()).await
    }

    pub async fn start_configured(access: dhow_apiserver::AccessConfig, config: ControllersConfig) -> Self {
        let cloud = Self::without_controllers(access).await;
        cloud.run_controllers(config);
        cloud
    }

    pub async fn start_without_controllers() -> Self {
        Self::without_controllers(dhow_apiserver::AccessConfig::default()).await
    }

    /// On a store that the test may look into.
    pub async fn start_on(kv: Arc<dyn dhow_store::Kv>) -> Self {
        let cloud = Self::around(Cluster::start_on(kv).await);
        cloud.run_controllers(ControllersConfig::default());
        cloud
    }

    async fn without_controllers(access: dhow_apiserver::AccessConfig) -> Self {
        Self::around(Cluster::start_with(access).await)
    }

    fn around(cluster: Cluster) -> Self {
        let cloud = Self { cluster, dead: Dead::default(), shutdown: CancellationToken::new() };
        let scheduler = cloud.client("scheduler", "system:kube-scheduler", &[]);
        let settings = dhow_scheduler::SchedulerConfig::default();
        tokio::spawn(dhow_scheduler::run(scheduler, settings, cloud.shutdown.clone()));
        let nodes = cloud.client("nodes", "nodes", &["system:masters"]);
        tokio::spawn(play_nodes(nodes, cloud.dead.clone(), cloud.shutdown.clone()));
        cloud
    }

    pub fn run_controllers(&self, config: ControllersConfig) {
        let client = self.client("controllers", "system:kube-controller-manager", &[]);
        tokio::spawn(run_all(client, config, self.shutdown.clone()));
    }

    pub fn client(&self, file: &str, user: &str, groups: &[&str]) -> Client {
        self.cluster.kubeconfig(file, user, groups);
        Client::from_kubeconfig(&self.cluster.folder.path().join(format!("{file}.kubeconfig")), None).unwrap()
    }

    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.kubectl(args).await.trim().to_owned()
    }

    pub async fn apply(&self, object: Value) {
        let text = object.to_string();
        let result = self.cluster.run("admin", &["apply", "-f", "-"], &text).await;
        result.unwrap_or_else(|error| panic!("apply {text}: {error}"));
    }

    pub async fn node(&self, name: &str, taints: Value) {
        let volumes = json!({"dhow.io/local-volumes-path": "/volumes", "dhow.io/local-volumes-capacity": "100Gi"});
        let metadata = json!({"name": name, "annotations": volumes, "labels": {"kubernetes.io/hostname": name}});
        self.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}})).await;
        let status = json!({"status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"}
        }});
        let path = format!("/api/v1/nodes/{name}/status");
        let (code, answer) = self.cluster.json("PATCH", &path, "application/merge-patch+json", &status).await;
        assert_eq!(code, 200, "{answer}");
    }

    /// Waits for `kubectl get` to print what is wanted.
    pub async fn until(&self, args: &[&str], wanted: &str) {
        let mut last = String::new();
        for _ in 0..150 {
            last = self.kubectl(args).await;
            if last == wanted {
                return;
            }
            // kubectl cannot wait for every kind of text.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{args:?}: {last:?} is not {wanted:?}\n{}", self.kubectl(&["get", "events,pods", "-A"]).await);
    }

    /// What a JSON path gives.
    pub async fn get(&self, what: &str, path: &str) -> String {
        self.kubectl(&["get", what, "-o", &format!("jsonpath={path}")]).await
    }
}

/// Pods run as soon as they are bound; their annotation `play` says how they end, and they go when told to.
async fn play_nodes(client: Client, dead: Dead, shutdown: CancellationToken) {
    let pods = Informer::<Pod>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let queue = Queue::new("nodes");
    let to = queue.clone();
    pods.on_change(move |change| to.add(Key::of(&change.object().metadata)));
    let player = Arc::new(Player { client, pods, dead });
    dhow_client::run_controller(player, queue, 4, shutdown).await;
}

struct Player {
    client: Client,
    pods: Informer<Pod>,
    dead: Dead,
}

/// Machines of which nothing is heard any more.
pub type Dead = Arc<Mutex<HashSet<String>>>;

#[async_trait::async_trait]
impl dhow_client::Reconcile for Player {
    fn name(&self) -> &'static str {
        "nodes"
    }

    async fn reconcile(&self, key: &Key) -> Result<dhow_client::Outcome, dhow_client::Error> {
        let done = Ok(dhow_client::Outcome::Done);
        let Some(pod) = self.pods.get(key) else { return done };
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        // Nothing is heard of a machine that died.
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let is_dead = node.is_some_and(|node| self.dead.lock().contains(node));
        if !bound || is_dead {
            return done;
        }
        let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        let index = annotation("batch.kubernetes.io/job-completion-index");
        let play = annotation("play").unwrap_or_default();
        let ended = |phase: &str, code: i32| {
            let end = json!({"exitCode": code, "finishedAt": Timestamp::now().to_string()});
            json!({"phase": phase, "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
                {"name": "c", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": end}}
            ]})
        };
        let restarts = if play == "crash" { 3 } else { 0 };
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let unready = json!({"phase": "Running", "startTime": Timestamp::now().to_string(),
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": Timestamp::now().to_string()}],
            "containerStatuses": [{"name": "c", "image": "x", "imageID": "", "ready": false, "restartCount": restarts,
                "state": waits, "lastState": {"terminated": {"exitCode": 3}}}]});
        let running = json!({"phase": "Running", "startTime": Timestamp::now().to_string(), "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now().to_string()}]});
        let status = match play.as_str() {
            _ if matches!(phase, "Succeeded" | "Failed") => None,
            _ if pod.metadata.deletion_timestamp.is_some() => Some(ended("Failed", 137)),
            "succeed" => Some(ended("Succeeded", 0)),
            "fail" => Some(ended("Failed", 1)),
            "fail-0" => Some(if index.as_deref() == Some("0") { ended("Failed", 1) } else { ended("Succeeded", 0) }),
            _ if phase == "Running" => None,
            "crash" | "unready" => Some(unready),
            _ => Some(running),
        };
        if let Some(status) = status {
            let patch = Patch::Merge(json!({"status": status}));
            match self.client.patch::<Pod>(key.namespace(), &key.name, patch, Some("status")).await {
                Err(error) if error.is_not_found() => return done,
                other => drop(other?),
            }
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let params =
                DeleteParams { grace_period: Some(0), uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
            match self.client.delete::<Pod>(key.namespace(), &key.name, &params).await {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                other => other?,
            }
        }
        done
    }
}
