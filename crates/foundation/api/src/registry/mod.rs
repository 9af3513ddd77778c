//! Kinds as rows with everything the generic pipeline needs: one table of built-in ones, and those of definitions,
//! which come and go.
//!
//! Invariant: a kind is known to the server if and only if it has a row. Nothing else lists kinds.

mod kinds;

use crate::custom::Served;
use crate::descriptor::{self, Message};
use crate::table::Column;
use crate::validation::Errors;
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

pub use kinds::KINDS;

/// A subresource of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subresource {
    Status,
    Scale,
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
    Binding,
    Eviction,
    Token,
    EphemeralContainers,
    Resize,
    Finalize,
    Approval,
}

impl Subresource {
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Token => "token",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
        }
    }

    /// The group, version and kind that the subresource speaks, when it is not the parent's.
    pub fn response_kind(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Scale => Some(("autoscaling", "v1", "Scale")),
            Self::Exec => Some(("", "v1", "PodExecOptions")),
            Self::Attach => Some(("", "v1", "PodAttachOptions")),
            Self::PortForward => Some(("", "v1", "PodPortForwardOptions")),
            Self::Binding => Some(("", "v1", "Binding")),
            Self::Eviction => Some(("policy", "v1", "Eviction")),
            Self::Token => Some(("authentication.k8s.io", "v1", "TokenRequest")),
            _ => None,
        }
    }

    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Finalize => &["update"],
            _ => &["get", "patch", "update"],
        }
    }
}

/// The two ways between a row's form and the one that is stored. Pure, and `from_storage` after `to_storage` gives
/// the object back.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

