//! What a node agent may do: its own node, its own pods, and what those pods refer to. It allows or has no opinion.
//!
//! The graph from a node's pods to their Secrets, ConfigMaps, claims, volumes and accounts is not kept: it is followed
//! from the cache when somebody asks, over the pods of one namespace.

use std::sync::Arc;

use dhow_api::registry;
use dhow_api::{local_volumes, meta};
use serde_json::Value;

use crate::cache::Cache;
use crate::identity::UserInfo;
use crate::rbac::{Attributes, Selected};

const GROUP: &str = "system:nodes";
const PREFIX: &str = "system:node:";
const LEASES: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";

const READ: &[&str] = &["get", "list", "watch"];

/// What every node may do whatever its name: group, resource (with subresource) and verbs, as upstream gives them.
const EVERY_NODE: &[(&str, &str, &[&str])] = &[
    ("", "services", READ),
    ("", "endpoints", &["get"]),
    ("", "events", &["create", "patch", "update"]),
    ("events.k8s.io", "events", &["create", "patch", "update"]),
    ("", "nodes", &["create"]),
    // Whose pods and nodes these may be is for admission.
    ("", "pods", &["create", "delete"]),
    ("", "pods/eviction", &["create"]),
    ("", "pods/status", &["patch", "update"]),
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"]),
    // What requests of nodes are approved without anybody's doing; whether they are right is looked at then.
    ("certificates.k8s.io", "certificatesigningrequests/selfnodeclient", &["create"]),
    ("certificates.k8s.io", "certificatesigningrequests/selfnodeserving", &["create"]),
    ("certificates.k8s.io", "certificatesigningrequests/nodepart", &["create"]),
    ("certificates.k8s.io", "clustertrustbundles", READ),
    ("node.k8s.io", "runtimeclasses", READ),
    ("storage.k8s.io", "csidrivers", READ),
    ("storage.k8s.io", "csinodes", &["create"]),
];

/// The name of the node that a user is.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(PREFIX).filter(|name| !name.is_empty())?;
    user.groups.iter().any(|group| group == GROUP).then_some(name)
}

