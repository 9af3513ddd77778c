//! Topology-aware routing: which endpoints the hints of their slices keep for this node.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::discovery::v1::Endpoint;

/// The endpoints for this node, else those for its zone, else all. Hints count only when every endpoint has one
/// of the kind and at least one is for us: anything else means that they are being changed just now.
pub(super) fn nearest(ready: &BTreeMap<SocketAddr, &Endpoint>, node: &str, zone: Option<&str>) -> Vec<SocketAddr> {
    let nodes = |endpoint: &Endpoint| -> Option<Vec<String>> {
        let nodes = endpoint.hints.as_ref()?.for_nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
        Some(nodes.iter().map(|node| node.name.clone()).collect())
    };
    let zones = |endpoint: &Endpoint| -> Option<Vec<String>> {
        let zones = endpoint.hints.as_ref()?.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
        Some(zones.iter().map(|zone| zone.name.clone()).collect())
    };
    hinted(ready, nodes, Some(node))
        .or_else(|| hinted(ready, zones, zone))
        .unwrap_or_else(|| ready.keys().copied().collect())
}

/// The endpoints whose hints name `wanted`; `None` unless all have hints and some name it.
fn hinted(
    ready: &BTreeMap<SocketAddr, &Endpoint>,
    names: impl Fn(&Endpoint) -> Option<Vec<String>>,
    wanted: Option<&str>,
) -> Option<Vec<SocketAddr>> {
    let wanted = wanted?;
    let mut ours = Vec::new();
    for (address, endpoint) in ready {
        if names(endpoint)?.iter().any(|name| name == wanted) {
            ours.push(*address);
        }
    }
    (!ours.is_empty()).then_some(ours)
}
