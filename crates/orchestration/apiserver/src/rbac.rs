//! Role-based access control: which rules of Roles and ClusterRoles hold for a user, compiled from the cache.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use dhow_api::registry::{self, Kind};
use dhow_api::selectors::FieldSelector;
use dhow_api::{Status, local_volumes};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject};
use serde::de::DeserializeOwned;

use crate::cache::Cache;
use crate::identity::UserInfo;
use crate::info::{RequestInfo, Target};
use crate::node_authorizer;

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
            Target::Extension(target) => Self::Resource {
                verb: info.verb.into(),
                group: target.group.clone(),
                resource: target.resource.clone(),
                subresource: target.subresource.clone(),
                namespace: target.namespace.clone(),
                name: match target.name.as_str() {
                    "" => selected(info, "metadata.name").unwrap_or_default(),
                    name => name.to_owned(),
                },
            },
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
                // A selection of one object is a question about that one.
                name: target.name.clone().or_else(|| selected(info, "metadata.name")).unwrap_or_default(),
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

/// What a list or watch is narrowed to, beyond a name.
#[derive(Debug, Default)]
pub struct Selected {
    /// `spec.nodeName` in the field selector.
    pub node: Option<String>,
    /// The node whose local volumes alone the label selector lets through.
    pub volumes_of: Option<String>,
}

impl Selected {
    pub fn of(info: &RequestInfo) -> Self {
        Self { node: selected(info, "spec.nodeName"), volumes_of: labelled(info, local_volumes::NODE_LABEL) }
    }
}

/// The one value that a list's or watch's label selector lets through for a label, in the form `label=value`.
fn labelled(info: &RequestInfo, label: &str) -> Option<String> {
    if !matches!(info.verb, "list" | "watch") {
        return None;
    }
    let (name, value) = info.query.get("labelSelector")?.split_once('=')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (name == label && !value.is_empty() && value.chars().all(plain)).then(|| value.to_owned())
}

/// The one value that a list's or watch's field selector lets through at a path.
fn selected(info: &RequestInfo, path: &str) -> Option<String> {
    if !matches!(info.verb, "list" | "watch") {
        return None;
    }
    let selector = FieldSelector::parse(info.query.get("fieldSelector")?).ok()?;
    selector.exact(path).filter(|value| !value.is_empty()).map(str::to_owned)
}

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// Paths that need no proof of identity.
const OPEN: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

pub struct Authorizer {
    cache: Arc<Cache>,
    compiled: ArcSwap<Compiled>,
}

/// Which rules hold for whom, made anew when a role or binding changes: a check parses nothing.
#[derive(Default)]
struct Compiled {
    /// The newest change of each of [`PLURALS`] that is in here.
    revisions: [u64; 4],
    cluster: Bindings,
    namespaces: HashMap<String, Bindings>,
}

/// Bindings by whom they name.
#[derive(Default)]
struct Bindings {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

type Rules = Arc<[PolicyRule]>;

impl Compiled {
    /// What a user is given cluster-wide and in a namespace.
    fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        self.cluster.of(user).chain(self.namespaces.get(namespace).into_iter().flat_map(|bindings| bindings.of(user)))
    }
}

/// What one binding gives one subject.
struct Grant {
    rules: Rules,
    /// Which binding that is, as reviews and the audit log tell it.
    reason: Arc<str>,
}

/// An answer, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing allows it.
    Refused,
    /// By what the user is.
    Allowed,
    /// By a binding.
    Granted(Arc<str>),
}

impl Verdict {
    pub fn allowed(&self) -> bool {
        *self != Self::Refused
    }

    /// In upstream's words; empty where upstream has none.
    pub fn reason(&self) -> &str {
        match self {
            Self::Granted(reason) => reason,
            Self::Refused | Self::Allowed => "",
        }
    }
}

/// What is said of a request that nothing allows, in upstream's words.
pub fn refusal(user: &UserInfo, attributes: &Attributes) -> Status {
    match attributes {
        Attributes::Path { verb, path } => Status::forbidden_path(&user.name, verb, path),
        Attributes::Resource { verb, group, resource, subresource, namespace, name } => {
            Status::forbidden_user(&user.name, verb, group, resource, Some(subresource), Some(namespace), name)
        }
    }
}

const PLURALS: [&str; 4] = ["clusterrolebindings", "clusterroles", "rolebindings", "roles"];

impl Bindings {
    /// `by` names the binding and its role.
    fn add(&mut self, subjects: Option<Vec<Subject>>, namespace: &str, rules: &Rules, by: &str) {
        for subject in subjects.unwrap_or_default() {
            let shown = match subject.kind.as_str() {
                "ServiceAccount" => format!("{}/{}", subject.name, subject.namespace.as_deref().unwrap_or_default()),
                _ => subject.name.clone(),
            };
            let reason = format!("RBAC: allowed by {by} to {} {shown:?}", subject.kind).into();
            let (table, name) = match subject.kind.as_str() {
                "User" => (&mut self.users, subject.name),
                "Group" => (&mut self.groups, subject.name),
                "ServiceAccount" => {
                    let namespace = subject.namespace.as_deref().filter(|own| !own.is_empty()).unwrap_or(namespace);
                    (&mut self.users, format!("system:serviceaccount:{namespace}:{}", subject.name))
                }
                _ => continue,
            };
            table.entry(name).or_default().push(Grant { rules: rules.clone(), reason });
        }
    }

    fn of(&self, user: &UserInfo) -> impl Iterator<Item = &Grant> {
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        self.users.get(&user.name).into_iter().chain(of_groups).flatten()
    }
}

