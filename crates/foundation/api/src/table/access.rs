//! Columns of role bindings, signing requests and trust bundles.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Name, Of, Or, Text};
use super::{Column, column, wide};
use crate::meta::{at, items, text};
use crate::time;

pub(crate) const ROLE_BINDING: &[Column] = &[
    column("Name", Name),
    column("Role", Of(|b| json!(format!("{}/{}", text(b, &["roleRef", "kind"]), text(b, &["roleRef", "name"]))))),
    column("Age", Age),
    wide("Users", Of(|b| subjects(b, "User"))),
    wide("Groups", Of(|b| subjects(b, "Group"))),
    wide("ServiceAccounts", Of(|b| subjects(b, "ServiceAccount"))),
];

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = items(binding, &["subjects"]).iter().filter(|subject| subject["kind"] == kind);
    let names: Vec<String> = of_kind
        .map(|subject| match text(subject, &["namespace"]) {
            "" => text(subject, &["name"]).to_owned(),
            namespace => format!("{namespace}/{}", text(subject, &["name"])),
        })
        .collect();
    json!(names.join(", "))
}

pub(crate) const SIGNING_REQUEST: &[Column] = &[
    column("Name", Name),
    column("Age", Age),
    column("SignerName", Or(&["spec", "signerName"], "<none>")),
    column("Requestor", Text(&["spec", "username"])),
    column(
        "RequestedDuration",
        Of(|csr| match at(csr, &["spec", "expirationSeconds"]).and_then(Value::as_i64) {
            Some(seconds) => json!(time::human_duration(seconds)),
            None => json!("<none>"),
        }),
    ),
    column("Condition", Of(condition)),
];

pub(crate) const TRUST_BUNDLE: &[Column] =
    &[column("Name", Name), column("SignerName", Or(&["spec", "signerName"], "<none>"))];

fn condition(csr: &Value) -> Value {
    let has = |kind: &str| items(csr, &["status", "conditions"]).iter().any(|condition| condition["type"] == kind);
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied".to_owned(),
        (false, true) => "Approved".to_owned(),
        (false, false) => "Pending".to_owned(),
    };
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(csr, &["status", "certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    json!(state)
}
