//! The kinds of the builder on a server: their definitions, their roles, and the `buildRuns` section of the settings.

use anyhow::{Context, Result, ensure};
use dhow_api::quantity::Quantity;
use dhow_builder::cloud::{self, Largest, Room, kinds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::registry;

pub const USER: &str = "system:dhow:builds";
const RBAC: &str = "rbac.authorization.k8s.io";

/// What runs of Builds may take.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BuildRunSettings {
    /// Runs at the same time on each node.
    pub per_node: usize,
    /// Runs at the same time of each namespace.
    pub per_namespace: usize,
    /// Processors for each step, at most and unless a Build wants less.
    pub cpu: String,
    /// Bytes for each step, at most and unless a Build wants less.
    pub memory: String,
}

impl Default for BuildRunSettings {
    fn default() -> Self {
        Self { per_node: 2, per_namespace: 2, cpu: "4".to_owned(), memory: "4Gi".to_owned() }
    }
}

impl BuildRunSettings {
    /// The same, understood.
    pub fn resolve(&self) -> Result<cloud::Settings> {
        let read = |field: &str, text: &str| {
            let quantity: Option<Quantity> = text.parse().ok().filter(|q: &Quantity| !q.is_negative() && !q.is_zero());
            quantity.with_context(|| format!("buildRuns.{field}: {text:?} is no quantity above zero"))
        };
        ensure!(
            self.per_node > 0 && self.per_namespace > 0,
            "buildRuns.perNode and buildRuns.perNamespace: at least 1"
        );
        let [inside, ..] = registry::service_names();
        Ok(cloud::Settings {
            room: Room { per_node: self.per_node, per_namespace: self.per_namespace },
            most: Largest {
                cpu_milli: u64::try_from(read("cpu", &self.cpu)?.millis())?,
                memory: u64::try_from(read("memory", &self.memory)?.units())?,
            },
            registry: inside,
        })
    }
}

/// All that the kinds need of the API.
pub fn objects() -> Result<Vec<Value>> {
    let mut all: Vec<Value> =
        serde_saphyr::from_multiple(kinds::DEFINITIONS).context("read the builder's definitions")?;
    let group = kinds::GROUP;
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let role = |name: &str, labels: Value, rules: Value| {
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole",
            "metadata": {"name": name, "labels": labels}, "rules": rules,
        })
    };
    let bind = |name: &str, kind: &str, subjects: &[&str]| {
        let subjects: Vec<Value> =
            subjects.iter().map(|subject| json!({"apiGroup": RBAC, "kind": kind, "name": subject})).collect();
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}, "subjects": subjects,
        })
    };
    let own = json!([
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &["get", "list", "watch"]),
        rule(&[group], &["builds", "buildruns"], &["create", "delete", "get", "list", "patch", "watch"]),
        rule(&[group], &["builds/status", "buildruns/status"], &["patch"]),
        rule(&[group], &["builds/finalizers", "buildruns/finalizers"], &["update"]),
        rule(&[""], &["nodes"], &["get", "list", "watch"]),
        // Builders are behind the nodes' proxies.
        rule(&[""], &["nodes/proxy"], &["create", "delete", "get", "update"]),
        // Of the namespace of the build, as its pods could have them.
        rule(&[""], &["secrets", "serviceaccounts"], &["get"]),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&[""], &["events"], &["create", "patch"]),
        rule(&["apps"], &["daemonsets", "deployments", "statefulsets"], &["get", "patch"]),
        rule(&["batch"], &["cronjobs"], &["get", "patch"]),
    ]);
    all.push(role(USER, json!({}), own));
    all.push(bind(USER, "User", &[USER]));
    // Whoever knows the secret of a hook may speak to it.
    let hooks = "dhow:build:webhook";
    all.push(role(hooks, json!({}), json!([rule(&[group], &["builds/webhooks"], &["create"])])));
    all.push(bind(hooks, "Group", &["system:authenticated", "system:unauthenticated"]));
    let aggregated = |to: &str, rules: Value| {
        role(&format!("dhow:build:{to}"), json!({format!("{RBAC}/aggregate-to-{to}"): "true"}), rules)
    };
    let changes = ["create", "delete", "deletecollection", "patch", "update"];
    all.push(aggregated(
        "edit",
        json!([rule(&[group], &["builds", "buildruns"], &changes), rule(&[group], &["builds/upload"], &["create"]),]),
    ));
    all.push(aggregated(
        "view",
        json!([
            rule(&[group], &["builds", "buildruns"], &["get", "list", "watch"]),
            rule(&[group], &["builds/status", "buildruns/log", "buildruns/status"], &["get"]),
        ]),
    ));
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_come_first_and_their_roles_are_bound() {
        let objects = objects().unwrap();
        assert_eq!(objects[0]["metadata"]["name"], kinds::NAMES[0]);
        assert_eq!(objects[1]["metadata"]["name"], kinds::NAMES[1]);
        let named = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
        assert_eq!((named("ClusterRole"), named("ClusterRoleBinding")), (4, 2));
    }

    #[test]
    fn settings_are_quantities() {
        let settings = BuildRunSettings::default().resolve().unwrap();
        assert_eq!((settings.most.cpu_milli, settings.most.memory), (4000, 4 << 30));
        assert_eq!(settings.registry, "registry.dhow-registry.svc.cluster.local");
        let wrong = BuildRunSettings { memory: "0".to_owned(), ..BuildRunSettings::default() };
        assert!(wrong.resolve().unwrap_err().to_string().contains("buildRuns.memory"));
        assert!(BuildRunSettings { per_node: 0, ..BuildRunSettings::default() }.resolve().is_err());
    }
}
