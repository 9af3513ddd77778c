//! Rollouts played against the plan.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::identity::{claim_owners, claims, new_pod, ordinal};
use super::plan::{Action, Snapshot, plan};

fn set(replicas: i32, more: Value) -> StatefulSet {
    let mut spec = json!({
        "replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "a", "uid": "s"}, "spec": spec})).unwrap()
}

fn pod(set: &StatefulSet, ordinal: i32, revision: &str, ready: bool) -> Arc<Pod> {
    let template = set.spec.as_ref().unwrap().template.clone();
    let mut pod = new_pod(set, &template, revision, ordinal);
    pod.metadata.uid = Some(format!("{ordinal}-{revision}"));
    let state = if ready { "True" } else { "False" };
    pod.status = serde_json::from_value(json!({
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": state, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    }))
    .unwrap();
    Arc::new(pod)
}

fn decide(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
    let now = "2026-01-01T00:00:05Z".parse().unwrap();
    let snapshot = Snapshot { set, pods, current: "old", update: "new", undone: None, collisions: None, now };
    let text = |action| match action {
        Action::Create { ordinal, revision } => Some(format!("+{ordinal} {revision}")),
        Action::Delete { pod, .. } => Some(format!("-{}", ordinal(set, &pod).unwrap())),
        Action::Keep { .. } | Action::Release { .. } => None,
    };
    plan(&snapshot).actions.into_iter().filter_map(text).collect()
}

fn terminating(pod: &Arc<Pod>) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    Arc::new(pod)
}

#[test]
fn ordered_pods_come_and_go_one_by_one() {
    let three = set(3, json!({}));
    assert_eq!(decide(&three, &[]), ["+0 new"]);
    assert!(decide(&three, &[pod(&three, 0, "new", false)]).is_empty(), "the next waits for the first");
    assert_eq!(decide(&three, &[pod(&three, 0, "new", true)]), ["+1 new"]);
    let one = set(1, json!({}));
    let pods: Vec<_> = (0..3).map(|ordinal| pod(&one, ordinal, "new", true)).collect();
    assert_eq!(decide(&one, &pods), ["-2"]);
    assert!(decide(&one, &[pods[0].clone(), pods[1].clone(), terminating(&pods[2])]).is_empty());
    let waiting = [pod(&one, 0, "new", false), pods[1].clone()];
    assert!(decide(&one, &waiting).is_empty(), "scaling down waits for those that stay");
}

#[test]
fn parallel_pods_come_at_once_from_the_first_ordinal() {
    let three = set(3, json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}));
    assert_eq!(decide(&three, &[]), ["+5 new", "+6 new", "+7 new"]);
    assert_eq!(decide(&three, &[pod(&three, 0, "new", true)]), ["+5 new", "+6 new", "+7 new", "-0"]);
}

#[test]
fn a_rolling_update_goes_from_the_top_down_to_the_partition() {
    let three = set(3, json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}}));
    let old: Vec<_> = (0..3).map(|ordinal| pod(&three, ordinal, "old", true)).collect();
    assert_eq!(decide(&three, &old), ["-2"]);
    assert_eq!(decide(&three, &old[..2]), ["+2 new"]);
    assert!(decide(&three, &[old[0].clone(), old[1].clone(), pod(&three, 2, "new", false)]).is_empty());
    assert_eq!(decide(&three, &[old[0].clone(), old[1].clone(), pod(&three, 2, "new", true)]), ["-1"]);
    assert!(
        decide(&three, &[old[0].clone(), pod(&three, 1, "new", true), pod(&three, 2, "new", true)]).is_empty(),
        "below the partition nothing moves"
    );
    assert_eq!(decide(&three, &old[1..]), ["+0 old"], "and what is made anew there is of the old revision");
}

#[test]
fn max_unavailable_takes_several_and_broken_ones_for_free() {
    let strategy = json!({"rollingUpdate": {"partition": 0, "maxUnavailable": 2}});
    let four = set(4, json!({"podManagementPolicy": "Parallel", "updateStrategy": strategy}));
    let mut pods: Vec<_> = (0..4).map(|ordinal| pod(&four, ordinal, "old", true)).collect();
    assert_eq!(decide(&four, &pods), ["-3", "-2"]);
    pods[0] = pod(&four, 0, "old", false);
    assert_eq!(decide(&four, &pods), ["-3"], "one is down already");
    pods[3] = pod(&four, 3, "old", false);
    assert_eq!(decide(&four, &pods), ["-3"]);
}

