//! The four operations on trees: which fields a document sets, merging it into another, comparing two, pruning.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::{Node, Set, field};
use super::shape::Shape;

/// The fields that a document sets.
pub fn fields_of(value: &Value, shape: Shape<'_>) -> Result<Set, String> {
    let mut set = walk(value, shape, "")?.children;
    set.compact();
    Ok(set)
}

/// What a document sets at and below `value`: itself if it is a leaf.
fn walk(value: &Value, shape: Shape<'_>, path: &str) -> Result<Node, String> {
    let mut parts = Vec::new();
    match (shape, value) {
        (shape, Value::Object(map)) if shape.has_fields() => {
            for (name, child) in map {
                let path = format!("{path}.{name}");
                let Some(below) = shape.field(name) else {
                    return Err(format!("{path}: field not declared in schema"));
                };
                let mut node = walk(child, below, &path)?;
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                node.member |= empty || !shape.declares(name);
                parts.push((field(name), node));
            }
        }
        (shape, Value::Array(items)) if shape.has_items() => {
            let mut known = HashSet::new();
            for item in items {
                let element = shape.element(item).map_err(|why| format!("{path}: {why}"))?;
                if !known.insert(element.clone()) {
                    let element = element.trim_start_matches("k:").trim_start_matches("v:");
                    return Err(format!("{path}: duplicate entries for key [{element}]"));
                }
                let children = walk(item, shape.item(), path)?.children;
                parts.push((element, Node { member: true, children }));
            }
        }
        (Shape::Leaf | Shape::Free, _) | (_, Value::Null) => return Ok(Node { member: true, ..Node::default() }),
        (shape, other) if shape.has_fields() => return Err(format!("{path}: expected map, got {other}")),
        (_, other) => return Err(format!("{path}: expected list, got {other}")),
    }
    Ok(Node { member: false, children: Set::of(parts) })
}

/// `live` with everything of `config` laid over it.
pub fn merge(live: &Value, config: &Value, shape: Shape<'_>) -> Value {
    match (shape, live, config) {
        (shape, Value::Object(old), Value::Object(new)) if shape.has_fields() => {
            let mut map = old.clone();
            for (name, value) in new {
                let below = shape.field(name).unwrap_or(Shape::Leaf);
                let merged = match old.get(name) {
                    Some(before) => merge(before, value, below),
                    None if says_nothing(value, below) => continue,
                    None => fresh(value, below),
                };
                map.insert(name.clone(), merged);
            }
            map.retain(|_, value| !value.is_null());
            Value::Object(map)
        }
        (shape, Value::Array(old), Value::Array(new)) if shape.has_items() => {
            Value::Array(merge_lists(old, new, shape))
        }
        (_, _, config) => config.clone(),
    }
}

/// An empty list that merges item by item adds nothing.
fn says_nothing(value: &Value, shape: Shape<'_>) -> bool {
    shape.has_items() && value.as_array().is_some_and(Vec::is_empty)
}

/// A value where nothing was before.
fn fresh(value: &Value, shape: Shape<'_>) -> Value {
    match (shape, value) {
        (shape, Value::Object(_)) if shape.has_fields() => merge(&Value::Object(Map::new()), value, shape),
        (shape, Value::Array(items)) if shape.has_items() => {
            Value::Array(items.iter().map(|item| fresh(item, shape.item())).collect())
        }
        _ => value.clone(),
    }
}

/// Items of both, told apart by their elements. Items that only `old` has keep their place; the others come in
/// the order of `new`.
fn merge_lists(old: &[Value], new: &[Value], shape: Shape<'_>) -> Vec<Value> {
    let element = |item: &Value| shape.element(item).unwrap_or_default();
    let new: Vec<(String, &Value)> = new.iter().map(|item| (element(item), item)).collect();
    let old: Vec<(String, &Value)> = old.iter().map(|item| (element(item), item)).collect();
    let merged = |(key, item): &(String, &Value)| match old.iter().find(|(other, _)| other == key) {
        Some((_, before)) => merge(before, item, shape.item()),
        None => fresh(item, shape.item()),
    };
    let (mut result, mut done) = (Vec::with_capacity(old.len() + new.len()), 0);
    for (key, item) in &old {
        match new.iter().position(|(other, _)| other == key) {
            None => result.push((*item).clone()),
            Some(at) if at >= done => {
                result.extend(new[done..=at].iter().map(merged));
                done = at + 1;
            }
            Some(_) => {}
        }
    }
    result.extend(new[done..].iter().map(merged));
    result
}

/// How one document differs from an earlier one.
#[derive(Debug, Default, Clone)]
pub struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

pub fn compare(old: &Value, new: &Value, shape: Shape<'_>) -> Comparison {
    let found = differences(Some(old), Some(new), shape);
    Comparison { added: found.added.children, modified: found.modified.children, removed: found.removed.children }
}

/// A [`Comparison`] of one place: of itself, and of all below it.
#[derive(Default)]
struct Found {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Found {
    /// Of the place itself: whether it came, went or is another.
    fn itself(old: Option<&Value>, new: Option<&Value>) -> Self {
        let mut found = Self::default();
        match (old, new) {
            (None, Some(_)) => found.added.member = true,
            (Some(_), None) => found.removed.member = true,
            (Some(old), Some(new)) => found.modified.member = old != new,
            (None, None) => {}
        }
        found
    }

