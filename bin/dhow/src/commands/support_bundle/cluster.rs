//! The API's part of a bundle: objects, health, metrics.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_client::Client;
use serde_json::{Value, json};

use super::redact::{self, Known};
use super::{Bundle, body};

/// How long the API may take for one answer.
pub const QUESTION: Duration = Duration::from_secs(30);
const SECRETS: &str = "/api/v1/secrets";
const NODES: &str = "/api/v1/nodes";

/// File, path and kind of what is taken. Kinds of users are not among them: only their makers know what is secret in
/// them.
const KINDS: &[(&str, &str, &str)] = &[
    ("nodes", NODES, "Node"),
    ("namespaces", "/api/v1/namespaces", "Namespace"),
    ("pods", "/api/v1/pods", "Pod"),
    ("events", "/api/v1/events", "Event"),
    ("services", "/api/v1/services", "Service"),
    ("service-accounts", "/api/v1/serviceaccounts", "ServiceAccount"),
    ("config-maps", "/api/v1/configmaps", "ConfigMap"),
    ("secrets", SECRETS, "Secret"),
    ("claims", "/api/v1/persistentvolumeclaims", "PersistentVolumeClaim"),
    ("volumes", "/api/v1/persistentvolumes", "PersistentVolume"),
    ("quotas", "/api/v1/resourcequotas", "ResourceQuota"),
    ("limit-ranges", "/api/v1/limitranges", "LimitRange"),
    ("replication-controllers", "/api/v1/replicationcontrollers", "ReplicationController"),
    ("deployments", "/apis/apps/v1/deployments", "Deployment"),
    ("replica-sets", "/apis/apps/v1/replicasets", "ReplicaSet"),
    ("stateful-sets", "/apis/apps/v1/statefulsets", "StatefulSet"),
    ("daemon-sets", "/apis/apps/v1/daemonsets", "DaemonSet"),
    ("jobs", "/apis/batch/v1/jobs", "Job"),
    ("cron-jobs", "/apis/batch/v1/cronjobs", "CronJob"),
    ("autoscalers", "/apis/autoscaling/v2/horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    ("disruption-budgets", "/apis/policy/v1/poddisruptionbudgets", "PodDisruptionBudget"),
    ("network-policies", "/apis/networking.k8s.io/v1/networkpolicies", "NetworkPolicy"),
    ("ingresses", "/apis/networking.k8s.io/v1/ingresses", "Ingress"),
    ("endpoint-slices", "/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice"),
    ("storage-classes", "/apis/storage.k8s.io/v1/storageclasses", "StorageClass"),
    ("volume-attachments", "/apis/storage.k8s.io/v1/volumeattachments", "VolumeAttachment"),
    ("csi-drivers", "/apis/storage.k8s.io/v1/csidrivers", "CSIDriver"),
    ("leases", "/apis/coordination.k8s.io/v1/leases", "Lease"),
    ("priority-classes", "/apis/scheduling.k8s.io/v1/priorityclasses", "PriorityClass"),
    ("runtime-classes", "/apis/node.k8s.io/v1/runtimeclasses", "RuntimeClass"),
    ("api-services", "/apis/apiregistration.k8s.io/v1/apiservices", "APIService"),
    ("custom-kinds", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "CustomResourceDefinition"),
    (
        "mutating-webhooks",
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
    ),
    (
        "validating-webhooks",
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
    ),
];

/// Learns the values of all Secrets, to look for them everywhere else.
pub async fn secrets(client: &Client, known: &mut Known) -> Result<()> {
    let list: Value = serde_json::from_slice(&body(client, SECRETS).await?).context("read the Secrets")?;
    for secret in list["items"].as_array().into_iter().flatten() {
        let kind = secret["type"].as_str().unwrap_or_default();
        for (key, value) in secret["data"].as_object().into_iter().flatten() {
            if public(kind, key) {
                continue;
            }
            if let Some(value) = value.as_str().and_then(|text| STANDARD.decode(text).ok()) {
                known.add(&value);
            }
        }
    }
    Ok(())
}

/// Keys of Kubernetes' own types that hold nothing secret, but words that are everywhere.
fn public(kind: &str, key: &str) -> bool {
    match kind {
        "kubernetes.io/service-account-token" => key != "token",
        "bootstrap.kubernetes.io/token" => key != "token-secret",
        "kubernetes.io/tls" => key == "tls.crt",
        "kubernetes.io/basic-auth" => key == "username",
        _ => false,
    }
}

pub async fn gather(client: &Client, bundle: &mut Bundle) -> Result<()> {
    let ready = body(client, "/readyz?verbose").await.map(text);
    bundle.try_text("cluster/ready.txt", ready)?;
    let mut nodes = Vec::new();
    for (file, path, kind) in KINDS {
        let list = body(client, path).await.and_then(|bytes| objects(&bytes, kind));
        match list {
            Ok(list) => {
                if *path == NODES {
                    nodes.extend(list.iter().filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())));
                }
                bundle.yaml(
                    &format!("cluster/{file}.yaml"),
                    &json!({"kind": "List", "apiVersion": "v1", "items": list}),
                )?;
            }
            Err(error) => bundle.missing.push(format!("cluster/{file}.yaml: {error:#}")),
        }
    }
    bundle.try_text("metrics/server.txt", body(client, "/metrics").await.map(text))?;
    for node in nodes {
        let metrics = body(client, &format!("{NODES}/{node}/proxy/metrics")).await.map(text);
        bundle.try_text(&format!("metrics/nodes/{node}.txt"), metrics)?;
    }
    Ok(())
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The items of a list, with what is secret taken out.
fn objects(bytes: &[u8], kind: &str) -> Result<Vec<Value>> {
    let mut list: Value = serde_json::from_slice(bytes).context("read the list")?;
    let Value::Array(mut items) = list["items"].take() else { return Ok(Vec::new()) };
    for item in &mut items {
        redact::object(item, kind);
        // Items of a list carry no kind of their own.
        if let Some(fields) = item.as_object_mut() {
            fields.entry("apiVersion").or_insert_with(|| list["apiVersion"].clone());
            fields.entry("kind").or_insert_with(|| kind.into());
        }
    }
    Ok(items)
}
