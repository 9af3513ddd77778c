//! Admission: what may become of an authorised write, in two phases.
//!
//! Mutating admission sees the object decoded and defaulted, validating admission sees it as it will be stored, after
//! the kind's own validation. Both lists read top to bottom, in upstream's order. One file per plugin.

mod attributes;
mod certificates;
mod default_tolerations;
mod device_admin;
pub mod images;
mod ingress_class;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod owner_references;
mod pod_security;
mod priority;
pub mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod storage_protection;
mod taint_nodes;
mod topology_labels;
pub mod webhooks;

use std::sync::Arc;

use dhow_api::{Status, meta, registry};
use serde_json::Value;

use crate::object::Stored;
use crate::{ApiServer, policy};

pub use attributes::{Attributes, Operation};

/// The first phase: refuses early and fills in. May change `attributes.object`.
pub async fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    built_in(server, attributes)?;
    policy::mutate(server, attributes)?;
    let mut webhooks = webhooks::Mutating::new(server, attributes.user);
    if webhooks.ask(server, attributes).await? {
        // What a webhook made is to be filled in too, and others may have to look again.
        let before = attributes.object.clone();
        built_in(server, attributes)?;
        policy::mutate_again(server, attributes)?;
        if attributes.object != before {
            webhooks.changed();
        }
        webhooks.ask_again(server, attributes).await?;
    }
    // Last: nothing changes an image after it was looked at.
    images::mutate(server, attributes).await
}

/// The plugins that change objects. Running them again changes nothing.
fn built_in(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    namespace_lifecycle::admit(server, attributes)?;
    limit_ranger::mutate(server, attributes)?;
    service_account::mutate(server, attributes)?;
    node_restriction::admit(server, attributes)?;
    taint_nodes::mutate(attributes);
    priority::mutate(server, attributes)?;
    default_tolerations::mutate(attributes);
    storage::mutate(server, attributes)?;
    storage_protection::mutate(attributes);
    runtime_class::mutate(server, attributes)?;
    topology_labels::mutate(server, attributes);
    ingress_class::mutate(server, attributes)
}

/// The second phase: the object is what will be stored, and nothing changes it any more. What is left is
/// [`quota::charge`].
pub async fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    limit_ranger::validate(server, attributes)?;
    service_account::validate(server, attributes)?;
    pod_security::validate(server, attributes)?;
    priority::validate(server, attributes)?;
    storage::validate(server, attributes)?;
    runtime_class::validate(server, attributes)?;
    device_admin::validate(server, attributes)?;
    certificates::validate(server, attributes)?;
    owner_references::validate(server, attributes)?;
    policy::validate(server, attributes)?;
    webhooks::validate(server, attributes).await
}

/// Both phases, for writes that have nothing between them and use no more than before: deletes, streams and objects that
/// are not stored.
pub async fn admit(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    mutate(server, attributes).await?;
    validate(server, attributes).await
}

/// An object as the server's cache has it.
pub fn cached(
    server: &ApiServer,
    group: &str,
    plural: &str,
    namespace: Option<&str>,
    name: &str,
) -> Option<Arc<Stored>> {
    server.store.cache.find(group, plural, namespace, name)
}

/// All objects of a kind, as they are stored.
fn all_stored(server: &ApiServer, group: &str, plural: &str) -> Result<Vec<Arc<Stored>>, Status> {
    let Some(kind) = registry::builtin().get(group, "v1", plural) else { return Ok(Vec::new()) };
    Ok(server.store.cache.objects(kind)?.values().cloned().collect())
}

/// All objects of a kind.
fn all(server: &ApiServer, group: &str, plural: &str) -> Result<Vec<Value>, Status> {
    all_stored(server, group, plural)?.iter().map(|object| object.value()).collect()
}

/// The objects of a namespaced kind in one namespace, as they are stored.
fn stored_in(server: &ApiServer, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Stored>> {
    let kind = registry::builtin().get(group, "v1", plural);
    let Some((kind, objects)) = kind.and_then(|kind| Some((kind, server.store.cache.objects(kind).ok()?))) else {
        return Vec::new();
    };
    let prefix = format!("{}{namespace}/", kind.storage_prefix());
    let from = objects.range(Arc::<str>::from(prefix.as_str())..);
    from.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, object)| object.clone()).collect()
}

/// The objects of a namespaced kind in one namespace.
fn in_namespace(server: &ApiServer, group: &str, plural: &str, namespace: Option<&str>) -> Result<Vec<Value>, Status> {
    stored_in(server, group, plural, namespace.unwrap_or_default()).iter().map(|object| object.value()).collect()
}

/// The object made last; of those made at once, the first by name.
fn newest(objects: impl Iterator<Item = Value>) -> Option<Value> {
    let made = |object: &Value| meta::text(object, &["metadata", "creationTimestamp"]).to_owned();
    objects.min_by(|a, b| made(b).cmp(&made(a)).then_with(|| meta::name(a).cmp(meta::name(b))))
}
