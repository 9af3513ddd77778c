//! Controllers that keep desired state, one file each, over shared informers and the one reconcile driver.
//!
//! Invariants
//! - A reconciler takes a key and decides from local copies; what it does is idempotent.
//! - A status that would not change is not written.

mod attach_detach;
mod autoscale;
mod certificates;
mod cluster_autoscaler;
mod cluster_role;
mod common;
mod cronjob;
mod daemonset;
mod dependencies;
mod deployment;
mod device_eviction;
mod disruption;
mod endpoint_mirror;
mod endpoints;
mod endpointslice;
mod garbage;
mod history;
mod informers;
mod job;
mod legacy_tokens;
mod load_balancer;
mod namespace;
mod namespace_defaults;
mod node_dns;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod pods;
mod pv_protection;
mod pvc_protection;
mod replicaset;
mod replication_controller;
mod resource_claims;
mod resources;
mod rollback;
mod scale;
mod service_cidrs;
mod snapshots;
mod statefulset;
mod storage_migration;
mod taint_eviction;
mod topology_hints;
mod vac_protection;
mod vertical;
mod volume;

use std::sync::Arc;

use dhow_base::pki::ClusterCa;
use dhow_client::{Client, Queue, Reconcile, run_controller};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use cluster_autoscaler::{
    ClusterAutoscalerConfig, ClusterAutoscalerSettings, ExpanderName, ProviderConfig, externalgrpc,
};
use informers::Informers;
pub use load_balancer::{LoadBalancerConfig, Pool, PoolConfig};
pub use node_dns::NodeDnsConfig;
pub use node_ipam::ClusterRange;

