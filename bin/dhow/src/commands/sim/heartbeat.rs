//! Keeps simulated nodes alive: nobody else renews their leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhow_client::{Client, Patch};
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{LABEL, objects};

const NAMESPACE: &str = "kube-node-lease";
/// A node is unreachable after 40 seconds of silence.
const EVERY: Duration = Duration::from_secs(20);
const AT_ONCE: usize = 16;

/// Renews the leases of as many nodes as there are by now, until told to stop.
pub fn start(client: Client, nodes: Arc<AtomicUsize>, stop: CancellationToken) {
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(EVERY);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! { _ = beat.tick() => {}, () = stop.cancelled() => return }
            let all = stream::iter(0..nodes.load(Ordering::Relaxed)).map(|number| renew(&client, number));
            let renewing = all.buffer_unordered(AT_ONCE).for_each(|()| async {});
            tokio::select! { () = renewing => {}, () = stop.cancelled() => return }
        }
    });
}

async fn renew(client: &Client, number: usize) {
    let (name, now) = (objects::node_name(number), format!("{:.6}", Timestamp::now()));
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now});
    let patch = Patch::Merge(json!({"spec": spec}));
    let renewed = match client.patch::<Lease>(Some(NAMESPACE), &name, patch, None).await {
        Err(error) if error.is_not_found() => {
            let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": {LABEL: "true"}});
            let lease: Result<Lease, _> = serde_json::from_value::<Lease>(json!({"metadata": metadata, "spec": spec}));
            match lease {
                Ok(lease) => client.create(&lease).await.map(drop),
                Err(_) => Ok(()),
            }
        }
        other => other.map(drop),
    };
    if let Err(error) = renewed {
        tracing::warn!(node = name, %error, "cannot renew the lease of a simulated node");
    }
}
