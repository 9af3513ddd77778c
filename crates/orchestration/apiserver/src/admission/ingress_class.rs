//! DefaultIngressClass: an ingress that names no class gets the default one.

use dhow_api::{Status, meta};
use serde_json::{Value, json};

use super::{Attributes, Operation, all, newest};
use crate::ApiServer;

const GROUP: &str = "networking.k8s.io";

pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    if attributes.operation != Operation::Create || !attributes.is(GROUP, "Ingress") {
        return Ok(());
    }
    let annotated = ["metadata", "annotations", "kubernetes.io/ingress.class"];
    if meta::at(&attributes.object, &["spec", "ingressClassName"]).is_some()
        || meta::at(&attributes.object, &annotated).is_some()
    {
        return Ok(());
    }
    let is_default = |class: &Value| {
        meta::text(class, &["metadata", "annotations", "ingressclass.kubernetes.io/is-default-class"]) == "true"
    };
    let defaults = all(server, GROUP, "ingressclasses")?.into_iter().filter(is_default);
    if let Some(class) = newest(defaults) {
        meta::child_mut(&mut attributes.object, "spec").insert("ingressClassName".into(), json!(meta::name(&class)));
    }
    Ok(())
}
