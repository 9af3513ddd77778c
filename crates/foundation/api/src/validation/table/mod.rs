//! Every kind with what is accepted of it and what is refused, in upstream's words.
//!
//! A case edits one place of an object that is fine: a JSON pointer, the new value (`null` takes it away), and the
//! error that must come of it. An empty error means that the edit is fine too.
#![allow(clippy::unwrap_used)]

mod core;
mod networking;
mod others;
mod workloads;

use serde_json::Value;

use super::{FieldError, validate_create, validate_update};
use crate::registry::{Kind, builtin};
use crate::strategy;

type Case = (&'static str, &'static str, &'static str);

fn edit(object: &mut Value, pointer: &str, value: &str) {
    let value: Value = serde_json::from_str(value).unwrap();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let mut at = object;
    for step in parent.split('/').skip(1) {
        let step = step.replace("~1", "/");
        at = match at {
            Value::Array(list) => &mut list[step.parse::<usize>().unwrap()],
            other => &mut other[&step],
        };
    }
    let last = last.replace("~1", "/");
    match at {
        Value::Array(list) => list[last.parse::<usize>().unwrap()] = value,
        other if value.is_null() => {
            other.as_object_mut().unwrap().remove(&last);
        }
        other => other[&last] = value,
    }
}

/// The object as the pipeline would have it before validation.
fn made(kind: &Kind, mut object: Value) -> Value {
    if kind.namespaced {
        object["metadata"]["namespace"] = "n".into();
    }
    crate::defaulting::apply(kind, &mut object);
    strategy::prepare_create(kind, &mut object);
    strategy::fill_metadata(&mut object, "0b1c", "2026-01-01T00:00:00Z");
    strategy::finish_create(kind, &mut object);
    object
}

fn expect(what: &str, errors: Vec<FieldError>, wanted: &str) {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match wanted {
        "" => assert!(texts.is_empty(), "{what}: {texts:#?}"),
        wanted => assert!(texts.iter().any(|text| text.starts_with(wanted)), "{what}: wanted {wanted}, got {texts:#?}"),
    }
}

fn check(resource: &str, object: &str, creates: &[Case], updates: &[Case]) {
    let parts: Vec<&str> = resource.split('/').collect();
    let (group, version, plural) =
        if parts.len() == 3 { (parts[0], parts[1], parts[2]) } else { ("", parts[0], parts[1]) };
    let kind = builtin().get(group, version, plural).unwrap();
    let base: Value = serde_json::from_str(object).unwrap();
    expect(resource, validate_create(kind, &made(kind, base.clone()), None), "");
    for (pointer, value, wanted) in creates {
        let mut object = base.clone();
        edit(&mut object, pointer, value);
        expect(&format!("create {resource} {pointer}"), validate_create(kind, &made(kind, object), None), wanted);
    }
    let old = made(kind, base);
    for (pointer, value, wanted) in updates {
        let mut new = old.clone();
        edit(&mut new, pointer, value);
        crate::defaulting::apply(kind, &mut new);
        strategy::prepare_update(kind, &mut new, &old);
        expect(&format!("update {resource} {pointer}"), validate_update(kind, &new, &old, None), wanted);
    }
}

const TEMPLATE: &str = r#"{"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}"#;

fn with_template(text: &str) -> String {
    text.replace("TEMPLATE", TEMPLATE)
}
