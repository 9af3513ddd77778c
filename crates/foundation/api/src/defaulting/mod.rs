//! Upstream's defaults, so that an object reads back as it does from Kubernetes.
//!
//! Defaulting is idempotent and never overwrites a value that is present.

pub mod pod;
pub(crate) mod rows;
pub mod service;
pub mod storage;
mod table;
pub mod workload;

use crate::meta::{child_mut, default_to, each_mut};
use crate::quantity::Quantity;
use crate::registry::Kind;
use serde_json::{Map, Value, json};

/// Applies the defaults of `kind` to `object`.
pub fn apply(kind: &Kind, object: &mut Value) {
    match &kind.custom {
        // What nobody knows goes first: admission may have added it.
        Some(served) => drop(served.version.settle(object)),
        None => (kind.defaults)(object),
    }
}

/// Rewrites a map of quantities into canonical form, as decoding and encoding does upstream.
pub(crate) fn canonical_quantities(map: &mut Map<String, Value>, key: &str) {
    for value in map.get_mut(key).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        let text = match &*value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        if let Ok(quantity) = text.parse::<Quantity>() {
            *value = Value::String(quantity.to_string());
        }
    }
}

pub(crate) fn namespace(object: &mut Value) {
    if let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) {
        child_mut(object, "metadata");
        let labels = child_mut(&mut object["metadata"], "labels");
        default_to(labels, "kubernetes.io/metadata.name", name);
    }
    default_to(child_mut(object, "spec"), "finalizers", json!(["kubernetes"]));
    default_to(child_mut(object, "status"), "phase", "Active");
}

pub(crate) fn node(object: &mut Value) {
    let status = child_mut(object, "status");
    canonical_quantities(status, "capacity");
    if status.get("allocatable").is_none_or(Value::is_null)
        && let Some(capacity) = status.get("capacity").cloned()
    {
        status.insert("allocatable".into(), capacity);
    }
    canonical_quantities(status, "allocatable");
    child_mut(object, "spec");
}

pub(crate) fn secret(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        default_to(map, "type", "Opaque");
    }
}

pub(crate) fn resource_quota(object: &mut Value) {
    canonical_quantities(child_mut(object, "spec"), "hard");
    let status = child_mut(object, "status");
    canonical_quantities(status, "hard");
    canonical_quantities(status, "used");
}

pub(crate) fn limit_range(object: &mut Value) {
    for limit in each_mut(child_mut(object, "spec"), "limits") {
        for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            canonical_quantities(limit, key);
        }
        if limit.get("type").and_then(Value::as_str) != Some("Container") {
            continue;
        }
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Some(Value::Object(source)) = limit.get(from).cloned() else { continue };
            let target = limit.entry(to).or_insert_with(|| json!({}));
            if let Some(target) = target.as_object_mut() {
                for (name, value) in source {
                    target.entry(name).or_insert(value);
                }
            }
        }
    }
}

pub(crate) fn priority_class(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        default_to(map, "preemptionPolicy", "PreemptLowerPriority");
    }
}

pub(crate) fn pod_certificate_request(object: &mut Value) {
    const DAY: u32 = 24 * 3600;
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        default_to(spec, "maxExpirationSeconds", DAY);
    }
}

