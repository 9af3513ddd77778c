//! Which pods a rule is about: namespaces, and labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;

pub(crate) type Labels = BTreeMap<String, String>;

/// A label selector that can be compared and hashed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct Selector {
    equal: Vec<(String, String)>,
    /// Key, operator, values.
    expressions: Vec<(String, String, Vec<String>)>,
}

impl From<&LabelSelector> for Selector {
    fn from(selector: &LabelSelector) -> Self {
        let equal = selector.match_labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let expressions = selector.match_expressions.iter().flatten();
        let expressions =
            expressions.map(|e| (e.key.clone(), e.operator.clone(), e.values.clone().unwrap_or_default())).collect();
        Self { equal, expressions }
    }
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.equal.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|(key, operator, values)| {
                let value = labels.get(key);
                let listed = value.is_some_and(|value| values.contains(value));
                match operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// Pods in some namespaces with some labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct PodMatch {
    pub namespaces: Vec<String>,
    pub namespace_selector: Option<Selector>,
    /// None selects nothing, an empty one everything.
    selector: Option<Selector>,
}

impl PodMatch {
    pub fn new(
        namespaces: &[String],
        namespace_selector: Option<&LabelSelector>,
        home: &str,
        selector: Option<&LabelSelector>,
    ) -> Self {
        let mut namespaces = namespaces.to_vec();
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.push(home.to_owned());
        }
        namespaces.sort();
        Self {
            namespaces,
            namespace_selector: namespace_selector.map(Selector::from),
            selector: selector.map(Selector::from),
        }
    }

    /// Whether it is about a pod; a namespace selector asks the labels of the pod's namespace.
    pub fn holds(&self, namespace: &str, labels: &Labels, of_namespace: Option<&Labels>) -> bool {
        let empty = Labels::new();
        let here = self.namespaces.iter().any(|name| name == namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches(of_namespace.unwrap_or(&empty)));
        here && self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

/// Pods that are counted: those that all the matches are about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct Matcher {
    pub all: Vec<PodMatch>,
    /// Not those that are on their way out.
    pub alive: bool,
}

impl Matcher {
    pub fn holds(&self, namespace: &str, labels: &Labels, leaving: bool, of_namespace: Option<&Labels>) -> bool {
        !(self.alive && leaving) && self.all.iter().all(|one| one.holds(namespace, labels, of_namespace))
    }
}
