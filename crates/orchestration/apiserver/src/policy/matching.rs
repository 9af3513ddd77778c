//! Which requests a policy or a binding is about.

use dhow_api::meta::{items, text};
use dhow_api::registry::{self, Kind};
use dhow_api::selectors::LabelSelector;
use serde_json::Value;

use crate::ApiServer;
use crate::admission::Attributes;

/// `matchConstraints` of a policy, `matchResources` of a binding.
pub struct Resources {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    namespaces: Option<LabelSelector>,
    objects: Option<LabelSelector>,
    /// Whether other versions of a resource match too.
    equivalent: bool,
}

struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    names: Vec<String>,
    scope: String,
}

/// The row in whose form an object is looked at: the request's own, or another version's.
#[derive(Clone)]
pub enum Row<'a> {
    Own(&'a Kind),
    Other(&'static Kind),
}

impl Row<'_> {
    pub fn kind(&self) -> &Kind {
        match self {
            Self::Own(kind) => kind,
            Self::Other(kind) => kind,
        }
    }
}

fn words(value: &Value, field: &str) -> Vec<String> {
    items(value, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A selector that selects some only; `{}` and none select all.
fn selector(value: &Value) -> Option<LabelSelector> {
    let given = value.as_object().filter(|selector| !selector.is_empty())?;
    // Validation has accepted it.
    LabelSelector::from_object(Some(&Value::Object(given.clone()))).ok()
}

impl Resources {
    pub fn parse(value: &Value) -> Self {
        let rules = |field: &str| items(value, &[field]).iter().map(Rule::parse).collect();
        Self {
            rules: rules("resourceRules"),
            excluded: rules("excludeResourceRules"),
            namespaces: selector(&value["namespaceSelector"]),
            objects: selector(&value["objectSelector"]),
            equivalent: text(value, &["matchPolicy"]) != "Exact",
        }
    }

    /// The row in whose form the object is to be judged; `None` if this is not about the request. Cheap tests first.
    pub fn matches<'a>(&self, server: &ApiServer, attributes: &Attributes<'a>) -> Option<Row<'a>> {
        let own = Row::Own(attributes.kind);
        // Without rules, everything the policy is about.
        let row = if self.rules.is_empty() { own } else { self.row(&self.rules, attributes)? };
        if !self.excluded.is_empty() && self.row(&self.excluded, attributes).is_some() {
            return None;
        }
        let object = self.objects.as_ref().is_none_or(|selector| {
            let old = attributes.old.is_some_and(|old| selector.matches_value(old));
            old || !attributes.object.is_null() && selector.matches_value(&attributes.object)
        });
        let namespace = self.namespaces.as_ref().is_none_or(|selector| namespace_matches(server, selector, attributes));
        (object && namespace).then_some(row)
    }

    fn row<'a>(&self, rules: &[Rule], attributes: &Attributes<'a>) -> Option<Row<'a>> {
        let kind = attributes.kind;
        if rules.iter().any(|rule| rule.matches(attributes, kind)) {
            return Some(Row::Own(kind));
        }
        if !self.equivalent || kind.custom.is_some() || kind.conversion.is_none() && !shares_storage(kind) {
            return None;
        }
        let mut others = registry::builtin().iter().filter(|other| other.stored && other.storage == kind.storage);
        others.find(|other| rules.iter().any(|rule| rule.matches(attributes, other))).map(Row::Other)
    }
}

/// Whether another row shows the same objects.
fn shares_storage(kind: &Kind) -> bool {
    registry::builtin().iter().any(|other| other.conversion.is_some() && other.storage == kind.storage)
}

/// A namespace is selected by its own labels; what is in none is always selected.
fn namespace_matches(server: &ApiServer, selector: &LabelSelector, attributes: &Attributes<'_>) -> bool {
    if attributes.is("", "Namespace") {
        let object = if attributes.object.is_null() { attributes.old } else { Some(&attributes.object) };
        return object.is_some_and(|object| selector.matches_value(object));
    }
    let Some(namespace) = attributes.namespace.filter(|_| attributes.kind.namespaced) else { return true };
    match crate::admission::cached(server, "", "namespaces", None, namespace).and_then(|found| found.value().ok()) {
        Some(namespace) => selector.matches_value(&namespace),
        // A namespace that is gone has no labels.
        None => selector.matches_value(&Value::Null),
    }
}

impl Rule {
    fn parse(value: &Value) -> Self {
        Self {
            operations: words(value, "operations"),
            groups: words(value, "apiGroups"),
            versions: words(value, "apiVersions"),
            resources: words(value, "resources"),
            names: words(value, "resourceNames"),
            scope: text(value, &["scope"]).to_owned(),
        }
    }

    fn matches(&self, attributes: &Attributes<'_>, kind: &Kind) -> bool {
        let holds = |list: &[String], one: &str| list.iter().any(|word| word == "*" || word == one);
        let scope = match self.scope.as_str() {
            "Cluster" => !kind.namespaced,
            "Namespaced" => kind.namespaced,
            _ => true,
        };
        let subresource = attributes.subresource.map_or("", |subresource| subresource.name());
        let resource = |rule: &String| {
            let (resource, sub) = rule.split_once('/').unwrap_or((rule, ""));
            (resource == "*" || resource == kind.plural) && (sub == "*" || sub == subresource)
        };
        holds(&self.operations, attributes.operation.name())
            && holds(&self.groups, kind.group)
            && holds(&self.versions, kind.version)
            && self.resources.iter().any(resource)
            && scope
            && (self.names.is_empty() || self.names.iter().any(|name| name == attributes.name))
    }
}
