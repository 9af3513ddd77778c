//! What the scheduler watches, and how it gets into the engine.

use std::sync::Arc;

use dhow_client::{Change, Client, Informer, ListParams, Object};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use tokio_util::sync::CancellationToken;

use crate::{Engine, PodKey};

/// What pods' volumes are decided from.
#[derive(Clone)]
pub(super) struct StorageInformers {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    csi_nodes: Informer<CSINode>,
    drivers: Informer<CSIDriver>,
    capacities: Informer<CSIStorageCapacity>,
    attachments: Informer<VolumeAttachment>,
}

pub(super) struct Informers {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    budgets: Informer<PodDisruptionBudget>,
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    storage: StorageInformers,
    device_classes: Informer<DeviceClass>,
    device_claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    taint_rules: Informer<DeviceTaintRule>,
}

fn start<K: Object>(client: &Client, shutdown: &CancellationToken) -> Informer<K> {
    Informer::start(client.clone(), ListParams::default(), None, shutdown.clone())
}

/// The object, unless it is gone.
fn now<K>(change: &Change<K>) -> Option<&Arc<K>> {
    (!matches!(change, Change::Deleted(_))).then(|| change.object())
}

fn key(metadata: &ObjectMeta) -> PodKey {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

impl Informers {
    pub fn start(client: &Client, shutdown: &CancellationToken) -> Self {
        Self {
            nodes: start(client, shutdown),
            pods: start(client, shutdown),
            namespaces: start(client, shutdown),
            budgets: start(client, shutdown),
            services: start(client, shutdown),
            replica_sets: start(client, shutdown),
            stateful_sets: start(client, shutdown),
            controllers: start(client, shutdown),
            storage: StorageInformers {
                claims: start(client, shutdown),
                volumes: start(client, shutdown),
                classes: start(client, shutdown),
                csi_nodes: start(client, shutdown),
                drivers: start(client, shutdown),
                capacities: start(client, shutdown),
                attachments: start(client, shutdown),
            },
            device_classes: start(client, shutdown),
            device_claims: start(client, shutdown),
            slices: start(client, shutdown),
            taint_rules: start(client, shutdown),
        }
    }

    pub async fn synced(&self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.budgets.synced().await;
        self.services.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.controllers.synced().await;
        self.storage.claims.synced().await;
        self.storage.volumes.synced().await;
        self.storage.classes.synced().await;
        self.storage.csi_nodes.synced().await;
        self.storage.drivers.synced().await;
        self.storage.capacities.synced().await;
        self.storage.attachments.synced().await;
        self.device_classes.synced().await;
        self.device_claims.synced().await;
        self.slices.synced().await;
        self.taint_rules.synced().await;
    }

    pub fn pods(&self) -> Informer<Pod> {
        self.pods.clone()
    }

    pub fn storage(&self) -> StorageInformers {
        self.storage.clone()
    }

    /// Pods come last: what they depend on is known by then.
    pub fn follow(&self, engine: &Arc<Engine>) {
        self.follow_nodes(engine);
        self.follow_owners(engine);
        self.follow_storage(engine);
        self.follow_devices(engine);
        let to = Arc::clone(engine);
        self.pods.on_change(move |change| {
            let key = key(&change.object().metadata);
            match change {
                Change::Added(pod) => to.pod_changed(key, pod),
                Change::Updated { old, new } => {
                    // A pod made anew under the same name is another pod.
                    if old.metadata.uid != new.metadata.uid {
                        to.pod_removed(&key);
                    }
                    to.pod_changed(key, new);
                }
                Change::Deleted(_) => to.pod_removed(&key),
            }
        });
    }

    fn follow_nodes(&self, engine: &Arc<Engine>) {
        let to = Arc::clone(engine);
        self.nodes.on_change(move |change| match now(change) {
            Some(node) => to.node_changed(Arc::clone(node)),
            None => to.node_removed(change.object().metadata.name.as_deref().unwrap_or_default()),
        });
        let to = Arc::clone(engine);
        self.namespaces.on_change(move |change| {
            let labels = now(change).map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
            to.namespace_changed(change.object().metadata.name.as_deref().unwrap_or_default(), labels);
        });
        let to = Arc::clone(engine);
        self.budgets.on_change(move |change| {
            to.budget_changed(key(&change.object().metadata), now(change).map(|budget| &**budget));
        });
    }

    fn follow_owners(&self, engine: &Arc<Engine>) {
        let to = Arc::clone(engine);
        self.services.on_change(move |change| {
            let selector = now(change).and_then(|service| service.spec.as_ref()?.selector.clone());
            to.service_changed(key(&change.object().metadata), selector);
        });
        let to = Arc::clone(engine);
        self.replica_sets.on_change(move |change| {
            let selector = now(change).and_then(|set| Some(set.spec.as_ref()?.selector.clone()));
            to.owner_changed("ReplicaSet", key(&change.object().metadata), selector);
        });
        let to = Arc::clone(engine);
        self.stateful_sets.on_change(move |change| {
            let selector = now(change).and_then(|set| Some(set.spec.as_ref()?.selector.clone()));
            to.owner_changed("StatefulSet", key(&change.object().metadata), selector);
        });
        let to = Arc::clone(engine);
        self.controllers.on_change(move |change| {
            let labels = now(change).and_then(|controller| controller.spec.as_ref()?.selector.clone());
            let selector =
                labels.map(|labels| LabelSelector { match_labels: Some(labels), ..LabelSelector::default() });
            to.owner_changed("ReplicationController", key(&change.object().metadata), selector);
        });
    }

    fn follow_devices(&self, engine: &Arc<Engine>) {
        fn name(metadata: &ObjectMeta) -> &str {
            metadata.name.as_deref().unwrap_or_default()
        }
        let to = Arc::clone(engine);
        self.device_classes
            .on_change(move |change| to.device_class_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.slices.on_change(move |change| to.slice_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.taint_rules
            .on_change(move |change| to.taint_rule_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.device_claims
            .on_change(move |change| to.device_claim_changed(&key(&change.object().metadata), now(change).cloned()));
    }

    /// A volume and the claim that it is bound to arrive in any order; each wakes those who wait for it.
    fn follow_storage(&self, engine: &Arc<Engine>) {
        fn name(metadata: &ObjectMeta) -> &str {
            metadata.name.as_deref().unwrap_or_default()
        }
        let to = Arc::clone(engine);
        self.storage
            .classes
            .on_change(move |change| to.class_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.storage
            .volumes
            .on_change(move |change| to.volume_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.storage
            .claims
            .on_change(move |change| to.claim_changed(key(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.storage
            .csi_nodes
            .on_change(move |change| to.csi_node_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.storage
            .drivers
            .on_change(move |change| to.driver_changed(name(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.storage
            .capacities
            .on_change(move |change| to.capacity_changed(key(&change.object().metadata), now(change).cloned()));
        let to = Arc::clone(engine);
        self.storage.attachments.on_change(move |change| {
            to.attachment_changed(change.object(), matches!(change, Change::Deleted(_)));
        });
    }
}