/// One row of the table: a kind at a version.
#[derive(Clone)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub subresources: &'static [Subresource],
    pub verbs: &'static [&'static str],
    /// Name of the schema, as OpenAPI knows it.
    pub definition: &'static str,
    /// Group and plural under which objects are stored: two rows may share storage.
    pub storage: (&'static str, &'static str),
    /// How the row's objects turn into the form that is stored and back; `None` when they are stored as they are.
    pub conversion: Option<Conversion>,
    /// What the definition of a custom kind says; `None` for a built-in one.
    pub custom: Option<Arc<Served>>,
    /// Whether objects are stored at all; reviews are not.
    pub stored: bool,
    /// Whether `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Whether a delete first marks the object and waits a grace period.
    pub graceful_delete: bool,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`.
    pub selectable_fields: &'static [&'static str],
    /// Whether PUT of an absent object creates it.
    pub create_on_update: bool,
    /// Whether PUT without a resourceVersion overwrites.
    pub unconditional_update: bool,
    /// What `kubectl get` prints.
    pub columns: &'static [Column],
    pub name_format: fn(&str) -> Vec<String>,
    pub defaults: fn(&mut Value),
    pub validate: fn(&Value, &mut Errors),
    /// Rules of new objects only.
    pub validate_create: fn(&Value, &mut Errors),
    pub validate_update: fn(&Value, &Value, &mut Errors),
    pub prepare_create: fn(&mut Value),
    /// The second half of creation, once uid, name and time of creation are set.
    pub finish_create: fn(&mut Value),
    pub prepare_update: fn(&mut Value, &Value),
    /// As those of updates, for updates of `status`.
    pub prepare_status: fn(&mut Value, &Value),
    pub validate_status: fn(&Value, &Value, &mut Errors),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, Kind={}", self.api_version(), self.kind)
    }
}

/// A row to keep: one of the table, or one that a definition made.
#[derive(Clone)]
pub enum KindRef {
    Builtin(&'static Kind),
    Custom(Arc<Kind>),
}

impl Deref for KindRef {
    type Target = Kind;

    fn deref(&self) -> &Kind {
        match self {
            Self::Builtin(kind) => kind,
            Self::Custom(kind) => kind,
        }
    }
}

impl From<&'static Kind> for KindRef {
    fn from(kind: &'static Kind) -> Self {
        Self::Builtin(kind)
    }
}

impl std::fmt::Debug for KindRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl Kind {
    /// Turns an object of this row into the form that is stored.
    pub fn to_storage(&self, object: &mut Value) {
        if let Some(conversion) = self.conversion {
            (conversion.to_storage)(object);
        }
        if let Some(served) = &self.custom {
            served.to_storage(object);
        }
    }

    /// Turns a stored object into this row's form.
    pub fn from_storage(&self, object: &mut Value) {
        if let Some(conversion) = self.conversion {
            (conversion.from_storage)(object);
        }
        if let Some(served) = &self.custom {
            served.from_storage(object);
        }
    }

    /// The row in whose form the objects of this one are kept; `None` when it is this one.
    pub fn storage_row(&self) -> Option<&'static Kind> {
        self.conversion?;
        KINDS.iter().find(|row| row.is_storage() && row.storage == self.storage)
    }

    /// Whether objects are stored in this row's form.
    pub fn is_storage(&self) -> bool {
        self.stored && self.conversion.is_none() && self.custom.as_ref().is_none_or(|served| served.version.storage)
    }

    /// The message its objects are encoded as; custom kinds have none.
    pub fn message(&self) -> Option<&'static Message> {
        if self.custom.is_some() { None } else { descriptor::message(self.definition) }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Group, version and kind that a subresource of this kind speaks.
    pub fn response_kind(&self, subresource: Subresource) -> (&'static str, &'static str, &'static str) {
        let proxy = match self.kind {
            "Node" => "NodeProxyOptions",
            "Service" => "ServiceProxyOptions",
            _ => "PodProxyOptions",
        };
        match subresource {
            Subresource::Proxy => ("", "v1", proxy),
            other => other.response_kind().unwrap_or((self.group, self.version, self.kind)),
        }
    }

    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    pub fn has_status(&self) -> bool {
        self.has(Subresource::Status)
    }

    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().copied().find(|s| s.name() == name)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether a field selector may name `path`.
    pub fn selectable(&self, path: &str) -> bool {
        path == "metadata.name"
            || (path == "metadata.namespace" && self.namespaced)
            || self.selectable_fields.contains(&path)
    }

    /// The key prefix of the kind in the store, ending in `/`.
    pub fn storage_prefix(&self) -> String {
        let (group, plural) = self.storage;
        format!("/registry/{}/{plural}/", if group.is_empty() { "core" } else { group })
    }

    /// The key of one object. `namespace` is ignored for cluster-scoped kinds.
    pub fn storage_key(&self, namespace: Option<&str>, name: &str) -> String {
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{}{namespace}/{name}", self.storage_prefix())
            }
            _ => format!("{}{name}", self.storage_prefix()),
        }
    }

    /// The collection's path: `/apis/apps/v1/namespaces/x/deployments`.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = group_path(self.group, self.version);
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{root}/namespaces/{namespace}/{}", self.plural)
            }
            _ => format!("{root}/{}", self.plural),
        }
    }
}

/// `/api/v1` or `/apis/apps/v1`.
pub fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// One API group with its versions, best first.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: &'static str,
    pub versions: Vec<&'static str>,
}

/// The table with its indexes.
pub struct Registry {
    by_plural: HashMap<(&'static str, &'static str, &'static str), &'static Kind>,
    by_kind: HashMap<(&'static str, &'static str, &'static str), &'static Kind>,
    groups: Vec<Group>,
}

impl Registry {
    fn new(kinds: &'static [Kind]) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for kind in kinds {
            match groups.iter_mut().find(|g| g.name == kind.group) {
                Some(group) if !group.versions.contains(&kind.version) => {
                    group.versions.push(kind.version);
                }
                Some(_) => {}
                None => groups.push(Group { name: kind.group, versions: vec![kind.version] }),
            }
        }
        Self {
            by_plural: kinds.iter().map(|k| ((k.group, k.version, k.plural), k)).collect(),
            by_kind: kinds.iter().map(|k| ((k.group, k.version, k.kind), k)).collect(),
            groups,
        }
    }

    /// By the segments of a request path.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        self.by_plural.get(&(group, version, plural)).copied()
    }

    /// By the type header of an object.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
        self.by_kind.get(&(group, version, kind)).copied()
    }

    /// By `apiVersion` and `kind`.
    pub fn by_api_version(&self, api_version: &str, kind: &str) -> Option<&'static Kind> {
        let (group, version) = crate::header::split_api_version(api_version);
        self.by_kind(group, version, kind)
    }

    /// Groups in the order discovery lists them; the core group is named "".
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Kinds of one group version, in table order.
    pub fn kinds_of(&self, group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
        KINDS.iter().filter(move |k| k.group == group && k.version == version)
    }

    pub fn iter(&self) -> impl Iterator<Item = &'static Kind> {
        KINDS.iter()
    }
}

/// The built-in kinds.
pub fn builtin() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new(&KINDS));
    &REGISTRY
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_are_unique_and_complete() {
        let mut seen = HashSet::new();
        for kind in KINDS.iter() {
            assert!(seen.insert((kind.group, kind.version, kind.plural)), "{kind:?} twice");
            assert!(kind.stored || kind.verbs == ["create"], "{kind:?}");
            assert!(kind.is_storage() || !kind.stored || kind.conversion.is_some(), "{kind:?}");
            assert_eq!(kind.list_kind, format!("{}List", kind.kind));
            assert!(crate::schema::types().get(kind.definition).is_some(), "{kind:?} has no schema");
        }
    }

    #[test]
    fn keys_and_paths() {
        let pods = builtin().get("", "v1", "pods").unwrap();
        assert_eq!(pods.storage_key(Some("a"), "b"), "/registry/core/pods/a/b");
        assert_eq!(pods.path(Some("a")), "/api/v1/namespaces/a/pods");
        let events = builtin().get("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(events.storage_prefix(), "/registry/core/events/");
        let nodes = builtin().by_api_version("v1", "Node").unwrap();
        assert_eq!(nodes.storage_key(Some("ignored"), "n"), "/registry/core/nodes/n");
    }
}