/// Whether a node may do that because of what it is and runs.
pub fn allows(cache: &Cache, node: &str, attributes: &Attributes, selected: &Selected) -> bool {
    let Attributes::Resource { verb, group, resource, subresource, namespace, name } = attributes else {
        return false;
    };
    let (verb, namespace, name) = (verb.as_str(), namespace.as_str(), name.as_str());
    let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    if EVERY_NODE.iter().any(|(g, r, verbs)| *g == group && *r == full && verbs.contains(&verb)) {
        return true;
    }
    let reads = READ.contains(&verb);
    let writes_status = matches!(verb, "update" | "patch");
    let own = name == node;
    match (group.as_str(), full.as_str()) {
        ("", "nodes") => own && (reads || writes_status),
        ("", "nodes/status") => own && writes_status,
        ("", "pods") => match verb {
            "get" => runs(cache, node, namespace, name),
            "list" | "watch" => {
                selected.node.as_deref() == Some(node) || !name.is_empty() && runs(cache, node, namespace, name)
            }
            _ => false,
        },
        ("", "secrets" | "configmaps") if reads && !name.is_empty() => {
            refers(cache, node, namespace, resource, name)
                || full == "secrets" && volume_refers(cache, node, namespace, name)
        }
        // Watched by name, to hear that a mounted volume grew.
        ("", "persistentvolumeclaims") => reads && !name.is_empty() && refers(cache, node, namespace, resource, name),
        ("", "persistentvolumeclaims/status") => {
            (verb == "get" || writes_status) && refers(cache, node, namespace, resource, name)
        }
        ("", "persistentvolumes") => match verb {
            "get" => !name.is_empty() && (mounts(cache, node, name) || holds(cache, node, name)),
            "list" | "watch" => selected.volumes_of.as_deref() == Some(node),
            // What of it may change is for admission.
            "patch" => !name.is_empty() && holds(cache, node, name),
            _ => false,
        },
        // Whose they are, and what of them may change, is for admission.
        ("snapshot.storage.k8s.io", "volumesnapshotcontents") => match verb {
            "list" | "watch" => selected.volumes_of.as_deref() == Some(node),
            "patch" => !name.is_empty(),
            _ => false,
        },
        ("snapshot.storage.k8s.io", "volumesnapshotcontents/status") => verb == "patch" && !name.is_empty(),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            reads && name == "volumesnapshotcontents.snapshot.storage.k8s.io"
        }
        ("", "serviceaccounts") => verb == "get" && refers(cache, node, namespace, resource, name),
        ("", "serviceaccounts/token") => verb == "create" && refers(cache, node, namespace, resource, name),
        ("certificates.k8s.io", "podcertificaterequests") => match verb {
            // For whose pods these may be is for admission.
            "create" => true,
            "list" | "watch" => selected.node.as_deref() == Some(node),
            "get" => {
                let request = one(cache, "certificates.k8s.io", "podcertificaterequests", Some(namespace), name);
                request.is_some_and(|request| meta::text(&request, &["spec", "nodeName"]) == node)
            }
            _ => false,
        },
        ("resource.k8s.io", "resourceclaims") => verb == "get" && refers(cache, node, namespace, resource, name),
        ("resource.k8s.io", "resourceslices") => match verb {
            // Whose they may be is for admission.
            "create" => true,
            "list" | "watch" | "deletecollection" => selected.node.as_deref() == Some(node),
            "get" | "update" | "patch" | "delete" => {
                let slice = one(cache, "resource.k8s.io", "resourceslices", None, name);
                slice.is_some_and(|slice| meta::text(&slice, &["spec", "nodeName"]) == node)
            }
            _ => false,
        },
        ("coordination.k8s.io", "leases") if namespace == LEASES => match verb {
            "create" => name.is_empty() || own,
            "get" | "update" | "patch" | "delete" => own,
            _ => false,
        },
        ("storage.k8s.io", "csinodes") => own && matches!(verb, "get" | "update" | "patch" | "delete"),
        ("storage.k8s.io", "volumeattachments") => {
            let attached = |object: Value| meta::text(&object, &["spec", "nodeName"]) == node;
            verb == "get" && one(cache, "storage.k8s.io", "volumeattachments", None, name).is_some_and(attached)
        }
        _ => false,
    }
}

fn one(cache: &Cache, group: &str, plural: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
    cache.find(group, plural, namespace, name)?.value().ok()
}

fn runs(cache: &Cache, node: &str, namespace: &str, name: &str) -> bool {
    let pod = one(cache, "", "pods", Some(namespace), name);
    pod.is_some_and(|pod| meta::text(&pod, &["spec", "nodeName"]) == node)
}

/// Whether one of the node's pods in the namespace refers to an object.
fn refers(cache: &Cache, node: &str, namespace: &str, resource: &str, name: &str) -> bool {
    let Some(kind) = registry::builtin().get("", "v1", "pods") else { return false };
    if namespace.is_empty() || name.is_empty() {
        return false;
    }
    let Ok(pods) = cache.objects(kind) else { return false };
    let prefix = format!("{}{namespace}/", kind.storage_prefix());
    pods.range(Arc::<str>::from(prefix.as_str())..)
        .take_while(|(key, _)| key.starts_with(&prefix))
        .filter(|(_, pod)| pod.field("spec.nodeName") == node)
        .filter_map(|(_, pod)| pod.value().ok())
        .any(|pod| pod_refers(&pod, resource, name))
}

