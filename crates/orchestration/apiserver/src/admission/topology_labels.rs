//! PodTopologyLabels: a pod is told the zone and region of its node.

use dhow_api::meta;
use dhow_api::registry::Subresource;
use serde_json::{Map, Value};

use super::{Attributes, Operation, cached};
use crate::ApiServer;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Labels a binding, from which the pod takes them, or a pod that is made on its node.
pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) {
    if attributes.operation != Operation::Create || !attributes.is("", "Pod") {
        return;
    }
    let path: &[&str] = match attributes.subresource {
        Some(Subresource::Binding) => &["target", "name"],
        None => &["spec", "nodeName"],
        _ => return,
    };
    let Some(node) = cached(server, "", "nodes", None, meta::text(&attributes.object, path)) else { return };
    let found: Map<String, Value> =
        LABELS.iter().filter_map(|label| Some(((*label).to_owned(), node.header.labels.get(label)?.into()))).collect();
    if found.is_empty() {
        return;
    }
    let metadata = meta::child_mut(&mut attributes.object, "metadata");
    match metadata.get_mut("labels").and_then(Value::as_object_mut) {
        // The node decides, whatever was written before.
        Some(labels) => labels.extend(found),
        None => drop(metadata.insert("labels".into(), found.into())),
    }
}
