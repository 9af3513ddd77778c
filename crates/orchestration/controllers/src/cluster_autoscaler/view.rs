//! The cluster and its groups of nodes as one round sees them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dhow_scheduler::Trial;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::DeviceTaintRule;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;

use super::config::Options;
use super::provider::{Instance, InstanceState};
use crate::common::{is_finished, node_name};
use crate::daemonset::placement;

/// On a node that is about to go. Its value is the time in seconds since 1970.
pub const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
const MIRROR: &str = "kubernetes.io/config.mirror";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A group with what its provider says of it.
#[derive(Debug, Clone)]
pub struct Group {
    pub id: String,
    pub min: i32,
    pub max: i32,
    pub target: i32,
    pub instances: Vec<Instance>,
    /// A new node as the provider describes it.
    pub template: Option<Node>,
    pub options: Options,
}

#[derive(Debug, Clone, Default)]
pub struct View {
    pub now: Timestamp,
    pub nodes: Vec<Arc<Node>>,
    pub pods: Vec<Arc<Pod>>,
    pub daemon_sets: Vec<Arc<DaemonSet>>,
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    pub namespaces: Vec<Arc<Namespace>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    pub device_claims: Vec<Arc<ResourceClaim>>,
    pub device_classes: Vec<Arc<DeviceClass>>,
    pub slices: Vec<Arc<ResourceSlice>>,
    pub taint_rules: Vec<Arc<DeviceTaintRule>>,
    pub groups: Vec<Group>,
    /// By node, an index into `groups`.
    pub group_of: HashMap<String, usize>,
}

pub fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

pub fn provider_id(node: &Node) -> &str {
    node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default()
}

pub fn has_taint(node: &Node, key: &str) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == key)
}

/// Since when the node is (not) ready.
fn readiness(node: &Node) -> (bool, Timestamp) {
    let made = node.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|one| one.type_ == "Ready");
    let since = ready.and_then(|one| one.last_transition_time.as_ref()).map_or(made, |time| time.0);
    (ready.is_some_and(|one| one.status == "True") && !has_taint(node, "node.kubernetes.io/not-ready"), since)
}

pub fn is_ready(node: &Node) -> bool {
    readiness(node).0
}

pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR))
}

pub fn is_daemon(pod: &Pod) -> bool {
    dhow_client::controller_of(&pod.metadata).is_some_and(|owner| owner.kind == "DaemonSet")
}

pub fn since(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(now.as_millisecond() - then.as_millisecond()).unwrap_or(0))
}

impl View {
    /// How long the node has not been ready; `None` if it is.
    pub fn unready_for(&self, node: &Node) -> Option<Duration> {
        let (ready, at) = readiness(node);
        (!ready).then(|| since(self.now, at))
    }

