//! The options of a write, from its query: dry run and how strictly fields are checked.

use dhow_api::Status;
use dhow_api::validation::FieldError;

use crate::pipeline::{Authorized, Request};

/// What becomes of fields that are unknown or given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn of(request: &Request<Authorized>) -> Self {
        match request.info.query.get("fieldValidation") {
            Some("Ignore") => Self::Ignore,
            Some("Strict") => Self::Strict,
            _ => Self::Warn,
        }
    }
}

/// Names as long as that are kept.
const LONGEST_MANAGER: usize = 128;

/// Who writes, for the managed fields: as the request says, else the client program, else the user.
pub fn manager(request: &Request<Authorized>) -> String {
    if let Some(named) = request.info.query.get("fieldManager") {
        return named.to_owned();
    }
    let agent = request.headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let program = agent.split('/').next().unwrap_or_default();
    let name = if program.is_empty() { request.user().name.rsplit(':').next().unwrap_or_default() } else { program };
    name.chars().filter(|c| !c.is_control()).take(LONGEST_MANAGER).collect()
}

/// Refuses options that are none.
pub fn check(request: &Request<Authorized>) -> Result<(), Status> {
    let kind = match request.info.verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => return Ok(()),
    };
    let query = &request.info.query;
    let mut errors = Vec::new();
    if let Some(other) = query.get("dryRun").filter(|value| *value != "All") {
        errors.push(FieldError::not_supported("dryRun", other, &["All"]));
    }
    if let Some(other) = query.get("fieldValidation").filter(|value| !matches!(*value, "Ignore" | "Warn" | "Strict")) {
        errors.push(FieldError::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]));
    }
    if let Some(manager) = query.get("fieldManager") {
        if manager.len() > LONGEST_MANAGER {
            errors.push(FieldError::invalid("fieldManager", manager, "may not be longer than 128"));
        } else if manager.chars().any(char::is_control) {
            errors.push(FieldError::invalid("fieldManager", manager, "should only contain printable characters"));
        }
    }
    let apply = crate::body::media_type(&request.headers).starts_with("application/apply-patch");
    if kind == "PatchOptions" && apply && query.get("fieldManager").is_none() {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    if kind == "PatchOptions" && !apply && query.get("force").is_some() {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", &errors)) }
}
