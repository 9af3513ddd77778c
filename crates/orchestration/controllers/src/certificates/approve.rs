//! Approves what nodes ask for: their first client certificate with a token that may, and the next ones, those of their
//! server and of their parts by themselves.

use std::net::IpAddr;
use std::sync::Arc;

use dhow_api::node_parts;
use dhow_base::pki::CertRequest;
use dhow_client::{Client, Error, Informer, Key, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::check::{NODE_USER, NODES, refusal};
use super::{NODE_CLIENT, NODE_SERVING, asked, condition, new_condition};

pub struct Approver {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

/// What is asked for on whose behalf, and the right that it takes: to create this subresource of requests.
#[derive(Debug, PartialEq, Eq)]
struct Recognised {
    right: &'static str,
    message: &'static str,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    FirstClient,
    Client,
    Serving,
    Part,
}

/// `None` is for people to decide.
fn recognise(spec: &CertificateSigningRequestSpec, request: &CertRequest) -> Option<Recognised> {
    let usages = spec.usages.as_deref().unwrap_or_default();
    if refusal(&spec.signer_name, request, usages).is_some() {
        return None;
    }
    let user = spec.username.as_deref().unwrap_or_default();
    let is_node = user.starts_with(NODE_USER) && spec.groups.iter().flatten().any(|group| group == NODES);
    let by_itself = is_node && user == request.common_name;
    let recognised = |right, message, what| Some(Recognised { right, message, what });
    match spec.signer_name.as_str() {
        NODE_CLIENT if by_itself => recognised(
            "selfnodeclient",
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
            What::Client,
        ),
        NODE_CLIENT if !is_node => recognised(
            "nodeclient",
            "Auto approving kubelet client certificate after SubjectAccessReview.",
            What::FirstClient,
        ),
        NODE_SERVING if by_itself => recognised(
            "selfnodeserving",
            "Auto approving self kubelet serving certificate after SubjectAccessReview.",
            What::Serving,
        ),
        node_parts::SIGNER if is_node => {
            recognised("nodepart", "Auto approving a node part's certificate after SubjectAccessReview.", What::Part)
        }
        _ => None,
    }
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    all.filter_map(|address| address.address.parse().ok())
}

/// Whether a node's server may be known by these names: its own name, and addresses that are its own as far as anybody
/// knows. Whoever had a certificate for another's address could answer in its place.
fn serves_itself(name: &str, request: &CertRequest, nodes: &[Arc<Node>], api: &[IpAddr]) -> bool {
    let own = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name));
    let others = nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(name));
    let others: Vec<IpAddr> = others.flat_map(|node| addresses(node)).collect();
    let known: Vec<IpAddr> = own.iter().flat_map(|node| addresses(node)).collect();
    request.dns_names.iter().all(|dns| dns == name)
        && request.addresses.iter().all(|address| {
            (known.is_empty() || known.contains(address))
                && !api.contains(address)
                && !address.is_loopback()
                && !address.is_unspecified()
                && !others.contains(address)
        })
}

