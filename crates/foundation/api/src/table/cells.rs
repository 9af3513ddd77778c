//! What a column's cell is made of: mostly one field, now and then a function.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::meta::{at, flag, int, items, text};
use crate::time;

/// A field of the object as it is shown, or a function of the object and the time.
#[derive(Clone, Copy)]
pub enum Cell {
    Name,
    Age,
    /// The time of creation as it is written.
    Created,
    /// Text; empty when absent.
    Text(&'static [&'static str]),
    /// Text, or this when absent.
    Or(&'static [&'static str], &'static str),
    Int(&'static [&'static str]),
    /// A boolean, or this when absent.
    Flag(&'static [&'static str], bool),
    /// The number of items or entries.
    Len(&'static [&'static str]),
    /// A map of labels, or a label selector.
    Selector(&'static [&'static str]),
    Of(fn(&Value) -> Value),
    At(fn(&Value, Timestamp) -> Value),
}

impl Cell {
    pub(super) fn render(self, object: &Value, now: Timestamp) -> Value {
        match self {
            Self::Name => json!(crate::meta::name(object)),
            Self::Age => age(object, &["metadata", "creationTimestamp"], now),
            Self::Created => json!(text(object, &["metadata", "creationTimestamp"])),
            Self::Text(path) => json!(text(object, path)),
            Self::Or(path, fallback) => match text(object, path) {
                "" => json!(fallback),
                text => json!(text),
            },
            Self::Int(path) => json!(int(object, path)),
            Self::Flag(path, false) => json!(flag(object, path)),
            Self::Flag(path, true) => json!(at(object, path).and_then(Value::as_bool).unwrap_or(true)),
            Self::Len(path) => {
                let list = items(object, path).len();
                json!(list + at(object, path).and_then(Value::as_object).map_or(0, Map::len))
            }
            Self::Selector(path) => selector(at(object, path)),
            Self::Of(cell) => cell(object),
            Self::At(cell) => cell(object, now),
        }
    }

    /// The column's type in the table's definition.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Int(_) | Self::Len(_) => "integer",
            Self::Flag(..) => "boolean",
            _ => "string",
        }
    }
}

/// The time since the one at `path`.
pub(super) fn age(object: &Value, path: &[&str], now: Timestamp) -> Value {
    json!(time::age(at(object, path).and_then(Value::as_str), now))
}

pub(super) fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

/// `a=b,c in (d)`.
pub(super) fn selector(value: Option<&Value>) -> Value {
    let Some(value) = value else { return json!("<none>") };
    let structured = value.get("matchLabels").is_some() || value.get("matchExpressions").is_some();
    let labels = if structured { value.get("matchLabels") } else { Some(value) }.and_then(Value::as_object);
    let mut parts: Vec<String> =
        labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    parts.sort();
    for term in items(value, &["matchExpressions"]) {
        let values: Vec<&str> = items(term, &["values"]).iter().filter_map(Value::as_str).collect();
        let key = text(term, &["key"]);
        parts.push(match text(term, &["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(&parts.join(","))
}

/// The first three, and how many more there are.
pub(super) fn three(all: &[String], empty: &str) -> Value {
    match all.len() {
        0 => json!(empty),
        more if more > 3 => json!(format!("{} + {} more...", all[..3].join(","), more - 3)),
        _ => json!(all.join(",")),
    }
}

/// One field of every item of a list, joined.
pub(super) fn joined(object: &Value, list: &[&str], field: &str) -> String {
    items(object, list).iter().map(|item| text(item, &[field])).collect::<Vec<_>>().join(",")
}

/// Whether a status condition of this type is true.
pub(super) fn holds(object: &Value, kind: &str) -> bool {
    items(object, &["status", "conditions"]).iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// A number or a text as text.
pub(super) fn scalar(value: Option<&Value>, absent: &str) -> String {
    match value {
        None | Some(Value::Null) => absent.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
