//! Small admission plugins: what they fill in, and what they refuse.
#![allow(clippy::unwrap_used)]

mod harness;

use dhow_apiserver::AccessConfig;
use harness::Cluster;
use serde_json::{Value, json};

/// A cluster whose default namespace has its service account.
async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    cluster
}

async fn apply(cluster: &Cluster, manifest: &Value) -> Result<String, String> {
    cluster.run("admin", &["apply", "-f", "-"], &manifest.to_string()).await
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn small_plugins_fill_in() {
    let cluster = start().await;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "p",
        "metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    });
    let ingress_class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "spec": {"controller": "example.com/c"},
        "metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
    });
    let runtime = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "h", "metadata": {"name": "boxed"},
        "overhead": {"podFixed": {"cpu": "50m"}}, "scheduling": {"nodeSelector": {"boxes": "yes"}},
    });
    for object in [class, ingress_class, runtime] {
        apply(&cluster, &object).await.unwrap();
    }
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "v", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    apply(&cluster, &claim).await.unwrap();
    assert_eq!(cluster.kubectl(&["get", "pvc", "v", "-o", "jsonpath={.spec.storageClassName}"]).await, "fast");
    let grow = ["patch", "pvc", "v", "-p", r#"{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}"#];
    let refused = cluster.run("admin", &grow, "").await.unwrap_err();
    assert!(
        refused.contains("Only bound persistent volume claims can be expanded") || refused.contains("is invalid"),
        "{refused}"
    );
    cluster.kubectl(&["create", "ingress", "i", "--rule=a.example.com/=s:80"]).await;
    assert_eq!(cluster.kubectl(&["get", "ingress", "i", "-o", "jsonpath={.spec.ingressClassName}"]).await, "web");
    let mut boxed = pod("boxed");
    boxed["spec"]["runtimeClassName"] = json!("boxed");
    apply(&cluster, &boxed).await.unwrap();
    let got = cluster
        .kubectl(&["get", "pod", "boxed", "-o", "jsonpath={.spec.overhead.cpu} {.spec.nodeSelector.boxes}"])
        .await;
    assert_eq!(got, "50m yes");
    boxed["metadata"]["name"] = json!("other");
    boxed["spec"]["runtimeClassName"] = json!("none");
    let refused = apply(&cluster, &boxed).await.unwrap_err();
    assert!(
        refused.contains("pods \"other\" is forbidden: pod rejected: RuntimeClass \"none\" not found"),
        "{refused}"
    );
    let missing = cluster.run("admin", &["create", "configmap", "c", "-n", "nowhere"], "").await.unwrap_err();
    assert!(missing.contains("namespaces \"nowhere\" not found"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_in_use_stays_and_pods_know_their_zone() {
    let cluster = start().await;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "v", "finalizers": ["example.com/mine"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let (code, made) =
        cluster.json("POST", "/api/v1/namespaces/default/persistentvolumeclaims", "application/json", &claim).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["finalizers"], json!(["example.com/mine", "kubernetes.io/pvc-protection"]));
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/tmp/v"}},
    });
    let (code, made) = cluster.json("POST", "/api/v1/persistentvolumes", "application/json", &volume).await;
    assert_eq!((code, &made["metadata"]["finalizers"]), (201, &json!(["kubernetes.io/pv-protection"])), "{made}");

    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {
        "topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1", "other": "x"}}});
    apply(&cluster, &node).await.unwrap();
    let mut waiting = pod("p");
    waiting["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": "mine"});
    apply(&cluster, &waiting).await.unwrap();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let (code, answer) =
        cluster.json("POST", "/api/v1/namespaces/default/pods/p/binding", "application/json", &binding).await;
    assert_eq!(code, 201, "{answer}");
    let labels = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.metadata.labels}"]).await;
    let expected = json!({"topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1"});
    assert_eq!(serde_json::from_str::<Value>(&labels).unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_are_named_by_who_may_delete() {
    let access = AccessConfig { owner_references: true, ..Default::default() };
    let cluster = Cluster::start_with(access).await;
    cluster.kubectl(&["create", "configmap", "owner"]).await;
    let uid = cluster.kubectl(&["get", "cm", "owner", "-o", "jsonpath={.metadata.uid}"]).await;
    let verbs = "--verb=create,get,update,patch";
    cluster.kubectl(&["create", "clusterrole", "writer", verbs, "--resource=configmaps"]).await;
    cluster.kubectl(&["create", "clusterrolebinding", "ann", "--clusterrole=writer", "--user=ann"]).await;
    cluster.kubeconfig("ann", "ann", &[]);
    let owned = |block: bool| {
        let owner =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": block});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [owner]}})
            .to_string()
    };
    let create = ["create", "-f", "-"];
    let refused = cluster.run("ann", &create, &owned(true)).await.unwrap_err();
    assert!(refused.contains("refers to a resource you can't set finalizers on"), "{refused}");
    // Who makes it may say with whom it goes; later that takes the right to delete it.
    cluster.run("ann", &create, &owned(false)).await.unwrap();
    let patch = ["patch", "cm", "owned", "-p", r#"{"metadata": {"ownerReferences": null}}"#];
    let refused = cluster.run("ann", &patch, "").await.unwrap_err();
    assert!(refused.contains("cannot set an ownerRef on a resource you can't delete"), "{refused}");
    cluster.run("admin", &patch, "").await.unwrap();
}
