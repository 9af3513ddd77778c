//! `metav1.Status`: the error (and success) document of the API, in upstream's words.

use crate::error::Error;
use crate::validation::FieldError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// `metav1.StatusCause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Cause {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `metav1.StatusDetails`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Details {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// For errors about a resource this holds the plural, as upstream does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(default, rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// `metav1.Status` without its type header, which [`Status::to_value`] adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    #[serde(default)]
    pub code: u16,
    /// `metadata.continue` of an expired list.
    #[serde(skip)]
    pub continue_token: Option<String>,
}

/// `pods` or `deployments.apps`, as upstream prints a GroupResource or GroupKind.
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl Status {
    fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { status: "Failure".into(), message: message.into(), reason: reason.into(), code, ..Self::default() }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.details.get_or_insert_with(Box::default);
        details.group = group.into();
        details.kind = kind.into();
        details.name = name.into();
        self
    }

    /// Success of an operation that returns no object, such as DELETE.
    pub fn success() -> Self {
        Self { status: "Success".into(), code: 200, ..Self::default() }
    }

    /// The reply to a completed DELETE.
    pub fn deleted(group: &str, plural: &str, name: &str, uid: &str) -> Self {
        let mut status = Self::success().about(group, plural, name);
        if let Some(details) = &mut status.details {
            details.uid = uid.into();
        }
        status
    }

    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{} \"{name}\" not found", qualified(group, plural)))
            .about(group, plural, name)
    }

    /// No such path or resource at all.
    pub fn no_such_resource() -> Self {
        let mut status = Self::failure(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, plural));
        Self::failure(409, "AlreadyExists", message).about(group, plural, name)
    }

    /// A stale `resourceVersion` on update.
    pub fn conflict(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict_because(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn conflict_because(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, plural));
        Self::failure(409, "Conflict", message).about(group, plural, name)
    }

    /// A UID precondition that does not hold.
    pub fn uid_precondition(group: &str, plural: &str, name: &str, wanted: &str, found: &str) -> Self {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}");
        Self::conflict_because(group, plural, name, &why)
    }

    /// A resourceVersion precondition that does not hold.
    pub fn version_precondition(group: &str, plural: &str, name: &str, wanted: &str, found: &str) -> Self {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {found}"
        );
        Self::conflict_because(group, plural, name, &why)
    }

    /// Failed validation. `kind` is the kind, not the plural, as upstream does.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let joined = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status =
            Self::failure(422, "Invalid", format!("{} \"{name}\" is invalid: {joined}", qualified(group, kind)))
                .about(group, kind, name);
        if let Some(details) = &mut status.details {
            details.causes = errors.iter().map(FieldError::to_cause).collect();
        }
        status
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let resource = qualified(group, plural);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} \"{name}\" is forbidden: {why}"),
        };
        Self::failure(403, "Forbidden", message).about(group, plural, name)
    }

    /// A refusal for another reason than the usual one, with its code, and its whole message as the cause.
    #[must_use]
    pub fn because(mut self, reason: &str, code: u16, message: &str) -> Self {
        self.reason = reason.into();
        self.code = code;
        let details = self.details.get_or_insert_with(Box::default);
        details.causes.push(Cause { message: message.into(), ..Cause::default() });
        self
    }

    /// The authoriser's refusal, for a resource request. An empty namespace means cluster scope.
    #[allow(clippy::too_many_arguments)]
    pub fn forbidden_user(
        user: &str,
        verb: &str,
        group: &str,
        plural: &str,
        subresource: Option<&str>,
        namespace: Option<&str>,
        name: &str,
    ) -> Self {
        let resource = match subresource {
            Some(sub) if !sub.is_empty() => format!("{plural}/{sub}"),
            _ => plural.to_owned(),
        };
        let scope = match namespace {
            Some(ns) if !ns.is_empty() => format!("in the namespace \"{ns}\""),
            _ => "at the cluster scope".to_owned(),
        };
        let why = format!("User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {scope}");
        Self::forbidden(group, plural, name, &why)
    }

    /// The authoriser's refusal for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let mut status =
            Self::failure(403, "Forbidden", format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""));
        status.details = Some(Box::default());
        status
    }

    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    pub fn method_not_allowed() -> Self {
        Self::method_not_allowed_because("the server does not allow this method on the requested resource")
    }

    pub fn method_not_allowed_because(why: &str) -> Self {
        let mut status = Self::failure(405, "MethodNotAllowed", why);
        status.details = Some(Box::default());
        status
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::failure(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::failure(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    pub fn too_large(limit: usize) -> Self {
        Self::too_large_because(&format!("limit is {limit}"))
    }

    pub fn too_large_because(why: &str) -> Self {
        Self::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 410 for a watch or list from a compacted revision.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 410 for a continue token whose revision is gone; `continue_token` restarts from where the list was.
    pub fn continue_expired(continue_token: impl Into<String>) -> Self {
        let mut status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        status.continue_token = Some(continue_token.into());
        status
    }

    /// 410 for a watch from a compacted revision.
    pub fn watch_expired(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::failure(410, "Gone", message)
    }

    /// 504: a request ran past its deadline, or asked for a revision that has not happened yet.
    pub fn timeout(message: impl Into<String>, retry_after_seconds: Option<u32>) -> Self {
        let mut status = Self::failure(504, "Timeout", format!("Timeout: {}", message.into()));
        status.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        status
    }

    /// A list or get at a revision the server has not reached.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let mut status = Self::timeout(format!("Too large resource version: {requested}, current: {current}"), Some(1));
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            });
        }
        status
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::failure(429, "TooManyRequests", message);
        status.details =
            Some(Box::new(Details { retry_after_seconds: Some(retry_after_seconds), ..Details::default() }));
        status
    }

    /// An eviction that would break a PodDisruptionBudget.
    pub fn disruption_budget(budget: &str, needed: i64, current: i64) -> Self {
        let mut status =
            Self::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
        status.details = Some(Box::new(Details {
            causes: vec![Cause {
                reason: "DisruptionBudget".into(),
                message: format!(
                    "The disruption budget {budget} needs {needed} healthy pods and has {current} currently"
                ),
                field: String::new(),
            }],
            ..Details::default()
        }));
        status
    }

    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let mut status = Self::failure(500, "InternalError", format!("Internal error occurred: {message}"));
        status.details =
            Some(Box::new(Details { causes: vec![Cause { message, ..Cause::default() }], ..Details::default() }));
        status
    }

    /// A failure that upstream reports without saying that it is internal.
    pub fn internal_plain(message: impl Into<String>) -> Self {
        Self::failure(500, "", message)
    }

    /// What a backend such as a node agent answered with an HTTP status and a plain text.
    pub fn of_backend(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self::failure(code, reason, message)
    }

    /// An apply that would change what others own.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        let mut status = Self::failure(409, "Conflict", message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// The name in the object differs from the name in the path.
    pub fn name_mismatch(object: &str, path: &str) -> Self {
        Self::bad_request(format!("the name of the object ({object}) does not match the name on the URL ({path})"))
    }

    /// The namespace in the object differs from the namespace in the path.
    pub fn namespace_mismatch() -> Self {
        Self::bad_request("the namespace of the provided object does not match the namespace sent on the request")
    }

    pub fn is_success(&self) -> bool {
        self.status == "Success"
    }

    /// The JSON document, type header first.
    pub fn to_value(&self) -> Value {
        let mut metadata = json!({});
        if let Some(token) = &self.continue_token {
            metadata["continue"] = json!(token);
        }
        let mut value = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": self.status,
        });
        if !self.message.is_empty() {
            value["message"] = json!(self.message);
        }
        if !self.reason.is_empty() {
            value["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            value["details"] = serde_json::to_value(details).unwrap_or_default();
        }
        value["code"] = json!(self.code);
        value
    }

    /// [`Status::to_value`] as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_value().to_string().into_bytes()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::PatchRejected(message) => Self::failure(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {message}"),
            ),
            Error::PatchTooLarge(message) => Self::too_large_because(&message),
            other => Self::bad_request(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_upstreams() {
        assert_eq!(Status::not_found("", "pods", "x").message, "pods \"x\" not found");
        assert_eq!(Status::already_exists("apps", "deployments", "x").message, "deployments.apps \"x\" already exists");
        assert_eq!(
            Status::conflict("apps", "deployments", "x").message,
            "Operation cannot be fulfilled on deployments.apps \"x\": the object has been modified; please apply your changes to the latest version and try again"
        );
        assert_eq!(
            Status::forbidden_user("bob", "get", "", "pods", Some("log"), Some("a"), "x").message,
            "pods \"x\" is forbidden: User \"bob\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"a\""
        );
    }

    #[test]
    fn invalid_lists_every_cause() {
        let errors = [FieldError::required("spec.containers", ""), FieldError::invalid("metadata.name", "X", "bad")];
        let status = Status::invalid("", "Pod", "x", &errors);
        assert_eq!(
            status.message,
            "Pod \"x\" is invalid: [spec.containers: Required value, metadata.name: Invalid value: \"X\": bad]"
        );
        let value = status.to_value();
        assert_eq!(value["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(value["details"]["causes"][1]["field"], "metadata.name");
        assert_eq!(value["code"], 422);
    }
}
