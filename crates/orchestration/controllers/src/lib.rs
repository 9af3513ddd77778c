//! Controllers that keep desired state, one file each, over shared informers and the one reconcile driver.
//!
//! Invariants
//! - A reconciler takes a key and decides from local copies; what it does is idempotent.
//! - A status that would not change is not written.

pub mod autoscale;
mod cluster_role;
mod common;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoint_mirror;
mod endpoints;
mod endpointslice;
mod garbage;
mod history;
mod informers;
mod job;
mod load_balancer;
mod namespace;
mod namespace_defaults;
mod node_lifecycle;
mod pod_gc;
mod pods;
mod pv_protection;
mod pvc_protection;
mod replicaset;
mod replication_controller;
mod resources;
mod statefulset;
mod volume;

use std::sync::Arc;

use dhow_client::{Client, Queue, Reconcile, run_controller};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use informers::Informers;
pub use load_balancer::{LoadBalancerConfig, Pool, PoolConfig};

/// What the controllers need to know about the cluster.
#[derive(Debug, Clone, Default)]
pub struct ControllersConfig {
    /// Published to every namespace, for pods to verify the API server by.
    pub root_ca_pem: String,
    /// Addresses for load balancers; without any they get those of the nodes.
    pub balancer_pools: Vec<Pool>,
}

