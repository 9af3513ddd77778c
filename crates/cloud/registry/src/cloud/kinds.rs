//! `Project` and `RobotAccount`, group `registry.dhow.io/v1alpha1`, as users write them. The schemas of all the registry's
//! kinds are `crds.yaml`.

use std::time::Duration;

use dhow_api::quantity::Quantity;
use dhow_client::kind;
use dhow_image::Reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use crate::access::User;
use crate::projects::{Role, Visibility};
use crate::rules::{Pattern, Retain, Rules};

/// The definitions that the API serves the kinds by.
pub const DEFINITIONS: &str = include_str!("crds.yaml");
pub const VERSION: &str = "v1alpha1";
/// What [`DEFINITIONS`] are called.
pub const NAMES: [&str; 3] =
    ["projects.registry.dhow.io", "robotaccounts.registry.dhow.io", "replicationrules.registry.dhow.io"];

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Project {
    pub metadata: ObjectMeta,
    pub spec: ProjectSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ProjectStatus>,
}
kind!(Project, "registry.dhow.io", "v1alpha1", "projects", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectSpec {
    pub visibility: Visibility,
    pub members: Vec<Member>,
    /// Bytes, as quantities are written.
    pub quota: Option<String>,
    pub immutable_tags: Vec<String>,
    pub retention: Vec<Retention>,
    pub upstream: Option<UpstreamSpec>,
    pub webhooks: Vec<Webhook>,
}

/// Who is told of what happens in the project.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Webhook {
    pub url: String,
    /// All if empty.
    pub events: Vec<HookEvent>,
    pub format: Format,
    /// A Secret whose `authorization` is the header of that name.
    pub authorization: Option<SecretReference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookEvent {
    Push,
    Delete,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    #[default]
    CloudEvents,
    /// As docker-registry notifies.
    Docker,
}

/// What the project is a cache of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UpstreamSpec {
    /// Host and port, as image names have them.
    pub registry: String,
    /// What the repositories' names there begin with.
    pub prefix: String,
    /// A Secret of the kind that pods pull with.
    pub credentials: Option<SecretReference>,
    /// As Go writes durations.
    pub check_after: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretReference {
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    pub kind: MemberKind,
    pub name: String,
    /// Of a service account or a robot.
    pub namespace: String,
    pub role: Role,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    #[default]
    User,
    Group,
    ServiceAccount,
    /// A RobotAccount.
    Robot,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    pub tags: String,
    pub newest: Option<usize>,
    /// As Go writes durations.
    pub younger: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProjectStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub repositories: u64,
    pub bytes: u64,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RobotAccount {
    pub metadata: ObjectMeta,
    pub spec: RobotSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RobotStatus>,
}
kind!(RobotAccount, "registry.dhow.io", "v1alpha1", "robotaccounts", NamespaceResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RobotSpec {
    pub description: String,
    /// Where its credentials are put; the robot's own name if absent.
    pub secret_name: Option<String>,
    pub expires: Option<Time>,
    pub disabled: bool,
    /// Another text than before: another secret.
    pub rotation: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RobotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// As whom it logs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_name: Option<String>,
    /// SHA-256 of its secret, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_hash: Option<String>,
    /// The rotation that the secret is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
    pub conditions: Vec<Condition>,
}

/// How long tags of other registries are believed, unless a project says it.
const CHECK_AFTER: &str = "10m";

/// Robots' names as they log in begin with it. No name of a namespace has a dot, so the rest is told apart.
const ROBOT: &str = "robot.";

/// As whom a robot logs in.
pub fn login_name(namespace: &str, name: &str) -> String {
    format!("{ROBOT}{namespace}.{name}")
}

/// Namespace and name of the robot who logs in like this; `None`: it is no robot.
pub fn robot_of(login: &str) -> Option<(&str, &str)> {
    login.strip_prefix(ROBOT)?.split_once('.')
}

/// Whom the API knows a robot as, in role bindings too.
pub fn robot_user(namespace: &str, name: &str) -> String {
    format!("system:robot:{namespace}:{name}")
}

impl Member {
    pub fn is(&self, user: &User) -> bool {
        match self.kind {
            MemberKind::User => user.name == self.name,
            MemberKind::Group => user.groups.contains(&self.name),
            MemberKind::ServiceAccount => {
                user.name == format!("system:serviceaccount:{}:{}", self.namespace, self.name)
            }
            MemberKind::Robot => user.name == robot_user(&self.namespace, &self.name),
        }
    }
}

impl UpstreamSpec {
    /// What the project's repository of this name below it is a cache of, and for how long tags are believed.
    ///
    /// # Errors
    /// With what is not understood, as users may read it.
    pub fn origin(&self, below: &str) -> Result<(Reference, Duration), String> {
        let prefix = self.prefix.trim_matches('/');
        let joint = if prefix.is_empty() { "" } else { "/" };
        let name = format!("{}/{prefix}{joint}{below}", self.registry);
        let reference = Reference::parse(&name).map_err(|error| format!("spec.upstream: {error}"))?;
        // Docker Hub has several names; any other word that is no host would be read as a part of a name there.
        let is_hub = reference.registry == "docker.io" && self.registry.ends_with("docker.io");
        if reference.registry != self.registry && !is_hub {
            return Err(format!("spec.upstream.registry: {:?} is no host of a registry", self.registry));
        }
        Ok((reference, duration("spec.upstream.checkAfter", self.check_after.as_deref().unwrap_or(CHECK_AFTER))?))
    }
}

fn duration(field: &str, text: &str) -> Result<Duration, String> {
    let seconds = dhow_base::duration::go_seconds(text).ok_or_else(|| format!("{field}: {text:?} is no duration"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("{field}: {error}"))
}

impl ProjectSpec {
    /// # Errors
    /// With what is not understood, as users may read it.
    pub fn rules(&self) -> Result<Rules, String> {
        let quota = match &self.quota {
            None => None,
            Some(text) => {
                let quantity: Quantity = text.parse().map_err(|_| format!("spec.quota: {text:?} is no quantity"))?;
                Some(u64::try_from(quantity.units()).map_err(|_| format!("spec.quota: {text:?} is negative"))?)
            }
        };
        let retain = |rule: &Retention| {
            let younger = rule.younger.as_ref().map(|text| duration("spec.retention", text)).transpose()?;
            Ok::<_, String>(Retain { tags: Pattern(rule.tags.clone()), newest: rule.newest, younger })
        };
        if let Some(upstream) = &self.upstream {
            upstream.origin("any")?;
        }
        Ok(Rules {
            quota,
            immutable: self.immutable_tags.iter().cloned().map(Pattern).collect(),
            retain: self.retention.iter().map(retain).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_users_groups_accounts_and_robots() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.to_owned(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
        };
        let member = |value| serde_json::from_value::<Member>(value).unwrap();
        assert!(member(json!({"kind": "User", "name": "ada"})).is(&user("ada", &[])));
        assert!(member(json!({"kind": "Group", "name": "devs"})).is(&user("ada", &["devs"])));
        assert!(!member(json!({"kind": "Group", "name": "ada"})).is(&user("ada", &["devs"])));
        let account = member(json!({"kind": "ServiceAccount", "namespace": "a", "name": "ci"}));
        assert!(account.is(&user("system:serviceaccount:a:ci", &[])) && !account.is(&user("ci", &[])));
        let robot = member(json!({"kind": "Robot", "namespace": "a", "name": "ci.nightly"}));
        let login = login_name("a", "ci.nightly");
        let (namespace, name) = robot_of(&login).unwrap();
        assert!(robot.is(&user(&robot_user(namespace, name), &[])));
        assert_eq!(robot_of("ada"), None);
    }

    #[test]
    fn rules_are_read_or_refused_by_name() {
        let spec = |value| serde_json::from_value::<ProjectSpec>(value).unwrap();
        let whole = spec(json!({
            "quota": "2Gi", "immutableTags": ["v*"],
            "retention": [{"tags": "*", "newest": 5}, {"tags": "nightly-*", "younger": "720h"}],
        }));
        let rules = whole.rules().unwrap();
        assert_eq!((rules.quota, rules.retain.len()), (Some(2 << 30), 2));
        assert_eq!(rules.retain[1].younger, Some(Duration::from_secs(720 * 3600)));
        assert!(rules.is_immutable("v1") && !rules.is_immutable("latest"));
        for (value, says) in [
            (json!({"quota": "much"}), "spec.quota"),
            (json!({"quota": "-1"}), "negative"),
            (json!({"upstream": {"registry": "no host"}}), "spec.upstream"),
            (json!({"upstream": {"registry": "quay.io", "checkAfter": "soon"}}), "checkAfter"),
            (json!({"retention": [{"tags": "*", "younger": "soon"}]}), "spec.retention"),
        ] {
            assert!(spec(value).rules().unwrap_err().contains(says));
        }
    }

    #[test]
    fn origins_are_named_as_images_are() {
        let origin = |value, below: &str| {
            let spec: UpstreamSpec = serde_json::from_value(value).unwrap();
            spec.origin(below).map(|(reference, after)| (reference.name(), after.as_secs()))
        };
        let hub = json!({"registry": "docker.io"});
        assert_eq!(origin(hub.clone(), "nginx").unwrap(), ("docker.io/library/nginx".to_owned(), 600));
        assert_eq!(origin(hub, "grafana/loki").unwrap().0, "docker.io/grafana/loki");
        let part = json!({"registry": "quay.io:444", "prefix": "coreos/", "checkAfter": "1h"});
        assert_eq!(origin(part, "etcd").unwrap(), ("quay.io:444/coreos/etcd".to_owned(), 3600));
        assert!(origin(json!({"registry": "plain"}), "etcd").is_err());
    }

    #[test]
    fn the_definitions_are_named_as_we_ask_for_them() {
        for name in NAMES {
            assert!(DEFINITIONS.contains(&format!("name: {name}\n")), "{name}");
        }
    }
}
