//! NamespaceLifecycle: nothing new in a namespace that is missing or going away, and some namespaces stay.

use dhow_api::{Status, meta};

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
    if attributes.operation != Operation::Create || attributes.subresource.is_some() {
        return Ok(());
    }
    let Some(namespace) = attributes.namespace.filter(|_| kind.namespaced) else { return Ok(()) };
    let Some(found) = cached(server, "", "namespaces", None, namespace) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    if found.header.deletion_timestamp.is_some() && kind.kind != "Event" {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(Status::forbidden(kind.group, kind.plural, meta::name(&attributes.object), &why));
    }
    Ok(())
}
