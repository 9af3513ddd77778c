//! NamespaceLifecycle: nothing new in a namespace that is missing or going away, and some namespaces stay.

use dhow_api::Status;
use dhow_api::registry::Subresource;
use dhow_api::status::Cause;

use super::{Attributes, Operation, cached};
use crate::ApiServer;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub fn admit(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let kind = attributes.kind;
    if attributes.operation == Operation::Delete
        && attributes.is("", "Namespace")
        && IMMORTAL.contains(&attributes.name)
    {
        return Err(Status::forbidden("", "namespaces", attributes.name, "this namespace may not be deleted"));
    }
    let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
    let Some(namespace) = attributes.namespace.filter(|_| writes && kind.namespaced) else { return Ok(()) };
    let Some(found) = cached(server, "", "namespaces", None, namespace) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    // What goes on in a namespace until its end is told in events, and its pods need their tokens.
    let to_the_end = kind.kind == "Event" || attributes.subresource == Some(Subresource::Token);
    if attributes.operation == Operation::Update || found.header.deletion_timestamp.is_none() || to_the_end {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut refused = attributes.forbidden(&why);
    if let Some(details) = &mut refused.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        });
    }
    Err(refused)
}
