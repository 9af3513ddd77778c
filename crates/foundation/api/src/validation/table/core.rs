//! The core group beside pods and services, and storage.

use super::check;

#[test]
fn core() {
    check(
        "v1/configmaps",
        r#"{"metadata": {"name": "m"}, "data": {"a": "b"}, "immutable": true}"#,
        &[(
            "/binaryData",
            "{\"a\": \"eA==\"}",
            "data[a]: Invalid value: \"a\": duplicate of key present in binaryData",
        )],
        &[
            ("/data/a", "\"c\"", "data: Forbidden: field is immutable when `immutable` is set"),
            ("/immutable", "false", "immutable: Forbidden: field is immutable when `immutable` is set"),
        ],
    );
    check(
        "v1/secrets",
        r#"{"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": "eA==", "tls.key": "eA=="}}"#,
        &[
            ("/data", "{}", "data[tls.crt]: Required value"),
            (
                "/type",
                "\"kubernetes.io/service-account-token\"",
                "metadata.annotations[kubernetes.io/service-account.name]: Required value",
            ),
        ],
        &[("/type", "\"Opaque\"", "type: Invalid value: \"Opaque\": field is immutable")],
    );
    check(
        "v1/resourcequotas",
        r#"{"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "4", "pods": 5, "count/jobs.batch": 2}}}"#,
        &[
            ("/spec/hard/pods", "\"-1\"", "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"),
            (
                "/spec/hard/gizmos",
                "1",
                "spec.hard[gizmos]: Invalid value: \"gizmos\": must be a standard resource for quota",
            ),
            ("/spec/scopes", "[\"BestEffort\", \"NotBestEffort\"]", "spec.scopes: Invalid value: "),
        ],
        &[("/spec/scopes", "[\"BestEffort\"]", "spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable")],
    );
    check(
        "v1/limitranges",
        r#"{"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}}]}}"#,
        &[
            (
                "/spec/limits/0/min/cpu",
                "\"3\"",
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2",
            ),
            ("/spec/limits/0/type", "\"Thing\"", "spec.limits[0].type: Unsupported value: \"Thing\""),
        ],
        &[],
    );
    check(
        "v1/endpoints",
        r#"{"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}"#,
        &[(
            "/subsets/0/addresses",
            "[]",
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
        )],
        &[],
    );
    check(
        "v1/events",
        r#"{"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "n"}}"#,
        &[(
            "/involvedObject/namespace",
            "\"other\"",
            "involvedObject.namespace: Invalid value: \"other\": does not match event.namespace",
        )],
        &[],
    );
    check(
        "v1/nodes",
        r#"{"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24", "taints": [{"key": "a", "effect": "NoSchedule"}]}}"#,
        &[("/spec/taints/0/effect", "\"Go\"", "spec.taints[0].effect: Unsupported value: \"Go\"")],
        &[("/spec/podCIDR", "\"10.2.0.0/24\"", "spec.podCIDR: Invalid value: \"10.2.0.0/24\": field is immutable")],
    );
}

