//! Brings a decoded document into the form upstream's typed decoding gives it: unknown fields, nulls and zero values
//! that mean "absent" go, amounts are written canonically; a value of the wrong type is an error in upstream's words.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Form, Label, Message, Presence, Scalar, Type, messages};
use crate::quantity::Quantity;
use crate::time;

/// A value that its field cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(String);

/// Upstream reports so many strict errors at most.
const MAX_UNKNOWN: usize = 100;

/// Settles `value`, a document of the type `message`, and returns the paths of fields that it does not know.
pub fn settle(message: &'static Message, value: &mut Value) -> Result<Vec<String>, TypeError> {
    let mut walk = Walk { path: Vec::new(), unknown: Vec::new() };
    match value {
        Value::Object(map) if message.form == Form::Struct => walk.object(message, map, message.typed)?,
        other => {
            let what = json_type(other);
            return Err(TypeError(format!(
                "json: cannot unmarshal {what} into Go value of type {}",
                message.go_name()
            )));
        }
    }
    Ok(walk.unknown)
}

enum Step {
    Field(String),
    Index(usize),
}

struct Walk {
    path: Vec<Step>,
    unknown: Vec<String>,
}

impl Walk {
    /// `spec.containers[0].ports`.
    fn path(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            let _ = match step {
                Step::Field(name) if text.is_empty() => write!(text, "{name}"),
                Step::Field(name) => write!(text, ".{name}"),
                Step::Index(index) => write!(text, "[{index}]"),
            };
        }
        text
    }

    /// The path without indexes, as Go's decoder prints it.
    fn go_path(&self) -> String {
        let names: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        names.join(".")
    }

    fn mismatch(&self, holder: &Message, found: &str, wanted: &str) -> TypeError {
        let (path, holder) = (self.go_path(), holder.short());
        TypeError(format!("json: cannot unmarshal {found} into Go struct field {holder}.{path} of type {wanted}"))
    }

    fn object(
        &mut self,
        message: &'static Message,
        map: &mut Map<String, Value>,
        typed: bool,
    ) -> Result<(), TypeError> {
        let mut gone = Vec::new();
        for (name, value) in map.iter_mut() {
            if typed && (name == "apiVersion" || name == "kind") {
                continue;
            }
            self.path.push(Step::Field(name.clone()));
            match message.field(name) {
                None => {
                    if self.unknown.len() < MAX_UNKNOWN {
                        self.unknown.push(self.path());
                    }
                    gone.push(name.clone());
                }
                Some(_) if value.is_null() => gone.push(name.clone()),
                Some(field) => {
                    match field.label {
                        Label::One => self.one(message, field.kind, value)?,
                        Label::List => self.list(message, field.kind, value)?,
                        Label::Map => self.map(message, field.kind, value)?,
                    }
                    if field.label == Label::One && field.presence == Presence::OmitZero && is_zero(value) {
                        gone.push(name.clone());
                    }
                }
            }
            self.path.pop();
        }
        if !gone.is_empty() {
            map.retain(|name, _| !gone.contains(name));
        }
        Ok(())
    }

    fn list(&mut self, holder: &'static Message, kind: Type, value: &mut Value) -> Result<(), TypeError> {
        // Go reads a list of bytes from base64; no list of such lists exists.
        let Value::Array(items) = value else {
            return Err(self.mismatch(holder, json_type(value), &format!("[]{}", go_type(kind))));
        };
        for (index, item) in items.iter_mut().enumerate() {
            self.path.push(Step::Index(index));
            self.element(holder, kind, item)?;
            self.path.pop();
        }
        Ok(())
    }

    fn map(&mut self, holder: &'static Message, kind: Type, value: &mut Value) -> Result<(), TypeError> {
        let Value::Object(entries) = value else {
            return Err(self.mismatch(holder, json_type(value), &format!("map[string]{}", go_type(kind))));
        };
        for (key, entry) in entries.iter_mut() {
            self.path.push(Step::Field(key.clone()));
            self.element(holder, kind, entry)?;
            self.path.pop();
        }
        Ok(())
    }

    /// A list's item or a map's value: a null there is the type's zero.
    fn element(&mut self, holder: &'static Message, kind: Type, value: &mut Value) -> Result<(), TypeError> {
        if value.is_null() {
            *value = zero(kind);
            return Ok(());
        }
        self.one(holder, kind, value)
    }

    fn one(&mut self, holder: &'static Message, kind: Type, value: &mut Value) -> Result<(), TypeError> {
        match kind {
            Type::Scalar(scalar) => self.scalar(holder, scalar, value),
            Type::Message(index) => self.message(holder, &messages()[index], value),
        }
    }

    fn scalar(&self, holder: &Message, scalar: Scalar, value: &Value) -> Result<(), TypeError> {
        let wanted = go_type(Type::Scalar(scalar));
        let wrong = |found: &str| Err(self.mismatch(holder, found, &wanted));
        match (scalar, value) {
            (Scalar::String, Value::String(_))
            | (Scalar::Bool, Value::Bool(_))
            | (Scalar::Double, Value::Number(_)) => Ok(()),
            (Scalar::Bytes, Value::String(text)) => match base64_error(text) {
                None => Ok(()),
                Some(at) => Err(TypeError(format!("illegal base64 data at input byte {at}"))),
            },
            (Scalar::Int32, Value::Number(number)) => match number.as_i64().and_then(|n| i32::try_from(n).ok()) {
                Some(_) => Ok(()),
                None => wrong(&format!("number {number}")),
            },
            (Scalar::Int64, Value::Number(number)) if number.as_i64().is_none() => wrong(&format!("number {number}")),
            (Scalar::Int64, Value::Number(_)) => Ok(()),
            (_, other) => wrong(json_type(other)),
        }
    }

    fn message(
        &mut self,
        holder: &'static Message,
        message: &'static Message,
        value: &mut Value,
    ) -> Result<(), TypeError> {
        let found = json_type(value);
        match (message.form, value) {
            (Form::Struct, Value::Object(map)) => self.object(message, map, message.typed),
            (Form::List, list @ Value::Array(_)) => match message.fields.first() {
                Some(field) => self.list(holder, field.kind, list),
                None => Ok(()),
            },
            (Form::Quantity, amount @ (Value::String(_) | Value::Number(_))) => quantity(amount),
            (Form::IntOrString, Value::String(_)) => Ok(()),
            (Form::IntOrString, Value::Number(number)) => match number.as_i64().and_then(|n| i32::try_from(n).ok()) {
                Some(_) => Ok(()),
                None => Err(self.mismatch(holder, &format!("number {number}"), "int32")),
            },
            (Form::Time | Form::MicroTime, Value::String(text)) => match text.is_empty() || time::parse(text).is_ok() {
                true => Ok(()),
                false => Err(TypeError(format!(
                    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
                ))),
            },
            (Form::Raw, _) => Ok(()),
            (Form::SchemaOrBool, Value::Bool(_)) => Ok(()),
            (Form::SchemaOrBool | Form::SchemaOrList | Form::SchemaOrStrings, Value::Object(map)) => {
                let schema = message.fields.iter().find(|field| field.name.eq_ignore_ascii_case("schema"));
                match schema.map(|field| field.kind) {
                    Some(Type::Message(index)) => self.object(&messages()[index], map, false),
                    _ => Ok(()),
                }
            }
            (Form::SchemaOrList | Form::SchemaOrStrings, list @ Value::Array(_)) => {
                let many = message.fields.iter().find(|field| field.label == Label::List);
                match many {
                    Some(field) => self.list(holder, field.kind, list),
                    None => Ok(()),
                }
            }
            _ => Err(self.mismatch(holder, found, message.go_name())),
        }
    }
}

