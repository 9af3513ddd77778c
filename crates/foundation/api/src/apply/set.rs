//! Sets of field paths, and `FieldsV1`, their form in `metadata.managedFields`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths as a tree. Keys are path elements as `FieldsV1` writes them: `f:name`, `k:{"name":"a"}`, `v:"x"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set(pub BTreeMap<String, Node>);

/// What the set holds at and below one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Whether the path itself is in the set.
    pub member: bool,
    pub children: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

/// `f:name`.
pub fn field(name: &str) -> String {
    format!("f:{name}")
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Node::is_empty)
    }

    /// Drops branches that hold nothing, so that equal sets are equal trees.
    pub fn compact(&mut self) {
        self.0.retain(|_, node| {
            node.children.compact();
            !node.is_empty()
        });
    }

    /// What is below one element.
    pub fn below(&self, element: &str) -> Option<&Node> {
        self.0.get(element)
    }

    pub fn node(&mut self, element: impl Into<String>) -> &mut Node {
        self.0.entry(element.into()).or_default()
    }

    /// Adds one path.
    #[cfg(test)]
    pub fn insert(&mut self, path: &[&str]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.node(*first);
            match rest {
                [] => node.member = true,
                rest => node.children.insert(rest),
            }
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (element, node) in &other.0 {
            let mine = all.node(element.clone());
            mine.member |= node.member;
            mine.children = mine.children.union(&node.children);
        }
        all
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for (element, node) in &self.0 {
            let Some(theirs) = other.0.get(element) else { continue };
            let shared =
                Node { member: node.member && theirs.member, children: node.children.intersection(&theirs.children) };
            if !shared.is_empty() {
                both.0.insert(element.clone(), shared);
            }
        }
        both
    }

    /// Without the paths of `other`; what lies below them stays.
    pub fn difference(&self, other: &Self) -> Self {
        self.less(other, false)
    }

    /// Without the paths of `other` and all below them.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.less(other, true)
    }

    fn less(&self, other: &Self, recursive: bool) -> Self {
        let mut rest = Self::default();
        for (element, node) in &self.0 {
            let left = match other.0.get(element) {
                None => node.clone(),
                Some(theirs) if recursive && theirs.member => continue,
                Some(theirs) => Node {
                    member: node.member && !theirs.member,
                    children: node.children.less(&theirs.children, recursive),
                },
            };
            if !left.is_empty() {
                rest.0.insert(element.clone(), left);
            }
        }
        rest
    }

    /// All paths, as errors print them: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.collect("", &mut all);
        all
    }

    fn collect(&self, prefix: &str, into: &mut Vec<String>) {
        for (element, node) in &self.0 {
            let path = format!("{prefix}{}", printed(element));
            if node.member {
                into.push(path.clone());
            }
            node.children.collect(&path, into);
        }
    }

    /// From `FieldsV1`; `None` if it is none.
    pub fn from_fields(fields: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, below) in fields.as_object()? {
            if element == "." {
                continue;
            }
            if !matches!(element.get(..2), Some("f:" | "k:" | "v:" | "i:")) {
                return None;
            }
            let map = below.as_object()?;
            // A leaf is empty; an inner path that is in the set itself has a dot.
            let member = map.is_empty() || map.contains_key(".");
            set.0.insert(canonical(element), Node { member, children: Self::from_fields(below)? });
        }
        Some(set)
    }

    pub fn to_fields(&self) -> Value {
        let mut map = Map::new();
        for (element, node) in self.0.iter().filter(|(_, node)| !node.is_empty()) {
            let mut below = Map::new();
            if node.member && !node.children.is_empty() {
                below.insert(".".into(), Value::Object(Map::new()));
            }
            if let Value::Object(children) = node.children.to_fields() {
                below.extend(children);
            }
            map.insert(element.clone(), Value::Object(below));
        }
        Value::Object(map)
    }
}

/// Keys of list items with their fields in order, whoever wrote them.
fn canonical(element: &str) -> String {
    let parsed = element.strip_prefix("k:").and_then(|text| serde_json::from_str::<BTreeMap<String, Value>>(text).ok());
    match parsed {
        Some(keys) => key(&keys),
        None => element.to_owned(),
    }
}

/// `k:{"name":"a"}`.
pub fn key(keys: &BTreeMap<String, Value>) -> String {
    format!("k:{}", serde_json::to_string(keys).unwrap_or_default())
}

/// `v:"x"`.
pub fn value(item: &Value) -> String {
    format!("v:{item}")
}

fn printed(element: &str) -> String {
    let (kind, text) = element.split_at(2);
    match kind {
        "f:" => format!(".{text}"),
        "k:" => {
            let keys: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
            let pairs: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", pairs.join(","))
        }
        "v:" => format!("[={text}]"),
        _ => format!("[{text}]"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_survive_the_round() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}, "f:finalizers": {"v:\"x\"": {}}}});
        let set = Set::from_fields(&fields).unwrap();
        assert_eq!(set.to_fields(), fields);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.a",
                ".spec.containers[name=\"c\"]",
                ".spec.containers[name=\"c\"].image",
                ".spec.finalizers[=\"x\"]"
            ]
        );
        assert!(Set::from_fields(&json!({"spec": {}})).is_none());
    }

    #[test]
    fn differences_are_shallow_or_deep() {
        let set = Set::from_fields(&json!({"f:a": {".": {}, "f:b": {}}})).unwrap();
        let mut a = Set::default();
        a.insert(&["f:a"]);
        assert_eq!(set.difference(&a).to_fields(), json!({"f:a": {"f:b": {}}}));
        assert!(set.recursive_difference(&a).is_empty());
        assert_eq!(set.intersection(&a), a);
        assert_eq!(set.difference(&a).union(&a), set);
    }
}
