//! NodeRestriction: a node writes its own Node, Lease, CSINode and ResourceSlices, the status of its pods, and little else.

use std::collections::BTreeSet;

use dhow_api::registry::Subresource;
use dhow_api::{Status, local_volumes, meta};
use serde_json::{Map, Value};

use super::{Attributes, Operation, cached};
use crate::ApiServer;

const USER: &str = "system:node:";
const LEASES: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels under `kubernetes.io` that a node may give itself.
const OWN_LABELS: [&str; 13] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
    "kubernetes.io/role",
];
/// Label domains that are the node's own, with their subdomains.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub fn admit(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let Some(node) = attributes.user.name.strip_prefix(USER) else { return Ok(()) };
    if attributes.operation == Operation::Connect {
        return Ok(());
    }
    if node.is_empty() {
        let user = &attributes.user.name;
        return Err(attributes.forbidden(&format!("could not determine node from user {user:?}")));
    }
    match (attributes.kind.group, attributes.kind.plural) {
        ("", "pods") => pod(server, node, attributes),
        ("", "nodes") => own_node(node, attributes),
        ("", "persistentvolumeclaims") => claim(node, attributes),
        ("", "persistentvolumes") => volume(node, attributes),
        ("snapshot.storage.k8s.io", "volumesnapshotcontents") => snapshot_content(node, attributes),
        ("", "serviceaccounts") => token(server, node, attributes),
        ("certificates.k8s.io", "podcertificaterequests") => pod_certificate(server, node, attributes),
        ("coordination.k8s.io", "leases") => {
            if attributes.namespace != Some(LEASES) {
                let why = format!("can only access leases in the {LEASES:?} system namespace");
                return Err(attributes.forbidden(&why));
            }
            same_name(node, attributes, "can only access node lease with the same name as the requesting node")
        }
        ("resource.k8s.io", "resourceslices") => slice(node, attributes),
        ("storage.k8s.io", "csinodes") => {
            same_name(node, attributes, "can only access CSINode with the same name as the requesting node")
        }
        _ => Ok(()),
    }
}

fn slice(node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let own = |slice: &Value| meta::text(slice, &["spec", "nodeName"]) == node;
    let (is_own, verb) = match (attributes.operation, attributes.old) {
        (Operation::Create, _) => (own(&attributes.object), "create"),
        (Operation::Delete, old) => (old.is_some_and(own), "delete"),
        _ => return Ok(()),
    };
    match is_own {
        true => Ok(()),
        false => {
            let why = format!("can only {verb} ResourceSlice with the same NodeName as the requesting node");
            Err(attributes.forbidden(&why))
        }
    }
}

fn same_name(node: &str, attributes: &Attributes<'_>, why: &str) -> Result<(), Status> {
    if attributes.name == node { Ok(()) } else { Err(attributes.forbidden(why)) }
}

