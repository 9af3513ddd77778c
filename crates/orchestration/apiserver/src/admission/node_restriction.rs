//! NodeRestriction: a node writes its own Node and Lease, and pods bound to it.

use dhow_api::{Status, meta};

use super::{Attributes, Operation};

pub fn admit(attributes: &Attributes<'_>) -> Result<(), Status> {
    let Some(node) = attributes.user.name.strip_prefix("system:node:") else { return Ok(()) };
    let (kind, object) = (attributes.kind, &attributes.object);
    if !matches!(attributes.operation, Operation::Create | Operation::Update) || attributes.speaks_otherwise() {
        return Ok(());
    }
    let name = meta::name(object);
    let allowed = match kind.kind {
        "Node" | "Lease" => name == node,
        "Pod" => meta::text(object, &["spec", "nodeName"]) == node,
        _ => true,
    };
    if allowed {
        return Ok(());
    }
    let why = format!("node {node:?} is not allowed to modify what belongs to another node");
    Err(Status::forbidden(kind.group, kind.plural, name, &why))
}
