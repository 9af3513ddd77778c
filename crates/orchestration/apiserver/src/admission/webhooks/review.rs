//! `AdmissionReview` of `admission.k8s.io/v1`: the question, and what the answer has to be like.

use std::collections::BTreeMap;

use dhow_api::Status;
use dhow_api::registry::{Kind, KindRef, Subresource};
use dhow_api::status::Details;
use serde::Deserialize;
use serde_json::{Value, json};

use base64::Engine as _;

use super::Failure;
use super::hook::Hook;
use super::rules::Row;
use crate::admission::Attributes;
use crate::{review, subresource};

/// One question.
pub struct Review {
    uid: String,
    /// The row in whose form the object is shown, when that is not the write's own.
    other: Option<KindRef>,
    pub document: Value,
}

/// What a webhook says to a write it does not refuse; and the refusal, if it does.
pub struct Answer {
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
    pub annotations: BTreeMap<String, String>,
    pub refusal: Option<Box<Status>>,
}

impl Review {
    pub fn new(row: Row, attributes: &Attributes<'_>) -> Self {
        let kind = attributes.kind;
        let other = match row {
            Row::Own => None,
            Row::Other(other) => Some(other),
        };
        let form = other.clone();
        let row: &Kind = form.as_deref().unwrap_or(kind);
        let mut review = Self { uid: uuid::Uuid::new_v4().to_string(), other, document: Value::Null };
        let named = |row: &Kind| match attributes.subresource {
            Some(subresource) if attributes.speaks_otherwise() => row.response_kind(subresource),
            _ => (row.group, row.version, row.kind),
        };
        let gvk = |row: &Kind| {
            let (group, version, kind) = named(row);
            json!({"group": group, "version": version, "kind": kind})
        };
        let gvr = |row: &Kind| json!({"group": row.group, "version": row.version, "resource": row.plural});
        let mut request = json!({
            "uid": review.uid,
            "kind": gvk(row),
            "resource": gvr(row),
            "requestKind": gvk(kind),
            "requestResource": gvr(kind),
            "name": attributes.name,
            "operation": attributes.operation.name(),
            "userInfo": review::user_info(attributes.user),
            "object": review.typed(review.object(attributes), named(row)),
            "oldObject": review.typed(attributes.old.map_or(Value::Null, |old| review.shown(old, attributes)), named(row)),
            "dryRun": attributes.dry_run,
            "options": attributes.options(),
        });
        if let Some(subresource) = attributes.subresource {
            request["subResource"] = json!(subresource.name());
            request["requestSubResource"] = json!(subresource.name());
        }
        if let Some(namespace) = attributes.namespace {
            request["namespace"] = json!(namespace);
        } else if attributes.is("", "Namespace") {
            request["namespace"] = json!(attributes.name);
        }
        review.document = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request});
        review
    }

    /// The object to be, in the form the hook sees.
    pub fn object(&self, attributes: &Attributes<'_>) -> Value {
        self.shown(&attributes.object, attributes)
    }

    fn shown(&self, object: &Value, attributes: &Attributes<'_>) -> Value {
        if object.is_null() {
            return Value::Null;
        }
        if attributes.subresource == Some(Subresource::Scale) {
            return subresource::scale_of(attributes.kind, object);
        }
        let mut shown = object.clone();
        if let Some(other) = &self.other {
            attributes.kind.to_storage(&mut shown);
            other.from_storage(&mut shown);
        }
        shown
    }

    /// The way back from the form the hook sees.
    pub fn back(&self, seen: Value, attributes: &Attributes<'_>) -> Result<Value, Status> {
        if attributes.subresource == Some(Subresource::Scale) {
            return subresource::with_scale(attributes.kind, &attributes.object, &seen);
        }
        let mut object = seen;
        if let Some(other) = &self.other {
            other.to_storage(&mut object);
            attributes.kind.from_storage(&mut object);
        }
        Ok(object)
    }

    /// With the type header that documents inside others need too.
    fn typed(&self, mut object: Value, (group, version, kind): (&str, &str, &str)) -> Value {
        if let Some(map) = object.as_object_mut() {
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            map.insert("apiVersion".into(), json!(api_version));
            map.insert("kind".into(), json!(kind));
        }
        object
    }

    /// Reads an answer, and refuses one that is none.
    pub fn read(&self, hook: &Hook, bytes: &[u8]) -> Result<Answer, Failure> {
        let invalid = |why: String| Failure::Call(format!("received invalid webhook response: {why}"));
        let answered: Document = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if answered.kind != "AdmissionReview" || answered.api_version != "admission.k8s.io/v1" {
            return Err(invalid(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                answered.api_version, answered.kind
            )));
        }
        let response = answered.response.ok_or_else(|| invalid("webhook response was absent".into()))?;
        if response.uid != self.uid {
            return Err(invalid(format!("expected response.uid={:?}, got {:?}", self.uid, response.uid)));
        }
        let refusal = (!response.allowed).then(|| Box::new(refused(hook, response.status.unwrap_or_default())));
        let patch = match (response.patch, response.patch_type.as_deref()) {
            (None, None) => None,
            (Some(_), None) => {
                return Err(invalid("webhook returned response.patch but not response.patchType".into()));
            }
            (None, Some(_)) => {
                return Err(invalid("webhook returned response.patchType but not response.patch".into()));
            }
            (Some(patch), Some("JSONPatch")) => {
                let undecodable = |error: &dyn std::fmt::Display| {
                    Failure::Call(format!("received undecodable patch in webhook response: {error}"))
                };
                let bytes =
                    base64::engine::general_purpose::STANDARD.decode(patch).map_err(|error| undecodable(&error))?;
                Some(serde_json::from_slice(&bytes).map_err(|error| undecodable(&error))?)
            }
            (Some(_), Some(other)) => {
                return Err(invalid(format!("webhook returned invalid response.patchType of {other:?}")));
            }
        };
        Ok(Answer { patch, warnings: response.warnings, annotations: response.audit_annotations, refusal })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Document {
    kind: String,
    api_version: String,
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    allowed: bool,
    status: Option<Given>,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Vec<String>,
    audit_annotations: BTreeMap<String, String>,
}

/// A status as webhooks write them: every part may be missing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    message: String,
    reason: String,
    code: u16,
    details: Option<Box<Details>>,
}

fn refused(hook: &Hook, given: Given) -> Status {
    let denied = format!("admission webhook {:?} denied the request", hook.name);
    let message = match (given.message.as_str(), given.reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    // A refusal is no success, whatever the webhook says.
    let code = if (400..600).contains(&given.code) { given.code } else { 400 };
    Status {
        status: "Failure".into(),
        message,
        reason: given.reason,
        details: given.details,
        code,
        ..Status::default()
    }
}
