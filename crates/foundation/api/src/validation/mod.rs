//! Validation in upstream's words. Each kind's rules are a function named in its row of the registry.

mod common;
pub(crate) mod field;
mod metadata;
mod pod_parts;

pub mod access;
pub mod admission;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod config;
pub mod core;
pub mod extension;
pub mod networking;
pub mod node;
pub mod pod;
pub mod pod_certificates;
pub mod resource;
pub mod service;
pub mod storage;
pub mod system;
pub mod workload;

use std::fmt;

use serde_json::Value;

use crate::cel::Pace;
use crate::registry::Kind;
use crate::status::Cause;

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub reason: &'static str,
    /// The path, such as `spec.containers[0].name`.
    pub field: String,
    /// `Invalid value: "X": why`.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(reason: &'static str, field: &str, head: &str, why: &str) -> Self {
        let message = if why.is_empty() { head.to_owned() } else { format!("{head}: {why}") };
        Self { reason, field: field.to_owned(), message }
    }

    pub fn invalid(field: &str, value: &str, why: &str) -> Self {
        Self::new("FieldValueInvalid", field, &format!("Invalid value: {value:?}"), why)
    }

    pub fn required(field: &str, why: &str) -> Self {
        Self::new("FieldValueRequired", field, "Required value", why)
    }

    pub fn duplicate(field: &str, value: &str) -> Self {
        Self::new("FieldValueDuplicate", field, &format!("Duplicate value: {value:?}"), "")
    }

    pub fn not_found(field: &str, value: &str) -> Self {
        Self::new("FieldValueNotFound", field, &format!("Not found: {value:?}"), "")
    }

    pub fn forbidden(field: &str, why: &str) -> Self {
        Self::new("FieldValueForbidden", field, "Forbidden", why)
    }

    pub fn internal(field: &str, why: &str) -> Self {
        Self::new("InternalError", field, "Internal error", why)
    }

    pub fn not_supported(field: &str, value: &str, supported: &[&str]) -> Self {
        let known: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let why = format!("supported values: {}", known.join(", "));
        Self::new("FieldValueNotSupported", field, &format!("Unsupported value: {value:?}"), &why)
    }

    pub fn to_cause(&self) -> Cause {
        Cause { reason: self.reason.to_owned(), message: self.message.clone(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }

    /// One error for each complaint about a value.
    pub fn complaints(&mut self, field: &str, value: &str, complaints: Vec<String>) {
        self.0.extend(complaints.iter().map(|why| FieldError::invalid(field, value, why)));
    }

    /// The value must be one of these; absent is fine.
    pub fn one_of(&mut self, object: &Value, field: &str, path: &[&str], supported: &[&str]) {
        let value = crate::meta::text(object, path);
        if !value.is_empty() && !supported.contains(&value) {
            self.push(FieldError::not_supported(field, value, supported));
        }
    }

    /// The field may not change.
    pub fn immutable(&mut self, new: &Value, old: &Value, field: &str, path: &[&str]) {
        let (new, old) = (crate::meta::at(new, path), crate::meta::at(old, path));
        if new != old {
            let value = new.map(Value::to_string).unwrap_or_else(|| "null".into());
            self.0.push(FieldError {
                reason: "FieldValueInvalid",
                field: field.to_owned(),
                message: format!("Invalid value: {value}: field is immutable"),
            });
        }
    }
}

/// Everything wrong with a new object. Rules that are expressions stop when the pace is over; then that is no answer.
pub fn validate_create(kind: &Kind, object: &Value, pace: Option<&Pace>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::create(kind, object, &mut errors);
    (kind.validate)(object, &mut errors);
    (kind.validate_create)(object, &mut errors);
    if let Some(served) = &kind.custom {
        errors.0.extend(served.validate(object, pace));
    }
    errors.0
}

/// Everything wrong with a changed object; of the pace, see [`validate_create`].
pub fn validate_update(kind: &Kind, new: &Value, old: &Value, pace: Option<&Pace>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::update(new, old, &mut errors);
    (kind.validate)(new, &mut errors);
    (kind.validate_update)(new, old, &mut errors);
    if let Some(served) = &kind.custom {
        errors.0.extend(served.validate_update(new, old, pace));
    }
    errors.0
}

/// Everything wrong with a changed status.
pub fn validate_status(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    (kind.validate_status)(new, old, &mut errors);
    errors.0
}

#[cfg(test)]
mod table;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::builtin;
    use serde_json::json;

    fn texts(group: &str, plural: &str, object: &Value) -> Vec<String> {
        let kind = builtin().get(group, "v1", plural).unwrap();
        let mut object = object.clone();
        crate::defaulting::apply(kind, &mut object);
        validate_create(kind, &object, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_needs_containers_with_names_and_images() {
        let pod = json!({"metadata": {"name": "X", "namespace": "a"}, "spec": {"containers": []}});
        let errors = texts("", "pods", &pod);
        assert!(
            errors[0].starts_with("metadata.name: Invalid value: \"X\": a lowercase RFC 1123 subdomain"),
            "{errors:?}"
        );
        assert!(errors.contains(&"spec.containers: Required value".to_owned()), "{errors:?}");
        let pod = json!({"metadata": {"name": "x", "namespace": "a"}, "spec": {"containers": [
            {"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"name": "a"},
        ]}});
        let errors = texts("", "pods", &pod);
        assert_eq!(
            errors,
            [
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
                "spec.containers[1].name: Duplicate value: \"a\"",
                "spec.containers[1].image: Required value",
            ]
        );
    }

    #[test]
    fn a_selector_matches_its_template_and_stays() {
        let mut deployment = json!({
            "metadata": {"name": "x", "namespace": "a"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "y"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}},
            },
        });
        let errors = texts("apps", "deployments", &deployment);
        assert!(errors[0].contains("`selector` does not match template `labels`"), "{errors:?}");
        deployment["spec"]["template"]["metadata"]["labels"]["app"] = json!("x");
        assert!(texts("apps", "deployments", &deployment).is_empty());
        let kind = builtin().get("apps", "v1", "deployments").unwrap();
        crate::defaulting::apply(kind, &mut deployment);
        let mut changed = deployment.clone();
        changed["spec"]["selector"]["matchLabels"] = json!({"app": "x", "b": "c"});
        changed["spec"]["template"]["metadata"]["labels"] = json!({"app": "x", "b": "c"});
        let errors = validate_update(kind, &changed, &deployment, None);
        assert!(errors[0].to_string().ends_with("field is immutable"), "{errors:?}");
    }
}
