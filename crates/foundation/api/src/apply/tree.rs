//! The four operations on trees: which fields a document sets, merging it into another, comparing two, pruning.

use serde_json::{Map, Value};

use super::set::{Set, field};
use super::shape::Shape;

/// The fields that a document sets.
pub fn fields_of(value: &Value, shape: Shape<'_>) -> Result<Set, String> {
    let mut set = Set::default();
    walk(value, shape, "", &mut set)?;
    set.compact();
    Ok(set)
}

/// Adds what lies below `value`; returns whether `value` itself is a leaf.
fn walk(value: &Value, shape: Shape<'_>, path: &str, set: &mut Set) -> Result<bool, String> {
    match (shape, value) {
        (shape, Value::Object(map)) if shape.has_fields() => {
            for (name, child) in map {
                let path = format!("{path}.{name}");
                let Some(below) = shape.field(name) else {
                    return Err(format!("{path}: field not declared in schema"));
                };
                let node = set.node(field(name));
                let leaf = walk(child, below, &path, &mut node.children)?;
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                node.member |= leaf || empty || !shape.declares(name);
            }
            Ok(false)
        }
        (shape, Value::Array(items)) if shape.has_items() => {
            for item in items {
                let element = shape.element(item).map_err(|why| format!("{path}: {why}"))?;
                if set.below(&element).is_some() {
                    let element = element.trim_start_matches("k:").trim_start_matches("v:");
                    return Err(format!("{path}: duplicate entries for key [{element}]"));
                }
                let node = set.node(element);
                node.member = true;
                walk(item, shape.item(), path, &mut node.children)?;
            }
            Ok(false)
        }
        (Shape::Leaf | Shape::Free, _) | (_, Value::Null) => Ok(true),
        (shape, other) if shape.has_fields() => Err(format!("{path}: expected map, got {other}")),
        (_, other) => Err(format!("{path}: expected list, got {other}")),
    }
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
    let mut found = Comparison::default();
    Compare { found: &mut found, path: Vec::new() }.both(Some(old), Some(new), shape);
    found
}

struct Compare<'a> {
    found: &'a mut Comparison,
    path: Vec<String>,
}

enum Difference {
    Added,
    Modified,
    Removed,
}

impl Compare<'_> {
    fn record(&mut self, difference: Difference) {
        let mut set = match difference {
            Difference::Added => &mut self.found.added,
            Difference::Modified => &mut self.found.modified,
            Difference::Removed => &mut self.found.removed,
        };
        for (index, element) in self.path.iter().enumerate() {
            let node = set.node(element.clone());
            node.member |= index + 1 == self.path.len();
            set = &mut node.children;
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, Some(_)) => self.record(Difference::Added),
            (Some(_), None) => self.record(Difference::Removed),
            (Some(old), Some(new)) if old != new => self.record(Difference::Modified),
            _ => {}
        }
    }

    fn both(&mut self, old: Option<&Value>, new: Option<&Value>, shape: Shape<'_>) {
        let (old, new) = (old.filter(|value| !value.is_null()), new.filter(|value| !value.is_null()));
        let object = |value: Option<&Value>| value.is_none_or(Value::is_object);
        let array = |value: Option<&Value>| value.is_none_or(Value::is_array);
        match shape {
            _ if old.is_none() && new.is_none() => {}
            shape if shape.has_fields() && object(old) && object(new) => {
                // A container that comes or goes counts itself, with what it holds.
                if !self.path.is_empty() {
                    match (old, new) {
                        (None, Some(_)) => self.record(Difference::Added),
                        (Some(_), None) => self.record(Difference::Removed),
                        _ => {}
                    }
                }
                self.maps(old.and_then(Value::as_object), new.and_then(Value::as_object), shape);
            }
            shape if shape.has_items() && array(old) && array(new) => {
                if old.is_none() || new.is_none() {
                    self.leaf_container(old, new);
                }
                self.lists(old.and_then(Value::as_array), new.and_then(Value::as_array), shape);
            }
            _ => self.leaf(old, new),
        }
    }

    fn leaf_container(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, Some(_)) => self.record(Difference::Added),
            (Some(_), None) => self.record(Difference::Removed),
            _ => {}
        }
    }

    fn maps(&mut self, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>, shape: Shape<'_>) {
        let empty = Map::new();
        let nothing = Value::Object(Map::new());
        let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
        for name in new.keys().chain(old.keys().filter(|name| !new.contains_key(*name))) {
            let (mut before, mut after) = (old.get(name), new.get(name));
            if shape.always_there(name) {
                before = before.or(Some(&nothing));
                after = after.or(Some(&nothing));
            }
            self.path.push(field(name));
            self.both(before, after, shape.field(name).unwrap_or(Shape::Leaf));
            self.path.pop();
        }
    }

    fn lists(&mut self, old: Option<&Vec<Value>>, new: Option<&Vec<Value>>, shape: Shape<'_>) {
        let keyed = |items: Option<&Vec<Value>>| -> Vec<(String, Value)> {
            let items = items.into_iter().flatten();
            items.filter_map(|item| Some((shape.element(item).ok()?, item.clone()))).collect()
        };
        let (old, new) = (keyed(old), keyed(new));
        let find = |items: &[(String, Value)], key: &str| -> Option<Value> {
            items.iter().find(|(other, _)| other == key).map(|(_, item)| item.clone())
        };
        for (key, after) in &new {
            self.path.push(key.clone());
            self.both(find(&old, key).as_ref(), Some(after), shape.item());
            self.path.pop();
        }
        for (key, before) in old.iter().filter(|(key, _)| find(&new, key).is_none()) {
            self.path.push(key.clone());
            self.both(Some(before), None, shape.item());
            self.path.pop();
        }
    }
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
fn prune_child(child: &mut Value, last: &super::set::Node, kept: Option<&super::set::Node>, shape: Shape<'_>) -> bool {
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