fn quantity(value: &mut Value) -> Result<(), TypeError> {
    let text = match &*value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let canonical = match text.parse::<Quantity>() {
        Ok(amount) => amount.to_string(),
        Err(_) => {
            return Err(TypeError(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into(),
            ));
        }
    };
    *value = Value::String(canonical);
    Ok(())
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(kind: Type) -> String {
    match kind {
        Type::Scalar(Scalar::String) => "string".into(),
        Type::Scalar(Scalar::Bytes) => "[]uint8".into(),
        Type::Scalar(Scalar::Bool) => "bool".into(),
        Type::Scalar(Scalar::Int32) => "int32".into(),
        Type::Scalar(Scalar::Int64) => "int64".into(),
        Type::Scalar(Scalar::Double) => "float64".into(),
        Type::Message(index) => messages()[index].go_name().into(),
    }
}

/// Whether Go would call it the zero value of its type, so that a message leaves it out.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn zero(kind: Type) -> Value {
    match kind {
        Type::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
        Type::Scalar(Scalar::Bool) => false.into(),
        Type::Scalar(_) => 0.into(),
        Type::Message(index) => match messages()[index].form {
            Form::Struct => Value::Object(Map::new()),
            Form::List => Value::Array(Vec::new()),
            Form::Quantity => "0".into(),
            Form::IntOrString => 0.into(),
            _ => Value::Null,
        },
    }
}

