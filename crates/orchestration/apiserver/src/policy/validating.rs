//! The second phase: policies that refuse, warn, or leave a note in the audit log.

use std::collections::BTreeMap;
use std::rc::Rc;

use dhow_api::Status;
use dhow_api::cel::{BUDGET, Meter, Pace, Value};
use serde_json::json;

use super::compile::{Policy, Validation};
use super::input::{Documents, Input, OUT_OF_BUDGET};
use super::matching::Row;
use super::{Failure, Invocation, select};
use crate::ApiServer;
use crate::admission::Attributes;

/// Longest message that an expression may make, in bytes.
const LONGEST_MESSAGE: usize = 5 << 10;
/// Longest value that a policy may write into an audit event, in bytes.
const LONGEST_ANNOTATION: usize = 10 << 10;
/// Where failures of bindings with the action `Audit` are noted.
const FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";

/// What all policies say about one request.
pub struct Judgement<'a> {
    failures: Vec<(&'a Policy, Failure)>,
    found: Vec<(Invocation<'a>, Opinion)>,
}

/// What one policy says, under one binding and with one parameter.
#[derive(Default)]
struct Opinion {
    /// The place among the validations, the message and the reason of each that does not hold.
    violations: Vec<(usize, String, String)>,
    /// Keys and values for the audit event.
    annotations: Vec<(String, String)>,
    /// Annotations that could not be made, where that is to refuse the request.
    broken: Vec<String>,
}

/// Evaluates the policies that are about the request. Nothing comes of it before [`act`].
pub fn judge<'a>(
    server: &ApiServer,
    policies: &'a [Policy],
    attributes: &Attributes<'a>,
    pace: Option<&Pace>,
) -> Judgement<'a> {
    let (invocations, failures) = select(server, policies, attributes);
    let shared = Rc::<Documents>::default();
    let found = invocations
        .into_iter()
        .map(|invocation| {
            let documents = match &invocation.row {
                Row::Own(_) => shared.clone(),
                Row::Other(_) => Rc::default(),
            };
            let input = Input::new(server, attributes, &invocation, documents, pace);
            let opinion = one(&input, invocation.policy);
            (invocation, opinion)
        })
        .collect();
    Judgement { failures, found }
}

/// Refuses, warns and records what was found.
pub fn act(judgement: Judgement<'_>, attributes: &Attributes<'_>) -> Result<(), Status> {
    let mut refusal = None;
    for (policy, failure) in judgement.failures.iter().filter(|(policy, _)| policy.fail) {
        refusal.get_or_insert_with(|| refuse(attributes, policy, failure.binding.as_deref(), &failure.message, ""));
    }
    let mut annotations: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (invocation, opinion) in &judgement.found {
        let (policy, binding) = (invocation.policy, invocation.binding);
        for (index, message, reason) in &opinion.violations {
            if binding.deny {
                refusal.get_or_insert_with(|| refuse(attributes, policy, Some(&binding.name), message, reason));
            }
            if binding.audit {
                let failure = json!([{
                    "message": message,
                    "policy": policy.name,
                    "binding": binding.name,
                    "expressionIndex": index,
                    "validationActions": binding.actions,
                }]);
                attributes.record(FAILURE, &failure.to_string());
            }
            if binding.warn {
                let (policy, binding) = (&policy.name, &binding.name);
                attributes.warnings.add(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
                ));
            }
        }
        for message in &opinion.broken {
            refusal.get_or_insert_with(|| refuse(attributes, policy, Some(&binding.name), message, ""));
        }
        for (key, value) in &opinion.annotations {
            let values = annotations.entry(format!("{}/{key}", policy.name)).or_default();
            if !values.contains(&value.as_str()) {
                values.push(value);
            }
        }
    }
    for (key, values) in &annotations {
        attributes.record(key, &values.join(", "));
    }
    refusal.map_or(Ok(()), Err)
}

fn refuse(attributes: &Attributes<'_>, policy: &Policy, binding: Option<&str>, message: &str, reason: &str) -> Status {
    let binding = binding.map(|name| format!(" with binding '{name}'")).unwrap_or_default();
    let why = format!("ValidatingAdmissionPolicy '{}'{binding} denied request: {message}", policy.name);
    let (reason, code) = match reason {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    attributes.forbidden(&why).because(reason, code, &why)
}

fn one(input: &Input<'_>, policy: &Policy) -> Opinion {
    let mut opinion = Opinion::default();
    let failed = |index: usize, why: String| policy.fail.then_some((index, why, String::new()));
    match input.conditions() {
        Ok(true) => {}
        Ok(false) => return opinion,
        Err(why) => {
            opinion.violations.extend(failed(0, why));
            return opinion;
        }
    }
    let mut meter = input.meter(BUDGET);
    for (index, validation) in policy.validations.iter().enumerate() {
        match input.evaluate(&validation.expression, &validation.source, &mut meter) {
            Ok(Value::Bool(true)) => {}
            Ok(_) => {
                let message = message(input, validation, &mut meter);
                opinion.violations.push((index, message, validation.reason.clone()));
            }
            // Nothing is known of the others either.
            Err(why) if why == OUT_OF_BUDGET => {
                opinion.violations = failed(index, why).into_iter().collect();
                return opinion;
            }
            Err(why) => opinion.violations.extend(failed(index, why)),
        }
    }
    for annotation in &policy.annotations {
        match input.evaluate(&annotation.expression, &annotation.source, &mut meter) {
            Ok(Value::String(text)) if !text.trim().is_empty() => {
                let text = cut(text.trim(), LONGEST_ANNOTATION);
                opinion.annotations.push((annotation.key.clone(), text.to_owned()));
            }
            Ok(Value::String(_) | Value::Null) => {}
            Ok(other) if policy.fail => opinion.broken.push(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                annotation.source,
                other.type_name()
            )),
            Err(why) if policy.fail => opinion.broken.push(why),
            Ok(_) | Err(_) => {}
        }
    }
    opinion
}

/// The beginning of a text, not within a character.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn message(input: &Input<'_>, validation: &Validation, meter: &mut Meter) -> String {
    if let Some(computed) = &validation.computed
        && let Ok(Value::String(text)) = input.evaluate(computed, "", meter)
    {
        let text = text.trim();
        if !text.is_empty() && !text.contains('\n') && text.len() <= LONGEST_MESSAGE {
            return text.to_owned();
        }
    }
    match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.source.trim()),
        message => message.to_owned(),
    }
}
