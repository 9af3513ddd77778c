//! Role-based access control: evaluates Roles and ClusterRoles bound to a user, straight from the cache.

use std::sync::Arc;

use dhow_api::Status;
use dhow_api::registry::{self, Kind};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::identity::UserInfo;
use crate::info::{RequestInfo, Target};

/// One question: may this user do that?
#[derive(Debug, Clone)]
pub enum Attributes {
    Resource { verb: String, group: String, resource: String, subresource: String, namespace: String, name: String },
    Path { verb: String, path: String },
}

impl Attributes {
    pub fn of(info: &RequestInfo) -> Self {
        match &info.target {
            Target::Path(path) => Self::Path { verb: info.verb.into(), path: path.clone() },
            Target::Resource(target) => Self::Resource {
                verb: info.verb.into(),
                group: target.kind.group.into(),
                resource: target.kind.plural.into(),
                subresource: target.subresource.map_or("", |subresource| subresource.name()).into(),
                // Upstream treats a namespace as inside itself.
                namespace: match (&target.namespace, target.kind.kind) {
                    (Some(namespace), _) => namespace.clone(),
                    (None, "Namespace") => target.name.clone().unwrap_or_default(),
                    (None, _) => String::new(),
                },
                name: target.name.clone().unwrap_or_default(),
            },
        }
    }

    fn namespace(&self) -> &str {
        match self {
            Self::Resource { namespace, .. } => namespace,
            Self::Path { .. } => "",
        }
    }
}

/// Paths that need no proof of identity.
const OPEN: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

pub struct Authorizer {
    cache: Arc<Cache>,
}

impl Authorizer {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    /// Refuses in upstream's words what no rule allows.
    pub fn check(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), Status> {
        if self.allows(user, attributes) {
            return Ok(());
        }
        Err(match attributes {
            Attributes::Path { verb, path } => Status::forbidden_path(&user.name, verb, path),
            Attributes::Resource { verb, group, resource, subresource, namespace, name } => {
                Status::forbidden_user(&user.name, verb, group, resource, Some(subresource), Some(namespace), name)
            }
        })
    }

    pub fn allows(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        if user.is_master() {
            return true;
        }
        if let Attributes::Path { verb, path } = attributes
            && verb == "get"
            && OPEN.iter().any(|open| path == open || path.starts_with(&format!("{open}/")))
        {
            return true;
        }
        let mut allowed = false;
        self.each_rule(user, attributes.namespace(), |rule| {
            allowed |= permits(rule, attributes);
        });
        allowed
    }

    /// Every rule that holds for the user, cluster-wide and in the namespace.
    pub fn each_rule(&self, user: &UserInfo, namespace: &str, mut visit: impl FnMut(&PolicyRule)) {
        for binding in self.all::<ClusterRoleBinding>("clusterrolebindings") {
            if applies(binding.subjects.as_deref(), user, "") {
                self.rules(&binding.role_ref, "").iter().for_each(&mut visit);
            }
        }
        if namespace.is_empty() {
            return;
        }
        for binding in self.all::<RoleBinding>("rolebindings") {
            if binding.metadata.namespace.as_deref() == Some(namespace)
                && applies(binding.subjects.as_deref(), user, namespace)
            {
                self.rules(&binding.role_ref, namespace).iter().for_each(&mut visit);
            }
        }
    }

    fn rules(&self, role: &RoleRef, namespace: &str) -> Vec<PolicyRule> {
        let rules = if role.kind == "ClusterRole" {
            self.one::<ClusterRole>("clusterroles", None, &role.name).and_then(|role| role.rules)
        } else {
            self.one::<Role>("roles", Some(namespace), &role.name).and_then(|role| role.rules)
        };
        rules.unwrap_or_default()
    }

    fn all<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let Some(snapshot) = rbac_kind(plural).and_then(|kind| self.cache.snapshot(kind).ok()) else {
            return Vec::new();
        };
        snapshot.objects.values().filter_map(|object| serde_json::from_slice(&object.bytes).ok()).collect()
    }

    fn one<K: DeserializeOwned>(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<K> {
        let kind = rbac_kind(plural)?;
        let object = self.cache.get(kind, &kind.storage_key(namespace, name))?;
        serde_json::from_slice(&object.bytes).ok()
    }
}

fn rbac_kind(plural: &str) -> Option<&'static Kind> {
    registry::builtin().get("rbac.authorization.k8s.io", "v1", plural)
}

fn applies(subjects: Option<&[Subject]>, user: &UserInfo, namespace: &str) -> bool {
    subjects.unwrap_or_default().iter().any(|subject| match subject.kind.as_str() {
        "User" => subject.name == user.name,
        "Group" => user.groups.contains(&subject.name),
        "ServiceAccount" => {
            let namespace = subject.namespace.as_deref().unwrap_or(namespace);
            user.name == format!("system:serviceaccount:{namespace}:{}", subject.name)
        }
        _ => false,
    })
}

/// Whether one rule covers the question.
pub fn permits(rule: &PolicyRule, attributes: &Attributes) -> bool {
    let has = |list: &[String], wanted: &str| list.iter().any(|entry| entry == "*" || entry == wanted);
    match attributes {
        Attributes::Path { verb, path } => {
            has(&rule.verbs, verb)
                && rule.non_resource_urls.iter().flatten().any(|pattern| match pattern.strip_suffix('*') {
                    Some(prefix) => path.starts_with(prefix),
                    None => path == pattern,
                })
        }
        Attributes::Resource { verb, group, resource, subresource, name, .. } => {
            let names = rule.resource_names.as_deref().unwrap_or_default();
            has(&rule.verbs, verb)
                && has(rule.api_groups.as_deref().unwrap_or_default(), group)
                && rule.resources.iter().flatten().any(|entry| covers(entry, resource, subresource))
                && (names.is_empty() || names.contains(name))
        }
    }
}

/// `*`, `pods`, `pods/log`, `*/scale`.
fn covers(entry: &str, resource: &str, subresource: &str) -> bool {
    if entry == "*" {
        return true;
    }
    match entry.split_once('/') {
        None => subresource.is_empty() && entry == resource,
        Some((wanted, sub)) => (wanted == "*" || wanted == resource) && sub == subresource && !sub.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(verb: &str, resource: &str, subresource: &str) -> Attributes {
        Attributes::Resource {
            verb: verb.into(),
            group: String::new(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: "a".into(),
            name: "x".into(),
        }
    }

    #[test]
    fn rules_cover_what_they_say_and_no_more() {
        let rule = PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["pods".into(), "pods/log".into()]),
            verbs: vec!["get".into()],
            ..PolicyRule::default()
        };
        assert!(permits(&rule, &question("get", "pods", "")));
        assert!(permits(&rule, &question("get", "pods", "log")));
        assert!(!permits(&rule, &question("get", "pods", "exec")));
        assert!(!permits(&rule, &question("delete", "pods", "")));
        assert!(!permits(&rule, &question("get", "secrets", "")));
        let named = PolicyRule { resource_names: Some(vec!["y".into()]), ..rule };
        assert!(!permits(&named, &question("get", "pods", "")));
    }
}
