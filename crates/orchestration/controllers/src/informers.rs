//! The local copies that the controllers share, one per kind.

use dhow_client::{Client, Informer, ListParams, Object, controller_of};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment, VolumeAttributesClass};
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use tokio_util::sync::CancellationToken;

use crate::certificates;
use crate::common::node_name;
use crate::namespace_defaults::ROOT_CA;

/// Declares the copies, their start and the wait for their first lists.
macro_rules! informers {
    ($($field:ident: $kind:ty = $start:expr,)*) => {
        pub struct Informers {
            $(pub $field: Informer<$kind>,)*
        }

        impl Informers {
            /// Starts to list and watch until `shutdown`.
            pub fn start(client: &Client, shutdown: &CancellationToken) -> Self {
                Self { $($field: ($start)(client, shutdown),)* }
            }

            /// Returns once every first list is in.
            pub async fn synced(&self) {
                $(self.$field.synced().await;)*
            }
        }
    };
}

informers! {
    pods: Pod = pods,
    nodes: Node = all,
    namespaces: Namespace = all,
    services: Service = all,
    accounts: ServiceAccount = all,
    slices: EndpointSlice = all,
    service_cidrs: ServiceCIDR = all,
    ip_addresses: IPAddress = all,
    endpoints: Endpoints = all,
    claims: PersistentVolumeClaim = all,
    volumes: PersistentVolume = all,
    storage_classes: StorageClass = all,
    attributes_classes: VolumeAttributesClass = all,
    csi_drivers: CSIDriver = all,
    volume_attachments: VolumeAttachment = all,
    deployments: Deployment = all,
    sets: ReplicaSet = all,
    replication_controllers: ReplicationController = all,
    stateful_sets: StatefulSet = all,
    daemon_sets: DaemonSet = all,
    revisions: ControllerRevision = all,
    jobs: Job = all,
    cron_jobs: CronJob = all,
    autoscalers: HorizontalPodAutoscaler = all,
    resource_claims: ResourceClaim = all,
    resource_slices: ResourceSlice = all,
    device_classes: DeviceClass = all,
    device_taint_rules: DeviceTaintRule = all,
    budgets: PodDisruptionBudget = all,
    cluster_roles: ClusterRole = all,
    root_cas: ConfigMap = root_cas,
    node_leases: Lease = node_leases,
    certificate_requests: CertificateSigningRequest = all,
    pod_certificate_requests: PodCertificateRequest = all,
    migrations: StorageVersionMigration = all,
    serving_bundles: ClusterTrustBundle = serving_bundles,
}

/// Every object of a kind, with the indexes that controllers share.
fn all<K: Object>(client: &Client, shutdown: &CancellationToken) -> Informer<K> {
    let informer = Informer::<K>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    informer.add_index("namespace", |object| object.metadata().namespace.clone().into_iter().collect());
    informer.add_index("controller", |object| {
        controller_of(object.metadata()).map(|owner| owner.uid.clone()).into_iter().collect()
    });
    informer
}

fn pods(client: &Client, shutdown: &CancellationToken) -> Informer<Pod> {
    let pods = all::<Pod>(client, shutdown);
    pods.add_index("node", |pod| node_name(pod).map(str::to_owned).into_iter().collect());
    pods
}

fn root_cas(client: &Client, shutdown: &CancellationToken) -> Informer<ConfigMap> {
    let scope = ListParams { field_selector: Some(format!("metadata.name={ROOT_CA}")), ..ListParams::default() };
    Informer::start(client.clone(), scope, None, shutdown.clone())
}

fn serving_bundles(client: &Client, shutdown: &CancellationToken) -> Informer<ClusterTrustBundle> {
    let selector = format!("spec.signerName={}", certificates::SERVING);
    let scope = ListParams { field_selector: Some(selector), ..ListParams::default() };
    Informer::start(client.clone(), scope, None, shutdown.clone())
}

fn node_leases(client: &Client, shutdown: &CancellationToken) -> Informer<Lease> {
    Informer::start(client.clone(), ListParams::default(), Some("kube-node-lease"), shutdown.clone())
}