/// Runs all controllers until `shutdown`.
pub async fn run_all(client: Client, config: ControllersConfig, shutdown: CancellationToken) {
    let all = Informers::start(&client, &shutdown);
    // Deciding from half a copy would create what is already there.
    tokio::select! { () = all.synced() => {}, () = shutdown.cancelled() => return }

    let mut running = JoinSet::new();
    let mut run = |queue: Queue, workers: usize, reconciler: Arc<dyn Reconcile>| {
        running.spawn(run_controller(reconciler, queue, workers, shutdown.clone()));
    };
    workloads(&client, &all, &mut run);
    services_and_budgets(&client, &all, &mut run);
    let queue = Queue::new("load-balancer");
    let (services, nodes, slices) = (all.services.clone(), all.nodes.clone(), all.slices.clone());
    let pools = config.balancer_pools.clone();
    let reconciler = load_balancer::LoadBalancers::new(client.clone(), services, nodes, slices, pools, &queue);
    run(queue, 1, reconciler);
    let namespaces_queue = Queue::new("namespace");
    let content_gone = namespace::Namespaces::content_gone(&all.namespaces, &namespaces_queue);
    let reconciler = namespace::Namespaces::new(client.clone(), all.namespaces.clone(), &namespaces_queue);
    run(namespaces_queue, 4, reconciler);
    cluster(&client, config, all, &mut run);
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

/// Starts one controller: its queue, how many keys at a time, and what is done for each.
type Run<'a> = &'a mut dyn FnMut(Queue, usize, Arc<dyn Reconcile>);

/// What makes pods.
fn workloads(client: &Client, all: &Informers, run: Run<'_>) {
    let queue = Queue::new("replicaset");
    let reconciler = replicaset::ReplicaSets::new(client.clone(), all.sets.clone(), all.pods.clone(), &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("replication-controller");
    let controllers = all.replication_controllers.clone();
    let reconciler = replicaset::ReplicaSets::new(client.clone(), controllers, all.pods.clone(), &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("deployment");
    let (deployments, sets, pods) = (all.deployments.clone(), all.sets.clone(), all.pods.clone());
    let reconciler = deployment::Deployments::new(client.clone(), deployments, sets, pods, &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("statefulset");
    let (sets, pods, revisions) = (all.stateful_sets.clone(), all.pods.clone(), all.revisions.clone());
    let reconciler =
        statefulset::StatefulSets::new(client.clone(), sets, pods, all.claims.clone(), revisions.clone(), &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("daemonset");
    let (sets, pods, nodes) = (all.daemon_sets.clone(), all.pods.clone(), all.nodes.clone());
    let reconciler = daemonset::DaemonSets::new(client.clone(), sets, pods, nodes, revisions, &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("job");
    let reconciler = job::Jobs::new(client.clone(), all.jobs.clone(), all.pods.clone(), &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("ttl-after-finished");
    let reconciler = job::ttl::TtlAfterFinished::new(client.clone(), all.jobs.clone(), &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("cronjob");
    let reconciler = cronjob::CronJobs::new(client.clone(), all.cron_jobs.clone(), all.jobs.clone(), &queue);
    run(queue, 4, reconciler);
}

/// What follows from pods.
fn services_and_budgets(client: &Client, all: &Informers, run: Run<'_>) {
    let queue = Queue::new("endpointslice");
    let (services, pods, slices) = (all.services.clone(), all.pods.clone(), all.slices.clone());
    let reconciler =
        endpointslice::EndpointSlices::new(client.clone(), services, pods, all.nodes.clone(), slices, &queue);
    run(queue, 8, reconciler);
    let queue = Queue::new("endpoints");
    let (services, pods, endpoints) = (all.services.clone(), all.pods.clone(), all.endpoints.clone());
    let reconciler = endpoints::EndpointsOfServices::new(client.clone(), services, pods, endpoints, &queue);
    run(queue, 4, reconciler);
    let queue = Queue::new("endpointslice-mirroring");
    let (endpoints, services, slices) = (all.endpoints.clone(), all.services.clone(), all.slices.clone());
    let reconciler = endpoint_mirror::EndpointMirror::new(client.clone(), endpoints, services, slices, &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("disruption");
    let scales = disruption::Scales {
        deployments: all.deployments.clone(),
        sets: all.sets.clone(),
        stateful_sets: all.stateful_sets.clone(),
        replication_controllers: all.replication_controllers.clone(),
    };
    let reconciler = disruption::Disruption::new(client.clone(), all.budgets.clone(), all.pods.clone(), scales, &queue);
    run(queue, 2, reconciler);
}

/// What keeps the cluster itself in order, volumes among it.
fn cluster(client: &Client, config: ControllersConfig, all: Informers, run: Run<'_>) {
    let queue = Queue::new("namespace-defaults");
    let ca = config.root_ca_pem;
    let reconciler = namespace_defaults::NamespaceDefaults::new(
        client.clone(),
        all.namespaces,
        all.accounts,
        all.root_cas,
        ca,
        &queue,
    );
    run(queue, 2, reconciler);
    let queue = Queue::new("node-lifecycle");
    let (nodes, pods) = (all.nodes.clone(), all.pods.clone());
    let reconciler = node_lifecycle::NodeLifecycle::new(client.clone(), nodes, &all.node_leases, pods, &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("ephemeral-volume");
    let (pods, claims) = (all.pods.clone(), all.claims.clone());
    run(queue.clone(), 2, volume::EphemeralVolumes::new(client.clone(), pods, claims, &queue));
    let queue = Queue::new("persistentvolume-binder");
    let (volumes, classes, nodes) = (all.volumes.clone(), all.storage_classes, all.nodes.clone());
    let copies = volume::Copies { claims: all.claims.clone(), volumes, classes, nodes };
    run(queue.clone(), 4, volume::Binder::new(client.clone(), copies, all.pods.clone(), &queue));
    let queue = Queue::new("pvc-protection");
    let reconciler = pvc_protection::PvcProtection::new(client.clone(), all.claims, all.pods.clone(), &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("pv-protection");
    run(queue.clone(), 2, pv_protection::PvProtection::new(client.clone(), all.volumes, &queue));
    let queue = Queue::new("pod-gc");
    let reconciler = pod_gc::PodGc::new(client.clone(), all.pods, all.nodes, &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("clusterrole-aggregation");
    let reconciler = cluster_role::ClusterRoles::new(client.clone(), all.cluster_roles, &queue);
    run(queue, 1, reconciler);
}