/// Whether a pod refers to an object of its namespace. A mirror pod was made by its node, so it proves nothing.
fn pod_refers(pod: &Value, resource: &str, name: &str) -> bool {
    if meta::at(pod, &["metadata", "annotations", MIRROR]).is_some() {
        return false;
    }
    let spec = &pod["spec"];
    let volumes = || meta::items(spec, &["volumes"]).iter();
    match resource {
        "serviceaccounts" => meta::text(spec, &["serviceAccountName"]) == name,
        "persistentvolumeclaims" => volumes().any(|volume| {
            let ephemeral = || format!("{}-{}", meta::name(pod), meta::text(volume, &["name"])) == name;
            meta::text(volume, &["persistentVolumeClaim", "claimName"]) == name
                || volume["ephemeral"].is_object() && ephemeral()
        }),
        "resourceclaims" => {
            let made = meta::items(pod, &["status", "resourceClaimStatuses"]).iter();
            let mut all = meta::items(spec, &["resourceClaims"]).iter().chain(made);
            all.any(|claim| meta::text(claim, &["resourceClaimName"]) == name)
        }
        "secrets" => {
            meta::items(spec, &["imagePullSecrets"]).iter().any(|secret| secret["name"] == name)
                || containers(spec).any(|container| from_env(container, "secretRef", "secretKeyRef", name))
                || volumes().any(|volume| volume_secret(volume, name))
        }
        "configmaps" => {
            containers(spec).any(|container| from_env(container, "configMapRef", "configMapKeyRef", name))
                || volumes().any(|volume| {
                    meta::text(volume, &["configMap", "name"]) == name || projects(volume, "configMap", name)
                })
        }
        _ => false,
    }
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers", "ephemeralContainers"].into_iter().flat_map(|list| meta::items(spec, &[list]))
}

fn from_env(container: &Value, whole: &str, key: &str, name: &str) -> bool {
    meta::items(container, &["envFrom"]).iter().any(|from| meta::text(from, &[whole, "name"]) == name)
        || meta::items(container, &["env"]).iter().any(|env| meta::text(env, &["valueFrom", key, "name"]) == name)
}

fn projects(volume: &Value, source: &str, name: &str) -> bool {
    meta::items(volume, &["projected", "sources"]).iter().any(|from| meta::text(from, &[source, "name"]) == name)
}

/// A Secret by any of the names under which volume types refer to one.
fn volume_secret(volume: &Value, name: &str) -> bool {
    let of_type = |source: &Value| {
        meta::text(source, &["secretName"]) == name
            || meta::text(source, &["secretRef", "name"]) == name
            || meta::text(source, &["nodePublishSecretRef", "name"]) == name
    };
    volume.as_object().into_iter().flatten().any(|(_, source)| of_type(source)) || projects(volume, "secret", name)
}

/// Whether a pod of the node mounts a volume by way of its claim.
fn mounts(cache: &Cache, node: &str, volume: &str) -> bool {
    one(cache, "", "persistentvolumes", None, volume).is_some_and(|volume| claimed(cache, node, &volume))
}

/// Whether a volume of the built-in provisioner lies on the node.
fn holds(cache: &Cache, node: &str, name: &str) -> bool {
    let volume = one(cache, "", "persistentvolumes", None, name);
    volume.is_some_and(|volume| meta::text(&volume, &["metadata", "labels", local_volumes::NODE_LABEL]) == node)
}

fn claimed(cache: &Cache, node: &str, volume: &Value) -> bool {
    let claim = |field| meta::text(volume, &["spec", "claimRef", field]);
    refers(cache, node, claim("namespace"), "persistentvolumeclaims", claim("name"))
}

/// Whether a volume that a pod of the node mounts needs a Secret.
fn volume_refers(cache: &Cache, node: &str, namespace: &str, name: &str) -> bool {
    let volumes = registry::builtin().get("", "v1", "persistentvolumes").and_then(|kind| cache.objects(kind).ok());
    volumes.into_iter().flatten().filter_map(|(_, volume)| volume.value().ok()).any(|volume| {
        let claim_namespace = meta::text(&volume, &["spec", "claimRef", "namespace"]);
        let names = |reference: &Value| {
            let text = |field| meta::text(reference, &[field]);
            let (of_name, of_secret) = (text("name"), text("secretName"));
            let place = [text("namespace"), text("secretNamespace"), claim_namespace];
            let place = place.into_iter().find(|place| !place.is_empty()).unwrap_or_default();
            place == namespace && (of_name == name || of_secret == name)
        };
        let sources = meta::object(&volume, &["spec"]).into_iter().flatten().filter(|(key, _)| *key != "claimRef");
        let needs = sources.filter(|(_, source)| source.is_object()).any(|(kind, source)| {
            // `azureFile` names its Secret beside the share; all others by a reference.
            kind == "azureFile" && names(source)
                || source
                    .as_object()
                    .into_iter()
                    .flatten()
                    .any(|(key, reference)| key.to_ascii_lowercase().ends_with("secretref") && names(reference))
        });
        needs && claimed(cache, node, &volume)
    })
}
