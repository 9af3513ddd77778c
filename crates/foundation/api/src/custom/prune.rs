//! Pruning and defaulting: unknown fields go, absent ones get their default.

use serde_json::{Map, Value};

use super::schema::Schema;

/// Fields that every object has and no schema needs to name.
const HEADER: [&str; 3] = ["apiVersion", "kind", "metadata"];

impl Schema {
    /// Removes what the schema does not know from a whole object, and says what it removed.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut removed = Vec::new();
        prune(self, object, true, "", &mut removed);
        removed
    }

    /// Fills in defaults. Call it after [`Schema::prune`].
    pub fn fill_defaults(&self, object: &mut Value) {
        default(self, object);
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn prune(schema: &Schema, value: &mut Value, whole: bool, path: &str, removed: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let whole = whole || schema.embedded;
            map.retain(|name, _| {
                let known = schema.preserve_unknown
                    || schema.properties.contains_key(name)
                    || schema.additional.is_some()
                    || (whole && HEADER.contains(&name.as_str()));
                if !known {
                    removed.push(join(path, name));
                }
                known
            });
            for (name, value) in map.iter_mut() {
                // The header of an object has a schema of its own everywhere.
                if whole && HEADER.contains(&name.as_str()) {
                    continue;
                }
                if let Some(child) = schema.properties.get(name).or(schema.additional.as_deref()) {
                    prune(child, value, false, &join(path, name), removed);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for (index, item) in list.iter_mut().enumerate() {
                prune(items, item, false, &format!("{path}[{index}]"), removed);
            }
        }
        _ => {}
    }
}

fn default(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, child) in &schema.properties {
                fill(child, map, name);
            }
            map.retain(|name, value| {
                let child = schema.properties.get(name).or(schema.additional.as_deref());
                // A null where none may be is as good as absent.
                !(value.is_null()
                    && child.is_some_and(|child| !child.nullable && child.kind != super::schema::Type::Any))
            });
            for (name, value) in map.iter_mut() {
                if let Some(child) = schema.properties.get(name).or(schema.additional.as_deref()) {
                    default(child, value);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for item in list {
                if item.is_null()
                    && !items.nullable
                    && let Some(value) = &items.default
                {
                    *item = value.clone();
                }
                default(items, item);
            }
        }
        _ => {}
    }
}

fn fill(schema: &Schema, map: &mut Map<String, Value>, name: &str) {
    let Some(value) = &schema.default else { return };
    let absent = match map.get(name) {
        None => true,
        Some(Value::Null) => !schema.nullable,
        Some(_) => false,
    };
    if absent {
        map.insert(name.to_owned(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema::parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "size": {"type": "integer", "default": 3},
                "mode": {"type": "string", "nullable": true, "default": "x"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "object"}}},
                "parts": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}},
                "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
            }},
        }}))
        .unwrap()
    }

    #[test]
    fn unknown_fields_go_where_no_one_keeps_them() {
        let mut object = json!({
            "apiVersion": "g/v1", "kind": "T", "metadata": {"name": "n", "anything": 1}, "stray": 1,
            "spec": {"size": 1, "odd": 2, "labels": {"any": "x"}, "free": {"kept": {"deep": 1}, "a": {"gone": 1}},
                "parts": [{"n": 1, "m": 2}], "inner": {"apiVersion": "v1", "metadata": {}, "extra": 1, "spec": {"y": 1}}},
        });
        let removed = schema().prune(&mut object);
        assert_eq!(
            removed,
            ["stray", "spec.odd", "spec.free.a.gone", "spec.parts[0].m", "spec.inner.extra", "spec.inner.spec.y"]
        );
        assert_eq!(object["spec"]["free"], json!({"kept": {"deep": 1}, "a": {}}));
        assert_eq!(object["metadata"]["anything"], 1);
    }

    #[test]
    fn defaults_fill_what_is_absent_and_replace_nulls_that_may_not_be() {
        let mut object = json!({"spec": {"size": null, "mode": null, "parts": [{}, {"n": 5}], "labels": {"a": null}}});
        schema().fill_defaults(&mut object);
        assert_eq!(object, json!({"spec": {"size": 3, "mode": null, "parts": [{"n": 1}, {"n": 5}], "labels": {}}}));
        let mut empty = json!({});
        schema().fill_defaults(&mut empty);
        assert_eq!(empty, json!({"spec": {"size": 3, "mode": "x"}}));
    }
}