impl Authorizer {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, compiled: ArcSwap::default() }
    }

    /// Refuses in upstream's words what nothing allows.
    pub fn check(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), Status> {
        if self.allows(user, attributes) { Ok(()) } else { Err(refusal(user, attributes)) }
    }

    pub fn allows(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        self.decide(user, attributes, &Selected::default()).allowed()
    }

    /// The chain: masters, open paths, nodes, roles. The first that allows decides.
    pub fn decide(&self, user: &UserInfo, attributes: &Attributes, selected: &Selected) -> Verdict {
        if user.is_master() {
            return Verdict::Allowed;
        }
        if let Attributes::Path { verb, path } = attributes
            && verb == "get"
            && OPEN.iter().any(|open| path == open || path.starts_with(&format!("{open}/")))
        {
            return Verdict::Allowed;
        }
        if let Some(node) = node_authorizer::node_of(user)
            && node_authorizer::allows(&self.cache, node, attributes, selected)
        {
            return Verdict::Allowed;
        }
        let compiled = self.current();
        let granted = compiled
            .grants(user, attributes.namespace())
            .find(|grant| grant.rules.iter().any(|rule| permits(rule, attributes)));
        granted.map_or(Verdict::Refused, |grant| Verdict::Granted(grant.reason.clone()))
    }

    /// Every rule that holds for the user, cluster-wide and in the namespace.
    pub fn each_rule(&self, user: &UserInfo, namespace: &str, visit: impl FnMut(&PolicyRule)) {
        self.current().grants(user, namespace).flat_map(|grant| grant.rules.iter()).for_each(visit);
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = PLURALS.map(|plural| rbac_kind(plural).map_or(0, |kind| self.cache.changed(kind)));
        let compiled = self.compiled.load_full();
        if compiled.revisions == revisions {
            return compiled;
        }
        // Two may do this at once; both make the same.
        let fresh = Arc::new(self.compile(revisions));
        self.compiled.store(fresh.clone());
        fresh
    }

    fn compile(&self, revisions: [u64; 4]) -> Compiled {
        let cluster_roles: HashMap<String, Rules> = self
            .all::<ClusterRole>("clusterroles")
            .into_iter()
            .map(|role| (role.metadata.name.unwrap_or_default(), role.rules.unwrap_or_default().into()))
            .collect();
        let roles: HashMap<(String, String), Rules> = self
            .all::<Role>("roles")
            .into_iter()
            .map(|role| {
                let key = (role.metadata.namespace.unwrap_or_default(), role.metadata.name.unwrap_or_default());
                (key, role.rules.unwrap_or_default().into())
            })
            .collect();
        let mut compiled = Compiled { revisions, ..Compiled::default() };
        for binding in self.all::<ClusterRoleBinding>("clusterrolebindings") {
            if let Some(rules) = cluster_roles.get(&binding.role_ref.name) {
                let name = binding.metadata.name.as_deref().unwrap_or_default();
                let by = format!("ClusterRoleBinding {name:?} of ClusterRole {:?}", binding.role_ref.name);
                compiled.cluster.add(binding.subjects, "", rules, &by);
            }
        }
        for binding in self.all::<RoleBinding>("rolebindings") {
            let namespace = binding.metadata.namespace.unwrap_or_default();
            let role = &binding.role_ref;
            let rules = match role.kind.as_str() {
                "ClusterRole" => cluster_roles.get(&role.name),
                _ => roles.get(&(namespace.clone(), role.name.clone())),
            };
            if let Some(rules) = rules {
                let name = format!("{}/{namespace}", binding.metadata.name.as_deref().unwrap_or_default());
                let by = format!("RoleBinding {name:?} of {} {:?}", role.kind, role.name);
                compiled.namespaces.entry(namespace.clone()).or_default().add(binding.subjects, &namespace, rules, &by);
            }
        }
        compiled
    }

    /// The rules of the role that a binding refers to; `None` if there is no such role.
    pub fn rules_of(&self, role_kind: &str, namespace: &str, name: &str) -> Option<Vec<PolicyRule>> {
        match role_kind {
            "ClusterRole" => {
                self.one::<ClusterRole>("clusterroles", None, name).map(|role| role.rules.unwrap_or_default())
            }
            _ => self.one::<Role>("roles", Some(namespace), name).map(|role| role.rules.unwrap_or_default()),
        }
    }

    fn all<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let objects = rbac_kind(plural).and_then(|kind| self.cache.objects(kind).ok()).unwrap_or_default();
        objects.values().filter_map(|object| object.read().ok()).collect()
    }

    fn one<K: DeserializeOwned>(&self, plural: &str, namespace: Option<&str>, name: &str) -> Option<K> {
        let kind = rbac_kind(plural)?;
        let object = self.cache.get(kind, &kind.storage_key(namespace, name))?;
        object.read().ok()
    }
}

fn rbac_kind(plural: &str) -> Option<&'static Kind> {
    registry::builtin().get(GROUP, "v1", plural)
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
    fn accounts_without_a_namespace_are_of_their_bindings() {
        let mut bindings = Bindings::default();
        let subject = |namespace: Option<&str>| Subject {
            kind: "ServiceAccount".into(),
            name: "s".into(),
            namespace: namespace.map(str::to_owned),
            ..Subject::default()
        };
        let subjects = vec![subject(None), subject(Some("")), subject(Some("other"))];
        bindings.add(Some(subjects), "own", &Rules::default(), "");
        let grants =
            |namespace: &str| bindings.users.get(&format!("system:serviceaccount:{namespace}:s")).map(Vec::len);
        assert_eq!((grants("own"), grants("other"), grants("")), (Some(2), Some(1), None));
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
