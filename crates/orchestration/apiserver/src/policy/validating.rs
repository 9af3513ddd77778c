//! The second phase: policies that refuse or warn.

use dhow_api::Status;
use dhow_api::cel::{BUDGET, Meter, Value};

use super::compile::{Policy, Validation};
use super::input::{Input, OUT_OF_BUDGET};
use super::{Invocation, select};
use crate::ApiServer;
use crate::admission::Attributes;

/// Longest message that an expression may make, in bytes.
const LONGEST_MESSAGE: usize = 5 << 10;

/// Why a policy refuses.
struct Refusal<'a> {
    policy: &'a str,
    binding: Option<String>,
    message: String,
    reason: String,
}

pub fn run(server: &ApiServer, policies: &[Policy], attributes: &Attributes<'_>) -> Result<(), Status> {
    let (invocations, failures) = select(server, policies, attributes);
    let mut refusals: Vec<Refusal<'_>> = failures
        .into_iter()
        .filter(|(policy, _)| policy.fail)
        .map(|(policy, failure)| Refusal {
            policy: &policy.name,
            binding: failure.binding,
            message: failure.message,
            reason: String::new(),
        })
        .collect();
    for invocation in &invocations {
        let binding = invocation.binding;
        for (message, reason) in judge(server, attributes, invocation) {
            let policy = &invocation.policy.name;
            if binding.warn {
                let binding = &binding.name;
                attributes.warnings.add(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
                ));
            }
            if binding.deny {
                refusals.push(Refusal { policy, binding: Some(binding.name.clone()), message, reason });
            }
        }
    }
    refusals.first().map_or(Ok(()), |first| Err(refuse(attributes, first)))
}

fn refuse(attributes: &Attributes<'_>, refusal: &Refusal<'_>) -> Status {
    let binding = refusal.binding.as_ref().map(|name| format!(" with binding '{name}'")).unwrap_or_default();
    let why = format!("ValidatingAdmissionPolicy '{}'{binding} denied request: {}", refusal.policy, refusal.message);
    let (reason, code) = match refusal.reason.as_str() {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    attributes.forbidden(&why).because(reason, code, &why)
}

/// Messages and reasons of all validations that do not hold.
fn judge(server: &ApiServer, attributes: &Attributes<'_>, invocation: &Invocation<'_>) -> Vec<(String, String)> {
    let policy = invocation.policy;
    let input = Input::new(server, attributes, invocation);
    let failed = |why: String| if policy.fail { vec![(why, String::new())] } else { Vec::new() };
    match input.conditions() {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failed(why),
    }
    let mut meter = Meter::new(BUDGET);
    let mut found = Vec::new();
    for validation in &policy.validations {
        match input.evaluate(&validation.expression, &validation.source, &mut meter) {
            Ok(Value::Bool(true)) => {}
            Ok(_) => found.push((message(&input, validation, &mut meter), validation.reason.clone())),
            // Nothing is known of the others either.
            Err(why) if why == OUT_OF_BUDGET => return failed(why),
            Err(why) => found.extend(failed(why)),
        }
    }
    found
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
