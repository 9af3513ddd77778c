//! Whether a write is a webhook's to judge.

use std::collections::BTreeMap;

use dhow_api::registry::{KINDS, Kind, KindRef};
use dhow_api::selectors::LabelSelector;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::hook::{GROUP, Hook};
use crate::ApiServer;
use crate::admission::{Attributes, Operation, cached};

/// What a webhook is about; every part has to fit.
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
}

impl Rule {
    pub fn read(rule: &Value) -> Self {
        let list = |field: &str| {
            meta::items(rule, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        Self {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources"),
            scope: rule["scope"].as_str().unwrap_or("*").into(),
        }
    }

    fn covers(&self, row: &Kind, attributes: &Attributes<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|entry| entry == "*" || entry == wanted);
        let subresource = attributes.subresource.map_or("", |subresource| subresource.name());
        has(&self.operations, attributes.operation.name())
            && has(&self.groups, row.group)
            && has(&self.versions, row.version)
            && self.resources.iter().any(|entry| names(entry, row.plural, subresource))
            && match self.scope.as_str() {
                "Namespaced" => row.namespaced,
                "Cluster" => !row.namespaced,
                _ => true,
            }
    }
}

/// `pods`, `pods/status`, `pods/*`, `*/scale`, `*` for everything but subresources, `*/*`.
fn names(entry: &str, plural: &str, subresource: &str) -> bool {
    let (resource, sub) = entry.split_once('/').unwrap_or((entry, ""));
    (resource == "*" || resource == plural) && (sub == "*" || sub == subresource)
}

/// In whose form a hook wants to see the object.
pub enum Row {
    /// As the write has it.
    Own,
    /// As another row shows the same objects.
    Other(KindRef),
}

/// `None` if the write is none of the hook's rules'. What configures admission itself is no webhook's.
pub fn row_for(server: &ApiServer, hook: &Hook, attributes: &Attributes<'_>) -> Option<Row> {
    let kind = attributes.kind;
    if kind.group == GROUP {
        return None;
    }
    let covered = |row: &Kind| hook.rules.iter().any(|rule| rule.covers(row, attributes));
    if covered(kind) {
        return Some(Row::Own);
    }
    if !hook.equivalent {
        return None;
    }
    let catalog = server.definitions.catalog();
    let others = KINDS.iter().chain(catalog.custom());
    let mut others = others.filter(|row| row.stored && row.storage == kind.storage);
    let other = others.find(|row| (row.group, row.version) != (kind.group, kind.version) && covered(row))?;
    if kind.custom.as_ref().is_some_and(|served| served.definition.webhook.is_some()) {
        // Better asked in the write's form than not at all.
        return Some(Row::Own);
    }
    catalog.get(other.group, other.version, other.plural).map(Row::Other)
}

/// Whether the hook is for the write's namespace; what is in none is everybody's.
pub fn in_namespace(server: &ApiServer, hook: &Hook, attributes: &Attributes<'_>) -> Result<bool, Status> {
    let selector = &hook.namespaces;
    if selector.is_everything() {
        return Ok(true);
    }
    if attributes.is("", "Namespace") {
        let new = matches!(attributes.operation, Operation::Create | Operation::Update);
        let object = if new { Some(&attributes.object) } else { attributes.old };
        return Ok(object.is_some_and(|object| selector.matches_value(object)));
    }
    let Some(namespace) = attributes.namespace.filter(|_| attributes.kind.namespaced) else { return Ok(true) };
    let found = cached(server, "", "namespaces", None, namespace);
    let found = found.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    Ok(selector.matches_with(|key| found.header.labels.get(key)))
}

/// Whether the object, as it is to be or as it is, is the hook's.
pub fn selects(hook: &Hook, attributes: &Attributes<'_>) -> bool {
    let selector = &hook.objects;
    selector.is_everything()
        || [Some(&attributes.object), attributes.old]
            .into_iter()
            .flatten()
            .any(|object| !object.is_null() && matches(selector, object))
}

fn matches(selector: &LabelSelector, object: &Value) -> bool {
    let labels: BTreeMap<String, String> = meta::object(object, &["metadata", "labels"])
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    selector.matches(&labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_and_subresources() {
        assert!(names("pods", "pods", "") && !names("pods", "pods", "status"));
        assert!(names("*", "pods", "") && !names("*", "pods", "status"));
        assert!(names("*/*", "pods", "") && names("*/*", "pods", "status"));
        assert!(names("pods/*", "pods", "exec") && names("*/scale", "deployments", "scale"));
        assert!(!names("*/scale", "deployments", ""));
    }
}
