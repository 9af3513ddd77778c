//! Strategic merge patch, driven by the list-semantics table and the type table: never by the data.

use crate::error::Error;
use crate::list_semantics::{self, Semantics};
use crate::schema::{self, Shape};
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `object`, a document of the type `definition` (`io.k8s.api.core.v1.Pod`).
pub fn strategic(object: &mut Value, patch: &Value, definition: &str) -> Result<(), Error> {
    let Some(patch) = patch.as_object() else {
        return Err(Error::PatchMalformed("a strategic merge patch must be an object".into()));
    };
    let mut result = object.as_object().cloned().unwrap_or_default();
    merge_map(&mut result, patch, Some(definition))?;
    *object = Value::Object(result);
    Ok(())
}

fn semantics(definition: Option<&str>, field: &str) -> Option<Semantics> {
    list_semantics::get(definition?, field)
}

fn shape(definition: Option<&str>, field: &str) -> Option<&'static Shape> {
    schema::types().field(definition?, field)
}

fn merge_map(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    definition: Option<&str>,
) -> Result<(), Error> {
    match patch.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => {
            let mut replacement = patch.clone();
            replacement.remove(PATCH);
            *target = replacement;
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(Error::PatchMalformed(format!("Unknown patch type found: {other}"))),
    }
    if let Some(retain) = patch.get(RETAIN) {
        retain_keys(target, patch, retain)?;
    }
    for (key, value) in patch {
        if key == PATCH || key == RETAIN {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(target, field, value)?;
        } else if let Some(field) = key.strip_prefix(ORDER) {
            // The list itself, when patched too, is merged below with this order.
            if !patch.contains_key(field)
                && let Some(list) = target.get_mut(field).and_then(Value::as_array_mut)
            {
                let merge_key = semantics(definition, field).and_then(|s| s.merge_key);
                let original = list.clone();
                *list = reorder(std::mem::take(list), &original, order_of(value)?, merge_key);
            }
        } else if value.is_null() {
            target.remove(key);
        } else {
            let order = patch.get(&format!("{ORDER}{key}"));
            merge_field(target, key, value, order, definition)?;
        }
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    order: Option<&Value>,
    definition: Option<&str>,
) -> Result<(), Error> {
    let rule = semantics(definition, key);
    let inner = shape(definition, key);
    let item_type = inner.and_then(Shape::type_name);
    match (target.get_mut(key), value) {
        (Some(Value::Object(current)), Value::Object(patch)) if !rule.is_some_and(|r| r.replaces()) => {
            // Values of a map of structs have no type of their own at this level.
            let child = match inner {
                Some(Shape::Map(_)) => None,
                _ => item_type,
            };
            merge_map(current, patch, child)
        }
        (Some(Value::Array(current)), Value::Array(patch)) if rule.is_some_and(|r| r.merges()) => {
            let merge_key = rule.and_then(|r| r.merge_key);
            let original = current.clone();
            match merge_key {
                Some(merge_key) => merge_objects(current, patch, merge_key, item_type)?,
                None => merge_primitives(current, patch),
            }
            if let Some(order) = order {
                *current = reorder(std::mem::take(current), &original, order_of(order)?, merge_key);
            }
            Ok(())
        }
        (_, value) => {
            target.insert(key.to_owned(), without_directives(value));
            Ok(())
        }
    }
}

fn retain_keys(target: &mut Map<String, Value>, patch: &Map<String, Value>, retain: &Value) -> Result<(), Error> {
    let Some(retain) = retain.as_array() else {
        return Err(Error::PatchMalformed("$retainKeys must be a list".into()));
    };
    let kept = |key: &str| retain.iter().any(|k| k.as_str() == Some(key));
    if let Some((stray, _)) = patch.iter().find(|(k, v)| !k.starts_with('$') && !v.is_null() && !kept(k)) {
        return Err(Error::PatchMalformed(format!("{stray} is not in the $retainKeys list")));
    }
    target.retain(|key, _| kept(key));
    Ok(())
}

fn delete_primitives(target: &mut Map<String, Value>, field: &str, gone: &Value) -> Result<(), Error> {
    let Some(gone) = gone.as_array() else {
        return Err(Error::PatchMalformed(format!("{DELETE_PRIMITIVES}{field} must be a list")));
    };
    if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
        list.retain(|item| !gone.contains(item));
    }
    Ok(())
}

fn merge_primitives(current: &mut Vec<Value>, patch: &[Value]) {
    for item in patch {
        if !current.contains(item) {
            current.push(item.clone());
        }
    }
}

