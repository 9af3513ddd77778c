//! Which pods a node's end would move, and which of them forbid it.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_client::controller_of;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::config::ClusterAutoscalerSettings;
use super::view::{is_daemon, is_mirror};
use crate::common::{is_finished, selects};

const SAFE: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
const SAFE_VOLUMES: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether a pod has to go elsewhere when its node goes. Daemons and static pods go with the node.
pub fn moves(pod: &Pod) -> bool {
    !is_mirror(pod) && !is_daemon(pod) && !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// How many more pods each budget lets go, in this round.
#[derive(Clone)]
pub struct Budgets {
    all: Vec<Arc<PodDisruptionBudget>>,
    left: HashMap<usize, i32>,
}

impl Budgets {
    pub fn new(all: &[Arc<PodDisruptionBudget>]) -> Self {
        Self { all: all.to_vec(), left: HashMap::new() }
    }

    /// The budgets that a pod counts in.
    fn of(&self, pod: &Pod) -> Vec<usize> {
        let about = |budget: &PodDisruptionBudget| {
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            budget.metadata.namespace == pod.metadata.namespace
                && selector.is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
        };
        (0..self.all.len()).filter(|index| about(&self.all[*index])).collect()
    }

    /// Takes the end of a pod from its budget, if that has some left.
    fn spend(&mut self, pod: &Pod) -> bool {
        match self.of(pod).as_slice() {
            [] => true,
            [one] => {
                let allowed = self.all[*one].status.as_ref().map_or(0, |status| status.disruptions_allowed);
                let left = self.left.entry(*one).or_insert(allowed);
                *left -= 1;
                *left >= 0
            }
            // The eviction API refuses pods of several.
            _ => false,
        }
    }
}

/// Why a pod keeps its node, in upstream's words.
fn keeps(pod: &Pod, settings: &ClusterAutoscalerSettings, budgets: &Budgets) -> Option<&'static str> {
    match annotation(pod, SAFE) {
        Some("true") => return None,
        Some("false") => return Some("pod annotated as not safe to evict present"),
        _ => {}
    }
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.priority).unwrap_or(0) < settings.expendable_below {
        return None;
    }
    if controller_of(&pod.metadata).is_none() {
        return Some("not replicated pod present");
    }
    let system = pod.metadata.namespace.as_deref() == Some("kube-system");
    if settings.skip_system && system && budgets.of(pod).is_empty() {
        return Some("kube-system pod without a disruption budget present");
    }
    let safe: Vec<&str> = annotation(pod, SAFE_VOLUMES).unwrap_or_default().split(',').map(str::trim).collect();
    let local = spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        let kept = volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref() != Some("Memory"));
        (kept || volume.host_path.is_some()) && !safe.contains(&volume.name.as_str())
    });
    (settings.skip_local && local).then_some("pod with local storage present")
}

/// The pods that would move, or why the node stays. Budgets are spent only if it may go.
pub fn plan(
    pods: &[Arc<Pod>],
    settings: &ClusterAutoscalerSettings,
    budgets: &mut Budgets,
) -> Result<Vec<Arc<Pod>>, String> {
    let moving: Vec<_> = pods.iter().filter(|pod| moves(pod)).cloned().collect();
    let mut spent = budgets.clone();
    let named = |pod: &Pod, why: &str| {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        format!("{why}: {}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
    };
    for pod in &moving {
        if let Some(why) = keeps(pod, settings, budgets) {
            return Err(named(pod, why));
        }
        if !spent.spend(pod) {
            return Err(named(pod, "not enough pod disruption budget to move pod"));
        }
    }
    *budgets = spent;
    Ok(moving)
}
