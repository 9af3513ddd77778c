//! Which other nodes may have layers of an image, from what the cluster's Nodes say of themselves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dhow_client::Informer;
use dhow_image::{Candidates, NodePeers, Reference};
use k8s_openapi::api::core::v1::Node;

/// As Nodes call our own runtime; others keep their images where we give nothing from.
const RUNTIME: &str = "dhow://";

/// Looks at the Nodes whenever an image is pulled, and never in between.
pub struct ImagePeers {
    pub nodes: Informer<Node>,
    /// This node's name.
    pub own: String,
}

impl NodePeers for ImagePeers {
    fn candidates(&self, repository: &str) -> Candidates {
        candidates(&self.nodes.list(), &self.own, repository)
    }
}

fn candidates(nodes: &[Arc<Node>], own: &str, repository: &str) -> Candidates {
    let mut found = Candidates::default();
    for node in nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(own)) {
        let Some(at) = server(node) else { continue };
        // Nodes list their largest images, and new ones with their next heartbeat: the others may well have it, too.
        if has(node, repository) { found.named.push(at) } else { found.others.push(at) }
    }
    found
}

/// Where the node's own server is, if the node is well and has something to give.
fn server(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    let ours = status.node_info.as_ref()?.container_runtime_version.starts_with(RUNTIME);
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    let mut internal = status.addresses.iter().flatten().filter(|one| one.type_ == "InternalIP");
    // The first is the one that its certificate is for.
    let ip = internal.next()?.address.parse::<IpAddr>().ok()?;
    let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
    (ready && ours).then(|| SocketAddr::new(ip, port))
}

fn has(node: &Node, repository: &str) -> bool {
    let images = node.status.iter().flat_map(|status| status.images.iter().flatten());
    let mut names = images.flat_map(|image| image.names.iter().flatten());
    names.any(|name| Reference::is_in(name, repository))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
        let mut object = json!({
            "metadata": {"name": name},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": name},
                    {"type": "InternalIP", "address": format!("192.0.2.{}", &name[1..])},
                    {"type": "InternalIP", "address": "2001:db8::1"},
                ],
                "conditions": [{"type": "Ready", "status": "True"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
                "images": [{"names": ["r.io:5000/team/app@sha256:0", "r.io:5000/team/app:1"]}],
                "nodeInfo": {
                    "architecture": "", "bootID": "", "containerRuntimeVersion": "dhow://1", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                    "osImage": "", "systemUUID": "",
                },
            },
        });
        change(&mut object["status"]);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn nodes_that_are_well_are_asked_and_those_that_name_the_repository_first() {
        let nodes = [
            node("n1", |_| ()),
            node("n2", |_| ()),
            node("n3", |status| status["images"] = json!([])),
            node("n4", |status| status["conditions"][0]["status"] = "Unknown".into()),
            node("n5", |status| status["nodeInfo"]["containerRuntimeVersion"] = "containerd://2".into()),
            node("n6", |status| status["daemonEndpoints"]["kubeletEndpoint"]["Port"] = 0.into()),
        ];
        let at = |last: u8| SocketAddr::from(([192, 0, 2, last], 10250));
        let of = |own, repository| candidates(&nodes, own, repository);
        assert_eq!(of("n1", "r.io:5000/team/app"), Candidates { named: vec![at(2)], others: vec![at(3)] });
        for other in ["r.io", "r.io:5000/team", "r.io:5000/team/ap", "team/app"] {
            assert_eq!(of("n1", other), Candidates { named: vec![], others: vec![at(2), at(3)] }, "{other}");
        }
        assert_eq!(of("n2", "r.io:5000/team/app").named, [at(1)]);
        assert_eq!(candidates(&nodes[..1], "n1", "r.io:5000/team/app"), Candidates::default());
    }
}