/// Where standard base64 goes wrong, if it does. Line breaks are skipped, as Go does.
fn base64_error(text: &str) -> Option<usize> {
    let bytes: Vec<(usize, u8)> = text.bytes().enumerate().filter(|(_, byte)| !matches!(byte, b'\n' | b'\r')).collect();
    let padding = bytes.iter().rev().take_while(|(_, byte)| *byte == b'=').count();
    let body = &bytes[..bytes.len() - padding];
    if let Some((at, _)) = body.iter().find(|(_, byte)| !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')))
    {
        return Some(*at);
    }
    let complete = bytes.len().is_multiple_of(4) && padding <= 2 && (padding == 0 || body.len() % 4 == 4 - padding);
    if complete { None } else { Some(text.len() - text.len() % 4) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::message;
    use super::*;
    use serde_json::json;

    fn settled(kind: &str, mut value: Value) -> Result<(Value, Vec<String>), String> {
        let message = message(&format!("io.k8s.api.{kind}")).unwrap();
        settle(message, &mut value).map(|unknown| (value, unknown)).map_err(|error| error.to_string())
    }

    #[test]
    fn unknown_fields_and_zeros_go() {
        let (value, unknown) = settled(
            "core.v1.Pod",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null}, "spec": {
                "nodeName": "", "hostNetwork": false, "priority": 0,
                "containers": [{"name": "c", "imagee": "x", "env": [{"name": "E", "value": ""}],
                    "resources": {"limits": {"cpu": "1000m", "memory": 1024}}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDirr": {}}]}}),
        )
        .unwrap();
        assert_eq!(unknown, ["spec.containers[0].imagee", "spec.volumes[1].emptyDirr"]);
        assert_eq!(
            value,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {
                "priority": 0,
                "containers": [{"name": "c", "env": [{"name": "E"}], "resources": {"limits": {"cpu": "1", "memory": "1024"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w"}]}})
        );
    }

    #[test]
    fn wrong_types_are_named_as_go_names_them() {
        for (value, message) in [
            (
                json!({"spec": {"replicas": "x"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"spec": {"replicas": 3_000_000_000_u64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels.a of type string",
            ),
            (
                json!({"spec": {"template": {"spec": {"containers": {}}}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
        ] {
            assert_eq!(settled("apps.v1.Deployment", value).unwrap_err(), message);
        }
        assert!(settled("core.v1.Secret", json!({"data": {"a": "b*"}})).unwrap_err().contains("base64"));
        assert!(settled("core.v1.Secret", json!({"data": {"a": "aGk="}})).is_ok());
    }
}