    /// Of a container: it counts itself when it comes or goes, with what it holds.
    fn container(old: Option<&Value>, new: Option<&Value>, parts: Parts) -> Self {
        let member = |it: bool, children| Node { member: it, children: Set::of(children) };
        Self {
            added: member(old.is_none(), parts.added),
            modified: member(false, parts.modified),
            removed: member(new.is_none(), parts.removed),
        }
    }
}

/// What was found below a container so far.
#[derive(Default)]
struct Parts {
    added: Vec<(String, Node)>,
    modified: Vec<(String, Node)>,
    removed: Vec<(String, Node)>,
}

impl Parts {
    /// Most elements did not change, so their names are not even made.
    fn put(&mut self, element: impl Fn() -> String, found: Found) {
        let Self { added, modified, removed } = self;
        for (parts, node) in [(added, found.added), (modified, found.modified), (removed, found.removed)] {
            if !node.is_empty() {
                parts.push((element(), node));
            }
        }
    }
}

fn differences(old: Option<&Value>, new: Option<&Value>, shape: Shape<'_>) -> Found {
    let (old, new) = (old.filter(|value| !value.is_null()), new.filter(|value| !value.is_null()));
    let object = |value: Option<&Value>| value.is_none_or(Value::is_object);
    let array = |value: Option<&Value>| value.is_none_or(Value::is_array);
    match shape {
        _ if old.is_none() && new.is_none() => Found::default(),
        shape if shape.has_fields() && object(old) && object(new) => {
            let parts = of_maps(old.and_then(Value::as_object), new.and_then(Value::as_object), shape);
            Found::container(old, new, parts)
        }
        shape if shape.has_items() && array(old) && array(new) => {
            // Making the items' keys is most of the work.
            if old == new {
                return Found::default();
            }
            Found::container(old, new, of_lists(items(old), items(new), shape))
        }
        _ => Found::itself(old, new),
    }
}

fn of_maps(old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>, shape: Shape<'_>) -> Parts {
    let empty = Map::new();
    let nothing = Value::Object(Map::new());
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let mut parts = Parts::default();
    for name in new.keys().chain(old.keys().filter(|name| !new.contains_key(*name))) {
        let (mut before, mut after) = (old.get(name), new.get(name));
        if shape.always_there(name) {
            before = before.or(Some(&nothing));
            after = after.or(Some(&nothing));
        }
        parts.put(|| field(name), differences(before, after, shape.field(name).unwrap_or(Shape::Leaf)));
    }
    parts
}

fn items(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn of_lists(old: &[Value], new: &[Value], shape: Shape<'_>) -> Parts {
    let keyed = |items: &[Value]| -> Vec<(String, usize)> {
        let keyed = items.iter().enumerate().filter_map(|(index, item)| Some((shape.element(item).ok()?, index)));
        keyed.collect()
    };
    let (before, after) = (keyed(old), keyed(new));
    let (was, is) = (places(&before), places(&after));
    let mut parts = Parts::default();
    for (key, index) in &after {
        let earlier = was.get(key.as_str()).map(|index| &old[*index]);
        parts.put(|| key.clone(), differences(earlier, Some(&new[*index]), shape.item()));
    }
    for (key, index) in before.iter().filter(|(key, _)| !is.contains_key(key.as_str())) {
        parts.put(|| key.clone(), differences(Some(&old[*index]), None, shape.item()));
    }
    parts
}

/// Where the item of each key is: of several with one key the first.
fn places(items: &[(String, usize)]) -> HashMap<&str, usize> {
    items.iter().rev().map(|(key, index)| (key.as_str(), *index)).collect()
}

/// Takes away what `last` had and nobody in `kept` has.
pub fn prune(value: &mut Value, last: &Set, kept: &Set, shape: Shape<'_>) {
    match value {
        Value::Object(map) if shape.has_fields() => {
            let mut gone = Vec::new();
            for (name, child) in map.iter_mut() {
                let element = field(name);
                let Some(node) = last.below(&element) else { continue };
                if prune_child(child, node, kept.below(&element), shape.field(name).unwrap_or(Shape::Leaf)) {
                    gone.push(name.clone());
                }
            }
            map.retain(|name, _| !gone.contains(name));
        }
        Value::Array(items) if shape.has_items() => {
            items.retain_mut(|item| {
                let Ok(element) = shape.element(item) else { return true };
                match last.below(&element) {
                    Some(node) => !prune_child(item, node, kept.below(&element), shape.item()),
                    None => true,
                }
            });
        }
        _ => {}
    }
}

/// Whether the child goes as a whole.
fn prune_child(child: &mut Value, last: &Node, kept: Option<&Node>, shape: Shape<'_>) -> bool {
    let held = kept.is_some_and(|node| node.member || !node.children.is_empty());
    if last.member && !held {
        return true;
    }
    let nothing = Set::default();
    prune(child, &last.children, kept.map_or(&nothing, |node| &node.children), shape);
    let empty = child.as_object().is_some_and(Map::is_empty) || child.as_array().is_some_and(Vec::is_empty);
    // What became empty by pruning goes too, unless somebody holds it empty.
    empty && !last.children.is_empty() && !held
}