impl Approver {
    pub fn new(
        client: Client,
        requests: Informer<CertificateSigningRequest>,
        nodes: Informer<Node>,
        slices: Informer<EndpointSlice>,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        requests.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, requests, nodes, slices })
    }

    async fn permitted(&self, spec: &CertificateSigningRequestSpec, right: &str) -> Result<bool, Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(right.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = self.client.create(&review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn decide(
        &self,
        request: &CertificateSigningRequest,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), Error> {
        let mut conditions = request.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        conditions.push(new_condition(kind, reason, message));
        let metadata = &request.metadata;
        let patch = json!({
            "metadata": {"resourceVersion": metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let name = metadata.name.as_deref().unwrap_or_default();
        let sent =
            self.client.patch::<CertificateSigningRequest>(None, name, Patch::Merge(patch), Some("approval")).await;
        match sent {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for Approver {
    fn name(&self) -> &'static str {
        "csr-approver"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(request) = self.requests.get(key) else { return Ok(Outcome::Done) };
        if ["Approved", "Denied", "Failed"].iter().any(|kind| condition(&request, kind).is_some()) {
            return Ok(Outcome::Done);
        }
        let Ok((_, read)) = asked(&request) else { return Ok(Outcome::Done) };
        let Some(found) = recognise(&request.spec, &read) else { return Ok(Outcome::Done) };
        if !self.permitted(&request.spec, found.right).await? {
            tracing::info!(request = %key.name, right = found.right, "the requester may not have this certificate");
            return Ok(Outcome::Done);
        }
        let node = read.common_name.strip_prefix(NODE_USER).unwrap_or_default();
        if found.what == What::FirstClient && self.nodes.get(&Key::new(None, node)).is_some() {
            // A token lets a machine in; it does not let it become another one.
            let message = format!(
                "A node {node:?} exists already. If this is the same machine, delete that node first; else join under \
                 another name."
            );
            self.decide(&request, "Denied", "NodeExists", &message).await?;
            return Ok(Outcome::Done);
        }
        if found.what == What::Serving {
            let of_api = self.slices.list();
            let api: Vec<IpAddr> = of_api
                .iter()
                .filter(|slice| slice.metadata.namespace.as_deref() == Some("default"))
                .filter(|slice| slice.metadata.name.as_deref() == Some("kubernetes"))
                .flat_map(|slice| slice.endpoints.iter().flat_map(|one| &one.addresses))
                .filter_map(|address| address.parse().ok())
                .collect();
            if !serves_itself(node, &read, &self.nodes.list(), &api) {
                tracing::warn!(request = %key.name, node, "names of a node's server are for people to approve");
                return Ok(Outcome::Done);
            }
        }
        self.decide(&request, "Approved", "AutoApproved", found.message).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(signer: &str, user: &str, groups: &[&str], usage: &str) -> CertificateSigningRequestSpec {
        serde_json::from_value(json!({
            "request": "", "signerName": signer, "username": user, "groups": groups,
            "usages": ["digital signature", usage],
        }))
        .unwrap()
    }

    #[test]
    fn who_asks_for_what() {
        let of = |name: &str| CertRequest {
            common_name: format!("{NODE_USER}{name}"),
            organisations: vec![NODES.into()],
            ..CertRequest::default()
        };
        let first = spec(NODE_CLIENT, "system:bootstrap:abcdef", &["system:bootstrappers"], "client auth");
        assert_eq!(recognise(&first, &of("a")).unwrap().what, What::FirstClient);
        let own = spec(NODE_CLIENT, "system:node:a", &[NODES], "client auth");
        assert_eq!(recognise(&own, &of("a")).unwrap().what, What::Client);
        assert_eq!(recognise(&own, &of("b")), None, "another's");
        let serving = spec(NODE_SERVING, "system:node:a", &[NODES], "server auth");
        let named = CertRequest { dns_names: vec!["a".into()], ..of("a") };
        assert_eq!(recognise(&serving, &named).unwrap().what, What::Serving);
        let stranger = spec(NODE_SERVING, "system:node:a", &[], "server auth");
        assert_eq!(recognise(&stranger, &named), None, "no node without its group");
        let part = spec(node_parts::SIGNER, "system:node:a", &[NODES], "client auth");
        let dns = CertRequest { common_name: "system:kube-dns".into(), ..CertRequest::default() };
        assert_eq!(recognise(&part, &dns).unwrap().what, What::Part);
        let by_token = spec(node_parts::SIGNER, "system:bootstrap:abcdef", &[], "client auth");
        assert_eq!(recognise(&by_token, &dns), None);
    }

    #[test]
    fn a_server_is_known_by_its_own_names_only() {
        let node = |name: &str, ip: &str| -> Arc<Node> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name},
                    "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}))
                .unwrap(),
            )
        };
        let api: [IpAddr; 1] = ["192.0.2.1".parse().unwrap()];
        let request = |ips: &[&str]| CertRequest {
            dns_names: vec!["b".into()],
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..CertRequest::default()
        };
        let nodes = [node("a", "192.0.2.2")];
        assert!(serves_itself("b", &request(&["192.0.2.3"]), &nodes, &api), "not registered yet");
        assert!(!serves_itself("b", &request(&["192.0.2.2"]), &nodes, &api), "another node's");
        assert!(!serves_itself("b", &request(&["192.0.2.1"]), &nodes, &api), "the API server's");
        assert!(!serves_itself("b", &request(&["127.0.0.1"]), &nodes, &api));
        assert!(!serves_itself("c", &request(&["192.0.2.3"]), &nodes, &api), "another's name");
        let nodes = [node("a", "192.0.2.2"), node("b", "192.0.2.4")];
        assert!(!serves_itself("b", &request(&["192.0.2.3"]), &nodes, &api), "not what it said it has");
        assert!(serves_itself("b", &request(&["192.0.2.4"]), &nodes, &api));
    }
}
