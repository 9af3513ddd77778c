//! Nodes played by a task: their leases are renewed, pods bound to them run at once and go when told to.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, DeleteParams, Error, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// As a kubelet renews its own.
const RENEWAL: Duration = Duration::from_secs(10);

fn object<K: serde::de::DeserializeOwned>(value: Value) -> Result<K, Error> {
    serde_json::from_value(value).map_err(|source| Error::Decode { context: "make an object".into(), source })
}

/// Makes ready nodes with these names and room for many pods.
pub async fn register(client: &Client, names: &[String]) -> Result<(), Error> {
    for name in names {
        let node: Node = object(json!({"metadata": {"name": name}}))?;
        client.create(&node).await?;
        let room = json!({"cpu": "64", "memory": "256Gi", "pods": "1000"});
        let status = json!({"status": {
            "conditions": [{"type": "Ready", "status": "True"}], "allocatable": room, "capacity": room
        }});
        client.patch::<Node>(None, name, Patch::Merge(status), Some("status")).await?;
        let lease: Lease = object(json!({
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}
        }))?;
        client.create(&lease).await?;
    }
    Ok(())
}

/// Renews the leases of these nodes, through whichever client works, until `stop`.
pub async fn renew(clients: Vec<Client>, names: Vec<String>, stop: CancellationToken) {
    loop {
        tokio::select! { () = tokio::time::sleep(RENEWAL) => {}, () = stop.cancelled() => return }
        for name in &names {
            let patch = json!({"spec": {"renewTime": format!("{:.6}", Timestamp::now())}});
            for client in &clients {
                let patch = Patch::Merge(patch.clone());
                if client.patch::<Lease>(Some("kube-node-lease"), name, patch, None).await.is_ok() {
                    break;
                }
            }
        }
    }
}

/// Plays the pods of all nodes until `stop`. Several may do so at once.
pub async fn play(client: Client, stop: CancellationToken) {
    let pods = Informer::<Pod>::start(client.clone(), ListParams::default(), None, stop.clone());
    let queue = Queue::new("kubelets");
    let to = queue.clone();
    pods.on_change(move |change| to.add(Key::of(&change.object().metadata)));
    dhow_client::run_controller(Arc::new(Player { client, pods }), queue, 4, stop).await;
}

struct Player {
    client: Client,
    pods: Informer<Pod>,
}

#[async_trait::async_trait]
impl Reconcile for Player {
    fn name(&self) -> &'static str {
        "kubelets"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        if !bound || matches!(phase, "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_none() {
            return Ok(Outcome::Done);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let params =
                DeleteParams { grace_period: Some(0), uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
            return match self.client.delete::<Pod>(key.namespace(), &key.name, &params).await {
                Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Done),
                other => other.map(|()| Outcome::Done),
            };
        }
        let ends = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("ends"));
        let now = Timestamp::now().to_string();
        let status = match (ends, phase) {
            (true, _) => json!({"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]}),
            (false, "Running") => return Ok(Outcome::Done),
            (false, _) => json!({
                "phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]
            }),
        };
        // Of this very pod: another may have its name by now.
        let patch = Patch::Merge(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
        match self.client.patch::<Pod>(key.namespace(), &key.name, patch, Some("status")).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }
}
