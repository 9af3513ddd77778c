//! ReplicationControllers: ReplicaSets with a plain map for a selector.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::replicaset::Replicated;

impl Replicated for ReplicationController {
    const CONTROLLER: (&'static str, &'static str) = ("replication-controller", "replication-controller");

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        // Without a selector it would be everything that is selected; the API server fills one in.
        let spec = spec.selector.filter(|labels| !labels.is_empty()).map(|labels| ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector { match_labels: Some(labels), match_expressions: None },
            template: spec.template,
        });
        let status = self.status.clone().map(|status| ReplicaSetStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|all| {
                all.into_iter()
                    .map(|one| ReplicaSetCondition {
                        type_: one.type_,
                        status: one.status,
                        reason: one.reason,
                        message: one.message,
                        last_transition_time: one.last_transition_time,
                    })
                    .collect()
            }),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
            // Not in its status: it cannot make a difference.
            terminating_replicas: None,
        });
        Cow::Owned(ReplicaSet { metadata: self.metadata.clone(), spec, status })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|all| {
                all.into_iter()
                    .map(|one| ReplicationControllerCondition {
                        type_: one.type_,
                        status: one.status,
                        reason: one.reason,
                        message: one.message,
                        last_transition_time: one.last_transition_time,
                    })
                    .collect()
            }),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        Self { status: Some(status), ..self.clone() }
    }
}