#[test]
fn volumes() {
    check(
        "v1/persistentvolumes",
        r#"{"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/d"}}}"#,
        &[
            ("/spec/hostPath", "null", "spec: Required value: must specify a volume type"),
            (
                "/spec/nfs",
                "{\"server\": \"s\", \"path\": \"/x\"}",
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ),
            ("/spec/accessModes", "[]", "spec.accessModes: Required value: at least 1 access mode is required"),
            (
                "/spec/capacity/storage",
                "\"0\"",
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                "/spec/persistentVolumeReclaimPolicy",
                "\"Keep\"",
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
            ),
        ],
        &[
            ("/spec/capacity/storage", "\"2Gi\"", ""),
            (
                "/spec/hostPath/path",
                "\"/e\"",
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
            ),
            ("/spec/volumeMode", "\"Block\"", "spec.volumeMode: Invalid value: \"Block\": field is immutable"),
        ],
    );
    check(
        "v1/persistentvolumeclaims",
        r#"{"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "a", "resources": {"requests": {"storage": "1Gi"}}}}"#,
        &[
            (
                "/spec/accessModes/0",
                "\"Sometimes\"",
                "spec.accessModes: Unsupported value: \"Sometimes\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
            ("/spec/resources/requests", "{}", "spec.resources[storage]: Required value"),
            (
                "/spec/accessModes",
                "[\"ReadWriteOnce\", \"ReadWriteOncePod\"]",
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
        ],
        &[
            ("/spec/volumeName", "\"v\"", ""),
            ("/spec/volumeAttributesClassName", "\"gold\"", ""),
            (
                "/spec/storageClassName",
                "\"b\"",
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ),
            ("/spec/resources/requests/storage", "\"2Gi\"", "spec: Forbidden: spec is immutable after creation"),
        ],
    );
}

#[test]
fn storage() {
    check(
        "storage.k8s.io/v1/storageclasses",
        r#"{"metadata": {"name": "s"}, "provisioner": "a.b/c", "parameters": {"k": "v"}}"#,
        &[
            ("/provisioner", "\"\"", "provisioner: Required value"),
            (
                "/reclaimPolicy",
                "\"Recycle\"",
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
            ),
        ],
        &[
            ("/allowVolumeExpansion", "true", ""),
            ("/parameters/k", "\"w\"", "parameters: Forbidden: updates to parameters are forbidden."),
            ("/provisioner", "\"d\"", "provisioner: Forbidden: updates to provisioner are forbidden."),
            ("/reclaimPolicy", "\"Retain\"", "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."),
            (
                "/volumeBindingMode",
                "\"WaitForFirstConsumer\"",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ),
        ],
    );
    check(
        "storage.k8s.io/v1/volumeattributesclasses",
        r#"{"metadata": {"name": "s"}, "driverName": "a.b", "parameters": {"k": "v"}}"#,
        &[("/parameters", "{}", "parameters: Required value: must contain at least one key/value pair")],
        &[("/driverName", "\"c\"", "driverName: Forbidden: updates to driverName are forbidden.")],
    );
    check(
        "storage.k8s.io/v1/volumeattachments",
        r#"{"metadata": {"name": "s"}, "spec": {"attacher": "a.b", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}"#,
        &[(
            "/spec/source",
            "{}",
            "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        )],
        &[("/spec/nodeName", "\"m\"", "spec: Invalid value: ")],
    );
    check(
        "storage.k8s.io/v1/csidrivers",
        r#"{"metadata": {"name": "d"}, "spec": {}}"#,
        &[
            (
                "/spec/fsGroupPolicy",
                "\"Odd\"",
                "spec.fsGroupPolicy: Unsupported value: \"Odd\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
            ),
            (
                "/spec/tokenRequests",
                "[{\"audience\": \"a\", \"expirationSeconds\": 5}]",
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
            ),
        ],
        &[("/spec/attachRequired", "false", "spec.attachedRequired: Invalid value: false: field is immutable")],
    );
    check(
        "storage.k8s.io/v1/csinodes",
        r#"{"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "x"}]}}"#,
        &[("/spec/drivers/0/nodeID", "\"\"", "spec.drivers[0].nodeID: Required value")],
        &[("/spec/drivers/0/nodeID", "\"y\"", "spec.drivers: Invalid value: ")],
    );
    check(
        "storage.k8s.io/v1/csistoragecapacities",
        r#"{"metadata": {"name": "n"}, "storageClassName": "s", "capacity": "1Gi"}"#,
        &[("/capacity", "\"-1\"", "capacity: Invalid value: \"-1\": must be greater than or equal to 0")],
        &[
            ("/storageClassName", "\"t\"", "storageClassName: Invalid value: \"t\": field is immutable"),
            ("/capacity", "\"2Gi\"", ""),
        ],
    );
}