fn pod(server: &ApiServer, node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let bound = |pod: &Value| meta::text(pod, &["spec", "nodeName"]) == node;
    let refuse = |why: String| Err(attributes.forbidden(&why));
    match (attributes.subresource, attributes.operation, attributes.old) {
        (None, Operation::Create, _) => mirror_pod(server, node, attributes),
        (None, Operation::Delete, Some(old)) if bound(old) => Ok(()),
        (None, Operation::Delete, _) => {
            refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        (None, operation, _) => refuse(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation.name()
        )),
        (Some(Subresource::Status), _, Some(old)) => {
            if !bound(old) {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if labels(old) != labels(&attributes.object) {
                return refuse(format!("node {node:?} cannot update labels through pod status"));
            }
            if old["status"]["resourceClaimStatuses"] != attributes.object["status"]["resourceClaimStatuses"] {
                return refuse(format!("node {node:?} cannot update resource claim statues"));
            }
            Ok(())
        }
        (Some(Subresource::Eviction), ..) => {
            let found = cached(server, "", "pods", attributes.namespace, attributes.name);
            let found = found.ok_or_else(|| Status::not_found("", "pods", attributes.name))?;
            if bound(&found.value()?) {
                return Ok(());
            }
            refuse(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        (other, ..) => {
            let name = other.map_or("", Subresource::name);
            refuse(format!("unexpected pod subresource {name:?}, only 'status' and 'eviction' are allowed"))
        }
    }
}

/// The only pods a node makes: pictures of what it runs on its own account, which refer to nothing in the API.
fn mirror_pod(server: &ApiServer, node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let pod = &attributes.object;
    let refuse = |why: String| Err(attributes.forbidden(&why));
    if meta::at(pod, &["metadata", "annotations", MIRROR]).is_none() {
        return refuse(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if meta::text(pod, &["spec", "nodeName"]) != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owner = match meta::items(pod, &["metadata", "ownerReferences"]) {
        [owner] => owner,
        [] => return refuse(format!("node {node:?} can only create pods with an owner reference set to itself")),
        _ => return refuse(format!("node {node:?} can only create pods with a single owner reference set to itself")),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return refuse(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let found = cached(server, "", "nodes", None, node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let uid = owner["uid"].as_str().unwrap_or_default();
    if uid != found.header.uid {
        return refuse(format!("node {node} UID mismatch: expected {uid} got {}", found.header.uid));
    }
    let spec = &pod["spec"];
    if !meta::text(spec, &["serviceAccountName"]).is_empty() {
        return refuse(format!("node {node:?} can not create pods that reference a service account"));
    }
    for (keys, what) in REFERENCES {
        let lists = ["volumes", "containers", "initContainers", "ephemeralContainers"];
        let pulls = what == "secrets" && !meta::items(spec, &["imagePullSecrets"]).is_empty();
        if pulls || lists.iter().any(|list| mentions(&spec[list], keys)) {
            return refuse(format!("node {node:?} can not create pods that reference {what}"));
        }
    }
    Ok(())
}

/// Fields that refer to other objects, and what these are.
const REFERENCES: [(&[&str], &str); 5] = [
    (&["secret", "secretName", "secretRef", "secretKeyRef", "nodePublishSecretRef"], "secrets"),
    (&["configMap", "configMapRef", "configMapKeyRef"], "configmaps"),
    (&["clusterTrustBundle"], "clustertrustbundles"),
    (&["podCertificate"], "podcertificates"),
    (&["persistentVolumeClaim"], "persistentvolumeclaims"),
];

fn mentions(value: &Value, keys: &[&str]) -> bool {
    match value {
        Value::Object(map) => {
            map.iter().any(|(key, inner)| !inner.is_null() && keys.contains(&key.as_str()) || mentions(inner, keys))
        }
        Value::Array(items) => items.iter().any(|item| mentions(item, keys)),
        _ => false,
    }
}

fn own_node(node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    if attributes.name != node {
        let why = format!("node {node:?} is not allowed to modify node {:?}", attributes.name);
        return Err(attributes.forbidden(&why));
    }
    match (attributes.operation, attributes.old) {
        (Operation::Create, _) => {
            let forbidden = forbidden_labels(&attributes.object, &Value::Null);
            if forbidden.is_empty() {
                return Ok(());
            }
            let list = forbidden.into_iter().collect::<Vec<_>>().join(", ");
            Err(attributes.forbidden(&format!("node {node:?} is not allowed to set the following labels: {list}")))
        }
        (Operation::Update, Some(old)) => {
            let taints = |node| meta::items(node, &["spec", "taints"]).to_vec();
            if taints(old) != taints(&attributes.object) {
                return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify taints")));
            }
            let forbidden = forbidden_labels(&attributes.object, old);
            if forbidden.is_empty() {
                return Ok(());
            }
            let list = forbidden.into_iter().collect::<Vec<_>>().join(", ");
            Err(attributes.forbidden(&format!("is not allowed to modify labels: {list}")))
        }
        _ => Ok(()),
    }
}

fn labels(object: &Value) -> Map<String, Value> {
    meta::object(object, &["metadata", "labels"]).cloned().unwrap_or_default()
}

/// Labels that change and are not the node's to change: with them it could draw pods to itself.
fn forbidden_labels(new: &Value, old: &Value) -> BTreeSet<String> {
    let (new, old) = (labels(new), labels(old));
    let changed = new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key));
    changed.filter(|key| !is_own_label(key)).cloned().collect()
}

fn is_own_label(key: &str) -> bool {
    let within = |domain: &str, of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    if within(domain, "node-restriction.kubernetes.io") {
        return false;
    }
    if !within(domain, "kubernetes.io") && !within(domain, "k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(|own| within(domain, own))
}

fn claim(node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let (Some(Subresource::Status), Some(old)) = (attributes.subresource, attributes.old) else {
        return Err(attributes.forbidden("may only update PVC status"));
    };
    let rest = |claim: &Value| {
        let mut rest = claim.clone();
        let metadata = meta::metadata_mut(&mut rest);
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
        let status = meta::child_mut(&mut rest, "status");
        for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
            status.remove(field);
        }
        rest
    };
    if rest(old) == rest(&attributes.object) {
        return Ok(());
    }
    let why = format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions");
    Err(attributes.forbidden(&why))
}

/// A node says of a volume of its own that nothing is left of it, by taking the finalizer away; nothing else.
fn volume(node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let (Operation::Update, None, Some(old)) = (attributes.operation, attributes.subresource, attributes.old) else {
        return Err(attributes.forbidden("may only take a finalizer from a PersistentVolume"));
    };
    let ours = [local_volumes::FINALIZER, local_volumes::FILLING];
    if is_held(node, old) && only_takes(&ours, old, &attributes.object) {
        return Ok(());
    }
    let finalizers = ours.join(" and ");
    Err(attributes.forbidden(&format!("node {node:?} may only take {finalizers} from PersistentVolumes that it holds")))
}

/// Whether the node holds what a volume, or a snapshot's content, stands for.
fn is_held(node: &str, old: &Value) -> bool {
    meta::text(old, &["metadata", "labels", local_volumes::NODE_LABEL]) == node
}

/// Whether nothing changes but that some of these finalizers go.
fn only_takes(finalizers: &[&str], old: &Value, new: &Value) -> bool {
    let parts = |object: &Value| {
        let mut rest = object.clone();
        let metadata = meta::metadata_mut(&mut rest);
        for field in ["resourceVersion", "managedFields", "generation"] {
            metadata.remove(field);
        }
        let finalizers = metadata.remove("finalizers").unwrap_or_default();
        (rest, finalizers.as_array().cloned().unwrap_or_default())
    };
    let ((old, before), (new, after)) = (parts(old), parts(new));
    let mut left = after.iter();
    let goes = |name: &Value| name.as_str().is_some_and(|name| finalizers.contains(&name));
    let mut next = left.next();
    for name in &before {
        if next == Some(name) {
            next = left.next();
        } else if !goes(name) {
            return false;
        }
    }
    old == new && next.is_none()
}

/// A node says what became of a snapshot of its own, and that nothing is left of it.
fn snapshot_content(node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    const BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
    let allowed = match (attributes.operation, attributes.subresource, attributes.old) {
        (Operation::Update, Some(Subresource::Status), Some(old)) => {
            is_held(node, old) && old["metadata"]["labels"] == attributes.object["metadata"]["labels"]
        }
        (Operation::Update, None, Some(old)) => is_held(node, old) && only_takes(&[BOUND], old, &attributes.object),
        _ => false,
    };
    let why = format!(
        "node {node:?} may only write the status of, and take {BOUND} from, VolumeSnapshotContents that it holds"
    );
    if allowed { Ok(()) } else { Err(attributes.forbidden(&why)) }
}

/// A node asks for tokens of the pods it runs only.
fn token(server: &ApiServer, node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    if attributes.subresource != Some(Subresource::Token) || attributes.operation != Operation::Create {
        return Ok(());
    }
    let bound = &attributes.object["spec"]["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Err(attributes.forbidden("node requested token not bound to a pod"));
    }
    let uid = text("uid");
    if uid.is_empty() {
        return Err(attributes.forbidden("node requested token with a pod binding without a uid"));
    }
    let pod = cached(server, "", "pods", attributes.namespace, text("name"));
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", text("name")))?;
    if pod.header.uid != uid {
        return Err(attributes.forbidden(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        )));
    }
    if meta::text(&pod.value()?, &["spec", "nodeName"]) != node {
        return Err(attributes.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    Ok(())
}

/// A node asks for certificates of the pods it runs only, and says the truth of them.
fn pod_certificate(server: &ApiServer, node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let refuse = |why: String| Err(attributes.forbidden(&why));
    if attributes.operation != Operation::Create {
        return refuse(format!("unexpected operation {:?}", attributes.operation.name()));
    }
    if let Some(subresource) = attributes.subresource {
        return refuse(format!("unexpected subresource {:?}", subresource.name()));
    }
    let asked = |field: &str| meta::text(&attributes.object, &["spec", field]);
    if asked("nodeName") != node {
        let asked = asked("nodeName");
        return refuse(format!(
            "PodCertificateRequest.Spec.NodeName={asked:?}, which is not the requesting node {node:?}"
        ));
    }
    let own = cached(server, "", "nodes", None, node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let name = asked("podName");
    let found = cached(server, "", "pods", attributes.namespace, name);
    let Some(found) = found else { return refuse(format!("pod {name:?} of the PodCertificateRequest was not found")) };
    let pod = found.value()?;
    let account = meta::text(&pod, &["spec", "serviceAccountName"]);
    let accounts = cached(server, "", "serviceaccounts", attributes.namespace, account);
    let account_uid = accounts.map(|account| account.header.uid.to_string()).unwrap_or_default();
    let (node_uid, pod_uid) = (own.header.uid.to_string(), found.header.uid.to_string());
    if meta::at(&pod, &["metadata", "annotations", MIRROR]).is_some() {
        return refuse(format!("pod {name:?} is a mirror pod"));
    }
    if meta::text(&pod, &["spec", "nodeName"]) != node {
        return refuse(format!("pod {name:?} is not running on node {node:?}"));
    }
    for (field, is) in [
        ("nodeUID", node_uid.as_str()),
        ("podUID", &pod_uid),
        ("serviceAccountName", account),
        ("serviceAccountUID", &account_uid),
    ] {
        if asked(field) != is || is.is_empty() {
            let asked = asked(field);
            return refuse(format!("PodCertificateRequest for pod {name:?} has {field} {asked:?}, but it is {is:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_own_labels() {
        for own in
            ["zone", "example.com/rack", "kubernetes.io/hostname", "node.kubernetes.io/x", "a.kubelet.kubernetes.io/y"]
        {
            assert!(is_own_label(own), "{own}");
        }
        for others in ["node-restriction.kubernetes.io/x", "a.node-restriction.kubernetes.io/x", "kubernetes.io/team"] {
            assert!(!is_own_label(others), "{others}");
        }
        assert!(!is_own_label("node-role.kubernetes.io/control-plane"));
    }
}