/// What the controllers need to know about the cluster.
#[derive(Debug, Clone, Default)]
pub struct ControllersConfig {
    /// Published to every namespace, for pods to verify the API server by.
    pub root_ca_pem: String,
    /// Signs certificates; without it, nobody here does.
    pub signer: Option<Arc<ClusterCa>>,
    /// What nodes get their pods' networks from; without any, nobody here gives them.
    pub cluster_ranges: Vec<ClusterRange>,
    /// Where nodes answer questions about names; without it, nobody here announces them.
    pub node_dns: Option<NodeDnsConfig>,
    /// Addresses for load balancers; without any they get those of the nodes.
    pub balancer_pools: Vec<Pool>,
    /// Adds and removes nodes; without it, nobody here does.
    pub cluster_autoscaler: Option<ClusterAutoscalerSettings>,
    /// After how many days tokens of service accounts that nobody uses go; a year unless something is said.
    pub legacy_token_days: Option<i32>,
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
    services_and_budgets(&client, &config, &all, &mut run);
    let namespaces_queue = Queue::new("namespace");
    let content_gone = namespace::Namespaces::content_gone(&all.namespaces, &namespaces_queue);
    let reconciler = namespace::Namespaces::new(client.clone(), all.namespaces.clone(), &namespaces_queue);
    run(namespaces_queue, 4, reconciler);
    let pods = all.pods.clone();
    let binder = Queue::new("persistentvolume-binder");
    let around = snapshots::Around {
        claims: all.claims.clone(),
        volumes: all.volumes.clone(),
        nodes: all.nodes.clone(),
        binder: binder.clone(),
    };
    nodes(&client, &config, &all, &mut run, &shutdown);
    cluster(&client, config, all, binder, &mut run);
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
    running.spawn(snapshots::run(client.clone(), around, shutdown.clone()));
    running.spawn(vertical::run(client, pods, shutdown.clone()));
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
    let queue = Queue::new("horizontal-pod-autoscaler");
    let (autoscalers, pods) = (all.autoscalers.clone(), all.pods.clone());
    let reconciler = autoscale::Autoscalers::new(client.clone(), autoscalers, pods, &queue);
    run(queue, 5, reconciler);
    let queue = Queue::new("dependencies");
    run(queue.clone(), 4, dependencies::Dependencies::new(client.clone(), all.pods.clone(), all.jobs.clone(), &queue));
    let queue = Queue::new("pod-resource-claims");
    let (pods, claims) = (all.pods.clone(), all.resource_claims.clone());
    run(queue.clone(), 2, resource_claims::PodClaims::new(client.clone(), pods.clone(), claims.clone(), &queue));
    let queue = Queue::new("resource-claim");
    let reconciler = resource_claims::ResourceClaims::new(client.clone(), pods.clone(), claims.clone(), &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("device-taint-eviction");
    let (slices, rules) = (all.resource_slices.clone(), all.device_taint_rules.clone());
    let copies = device_eviction::Copies { pods, claims, slices, rules };
    run(queue.clone(), 4, device_eviction::DeviceEviction::new(client.clone(), copies, &queue));
}

/// What follows from pods.
fn services_and_budgets(client: &Client, config: &ControllersConfig, all: &Informers, run: Run<'_>) {
    let queue = Queue::new("load-balancer");
    let (services, nodes, slices) = (all.services.clone(), all.nodes.clone(), all.slices.clone());
    let pools = config.balancer_pools.clone();
    let reconciler = load_balancer::LoadBalancers::new(client.clone(), services, nodes, slices, pools, &queue);
    run(queue, 1, reconciler);
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
    let queue = Queue::new("service-cidrs");
    let (cidrs, addresses) = (all.service_cidrs.clone(), all.ip_addresses.clone());
    run(queue.clone(), 1, service_cidrs::ServiceCidrs::new(client.clone(), cidrs, addresses.clone(), &queue));
    let queue = Queue::new("ip-addresses");
    let reconciler = service_cidrs::IpAddresses::new(client.clone(), all.services.clone(), addresses, &queue);
    run(queue, 4, reconciler);
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

/// What machines need to become nodes: certificates, networks for pods, names.
fn nodes(client: &Client, config: &ControllersConfig, all: &Informers, run: Run<'_>, shutdown: &CancellationToken) {
    let requests = &all.certificate_requests;
    if let Some(ca) = &config.signer {
        let queue = Queue::new("csr-approver");
        let (nodes, slices) = (all.nodes.clone(), all.slices.clone());
        let reconciler = certificates::Approver::new(client.clone(), requests.clone(), nodes, slices, &queue);
        run(queue, 2, reconciler);
        let queue = Queue::new("csr-signer");
        run(queue.clone(), 2, certificates::Signer::new(client.clone(), requests.clone(), Arc::clone(ca), &queue));
    }
    if !config.root_ca_pem.is_empty() {
        let queue = Queue::new("clustertrustbundle-publisher");
        let (bundles, ca) = (all.serving_bundles.clone(), config.root_ca_pem.clone());
        run(queue.clone(), 1, certificates::Publisher::new(client.clone(), bundles, ca, &queue));
    }
    let queue = Queue::new("csr-cleaner");
    run(queue.clone(), 1, certificates::Cleaner::new(client.clone(), requests.clone(), &queue));
    let queue = Queue::new("podcertificaterequest-cleaner");
    let of_pods = all.pod_certificate_requests.clone();
    run(queue.clone(), 1, certificates::PodCleaner::new(client.clone(), of_pods, &queue));
    let queue = Queue::new("token-cleaner");
    run(queue.clone(), 1, certificates::TokenCleaner::new(client.clone(), &queue, shutdown));
    let queue = Queue::new("legacy-service-account-token-cleaner");
    let (accounts, pods) = (all.accounts.clone(), all.pods.clone());
    let days = config.legacy_token_days.unwrap_or(legacy_tokens::CLEAN_UP_DAYS);
    let reconciler = legacy_tokens::LegacyTokens::new(client.clone(), accounts, pods, days, &queue, shutdown);
    run(queue, 1, reconciler);
    if !config.cluster_ranges.is_empty() {
        let queue = Queue::new("node-ipam");
        match node_ipam::NodeIpam::new(client.clone(), all.nodes.clone(), &config.cluster_ranges, &queue) {
            // One at a time: each looks at what the one before has taken.
            Ok(reconciler) => run(queue, 1, reconciler),
            Err(error) => tracing::error!(error, "nodes get no networks for their pods"),
        }
    }
    if let Some(settings) = &config.cluster_autoscaler {
        let queue = Queue::new("cluster-autoscaler");
        let copies = cluster_autoscaler::Copies {
            nodes: all.nodes.clone(),
            pods: all.pods.clone(),
            daemon_sets: all.daemon_sets.clone(),
            budgets: all.budgets.clone(),
            namespaces: all.namespaces.clone(),
            claims: all.claims.clone(),
            volumes: all.volumes.clone(),
            classes: all.storage_classes.clone(),
            device_claims: all.resource_claims.clone(),
            device_classes: all.device_classes.clone(),
            slices: all.resource_slices.clone(),
            taint_rules: all.device_taint_rules.clone(),
        };
        match cluster_autoscaler::ClusterAutoscaler::new(client.clone(), copies, settings, &queue, shutdown) {
            Ok(reconciler) => run(queue, 1, reconciler),
            Err(error) => tracing::error!(%error, "nobody adds or removes nodes"),
        }
    }
    if let Some(dns) = &config.node_dns {
        let queue = Queue::new("node-dns");
        let reconciler = node_dns::NodeDns::new(client.clone(), all.nodes.clone(), all.slices.clone(), dns, &queue);
        run(queue, 1, reconciler);
    }
}

/// What keeps the cluster itself in order, volumes among it.
fn cluster(client: &Client, config: ControllersConfig, all: Informers, binder: Queue, run: Run<'_>) {
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
    let queue = Queue::new("taint-eviction");
    let (nodes, pods) = (all.nodes.clone(), all.pods.clone());
    run(queue.clone(), 4, taint_eviction::TaintEviction::new(client.clone(), nodes, pods, &queue));
    let queue = Queue::new("ephemeral-volume");
    let (pods, claims) = (all.pods.clone(), all.claims.clone());
    run(queue.clone(), 2, volume::EphemeralVolumes::new(client.clone(), pods, claims, &queue));
    let (volumes, classes, nodes) = (all.volumes.clone(), all.storage_classes, all.nodes.clone());
    let copies = volume::Copies { claims: all.claims.clone(), volumes, classes, nodes };
    run(binder.clone(), 4, volume::Binder::new(client.clone(), copies, all.pods.clone(), &binder));
    let queue = Queue::new("attachdetach");
    let copies = attach_detach::Copies {
        pods: all.pods.clone(),
        nodes: all.nodes.clone(),
        claims: all.claims.clone(),
        volumes: all.volumes.clone(),
        drivers: all.csi_drivers,
        attachments: all.volume_attachments,
    };
    run(queue.clone(), 2, attach_detach::AttachDetach::new(client.clone(), copies, &queue));
    let queue = Queue::new("vac-protection");
    let (classes, claims, volumes) = (all.attributes_classes, all.claims.clone(), all.volumes.clone());
    run(queue.clone(), 1, vac_protection::VacProtection::new(client.clone(), classes, claims, volumes, &queue));
    let queue = Queue::new("pvc-protection");
    let reconciler = pvc_protection::PvcProtection::new(client.clone(), all.claims, all.pods.clone(), &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("pv-protection");
    run(queue.clone(), 2, pv_protection::PvProtection::new(client.clone(), all.volumes, &queue));
    let queue = Queue::new("pod-gc");
    let reconciler = pod_gc::PodGc::new(client.clone(), all.pods, all.nodes, &queue);
    run(queue, 2, reconciler);
    let queue = Queue::new("storage-version-migrator");
    run(queue.clone(), 2, storage_migration::Migrations::new(client.clone(), all.migrations, &queue));
    let queue = Queue::new("clusterrole-aggregation");
    let reconciler = cluster_role::ClusterRoles::new(client.clone(), all.cluster_roles, &queue);
    run(queue, 1, reconciler);
}
