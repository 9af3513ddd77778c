//! The first phase: policies that change the object.

use std::rc::Rc;

use dhow_api::cel::{BUDGET, Key, Meter, Pace, Value as Cel};
use dhow_api::registry::Kind;
use dhow_api::{Status, apply, defaulting, patch};
use serde_json::{Map, Value};

use super::compile::{Mutation, Policy};
use super::input::Input;
use super::{Invocation, matching, select};
use crate::ApiServer;
use crate::admission::Attributes;

/// Runs the policies that are about the request; with `again` only those that ask to run once more.
pub fn run(
    server: &ApiServer,
    policies: &[Policy],
    attributes: &mut Attributes<'_>,
    again: bool,
    pace: Option<&Pace>,
) -> Result<(), Status> {
    let (mut invocations, mut failures) = select(server, policies, attributes);
    if again {
        invocations.retain(|invocation| invocation.policy.again);
        failures.clear();
    }
    let mut refusals: Vec<String> = Vec::new();
    for (policy, failure) in failures.into_iter().filter(|(policy, _)| policy.fail) {
        refusals.push(refusal(&policy.name, failure.binding.as_deref(), &failure.message));
    }
    // Policies that ran, and whether a later one has changed the object since.
    let mut stale = vec![false; invocations.len()];
    for (index, invocation) in invocations.iter().enumerate() {
        if one(server, invocation, attributes, &mut refusals, pace) {
            stale[..index].fill(true);
        }
    }
    // Those that ask for it see once more what the others made.
    for (invocation, stale) in invocations.iter().zip(stale) {
        if stale && invocation.policy.again {
            one(server, invocation, attributes, &mut refusals, pace);
        }
    }
    let Some(first) = refusals.first() else { return Ok(()) };
    let mut status = attributes.forbidden("admission request denied by policy");
    for message in &refusals {
        status = status.because("Invalid", 403, message);
    }
    status.message.clone_from(first);
    Err(status)
}

fn refusal(policy: &str, binding: Option<&str>, message: &str) -> String {
    match binding {
        Some(binding) => format!("policy '{policy}' with binding '{binding}' denied request: {message}"),
        None => format!("policy {policy:?} denied request: {message}"),
    }
}

/// Runs one policy; returns whether it changed the object.
fn one(
    server: &ApiServer,
    invocation: &Invocation<'_>,
    attributes: &mut Attributes<'_>,
    refusals: &mut Vec<String>,
    pace: Option<&Pace>,
) -> bool {
    let mut refuse = |why: &str| {
        if invocation.policy.fail {
            refusals.push(refusal(&invocation.policy.name, Some(&invocation.binding.name), why));
        }
    };
    match Input::new(server, attributes, invocation, Rc::default(), pace).conditions() {
        Ok(true) => {}
        Ok(false) => return false,
        Err(why) => {
            refuse(&why);
            return false;
        }
    }
    let mut meter = Meter::new(BUDGET).at(pace);
    let mut changed = false;
    for mutation in &invocation.policy.mutations {
        let made = {
            let input = Input::new(server, attributes, invocation, Rc::default(), pace);
            input.evaluate(&mutation.expression, &mutation.source, &mut meter)
        };
        match made.and_then(|made| mutated(mutation, &invocation.row, attributes, &made)) {
            Ok(object) if object != attributes.object => {
                attributes.object = object;
                attributes.mutated = true;
                changed = true;
            }
            Ok(_) => {}
            Err(why) => refuse(&why),
        }
    }
    changed
}

/// The object as a mutation's value makes it, defaulted.
fn mutated(
    mutation: &Mutation,
    row: &matching::Row<'_>,
    attributes: &Attributes<'_>,
    made: &Cel,
) -> Result<Value, String> {
    let own: &Kind = attributes.kind;
    let mut object = attributes.object.clone();
    if let matching::Row::Other(row) = row {
        own.to_storage(&mut object);
        row.from_storage(&mut object);
    }
    // The objects of some subresources are of a kind without a row: nothing is known of their lists, nor of defaults.
    let kind = Some(row.kind()).filter(|_| !attributes.speaks_otherwise());
    let mut object = if mutation.patch { patched(object, made)? } else { applied(kind, &object, made)? };
    if let matching::Row::Other(row) = row {
        row.to_storage(&mut object);
        own.from_storage(&mut object);
    }
    let name = |object: &Value| (object["metadata"]["name"].clone(), object["metadata"]["namespace"].clone());
    if name(&object) != name(&attributes.object) || object["kind"] != attributes.object["kind"] {
        return Err("must not change the kind, name or namespace of the object".into());
    }
    if !attributes.speaks_otherwise() {
        defaulting::apply(own, &mut object);
    }
    Ok(object)
}

fn applied(kind: Option<&Kind>, object: &Value, made: &Cel) -> Result<Value, String> {
    let Cel::Map(map) = made else {
        return Err(format!("unexpected type {} of apply configuration", made.type_name()));
    };
    if map.message.as_deref() != Some("Object") {
        return Err("type mismatch: apply configuration must be an Object".into());
    }
    let config = made.to_json().map_err(|error| error.to_string())?;
    if ["apiVersion", "kind"].iter().any(|field| config.get(field).is_some_and(|value| *value != object[field])) {
        return Err("apply configuration must not set apiVersion or kind to another one".into());
    }
    Ok(apply::overlay(kind, object, &config))
}

fn patched(mut object: Value, made: &Cel) -> Result<Value, String> {
    let Cel::List(list) = made else { return Err(format!("unexpected type {} of JSON patch", made.type_name())) };
    let mut operations = Vec::new();
    for (index, item) in list.items.iter().enumerate() {
        let operation = match item {
            Cel::Map(map) if map.message.as_deref() == Some("JSONPatch") => map,
            other => {
                return Err(format!(
                    "type mismatch: JSONPatchType.{index} should be JSONPatch, got {}",
                    other.type_name()
                ));
            }
        };
        let mut document = Map::new();
        for (key, value) in &operation.entries {
            let Key::String(field) = key else { continue };
            if !["op", "path", "from", "value"].contains(&&**field) {
                return Err(format!("undefined field '{field}'"));
            }
            document.insert(field.to_string(), value.to_json().map_err(|error| error.to_string())?);
        }
        operations.push(Value::Object(document));
    }
    patch::json(&mut object, &Value::Array(operations)).map_err(|error| format!("JSON Patch: {error}"))?;
    if !object.is_object() {
        return Err("JSON Patch: the result is no object".into());
    }
    Ok(object)
}