    /// The nodes of a group.
    pub fn members(&self, group: usize) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter().filter(move |node| self.group_of.get(name(node)) == Some(&group))
    }

    /// The machine of a group that a node is.
    pub fn instance(&self, group: usize, node: &Node) -> Option<&Instance> {
        self.groups[group].instances.iter().find(|one| one.id == provider_id(node))
    }

    /// Machines of a group that were asked for and are no nodes that run pods yet.
    pub fn upcoming(&self, group: usize) -> i32 {
        let of = &self.groups[group];
        let here = self.members(group).filter(|node| {
            let leaves = self.instance(group, node).is_some_and(|one| one.state == InstanceState::Deleting);
            // One that takes too long to be ready never will be.
            !leaves && self.unready_for(node).is_none_or(|age| age > of.options.provision)
        });
        (of.target - i32::try_from(here.count()).unwrap_or(i32::MAX)).max(0)
    }

    /// The newest node of a group that can take pods: others will be like it.
    fn model(&self, group: usize) -> Option<&Arc<Node>> {
        let usable = |node: &&Arc<Node>| {
            let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
            is_ready(node) && !cordoned && !has_taint(node, TO_BE_DELETED)
        };
        self.members(group).filter(usable).max_by_key(|node| {
            (node.metadata.creation_timestamp.as_ref().map(|time| time.0), node.metadata.name.clone())
        })
    }

    /// A node as the group makes them: one that it has, as if it were new, else what the provider says.
    pub fn template(&self, group: usize) -> Option<Node> {
        let mut node =
            self.model(group).map(|node| Node::clone(node)).or_else(|| self.groups[group].template.clone())?;
        node.metadata.uid = None;
        if let Some(spec) = &mut node.spec {
            spec.unschedulable = None;
            // What is told of a node's health goes when it is healthy.
            let lasting = |key: &str| !key.starts_with("node.kubernetes.io/") && !key.ends_with("ClusterAutoscaler");
            spec.taints =
                spec.taints.take().map(|taints| taints.into_iter().filter(|taint| lasting(&taint.key)).collect());
        }
        Some(node)
    }

    /// A template under a name of its own.
    pub fn instantiate(&self, group: usize, template: &Node, number: usize) -> Arc<Node> {
        let mut node = template.clone();
        let name = format!("template-node-for-{}-{number}", self.groups[group].id);
        node.metadata.labels.get_or_insert_default().insert(HOSTNAME.into(), name.clone());
        node.metadata.name = Some(name);
        Arc::new(node)
    }

    /// The devices of a new node of a group: such as its model has for itself alone.
    pub fn devices(&self, group: usize, node: &str) -> Vec<ResourceSlice> {
        let Some(model) = self.model(group).map(|model| name(model)) else { return Vec::new() };
        let own = |slice: &&Arc<ResourceSlice>| slice.spec.node_name.as_deref() == Some(model);
        let devices = self.slices.iter().filter(own).map(|slice| {
            let mut slice = ResourceSlice::clone(slice);
            slice.metadata.name = slice.metadata.name.map(|name| format!("{name}-{node}"));
            slice.spec.node_name = Some(node.to_owned());
            slice.spec.pool.name = format!("{}-{node}", slice.spec.pool.name);
            slice
        });
        devices.collect()
    }

    /// What pods can have besides room on nodes.
    pub fn supply(&self, trial: &mut Trial) {
        self.classes.iter().cloned().for_each(|class| trial.set_class(class));
        self.volumes.iter().cloned().for_each(|volume| trial.set_volume(volume));
        self.claims.iter().cloned().for_each(|claim| trial.set_claim(claim));
        self.device_classes.iter().cloned().for_each(|class| trial.set_device_class(class));
        self.taint_rules.iter().cloned().for_each(|rule| trial.set_taint_rule(rule));
        self.slices.iter().cloned().for_each(|slice| trial.set_slice(slice));
        self.device_claims.iter().cloned().for_each(|claim| trial.set_device_claim(claim));
    }

    /// The pods that come with a new node.
    pub fn daemons(&self, node: &Node) -> Vec<Pod> {
        let belongs = |set: &&Arc<DaemonSet>| placement::fit(set, node).run;
        let pods = self.daemon_sets.iter().filter(belongs).map(|set| {
            let mut pod = placement::new_pod(set, name(node), "");
            let own = format!("{}-{}", set.metadata.name.as_deref().unwrap_or_default(), name(node));
            pod.metadata.name = Some(own);
            pod
        });
        pods.collect()
    }

    /// All nodes and pods as they are. What leaves, counts until it is gone; a node about to go takes nothing.
    pub fn trial(&self) -> Trial {
        let mut trial = Trial::default();
        let named = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            metadata.name.clone().unwrap_or_default()
        };
        for namespace in &self.namespaces {
            let labels: BTreeMap<_, _> = namespace.metadata.labels.clone().unwrap_or_default();
            trial.set_namespace(&named(&namespace.metadata), labels);
        }
        self.supply(&mut trial);
        self.nodes.iter().cloned().for_each(|node| trial.set_node(node));
        for pod in self.pods.iter().filter(|pod| !is_finished(pod)) {
            // What another's end makes room for, is there already.
            let nominated = || pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty());
            if let Some(node) = node_name(pod).or_else(nominated) {
                trial.put(pod, node);
            }
        }
        trial
    }

    /// Whether so many nodes are not ready that something else is wrong.
    pub fn is_healthy(&self, most: i32, percentage: f64) -> bool {
        let unready = self.nodes.iter().filter(|node| !is_ready(node)).count();
        let share = unready as f64 / self.nodes.len().max(1) as f64 * 100.0;
        i32::try_from(unready).unwrap_or(i32::MAX) <= most || share <= percentage
    }
}

/// A pod as if nobody had placed it.
pub fn unplaced(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
    }
    // Its claims on devices are the same.
    let claims = pod.status.take().and_then(|status| status.resource_claim_statuses);
    pod.status = claims.map(|claims| PodStatus { resource_claim_statuses: Some(claims), ..PodStatus::default() });
    pod
}
