//! Devices that others may have are looked after from namespaces that are meant for it, and from no others.

use dhow_api::validation::FieldError;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::{Attributes, Operation, cached};
use crate::ApiServer;

const GROUP: &str = "resource.k8s.io";
const LABEL: &str = "resource.kubernetes.io/admin-access";
const WHY: &str = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";

/// Where a claim, or a template of claims, asks for it.
fn asked(spec: &Value, path: &str) -> Vec<FieldError> {
    let requests = meta::items(spec, &["devices", "requests"]).iter().enumerate();
    let admin = requests.filter(|(_, request)| request["exactly"]["adminAccess"] == true);
    let field = |index: usize| format!("{path}.devices.requests[{index}].exactly.adminAccess");
    admin.map(|(index, _)| FieldError::forbidden(&field(index), WHY)).collect()
}

/// Where a claim is given it.
fn given(object: &Value) -> Vec<FieldError> {
    let results = meta::items(object, &["status", "allocation", "devices", "results"]).iter().enumerate();
    let admin = results.filter(|(_, result)| result["adminAccess"] == true);
    let field = |index: usize| format!("status.allocation.devices.results[{index}].adminAccess");
    admin.map(|(index, _)| FieldError::forbidden(&field(index), WHY)).collect()
}

pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let object = &attributes.object;
    let kind = ["ResourceClaim", "ResourceClaimTemplate"].into_iter().find(|kind| attributes.is(GROUP, kind));
    let (Some(kind), Operation::Create | Operation::Update) = (kind, attributes.operation) else { return Ok(()) };
    let errors = match (attributes.operation, kind) {
        (Operation::Create, "ResourceClaim") => asked(&object["spec"], "spec"),
        (Operation::Create, _) => asked(&object["spec"]["spec"], "spec.spec"),
        // What it had it keeps.
        _ if attributes.old.is_some_and(|old| old["status"]["allocation"].is_object()) => Vec::new(),
        _ => given(object),
    };
    if errors.is_empty() {
        return Ok(());
    }
    let namespace = attributes.namespace.and_then(|name| cached(server, "", "namespaces", None, name));
    let labelled = |namespace: &Value| meta::text(namespace, &["metadata", "labels", LABEL]) == "true";
    match namespace.map(|namespace| namespace.value()).transpose()?.is_some_and(|namespace| labelled(&namespace)) {
        true => Ok(()),
        false => Err(Status::invalid(GROUP, kind, meta::name(object), &errors)),
    }
}