#[test]
fn on_delete_moves_nothing_by_itself() {
    let two = set(2, json!({"updateStrategy": {"type": "OnDelete"}}));
    let pods = [pod(&two, 0, "old", true), pod(&two, 1, "old", true)];
    assert!(decide(&two, &pods).is_empty());
    assert_eq!(decide(&two, &pods[..1]), ["+1 new"]);
}

#[test]
fn a_failed_pod_is_replaced_and_min_ready_seconds_hold_the_next() {
    let two = set(2, json!({"minReadySeconds": 10}));
    let mut failed = Pod::clone(&pod(&two, 0, "new", false));
    failed.status.as_mut().unwrap().phase = Some("Failed".into());
    assert_eq!(decide(&two, &[Arc::new(failed)]), ["-0"]);
    let pods = [pod(&two, 0, "new", true)];
    assert!(decide(&two, &pods).is_empty());
    let now = "2026-01-01T00:00:05Z".parse().unwrap();
    let snapshot =
        Snapshot { set: &two, pods: &pods, current: "old", update: "new", undone: None, collisions: None, now };
    let plan = plan(&snapshot);
    assert_eq!(plan.wait.unwrap().as_secs(), 5);
    assert_eq!((plan.status.ready_replicas, plan.status.available_replicas), (Some(1), Some(0)));
}

#[test]
fn a_rollout_ends_when_all_are_new_and_ready() {
    let two = set(2, json!({}));
    let pods = [pod(&two, 0, "new", true), pod(&two, 1, "new", true)];
    let now = "2026-01-01T00:00:05Z".parse().unwrap();
    let status =
        plan(&Snapshot { set: &two, pods: &pods, current: "old", update: "new", undone: None, collisions: None, now })
            .status;
    assert_eq!(status.current_revision.as_deref(), Some("new"));
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(2)));
}

#[test]
fn claims_follow_the_retention_policy() {
    let owners = |policy: Value, condemned| -> Vec<String> {
        let set = set(1, json!({"persistentVolumeClaimRetentionPolicy": policy}));
        let pod = pod(&set, 0, "new", true);
        let claim = claims(&set, 0).remove(0);
        assert_eq!(claim.metadata.name.as_deref(), Some("data-db-0"));
        claim_owners(&set, &claim, &pod, condemned).into_iter().map(|owner| owner.kind).collect()
    };
    let (keep, gone) = ("Retain", "Delete");
    assert!(owners(json!({"whenDeleted": keep, "whenScaled": keep}), true).is_empty());
    assert_eq!(owners(json!({"whenDeleted": gone, "whenScaled": gone}), false), ["StatefulSet"]);
    assert_eq!(owners(json!({"whenDeleted": gone, "whenScaled": gone}), true), ["Pod"]);
    assert_eq!(owners(json!({"whenDeleted": keep, "whenScaled": gone}), true), ["Pod"]);
    assert!(owners(json!({"whenDeleted": keep, "whenScaled": gone}), false).is_empty());
}

#[test]
fn a_pod_has_an_identity_of_its_own() {
    let set = set(1, json!({}));
    let pod = pod(&set, 3, "new", true);
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-3"), Some("db")));
    let labels = pod.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "3");
    assert_eq!(labels["controller-revision-hash"], "new");
    let claim = spec.volumes.as_ref().unwrap()[0].persistent_volume_claim.as_ref().unwrap();
    assert_eq!(claim.claim_name, "data-db-3");
}

#[test]
fn what_was_taken_back_holds_nobody_up() {
    let two = set(2, json!({}));
    let pods = [pod(&two, 0, "new", true), pod(&two, 1, "bad", false)];
    let now = "2026-01-01T00:00:05Z".parse().unwrap();
    let decided = |undone, pods: &[Arc<Pod>]| {
        let snapshot = Snapshot { set: &two, pods, current: "new", update: "new", undone, collisions: None, now };
        let deleted = |action: &Action| matches!(action, Action::Delete { pod, .. } if ordinal(&two, pod) == Some(1));
        plan(&snapshot).actions.iter().filter(|action| deleted(action)).count()
    };
    assert_eq!(decided(None, &pods), 0, "as upstream, which waits for somebody to delete it");
    assert_eq!(decided(Some("bad"), &pods), 1);
    assert_eq!(decided(Some("bad"), &[pods[0].clone(), terminating(&pods[1])]), 0);
}
