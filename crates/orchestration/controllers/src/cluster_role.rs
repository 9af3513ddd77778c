//! Fills aggregated ClusterRoles with the rules of the roles that they select.

use std::sync::Arc;

use dhow_client::{Client, Error, Informer, Key, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use crate::common::selects;

/// The rules an aggregated role is to have, in the order of the roles' names, each once; `None` for a plain role.
fn aggregated(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors {
        for other in all {
            if other.metadata.name == role.metadata.name || !selects(selector, other.metadata.labels.as_ref()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

pub struct ClusterRoles {
    client: Client,
    roles: Informer<ClusterRole>,
}

impl ClusterRoles {
    pub fn new(client: Client, roles: Informer<ClusterRole>, queue: &Queue) -> Arc<Self> {
        let (to, all) = (queue.clone(), roles.clone());
        roles.on_change(move |change| {
            to.add(Key::of(&change.object().metadata));
            // Any other may select it, or have selected it.
            for role in all.list().iter().filter(|role| role.aggregation_rule.is_some()) {
                to.add(Key::of(&role.metadata));
            }
        });
        Arc::new(Self { client, roles })
    }
}

#[async_trait::async_trait]
impl Reconcile for ClusterRoles {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(role) = self.roles.get(key) else { return Ok(Outcome::Done) };
        let Some(rules) = aggregated(&role, &self.roles.list()) else { return Ok(Outcome::Done) };
        if role.rules.as_deref().unwrap_or_default() != rules {
            let patch = json!({"metadata": {"resourceVersion": role.metadata.resource_version}, "rules": rules});
            self.client.patch::<ClusterRole>(None, &key.name, Patch::Merge(patch), None).await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rules_of_selected_roles_come_once_and_never_its_own() {
        let role = |name: &str, verb: &str| -> Arc<ClusterRole> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "labels": {"to": "view"}}, "rules": [{"apiGroups": [""], "verbs": [verb]}],
                    "aggregationRule": (name == "view")
                        .then(|| json!({"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]})),
                }))
                .unwrap(),
            )
        };
        let all = [role("a", "get"), role("b", "list"), role("c", "get"), role("view", "delete")];
        let verbs: Vec<_> = aggregated(&all[3], &all).unwrap().into_iter().map(|rule| rule.verbs[0].clone()).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert_eq!(aggregated(&all[0], &all), None);
    }
}
