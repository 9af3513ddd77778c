//! What controllers do to things that lie in the store for long: old tokens, objects of old storage versions.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;

use std::sync::Arc;

use dhow_controllers::ControllersConfig;
use dhow_store::{KeyRange, Kv, MemoryKv, RangeRequest};
use fake::Cloud;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_nobody_uses_go_in_two_steps() {
    let config = ControllersConfig { legacy_token_days: Some(0), ..ControllersConfig::default() };
    let cloud = Cloud::start_configured(dhow_apiserver::AccessConfig::default(), config).await;
    cloud.node("n1", json!([])).await;
    cloud.until(&["get", "sa/default", "--ignore-not-found", "-o", "name"], "serviceaccount/default").await;
    let token = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": "sa"}}})
    };
    cloud.kubectl(&["create", "serviceaccount", "sa"]).await;
    for name in ["asked", "unused", "mounted"] {
        cloud.apply(token(name)).await;
    }
    let mount = json!([{"name": "v", "secret": {"secretName": "mounted"}}]);
    let spec = json!({"containers": [{"name": "c", "image": "x"}], "volumes": mount});
    cloud.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})).await;
    let listed = json!({"secrets": [{"name": "unused"}, {"name": "mounted"}]});
    cloud.kubectl(&["patch", "serviceaccount", "sa", "-p", &listed.to_string()]).await;
    cloud.until(&["get", "secrets", "-o", "jsonpath={.items[*].metadata.name}"], "asked mounted").await;
    let invalid = "jsonpath={.items[*].metadata.labels.kubernetes\\.io/legacy-token-invalid-since}";
    assert_eq!(cloud.kubectl(&["get", "secrets", "-o", invalid]).await, "");
}

fn definition(storage: &str) -> Value {
    let version = |name: &str| {
        let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        json!({"name": name, "served": true, "storage": name == storage, "schema": {"openAPIV3Schema": anything}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boxes", "singular": "box", "kind": "Box", "listKind": "BoxList"},
            "versions": [version("v1"), version("v2")]}})
}

fn migration(name: &str, group: &str, resource: &str) -> Value {
    json!({"apiVersion": "storagemigration.k8s.io/v1beta1", "kind": "StorageVersionMigration",
        "metadata": {"name": name}, "spec": {"resource": {"group": group, "resource": resource}}})
}

/// In which version objects lie in the store, and how often each was written.
async fn stored(kv: &Arc<MemoryKv>) -> Vec<(String, u64)> {
    let all = kv.range(RangeRequest::new(KeyRange::prefix("/registry/example.com/boxes/"))).await.unwrap();
    let version =
        |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["apiVersion"].as_str().unwrap().to_owned();
    all.kvs.iter().map(|one| (version(&one.value), one.version)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_stored_anew_and_their_definition_says_so() {
    let kv = Arc::new(MemoryKv::new());
    let cloud = Cloud::start_on(kv.clone()).await;
    cloud.apply(definition("v1")).await;
    cloud.kubectl(&["wait", "--for=condition=established", "crd/boxes.example.com", "--timeout=30s"]).await;
    for number in 0..7 {
        cloud.apply(json!({"apiVersion": "example.com/v1", "kind": "Box", "metadata": {"name": format!("b{number}")}, "size": number})).await;
    }
    cloud.apply(definition("v2")).await;
    let versions = ["get", "crd/boxes.example.com", "-o", "jsonpath={.status.storedVersions[*]}"];
    cloud.until(&versions, "v1 v2").await;
    // One is changed by somebody meanwhile.
    cloud.until(&["label", "box", "b0", "x=y", "--overwrite", "-o", "jsonpath={.metadata.labels.x}"], "y").await;
    assert_eq!(stored(&kv).await.iter().filter(|(version, _)| version == "example.com/v1").count(), 6);

    cloud.apply(migration("boxes", "example.com", "boxes")).await;
    let condition = |name: &str| {
        let path =
            "jsonpath={.status.conditions[*].type}={.status.conditions[*].status}/{.status.conditions[*].reason}";
        ["get".to_owned(), format!("storageversionmigration/{name}"), "-o".into(), path.into()]
    };
    let until = async |name: &str, wanted: &str| {
        let args = condition(name);
        cloud.until(&args.each_ref().map(String::as_str), wanted).await;
    };
    until("boxes", "Succeeded=True/StorageVersionMigrationSucceeded").await;
    let now = stored(&kv).await;
    assert!(now.len() == 7 && now.iter().all(|(version, _)| version == "example.com/v2"), "{now:?}");
    assert_eq!(now[0].1, 2, "what is stored as it should be is not written again");
    cloud.until(&versions, "v2").await;
    let said = "jsonpath={.status.conditions[?(@.type==\"StorageMigrating\")].reason}";
    cloud.until(&["get", "crd/boxes.example.com", "-o", said], "MigrationSucceeded").await;

    // Nothing to do, nothing written; built-in kinds too.
    cloud.apply(migration("again", "example.com", "boxes")).await;
    cloud.apply(migration("maps", "", "configmaps")).await;
    for name in ["again", "maps"] {
        until(name, "Succeeded=True/StorageVersionMigrationSucceeded").await;
    }
    assert_eq!(stored(&kv).await, now);
    // The version that is stored no more may go.
    let mut only = definition("v2");
    only["spec"]["versions"].as_array_mut().unwrap().remove(0);
    cloud.apply(only).await;
}
