//! The endpoints of the cluster's name service: every node that runs our agent answers for its own pods, at the address
//! of its bridge, the first of its pod network.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dhow_client::{Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

/// The Service, and how nodes that answer are known.
#[derive(Debug, Clone)]
pub struct NodeDnsConfig {
    pub namespace: String,
    pub service: String,
    /// A label that our agent puts on its node.
    pub label: String,
}

const MANAGED_BY: &str = "dns.dhow.io";

pub struct NodeDns {
    client: Client,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    config: NodeDnsConfig,
}

impl NodeDns {
    pub fn new(
        client: Client,
        nodes: Informer<Node>,
        slices: Informer<EndpointSlice>,
        config: &NodeDnsConfig,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        nodes.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        slices.on_change(move |change| {
            if let Some(node) = node_of(change.object()) {
                to.add(Key::new(None, &node));
            }
        });
        Arc::new(Self { client, nodes, slices, config: config.clone() })
    }
}

/// The node of a slice of ours.
fn node_of(slice: &EndpointSlice) -> Option<String> {
    let manager = slice.metadata.labels.as_ref()?.get("endpointslice.kubernetes.io/managed-by")?;
    (manager == MANAGED_BY).then(|| slice.endpoints.iter().find_map(|one| one.node_name.clone()))?
}

/// The slice that a node asks for; `None` if it does not answer.
fn wanted(node: &Node, config: &NodeDnsConfig) -> Option<Value> {
    let metadata = &node.metadata;
    let (name, uid) = (metadata.name.as_deref()?, metadata.uid.as_deref()?);
    if metadata.deletion_timestamp.is_some() || !metadata.labels.as_ref()?.contains_key(&config.label) {
        return None;
    }
    let spec = node.spec.as_ref()?;
    let first = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).find_map(|cidr| {
        let network: Ipv4Addr = cidr.split_once('/')?.0.parse().ok()?;
        Some(Ipv4Addr::from_bits(network.to_bits().checked_add(1)?))
    })?;
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    Some(json!({
        "metadata": {
            "name": format!("{}-{name}", config.service),
            "namespace": config.namespace,
            "labels": {
                "kubernetes.io/service-name": config.service,
                "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
            },
            // Goes with its node.
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [first],
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "nodeName": name,
            // Each node's pods ask their own.
            "hints": {"forNodes": [{"name": name}]},
        }],
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ],
    }))
}

#[async_trait::async_trait]
impl Reconcile for NodeDns {
    fn name(&self) -> &'static str {
        "node-dns"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let wanted = self.nodes.get(key).and_then(|node| wanted(&node, &self.config));
        let Some(wanted) = wanted else { return Ok(Outcome::Done) };
        let decode = |source| Error::Decode { context: "build the name service's endpoints".into(), source };
        let slice: EndpointSlice = serde_json::from_value(wanted).map_err(decode)?;
        let name = slice.metadata.name.clone().unwrap_or_default();
        match self.slices.get(&Key::new(Some(&self.config.namespace), &name)) {
            None => match self.client.create(&slice).await {
                Err(error) if error.is_already_exists() => Ok(Outcome::Done),
                other => other.map(|_| Outcome::Done),
            },
            Some(held) => {
                let same = held.endpoints == slice.endpoints
                    && held.ports == slice.ports
                    && held.metadata.owner_references == slice.metadata.owner_references;
                if same {
                    return Ok(Outcome::Done);
                }
                let mut changed = EndpointSlice::clone(&held);
                changed.endpoints = slice.endpoints;
                changed.ports = slice.ports;
                changed.metadata.owner_references = slice.metadata.owner_references;
                self.client.update(&changed).await.map(|_| Outcome::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_that_say_so_answer_at_their_bridge() {
        let config = NodeDnsConfig { namespace: "n".into(), service: "s".into(), label: "a".into() };
        let node = |label: &str, cidrs: Value, ready: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "x", "uid": "u", "labels": {label: ""}},
                "spec": {"podCIDRs": cidrs}, "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let slice = wanted(&node("a", json!(["fd00::/64", "10.42.3.0/24"]), "True"), &config).unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.42.3.1"]));
        assert_eq!(slice["endpoints"][0]["conditions"]["ready"], true);
        let silent = wanted(&node("a", json!(["10.42.3.0/24"]), "Unknown"), &config).unwrap();
        assert_eq!(silent["endpoints"][0]["conditions"]["ready"], false);
        assert!(wanted(&node("b", json!(["10.42.3.0/24"]), "True"), &config).is_none());
        assert!(wanted(&node("a", json!([]), "True"), &config).is_none());
    }
}
