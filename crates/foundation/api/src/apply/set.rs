//! Sets of field paths, and `FieldsV1`, their form in `metadata.managedFields`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths as a tree. Keys are path elements as `FieldsV1` writes them: `f:name`, `k:{"name":"a"}`, `v:"x"`; they
/// are in order, each once. Every write makes some of these, and most have few elements: hence no map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set(Vec<(String, Node)>);

/// What the set holds at and below one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Whether the path itself is in the set.
    pub member: bool,
    pub children: Set,
}

impl Node {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.member |= other.member;
        self.children.add(other.children);
    }
}

/// `f:name`.
pub fn field(name: &str) -> String {
    format!("f:{name}")
}

impl Set {
    /// From elements in any order. What is said twice of one is said of it once.
    pub fn of(mut parts: Vec<(String, Node)>) -> Self {
        if !parts.is_sorted_by(|one, other| one.0 < other.0) {
            parts.sort_by(|one, other| one.0.cmp(&other.0));
            parts.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    kept.1.add(std::mem::take(&mut later.1));
                }
                same
            });
        }
        Self(parts)
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, node)| node.is_empty())
    }

    /// Drops branches that hold nothing, so that equal sets are equal trees.
    pub fn compact(&mut self) {
        self.0.retain_mut(|(_, node)| {
            node.children.compact();
            !node.is_empty()
        });
    }

    /// What is at and below one element.
    pub fn below(&self, element: &str) -> Option<&Node> {
        let at = self.0.binary_search_by(|(known, _)| known.as_str().cmp(element)).ok()?;
        Some(&self.0[at].1)
    }

    /// Adds one path.
    pub fn insert(&mut self, path: &[&str]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = self.0.binary_search_by(|(known, _)| known.as_str().cmp(first)).unwrap_or_else(|at| {
            self.0.insert(at, ((*first).to_owned(), Node::default()));
            at
        });
        let node = &mut self.0[at].1;
        match rest {
            [] => node.member = true,
            rest => node.children.insert(rest),
        }
    }

    /// Adds all paths of another.
    pub fn add(&mut self, other: Self) {
        if self.0.is_empty() {
            self.0 = other.0;
        } else if !other.0.is_empty() {
            let parts = std::mem::take(&mut self.0);
            *self = Self::of(parts.into_iter().chain(other.0).collect());
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.add(other.clone());
        all
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let both = self.0.iter().filter_map(|(element, node)| {
            let theirs = other.below(element)?;
            let children = node.children.intersection(&theirs.children);
            let shared = Node { member: node.member && theirs.member, children };
            (!shared.is_empty()).then(|| (element.clone(), shared))
        });
        Self(both.collect())
    }

    /// Without the paths of `other`; what lies below them stays.
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.remove(other);
        rest
    }

    /// Takes the paths of `other` away; what lies below them stays.
    pub fn remove(&mut self, other: &Self) {
        self.take_away(other, false);
    }

    /// Takes the paths of `other` and all below them away.
    pub fn remove_with_all_below(&mut self, other: &Self) {
        self.take_away(other, true);
    }

    fn take_away(&mut self, other: &Self, with_all_below: bool) {
        self.0.retain_mut(|(element, node)| {
            if let Some(theirs) = other.below(element) {
                if with_all_below && theirs.member {
                    return false;
                }
                node.member &= !theirs.member;
                node.children.take_away(&theirs.children, with_all_below);
            }
            !node.is_empty()
        });
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
        let fields = fields.as_object()?;
        let mut parts = Vec::with_capacity(fields.len());
        for (element, below) in fields {
            if element == "." {
                continue;
            }
            if !matches!(element.get(..2), Some("f:" | "k:" | "v:" | "i:")) {
                return None;
            }
            let map = below.as_object()?;
            // A leaf is empty; an inner path that is in the set itself has a dot.
            let member = map.is_empty() || map.contains_key(".");
            parts.push((canonical(element), Node { member, children: Self::from_fields(below)? }));
        }
        Some(Self::of(parts))
    }

    pub fn to_fields(&self) -> Value {
        self.fields(false)
    }

    fn fields(&self, member: bool) -> Value {
        let mut map = Map::with_capacity(self.0.len() + usize::from(member));
        // A leaf is empty.
        if member && !self.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (element, node) in self.0.iter().filter(|(_, node)| !node.is_empty()) {
            map.insert(element.clone(), node.children.fields(node.member));
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
        let mut rest = set.clone();
        rest.remove_with_all_below(&a);
        assert!(rest.is_empty());
        assert_eq!(set.intersection(&a), a);
        assert_eq!(set.difference(&a).union(&a), set);
    }
}
