//! DefaultStorageClass and PersistentVolumeClaimResize: what claims get, and how they may grow.

use dhow_api::quota::quantity;
use dhow_api::{Status, meta};
use serde_json::{Value, json};

use super::{Attributes, Operation, all, cached, newest};
use crate::ApiServer;

const GROUP: &str = "storage.k8s.io";
const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// A claim that names no class gets the default one; an empty name asks for none.
pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    if attributes.operation != Operation::Create || !attributes.is("", "PersistentVolumeClaim") {
        return Ok(());
    }
    let annotated = ["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"];
    if meta::at(&attributes.object, &["spec", "storageClassName"]).is_some()
        || meta::at(&attributes.object, &annotated).is_some()
    {
        return Ok(());
    }
    let is_default =
        |class: &Value| DEFAULT.iter().any(|key| meta::text(class, &["metadata", "annotations", key]) == "true");
    let defaults = all(server, GROUP, "storageclasses")?.into_iter().filter(is_default);
    if let Some(class) = newest(defaults) {
        meta::child_mut(&mut attributes.object, "spec").insert("storageClassName".into(), json!(meta::name(&class)));
    }
    Ok(())
}

pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let Some(old) = attributes.old.filter(|_| attributes.operation == Operation::Update) else { return Ok(()) };
    if !attributes.is("", "PersistentVolumeClaim") || attributes.subresource.is_some() {
        return Ok(());
    }
    let size = |claim| meta::at(claim, &["spec", "resources", "requests", "storage"]).and_then(quantity);
    match (size(old), size(&attributes.object)) {
        (Some(before), Some(after)) if after > before => {}
        _ => return Ok(()),
    }
    if meta::text(old, &["status", "phase"]) != "Bound" {
        return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let class = meta::text(&attributes.object, &["spec", "storageClassName"]);
    let class = cached(server, GROUP, "storageclasses", None, class).map(|class| class.value()).transpose()?;
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(attributes.forbidden(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
         resize",
    ))
}
