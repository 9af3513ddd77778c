//! Rollouts played against the plan.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::new_set;
use super::plan::{Action, Plan, Snapshot, plan};

fn deployment(replicas: i32, image: &str, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "d", "generation": 2},
        "spec": {"replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}
    }))
    .unwrap()
}

fn set(deployment: &Deployment, size: i32, available: i32, revision: i64) -> Arc<ReplicaSet> {
    let mut set = new_set(deployment, size, revision).unwrap();
    set.metadata.creation_timestamp =
        serde_json::from_value(json!(format!("2026-01-01T00:00:{revision:02}Z"))).unwrap();
    set.status = serde_json::from_value(json!({
        "replicas": size, "readyReplicas": available, "availableReplicas": available
    }))
    .unwrap();
    Arc::new(set)
}

fn decide(deployment: &Deployment, sets: &[Arc<ReplicaSet>], old_pods: usize, now: &str) -> Plan {
    plan(&Snapshot { deployment, sets, old_pods, now: now.parse::<Timestamp>().unwrap() })
}

const NOW: &str = "2026-01-01T01:00:00Z";

#[test]
fn a_rolling_update_stays_within_its_bounds_and_ends() {
    for (replicas, strategy) in [
        (10, json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})),
        (3, json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})),
        (3, json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})),
        (4, json!({"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "0%"}})),
    ] {
        let before = deployment(replicas, "v1", strategy.clone());
        let now = deployment(replicas, "v2", strategy);
        let (surge, slack) = super::plan::bounds(&now);
        let mut sets = vec![set(&before, replicas, replicas, 1)];
        let mut rounds = 0;
        loop {
            let plan = decide(&now, &sets, 0, NOW);
            if plan.actions.is_empty() {
                break;
            }
            for action in plan.actions {
                match action {
                    Action::Create { replicas, revision } => sets.push(set(&now, replicas, 0, revision)),
                    Action::Scale { set: name, to, .. } => {
                        let index = sets.iter().position(|set| set.metadata.name.as_deref() == Some(&name)).unwrap();
                        let is_old = index == 0;
                        let up = sets[index].status.as_ref().unwrap().available_replicas.unwrap_or(0);
                        sets[index] = set(if is_old { &before } else { &now }, to, up.min(to), index as i64 + 1);
                    }
                    other => panic!("{other:?}"),
                }
            }
            let size = |set: &ReplicaSet| set.spec.as_ref().unwrap().replicas.unwrap();
            let available: i32 =
                sets.iter().map(|set| set.status.as_ref().unwrap().available_replicas.unwrap_or(0)).sum();
            assert!(sets.iter().map(|set| size(set)).sum::<i32>() <= replicas + surge);
            assert!(available >= replicas - slack, "{available} of {replicas}");
            // The new pods come up before the next round.
            if let Some(new) = sets.get(1).cloned() {
                sets[1] = set(&now, size(&new), size(&new), 2);
            }
            rounds += 1;
            assert!(rounds < 50, "does not end");
        }
        assert_eq!(sets[0].spec.as_ref().unwrap().replicas, Some(0));
        assert_eq!(sets[1].spec.as_ref().unwrap().replicas, Some(replicas));
        assert_eq!(decide(&now, &sets, 0, NOW).revision, Some(2));
    }
}

#[test]
fn recreate_waits_for_old_pods() {
    let strategy = json!({"type": "Recreate"});
    let (before, now) = (deployment(2, "v1", strategy.clone()), deployment(2, "v2", strategy));
    let running = [set(&before, 2, 2, 1)];
    assert!(matches!(decide(&now, &running, 2, NOW).actions[..], [Action::Scale { to: 0, .. }]));
    let stopped = [set(&before, 0, 0, 1)];
    assert_eq!(decide(&now, &stopped, 1, NOW).actions, []);
    assert_eq!(decide(&now, &stopped, 0, NOW).actions, [Action::Create { replicas: 2, revision: 2 }]);
}

#[test]
fn undo_gives_an_old_set_the_next_revision() {
    let (v1, v2) = (deployment(1, "v1", json!({})), deployment(1, "v2", json!({})));
    let sets = [set(&v1, 0, 0, 1), set(&v2, 1, 1, 2)];
    let plan = decide(&v1, &sets, 0, NOW);
    assert_eq!(plan.revision, Some(3));
    assert!(matches!(plan.actions[0], Action::Revise { revision: 3, .. }));
}

#[test]
fn a_resize_during_a_rollout_is_shared_in_proportion() {
    let (v1, mut v2) = (deployment(10, "v1", json!({})), deployment(10, "v2", json!({})));
    let sets = [set(&v1, 8, 8, 1), set(&v2, 5, 0, 2)];
    v2.spec.as_mut().unwrap().replicas = Some(20);
    let grown: i32 = decide(&v2, &sets, 0, NOW)
        .actions
        .iter()
        .map(|action| {
            if let Action::Scale { from, to, .. } = action {
                assert!(to > from);
                *to
            } else {
                0
            }
        })
        .sum();
    assert_eq!(grown, 25, "20 and a quarter of surge");
}

#[test]
fn paused_neither_creates_nor_rolls_but_resizes() {
    let v1 = deployment(2, "v1", json!({}));
    let mut v2 = deployment(3, "v2", json!({}));
    v2.spec.as_mut().unwrap().paused = Some(true);
    let plan = decide(&v2, &[set(&v1, 2, 2, 1)], 0, NOW);
    assert!(matches!(plan.actions[..], [Action::Scale { from: 2, to: 3, .. }]), "{:?}", plan.actions);
}

#[test]
fn history_beyond_the_limit_goes_when_the_rollout_is_complete() {
    let mut now = deployment(1, "v4", json!({}));
    now.spec.as_mut().unwrap().revision_history_limit = Some(1);
    let old: Vec<_> = (1..=3).map(|n| set(&deployment(1, &format!("v{n}"), json!({})), 0, 0, n)).collect();
    let mut sets = old.clone();
    sets.push(set(&now, 1, 0, 4));
    assert_eq!(decide(&now, &sets, 0, NOW).actions, []);
    sets[3] = set(&now, 1, 1, 4);
    let gone: Vec<_> = old[..2].iter().map(|set| Action::Delete { set: set.metadata.name.clone().unwrap() }).collect();
    assert_eq!(decide(&now, &sets, 0, NOW).actions, gone);
}

#[test]
fn conditions_tell_progress_deadline_and_success() {
    let mut now = deployment(1, "v1", json!({}));
    now.spec.as_mut().unwrap().progress_deadline_seconds = Some(60);
    let condition = |plan: &Plan| {
        let all = plan.status.conditions.clone().unwrap();
        let one = all.into_iter().find(|one| one.type_ == "Progressing").unwrap();
        (one.status, one.reason.unwrap())
    };
    let sets = [set(&now, 1, 0, 1)];
    let first = decide(&now, &sets, 0, NOW);
    assert_eq!(condition(&first), ("True".into(), "ReplicaSetUpdated".into()));
    assert!(first.wait.is_some());
    now.status = Some(first.status);
    let again = decide(&now, &sets, 0, "2026-01-01T01:00:30Z");
    assert_eq!(Some(&again.status), now.status.as_ref(), "nothing new is written");
    let late = decide(&now, &sets, 0, "2026-01-01T01:01:01Z");
    assert_eq!(condition(&late), ("False".into(), "ProgressDeadlineExceeded".into()));
    let up = decide(&now, &[set(&now, 1, 1, 1)], 0, NOW);
    assert_eq!(condition(&up), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(up.status.observed_generation, Some(2));
}
