//! The endpoints of the cluster's name service: every node that runs our agent answers for its own pods, at the address
//! of its bridge, the first of its pod network.

use std::net::IpAddr;
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

/// The slices that a node asks for, one of each family of its pods; none if it does not answer.
fn wanted(node: &Node, config: &NodeDnsConfig) -> Vec<Value> {
    let (metadata, spec) = (&node.metadata, node.spec.clone().unwrap_or_default());
    let answers = metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(&config.label));
    if metadata.deletion_timestamp.is_some() || !answers {
        return Vec::new();
    }
    let mut firsts: Vec<IpAddr> = Vec::new();
    for first in spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|cidr| first_of(cidr)) {
        if !firsts.iter().any(|known| known.is_ipv4() == first.is_ipv4()) {
            firsts.push(first);
        }
    }
    firsts.into_iter().filter_map(|first| slice(node, first, config)).collect()
}

/// The first address after a network's own.
fn first_of(cidr: &str) -> Option<IpAddr> {
    match cidr.split_once('/')?.0.parse().ok()? {
        IpAddr::V4(network) => Some(IpAddr::V4(network.to_bits().checked_add(1)?.into())),
        IpAddr::V6(network) => Some(IpAddr::V6(network.to_bits().checked_add(1)?.into())),
    }
}

fn slice(node: &Node, first: IpAddr, config: &NodeDnsConfig) -> Option<Value> {
    let (name, uid) = (node.metadata.name.as_deref()?, node.metadata.uid.as_deref()?);
    let (family, suffix) = if first.is_ipv4() { ("IPv4", "") } else { ("IPv6", "-ipv6") };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    Some(json!({
        "metadata": {
            "name": format!("{}-{name}{suffix}", config.service),
            "namespace": config.namespace,
            "labels": {
                "kubernetes.io/service-name": config.service,
                "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
            },
            // Goes with its node.
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
        },
        "addressType": family,
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
        let wanted = self.nodes.get(key).map(|node| wanted(&node, &self.config)).unwrap_or_default();
        for slice in wanted {
            self.keep(slice).await?;
        }
        Ok(Outcome::Done)
    }
}

impl NodeDns {
    async fn keep(&self, wanted: Value) -> Result<(), Error> {
        let decode = |source| Error::Decode { context: "build the name service's endpoints".into(), source };
        let slice: EndpointSlice = serde_json::from_value(wanted).map_err(decode)?;
        let name = slice.metadata.name.clone().unwrap_or_default();
        match self.slices.get(&Key::new(Some(&self.config.namespace), &name)) {
            None => match self.client.create(&slice).await {
                Err(error) if error.is_already_exists() => Ok(()),
                other => other.map(drop),
            },
            Some(held) => {
                let same = held.endpoints == slice.endpoints
                    && held.ports == slice.ports
                    && held.metadata.owner_references == slice.metadata.owner_references;
                if same {
                    return Ok(());
                }
                let mut changed = EndpointSlice::clone(&held);
                changed.endpoints = slice.endpoints;
                changed.ports = slice.ports;
                changed.metadata.owner_references = slice.metadata.owner_references;
                self.client.update(&changed).await.map(drop)
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
        let slices = wanted(&node("a", json!(["fd00::/64", "10.42.3.0/24"]), "True"), &config);
        let told = |slice: &Value| (slice["addressType"].clone(), slice["endpoints"][0]["addresses"].clone());
        let expected = [(json!("IPv6"), json!(["fd00::1"])), (json!("IPv4"), json!(["10.42.3.1"]))];
        assert_eq!(slices.iter().map(told).collect::<Vec<_>>(), expected);
        assert_eq!(slices[0]["metadata"]["name"], "s-x-ipv6");
        assert_eq!(slices[0]["endpoints"][0]["conditions"]["ready"], true);
        let silent = wanted(&node("a", json!(["10.42.3.0/24"]), "Unknown"), &config);
        assert_eq!(silent[0]["endpoints"][0]["conditions"]["ready"], false);
        assert!(wanted(&node("b", json!(["10.42.3.0/24"]), "True"), &config).is_empty());
        assert!(wanted(&node("a", json!([]), "True"), &config).is_empty());
    }
}
