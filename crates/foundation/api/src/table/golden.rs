//! What `kubectl get -o wide` shows of one object of every kind.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::{Include, render};
use crate::registry::builtin;

const POD: &str = r#"{"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}"#;

/// Group, version, plural and an object; name and age are added.
const OBJECTS: &[(&str, &str, &str, &str)] = &[
    ("", "v1", "namespaces", r#"{"status": {"phase": "Active"}}"#),
    (
        "",
        "v1",
        "nodes",
        r#"{"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "db"}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "nodeInfo": {"kubeletVersion": "v1.35.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "dhow://0.1"}}}"#,
    ),
    (
        "",
        "v1",
        "podtemplates",
        r#"{"template": {"metadata": {"labels": {"l": "m"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}}"#,
    ),
    (
        "",
        "v1",
        "services",
        r#"{"spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.1", "selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}"#,
    ),
    (
        "",
        "v1",
        "endpoints",
        r#"{"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 81}]}]}"#,
    ),
    ("", "v1", "configmaps", r#"{"data": {"a": "b"}, "binaryData": {"c": "eA=="}}"#),
    ("", "v1", "secrets", r#"{"type": "Opaque", "data": {"a": "eA=="}}"#),
    ("", "v1", "serviceaccounts", r#"{"secrets": [{"name": "s"}]}"#),
    (
        "",
        "v1",
        "events",
        r#"{"type": "Normal", "reason": "Ran", "message": " it ran ", "count": 3, "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "f"},
        "source": {"component": "c", "host": "h"}, "firstTimestamp": "2026-01-01T00:10:00Z", "lastTimestamp": "2026-01-01T00:59:00Z"}"#,
    ),
    (
        "events.k8s.io",
        "v1",
        "events",
        r#"{"type": "Normal", "reason": "Ran", "note": "it ran", "regarding": {"kind": "Pod", "name": "p"},
        "reportingController": "c", "eventTime": "2026-01-01T00:50:00.000000Z", "series": {"count": 4, "lastObservedTime": "2026-01-01T00:58:00.000000Z"}}"#,
    ),
    (
        "",
        "v1",
        "persistentvolumes",
        r#"{"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "fast", "volumeMode": "Filesystem"}, "status": {"phase": "Bound"}}"#,
    ),
    (
        "",
        "v1",
        "persistentvolumeclaims",
        r#"{"spec": {"volumeName": "v", "storageClassName": "fast", "volumeMode": "Block"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"]}}"#,
    ),
    (
        "",
        "v1",
        "resourcequotas",
        r#"{"status": {"hard": {"pods": "5", "limits.cpu": "4", "requests.cpu": "2"}, "used": {"pods": "1", "limits.cpu": "500m"}}}"#,
    ),
    ("", "v1", "limitranges", "{}"),
    (
        "",
        "v1",
        "replicationcontrollers",
        r#"{"spec": {"replicas": 2, "selector": {"a": "b"}, "template": POD}, "status": {"replicas": 2, "readyReplicas": 1}}"#,
    ),
    ("", "v1", "componentstatuses", r#"{"conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]}"#),
    (
        "apps",
        "v1",
        "deployments",
        r#"{"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "t", "operator": "In", "values": ["x", "y"]}]}, "template": POD},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}"#,
    ),
    (
        "apps",
        "v1",
        "replicasets",
        r#"{"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": POD}, "status": {"replicas": 3}}"#,
    ),
    ("apps", "v1", "statefulsets", r#"{"spec": {"replicas": 3, "template": POD}, "status": {"readyReplicas": 1}}"#),
    (
        "apps",
        "v1",
        "daemonsets",
        r#"{"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": POD}, "status": {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberReady": 1, "updatedNumberScheduled": 2, "numberAvailable": 1}}"#,
    ),
    (
        "apps",
        "v1",
        "controllerrevisions",
        r#"{"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true}]}, "revision": 4}"#,
    ),
    (
        "batch",
        "v1",
        "jobs",
        r#"{"spec": {"completions": 2, "selector": {"matchLabels": {"a": "b"}}, "template": POD}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:58:00Z"}}"#,
    ),
    (
        "batch",
        "v1",
        "cronjobs",
        r#"{"spec": {"schedule": "@daily", "suspend": false, "jobTemplate": {"spec": {"template": POD}}}, "status": {"active": [{}], "lastScheduleTime": "2026-01-01T00:30:00Z"}}"#,
    ),
    (
        "policy",
        "v1",
        "poddisruptionbudgets",
        r#"{"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}}"#,
    ),
    (
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        r#"{"spec": {"minReplicas": 1, "maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}, {"type": "Pods", "pods": {"target": {"averageValue": "10"}}}, {"type": "Pods"}]},
        "status": {"currentReplicas": 2, "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 30}}}]}}"#,
    ),
    (
        "autoscaling",
        "v1",
        "horizontalpodautoscalers",
        r#"{"spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 70, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}"#,
    ),
    (
        "networking.k8s.io",
        "v1",
        "ingresses",
        r#"{"spec": {"ingressClassName": "c", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]},
        "status": {"loadBalancer": {"ingress": [{"hostname": "lb"}, {"ip": "1.2.3.4"}]}}}"#,
    ),
    (
        "networking.k8s.io",
        "v1",
        "ingressclasses",
        r#"{"spec": {"controller": "a/b", "parameters": {"apiGroup": "g.io", "kind": "K", "name": "n"}}}"#,
    ),
    ("networking.k8s.io", "v1", "networkpolicies", r#"{"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}"#),
    ("networking.k8s.io", "v1", "servicecidrs", r#"{"spec": {"cidrs": ["10.0.0.0/16", "fd00::/108"]}}"#),
    (
        "networking.k8s.io",
        "v1",
        "ipaddresses",
        r#"{"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}}"#,
    ),
    (
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        r#"{"addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}], "endpoints": [{"addresses": ["1", "2"]}, {"addresses": ["3", "4"]}]}"#,
    ),
    (
        "storage.k8s.io",
        "v1",
        "storageclasses",
        r#"{"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}"#,
    ),
    ("storage.k8s.io", "v1", "volumeattributesclasses", r#"{"driverName": "d"}"#),
    (
        "storage.k8s.io",
        "v1",
        "volumeattachments",
        r#"{"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}, "status": {"attached": true}}"#,
    ),
    ("storage.k8s.io", "v1", "csinodes", r#"{"spec": {"drivers": [{}, {}]}}"#),
    (
        "storage.k8s.io",
        "v1",
        "csidrivers",
        r#"{"spec": {"tokenRequests": [{"audience": "a"}], "volumeLifecycleModes": ["Persistent"]}}"#,
    ),
    ("storagemigration.k8s.io", "v1beta1", "storageversionmigrations", r#"{"spec": {"resource": {"resource": "r"}}}"#),
    ("storage.k8s.io", "v1", "csistoragecapacities", r#"{"storageClassName": "s", "capacity": "1Gi"}"#),
    ("rbac.authorization.k8s.io", "v1", "roles", "{}"),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "{}"),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "rolebindings",
        r#"{"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}"#,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterrolebindings",
        r#"{"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "Group", "name": "g"}]}"#,
    ),
    (
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        r#"{"spec": {"signerName": "s/t", "username": "u", "expirationSeconds": 3600},
        "status": {"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True"}]}}"#,
    ),
    ("certificates.k8s.io", "v1beta1", "podcertificaterequests", r#"{"spec": {"signerName": "s/t", "podName": "p"}}"#),
    ("certificates.k8s.io", "v1beta1", "clustertrustbundles", r#"{"spec": {"signerName": "s/t", "trustBundle": "x"}}"#),
    ("coordination.k8s.io", "v1", "leases", r#"{"spec": {"holderIdentity": "h"}}"#),
    (
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        r#"{"value": 7, "globalDefault": true, "preemptionPolicy": "Never"}"#,
    ),
    ("node.k8s.io", "v1", "runtimeclasses", r#"{"handler": "crun"}"#),
    ("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", r#"{"webhooks": [{}]}"#),
    ("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", r#"{"webhooks": [{}, {}]}"#),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
        r#"{"spec": {"validations": [{}], "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}}"#,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicybindings",
        r#"{"spec": {"policyName": "p", "paramRef": {"name": "x"}}}"#,
    ),
    ("admissionregistration.k8s.io", "v1beta1", "mutatingadmissionpolicies", r#"{"spec": {"mutations": [{}]}}"#),
    (
        "admissionregistration.k8s.io",
        "v1beta1",
        "mutatingadmissionpolicybindings",
        r#"{"spec": {"policyName": "p", "paramRef": {"name": "x"}}}"#,
    ),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "{}"),
    (
        "apiregistration.k8s.io",
        "v1",
        "apiservices",
        r#"{"spec": {"service": {"namespace": "n", "name": "s"}}, "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}}"#,
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "flowschemas",
        r#"{"spec": {"priorityLevelConfiguration": {"name": "p"}, "matchingPrecedence": 5, "distinguisherMethod": {"type": "ByUser"}},
        "status": {"conditions": [{"type": "Dangling", "status": "False"}]}}"#,
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "prioritylevelconfigurations",
        r#"{"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 30, "limitResponse": {"queuing": {"queues": 64, "handSize": 8, "queueLengthLimit": 50}}}}}"#,
    ),
    ("resource.k8s.io", "v1", "deviceclasses", "{}"),
    ("resource.k8s.io", "v1", "resourceclaims", r#"{"status": {"allocation": {}, "reservedFor": [{}]}}"#),
    ("resource.k8s.io", "v1", "resourceclaimtemplates", "{}"),
    ("resource.k8s.io", "v1", "resourceslices", r#"{"spec": {"nodeName": "n", "driver": "d", "pool": {"name": "p"}}}"#),
    ("resource.k8s.io", "v1alpha3", "devicetaintrules", "{}"),
];

/// The table as lines of `TITLE=cell`; wide columns are marked with a plus.
#[test]
fn every_kind_prints_upstreams_columns() {
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    let mut shown = Vec::new();
    for (group, version, plural, text) in OBJECTS {
        let kind = builtin().get(group, version, plural).unwrap();
        let mut object: Value = serde_json::from_str(&text.replace("POD", POD)).unwrap();
        object["metadata"]["name"] = json!("x");
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        let table = render(kind, &[object], Include::default(), "1", now);
        let columns = table["columnDefinitions"].as_array().unwrap();
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(columns.len(), cells.len());
        let line: Vec<String> = columns
            .iter()
            .zip(cells)
            .map(|(column, cell)| {
                let wide = if column["priority"] == 1 { "+" } else { "" };
                format!("{wide}{}={cell}", column["name"].as_str().unwrap())
            })
            .collect();
        shown.push(format!("{plural}.{version}.{group}: {}", line.join(" | ")));
    }
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn every_stored_kind_is_shown_above() {
    for kind in builtin().iter().filter(|kind| kind.stored && kind.kind != "Pod") {
        let row = (kind.group, kind.version, kind.plural);
        assert!(OBJECTS.iter().any(|(group, version, plural, _)| (*group, *version, *plural) == row), "{kind:?}");
    }
}