fn merge_objects(
    current: &mut Vec<Value>,
    patch: &[Value],
    merge_key: &str,
    item_type: Option<&str>,
) -> Result<(), Error> {
    if patch.iter().any(|item| item[PATCH] == "replace") {
        let kept =
            patch.iter().filter(|item| item[PATCH] != "replace" || item.as_object().is_some_and(|m| m.len() > 1));
        *current = kept.map(without_directives).collect();
        return Ok(());
    }
    for item in patch {
        let Some(map) = item.as_object() else {
            return Err(Error::PatchMalformed(format!("expected an object in the list keyed by {merge_key}")));
        };
        let Some(key) = map.get(merge_key) else {
            return Err(Error::PatchMalformed(format!("map: {item} does not contain declared merge key: {merge_key}")));
        };
        if map.get(PATCH).is_some_and(|d| d == "delete") {
            current.retain(|existing| existing.get(merge_key) != Some(key));
            continue;
        }
        match current.iter_mut().find(|existing| existing.get(merge_key) == Some(key)) {
            Some(Value::Object(existing)) => merge_map(existing, map, item_type)?,
            _ => current.push(without_directives(item)),
        }
    }
    Ok(())
}

/// A value as it is stored: no directives, no nulls, no deleted items.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(key, value)| {
                    *key != PATCH
                        && *key != RETAIN
                        && !key.starts_with(ORDER)
                        && !key.starts_with(DELETE_PRIMITIVES)
                        && !value.is_null()
                })
                .map(|(key, value)| (key.clone(), without_directives(value)))
                .collect(),
        ),
        Value::Array(items) => {
            Value::Array(items.iter().filter(|item| item[PATCH] != "delete").map(without_directives).collect())
        }
        other => other.clone(),
    }
}

fn order_of(order: &Value) -> Result<&Vec<Value>, Error> {
    order.as_array().ok_or_else(|| Error::PatchMalformed("$setElementOrder must be a list".into()))
}

/// Items named in `order` come in that order; the others keep their place relative to them as in `original`.
fn reorder(merged: Vec<Value>, original: &[Value], order: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let identity = |item: &Value| -> Value {
        match merge_key {
            Some(key) => item.get(key).cloned().unwrap_or_default(),
            None => item.clone(),
        }
    };
    let order: Vec<Value> = order.iter().map(identity).collect();
    let server: Vec<Value> = original.iter().map(identity).collect();
    let place = |list: &[Value], item: &Value| list.iter().position(|x| *x == identity(item));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(&order, item).is_some());
    named.sort_by_key(|item| place(&order, item));
    others.sort_by_key(|item| place(&server, item));

    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let take_named = match (named.peek(), others.peek()) {
            (None, None) => return result,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => match (place(&server, left), place(&server, right)) {
                (Some(left), Some(right)) => left < right,
                _ => false,
            },
        };
        result.extend(if take_named { named.next() } else { others.next() });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(mut object: Value, patch: Value) -> Value {
        strategic(&mut object, &patch, "io.k8s.api.core.v1.Pod").unwrap();
        object
    }

    #[test]
    fn containers_merge_by_name_and_ports_by_number() {
        let object = json!({"spec": {"containers": [
            {"name": "a", "image": "1", "ports": [{"containerPort": 80, "protocol": "TCP"}], "args": ["x"]},
            {"name": "b", "image": "1"}]}});
        let patch = json!({"spec": {"containers": [
            {"name": "b", "image": "2"}, {"name": "c", "image": "3", "command": null},
            {"name": "a", "args": ["y"], "ports": [{"containerPort": 81}, {"containerPort": 80, "name": "web"}]}]}});
        assert_eq!(
            pod(object, patch),
            json!({"spec": {"containers": [
                {"name": "a", "image": "1", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}, {"containerPort": 81}], "args": ["y"]},
                {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}})
        );
    }

    #[test]
    fn directives() {
        let object = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "y"},
            "volumes": [{"name": "v", "emptyDir": {}}]}, "metadata": {"finalizers": ["p", "q"], "labels": {"k": "v", "l": "w"}}});
        let patch = json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}], "nodeSelector": {"$patch": "replace", "z": "1"},
            "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]},
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["p"], "finalizers": ["r"], "labels": {"k": null}}});
        assert_eq!(
            pod(object, patch),
            json!({"spec": {"containers": [{"name": "b"}], "nodeSelector": {"z": "1"}, "volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
                "metadata": {"finalizers": ["q", "r"], "labels": {"l": "w"}}})
        );
        let replaced = pod(
            json!({"spec": {"containers": [{"name": "a"}]}}),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
        );
        assert_eq!(replaced["spec"]["containers"], json!([{"name": "z"}]));
    }

    #[test]
    fn element_order() {
        let object = json!({"spec": {"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}});
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
            "containers": [{"name": "new"}]}});
        let names: Vec<String> = pod(object, patch)["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().into())
            .collect();
        assert_eq!(names, ["server", "b", "new", "a"]);
    }

    #[test]
    fn errors_are_plain() {
        let mut object = json!({"spec": {"containers": [{"name": "a"}]}});
        let before = object.clone();
        let failed =
            strategic(&mut object, &json!({"spec": {"containers": [{"image": "x"}]}}), "io.k8s.api.core.v1.Pod");
        assert!(failed.unwrap_err().to_string().contains("does not contain declared merge key: name"));
        assert_eq!(object, before);
        assert!(strategic(&mut object, &json!({"$patch": "explode"}), "io.k8s.api.core.v1.Pod").is_err());
    }
}
