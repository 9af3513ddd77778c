//! Controllers that keep desired state, one file each, over shared informers and the one reconcile driver.
//!
//! Invariants
//! - A reconciler takes a key and decides from local copies; what it does is idempotent.
//! - A status that would not change is not written.

mod common;
mod daemonset;
mod deployment;
mod endpointslice;
mod garbage;
mod history;
mod namespace;
mod namespace_defaults;
mod node_lifecycle;
mod pod_gc;
mod pods;
mod replicaset;
mod replication_controller;
mod resources;
mod statefulset;

use std::sync::Arc;

use dhow_client::{Client, Informer, ListParams, Object, Queue, Reconcile, controller_of, run_controller};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the controllers need to know about the cluster.
#[derive(Debug, Clone, Default)]
pub struct ControllersConfig {
    /// Published to every namespace, for pods to verify the API server by.
    pub root_ca_pem: String,
}

/// Runs all controllers until `shutdown`.
pub async fn run_all(client: Client, config: ControllersConfig, shutdown: CancellationToken) {
    let pods = informer::<Pod>(&client, &shutdown);
    pods.add_index("node", |pod| common::node_name(pod).map(str::to_owned).into_iter().collect());
    let sets = informer::<ReplicaSet>(&client, &shutdown);
    let deployments = informer::<Deployment>(&client, &shutdown);
    let services = informer::<Service>(&client, &shutdown);
    let slices = informer::<EndpointSlice>(&client, &shutdown);
    let namespaces = informer::<Namespace>(&client, &shutdown);
    let nodes = informer::<Node>(&client, &shutdown);
    let accounts = informer::<ServiceAccount>(&client, &shutdown);
    let scope = ListParams {
        field_selector: Some(format!("metadata.name={}", namespace_defaults::ROOT_CA)),
        ..ListParams::default()
    };
    let maps = Informer::<ConfigMap>::start(client.clone(), scope, None, shutdown.clone());
    let leases =
        Informer::<Lease>::start(client.clone(), ListParams::default(), Some("kube-node-lease"), shutdown.clone());
    let synced = async {
        pods.synced().await;
        sets.synced().await;
        deployments.synced().await;
        services.synced().await;
        slices.synced().await;
        namespaces.synced().await;
        nodes.synced().await;
        leases.synced().await;
        accounts.synced().await;
        maps.synced().await;
    };
    // Deciding from half a copy would create what is already there.
    tokio::select! { () = synced => {}, () = shutdown.cancelled() => return }

    let mut running = JoinSet::new();
    let mut run = |queue: Queue, workers: usize, reconciler: Arc<dyn Reconcile>| {
        running.spawn(run_controller(reconciler, queue, workers, shutdown.clone()));
    };
    let queue = Queue::new("replicaset");
    run(queue.clone(), 8, replicaset::ReplicaSets::new(client.clone(), sets.clone(), pods.clone(), &queue));
    let queue = Queue::new("deployment");
    let reconciler = deployment::Deployments::new(client.clone(), deployments, sets, pods.clone(), &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("endpointslice");
    let reconciler = endpointslice::EndpointSlices::new(client.clone(), services, pods.clone(), slices, &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("namespace");
    let content_gone = namespace::Namespaces::content_gone(&namespaces, &queue);
    run(queue.clone(), 4, namespace::Namespaces::new(client.clone(), namespaces.clone(), &queue));
    let queue = Queue::new("namespace-defaults");
    let ca = config.root_ca_pem;
    let reconciler = namespace_defaults::NamespaceDefaults::new(client.clone(), namespaces, accounts, maps, ca, &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("node-lifecycle");
    let reconciler = node_lifecycle::NodeLifecycle::new(client.clone(), nodes.clone(), &leases, pods.clone(), &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("pod-gc");
    run(queue.clone(), 2, pod_gc::PodGc::new(client.clone(), pods, nodes, &queue));
    let queue = Queue::new("garbage-collector");
    let mut pause = std::time::Duration::from_millis(50);
    let collector = loop {
        match garbage::Garbage::start(client.clone(), queue.clone(), content_gone.clone(), &shutdown).await {
            Ok(collector) => break collector,
            Err(error) => tracing::warn!(%error, "cannot discover kinds for garbage collection; retrying"),
        }
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = shutdown.cancelled() => return }
        pause = (pause * 2).min(std::time::Duration::from_secs(10));
    };
    run(queue, 8, collector);
    while running.join_next().await.is_some() {}
}

/// Starts an informer with the indexes that controllers share.
fn informer<K: Object>(client: &Client, shutdown: &CancellationToken) -> Informer<K> {
    let informer = Informer::<K>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    informer.add_index("namespace", |object| object.metadata().namespace.clone().into_iter().collect());
    informer.add_index("controller", |object| {
        controller_of(object.metadata()).map(|owner| owner.uid.clone()).into_iter().collect()
    });
    informer
}