pub(crate) fn role_binding(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    if let Some(role) = map.get_mut("roleRef").and_then(Value::as_object_mut) {
        default_to(role, "apiGroup", "rbac.authorization.k8s.io");
    }
    for subject in each_mut(map, "subjects") {
        if let Some("User" | "Group") = subject.get("kind").and_then(Value::as_str) {
            default_to(subject, "apiGroup", "rbac.authorization.k8s.io");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::builtin;

    fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
        let kind = builtin().by_kind(group, if kind.ends_with("Autoscaler") { "v2" } else { "v1" }, kind).unwrap();
        apply(kind, &mut object);
        let once = object.clone();
        apply(kind, &mut object);
        assert_eq!(object, once, "defaulting must be idempotent");
        object
    }

    /// What each of these reads back as.
    const GOLDEN: &[(&str, &str, &str, &str)] = &[
        (
            "job",
            "batch",
            "Job",
            r#"{"spec": {"podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}}}}"#,
        ),
        (
            "job_indexed",
            "batch",
            "Job",
            r#"{"spec": {"completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}}}}"#,
        ),
        (
            "cron_job",
            "batch",
            "CronJob",
            r#"{"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}}}}}}"#,
        ),
        (
            "stateful_set",
            "apps",
            "StatefulSet",
            r#"{"spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "a", "image": "x"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}}]}}"#,
        ),
        (
            "stateful_set_on_delete",
            "apps",
            "StatefulSet",
            r#"{"spec": {"updateStrategy": {"type": "OnDelete"}, "template": {}}}"#,
        ),
        (
            "daemon_set",
            "apps",
            "DaemonSet",
            r#"{"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}}"#,
        ),
        (
            "replication_controller",
            "",
            "ReplicationController",
            r#"{"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}}"#,
        ),
        (
            "autoscaler",
            "autoscaling",
            "HorizontalPodAutoscaler",
            r#"{"spec": {"maxReplicas": 3, "behavior": {"scaleUp": {"selectPolicy": "Min"}}}}"#,
        ),
        ("disruption_budget", "policy", "PodDisruptionBudget", r#"{"spec": {"minAvailable": 1}}"#),
        (
            "ingress",
            "networking.k8s.io",
            "Ingress",
            r#"{"spec": {"rules": [{"http": {"paths": [{"path": "/", "backend": {}}]}}]}}"#,
        ),
        (
            "ingress_class",
            "networking.k8s.io",
            "IngressClass",
            r#"{"spec": {"controller": "a/b", "parameters": {"kind": "K", "name": "n"}}}"#,
        ),
        (
            "network_policy",
            "networking.k8s.io",
            "NetworkPolicy",
            r#"{"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}}"#,
        ),
        ("storage_class", "storage.k8s.io", "StorageClass", r#"{"provisioner": "p"}"#),
        ("csi_driver", "storage.k8s.io", "CSIDriver", r#"{"spec": {"podInfoOnMount": true}}"#),
        ("attachment", "storage.k8s.io", "VolumeAttachment", r#"{"spec": {"attacher": "a"}}"#),
        (
            "volume",
            "",
            "PersistentVolume",
            r#"{"spec": {"capacity": {"storage": "2048Mi"}, "rbd": {"image": "i", "monitors": []}}}"#,
        ),
        ("claim", "", "PersistentVolumeClaim", r#"{"spec": {"resources": {"requests": {"storage": "0.5Gi"}}}}"#),
        (
            "mutating_webhooks",
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration",
            r#"{"webhooks": [{"name": "a.b.c", "rules": [{"resources": ["pods"]}], "clientConfig": {"service": {"name": "s", "namespace": "n"}}}]}"#,
        ),
        (
            "validating_webhooks",
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration",
            r#"{"webhooks": [{"name": "a.b.c", "timeoutSeconds": 3, "clientConfig": {"url": "https://x"}}]}"#,
        ),
        (
            "admission_policy",
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicy",
            r#"{"spec": {"matchConstraints": {"resourceRules": [{"resources": ["pods"]}]}, "validations": [{"expression": "true"}]}}"#,
        ),
        (
            "admission_policy_binding",
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding",
            r#"{"spec": {"policyName": "p", "matchResources": {"excludeResourceRules": [{"resources": ["pods"]}]}}}"#,
        ),
        (
            "definition",
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            r#"{"spec": {"group": "g.io", "names": {"kind": "Thing", "plural": "things"}, "scope": "Namespaced"}}"#,
        ),
        (
            "api_service",
            "apiregistration.k8s.io",
            "APIService",
            r#"{"spec": {"service": {"name": "s", "namespace": "n"}}}"#,
        ),
        ("flow_schema", "flowcontrol.apiserver.k8s.io", "FlowSchema", r#"{"spec": {}}"#),
        (
            "priority_level",
            "flowcontrol.apiserver.k8s.io",
            "PriorityLevelConfiguration",
            r#"{"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}}"#,
        ),
        (
            "priority_level_exempt",
            "flowcontrol.apiserver.k8s.io",
            "PriorityLevelConfiguration",
            r#"{"spec": {"type": "Exempt"}}"#,
        ),
        ("priority_class", "scheduling.k8s.io", "PriorityClass", r#"{"value": 7}"#),
        (
            "resource_claim",
            "resource.k8s.io",
            "ResourceClaim",
            r#"{"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "c", "tolerations": [{"key": "k"}]}},
            {"name": "b", "firstAvailable": [{"name": "x", "deviceClassName": "c", "allocationMode": "All"}]}]}}}"#,
        ),
        (
            "role_binding",
            "rbac.authorization.k8s.io",
            "RoleBinding",
            r#"{"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}"#,
        ),
        (
            "limit_range",
            "",
            "LimitRange",
            r#"{"spec": {"limits": [{"type": "Container", "max": {"cpu": "2000m"}, "min": {"memory": "64Mi"}}]}}"#,
        ),
        ("endpoint_slice", "discovery.k8s.io", "EndpointSlice", r#"{"addressType": "IPv4", "ports": [{"port": 80}]}"#),
        ("namespace", "", "Namespace", r#"{"metadata": {"name": "n"}}"#),
    ];

    #[test]
    fn kinds_read_back_with_upstreams_defaults() {
        for (name, group, kind, object) in GOLDEN {
            let object = serde_json::from_str(object).unwrap();
            insta::assert_yaml_snapshot!(*name, defaulted(group, kind, object));
        }
    }

    #[test]
    fn pod() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}, "requests": {"memory": "512Mi"}}},
                {"name": "b", "image": "nginx:1.2"}, {"name": "c", "image": "r:5000/x@sha256:00"}],
            "volumes": [{"name": "s", "secret": {"secretName": "x"}}, {"name": "e"},
                {"name": "k", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}, {"name": "h", "hostPath": {"path": "/x"}}]}});
        insta::assert_yaml_snapshot!(defaulted("", "Pod", pod));
    }

    #[test]
    fn deployment() {
        let object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}}});
        insta::assert_yaml_snapshot!(defaulted("apps", "Deployment", object));
    }

    #[test]
    fn service() {
        let object = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]}});
        insta::assert_yaml_snapshot!(defaulted("", "Service", object));
    }
}
