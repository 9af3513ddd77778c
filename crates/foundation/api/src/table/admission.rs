//! Columns of admission and of what adds kinds.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Len, Name, Of, Text};
use super::{Column, column};
use crate::meta::{at, items, text};

pub(crate) const WEBHOOKS: &[Column] =
    &[column("Name", Name), column("Webhooks", Len(&["webhooks"])), column("Age", Age)];

pub(crate) const POLICY: &[Column] = &[
    column("Name", Name),
    column("Validations", Len(&["spec", "validations"])),
    column("ParamKind", Of(param_kind)),
    column("Age", Age),
];

pub(crate) const MUTATING_POLICY: &[Column] = &[
    column("Name", Name),
    column("Mutations", Len(&["spec", "mutations"])),
    column("ParamKind", Of(param_kind)),
    column("Age", Age),
];

fn param_kind(policy: &Value) -> Value {
    match at(policy, &["spec", "paramKind"]) {
        Some(kind) => json!(format!("{}/{}", text(kind, &["apiVersion"]), text(kind, &["kind"]))),
        None => json!("<unset>"),
    }
}

pub(crate) const POLICY_BINDING: &[Column] = &[
    column("Name", Name),
    column("PolicyName", Text(&["spec", "policyName"])),
    column("ParamRef", Of(parameter)),
    column("Age", Age),
];

fn parameter(binding: &Value) -> Value {
    let Some(parameter) = at(binding, &["spec", "paramRef"]) else { return json!("<unset>") };
    match (text(parameter, &["namespace"]), text(parameter, &["name"])) {
        ("", "") => match at(parameter, &["selector"]) {
            Some(selector) => super::cells::selector(Some(selector)),
            None => json!("<unset>"),
        },
        ("", name) => json!(format!("*/{name}")),
        (namespace, name) => json!(format!("{namespace}/{name}")),
    }
}

pub(crate) const API_SERVICE: &[Column] = &[
    column("Name", Name),
    column(
        "Service",
        Of(|s| match at(s, &["spec", "service"]) {
            Some(service) => json!(format!("{}/{}", text(service, &["namespace"]), text(service, &["name"]))),
            None => json!("Local"),
        }),
    ),
    column(
        "Available",
        Of(|s| {
            let found = items(s, &["status", "conditions"]).iter().find(|condition| condition["type"] == "Available");
            match found {
                Some(condition) if condition["status"] == "True" => json!("True"),
                Some(condition) => {
                    json!(format!("{} ({})", text(condition, &["status"]), text(condition, &["reason"])))
                }
                None => json!("Unknown"),
            }
        }),
    ),
    column("Age", Age),
];
