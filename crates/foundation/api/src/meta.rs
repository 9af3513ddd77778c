//! Small readers and writers over `serde_json::Value` objects.

use serde_json::{Map, Value};

/// Follows `path` through objects.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// The string at `path`, or empty.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at `path`, or 0.
pub fn int(value: &Value, path: &[&str]) -> i64 {
    at(value, path).and_then(Value::as_i64).unwrap_or_default()
}

/// The boolean at `path`, or false.
pub fn flag(value: &Value, path: &[&str]) -> bool {
    at(value, path).and_then(Value::as_bool).unwrap_or_default()
}

/// The items of the array at `path`, or none.
pub fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The object at `path`.
pub fn object<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    at(value, path).and_then(Value::as_object)
}

pub fn name(value: &Value) -> &str {
    text(value, &["metadata", "name"])
}

pub fn namespace(value: &Value) -> &str {
    text(value, &["metadata", "namespace"])
}

pub fn uid(value: &Value) -> &str {
    text(value, &["metadata", "uid"])
}

pub fn resource_version(value: &Value) -> &str {
    text(value, &["metadata", "resourceVersion"])
}

pub fn deletion_timestamp(value: &Value) -> Option<&str> {
    at(value, &["metadata", "deletionTimestamp"]).and_then(Value::as_str)
}

/// `metadata` as a map, created when absent.
pub fn metadata_mut(value: &mut Value) -> &mut Map<String, Value> {
    child_mut(value, "metadata")
}

/// The object under `key`, created when absent or null. A value of another type is replaced.
pub fn child_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let child = &mut value[key];
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    match child {
        Value::Object(map) => map,
        _ => unreachable!("the child was just made an object"),
    }
}

/// Sets `key` when it is absent or null, or an empty text where a text is the default: clients written in Go send fields
/// that they know nothing of as empty ones, and upstream cannot tell these from absent ones either.
pub fn default_to(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let value = value.into();
    let absent = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty() && value.is_string(),
        Some(_) => false,
    };
    if absent {
        map.insert(key.to_owned(), value);
    }
}

/// Every item of the array under `key`, as objects.
pub fn each_mut<'a>(map: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}
