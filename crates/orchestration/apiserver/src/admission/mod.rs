//! Admission: what may become of an authorised write, in two phases.
//!
//! Mutating admission sees the object decoded and defaulted, validating admission sees it as it will be stored, after
//! the kind's own validation. Both lists read top to bottom, in upstream's order. One file per plugin.

mod attributes;
mod default_tolerations;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod service_account;

use std::sync::Arc;

use dhow_api::{Status, registry};

use crate::ApiServer;
use crate::object::Stored;

pub use attributes::{Attributes, Operation};

/// The first phase: refuses early and fills in. May change `attributes.object`.
pub async fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    namespace_lifecycle::admit(server, attributes)?;
    node_restriction::admit(attributes)?;
    if attributes.operation == Operation::Create && attributes.is("", "Pod") && attributes.subresource.is_none() {
        let namespace = attributes.namespace.unwrap_or_default();
        service_account::mutate(server, namespace, &mut attributes.object)?;
        default_tolerations::mutate(&mut attributes.object);
        priority::mutate(server, &mut attributes.object)?;
    }
    // Mutating policies, then mutating webhooks.
    Ok(())
}

/// The second phase: the object is what will be stored, and nothing changes it any more.
pub async fn validate(_server: &ApiServer, _attributes: &Attributes<'_>) -> Result<(), Status> {
    // Built-in plugins, then validating policies, then validating webhooks, quota last: it counts what passed.
    Ok(())
}

/// Both phases, for writes that have nothing between them: deletes, streams and objects that are not stored.
pub async fn admit(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    mutate(server, attributes).await?;
    validate(server, attributes).await
}

/// An object as the server's cache has it.
fn cached(server: &ApiServer, group: &str, plural: &str, namespace: Option<&str>, name: &str) -> Option<Arc<Stored>> {
    let kind = registry::builtin().get(group, "v1", plural)?;
    server.store.cache.get(kind, &kind.storage_key(namespace, name))
}
