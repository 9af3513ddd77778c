//! Which load balancer addresses this node may answer for. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dhow_client::Key;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The class of balancers that the cluster makes itself; Services of no class are of it, too.
const CLASS: &str = "dhow.io/load-balancer";

/// Addresses of balancers that this node may answer for. Those of nodes are theirs already. Where traffic stays on the
/// node that gets it, a node without endpoints would only lose it.
pub(super) fn candidates(
    services: &[Arc<Service>],
    slices: impl Fn(&Key) -> Vec<Arc<EndpointSlice>>,
    nodes: &[Arc<Node>],
    here: &str,
) -> BTreeSet<IpAddr> {
    let of_nodes: BTreeSet<IpAddr> = nodes.iter().flat_map(|node| addresses(node)).collect();
    // An address that is shared needs all that its Services need.
    let mut able: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let ours = spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS);
        if !ours {
            continue;
        }
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let able_here = !local || has_endpoints(&slices(&Key::of(&service.metadata)), here);
        let balancer = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
        let ingress = balancer.flat_map(|balancer| balancer.ingress.iter().flatten());
        for ingress in ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy")) {
            let Some(address) = ingress.ip.as_ref().and_then(|ip| ip.parse().ok()) else { continue };
            if !of_nodes.contains(&address) {
                *able.entry(address).or_insert(true) &= able_here;
            }
        }
    }
    able.into_iter().filter(|(_, able)| *able).map(|(address, _)| address).collect()
}

fn has_endpoints(slices: &[Arc<EndpointSlice>], here: &str) -> bool {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let mut local = endpoints.filter(|endpoint| endpoint.node_name.as_deref() == Some(here));
    local.any(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true))
}

/// The addresses of a node.
pub(super) fn addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter_map(|address| address.address.parse().ok()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object<T: serde::de::DeserializeOwned>(object: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn balancer(name: &str, spec: Value, ip: &str) -> Arc<Service> {
        let mut whole = json!({"type": "LoadBalancer"});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        object(json!({
            "metadata": {"namespace": "a", "name": name}, "spec": whole,
            "status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"}]}},
        }))
    }

    #[test]
    fn local_traffic_wants_endpoints_and_nodes_have_their_own_addresses() {
        let node = object(json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}));
        let services = [
            balancer("open", json!({}), "198.51.100.1"),
            balancer("here", json!({"externalTrafficPolicy": "Local"}), "198.51.100.2"),
            balancer("there", json!({"externalTrafficPolicy": "Local"}), "198.51.100.3"),
            balancer("foreign", json!({"loadBalancerClass": "example.com/lb"}), "198.51.100.4"),
            balancer("node", json!({}), "192.0.2.1"),
            balancer("six", json!({"loadBalancerClass": CLASS}), "2001:db8::7"),
            // Shares the address of one that has no endpoints here.
            balancer("shares", json!({}), "198.51.100.3"),
        ];
        let slices = |key: &Key| {
            let node = if &*key.name == "here" { "node" } else { "other" };
            vec![object(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.42.0.7"], "nodeName": node}]}))]
        };
        let found: Vec<String> =
            candidates(&services, slices, &[node], "node").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["198.51.100.1", "198.51.100.2", "2001:db8::7"]);
    }
}
