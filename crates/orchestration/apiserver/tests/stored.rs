//! What is kept of objects, when a write that changes nothing writes all the same, and what a start sets right.
#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use dhow_apiserver::{SENSITIVE, UserInfo};
use dhow_store::{KeyRange, Kv, MemoryKv, Op, Options, RangeRequest, SealedKv, SealingKeys, Txn};
use harness::Cluster;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn post(cluster: &Cluster, path: &str, body: &Value) -> Value {
    let (code, answer) = cluster.json("POST", path, "application/json", body).await;
    assert_eq!(code, 201, "{answer}");
    answer
}

async fn put(cluster: &Cluster, path: &str, body: &Value) -> Value {
    let (code, answer) = cluster.json("PUT", path, "application/json", body).await;
    assert_eq!(code, 200, "{answer}");
    answer
}

async fn get(cluster: &Cluster, path: &str) -> Value {
    let (code, answer) = cluster.json("GET", path, "", &Value::Null).await;
    assert_eq!(code, 200, "{answer}");
    answer
}

fn revision(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

/// A value as the store has it.
async fn raw(kv: &dyn Kv, key: &str) -> Vec<u8> {
    kv.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.unwrap().kvs[0].value.to_vec()
}

/// Others keep records of their own in the same store; whoever reads an object right after that does not wait for news of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_others_hold_up_nobody() {
    let options = Options { watch_progress: Duration::from_secs(3600), ..Options::default() };
    let kv = MemoryKv::with_options(options);
    let cluster = Cluster::start_on(Arc::new(kv.clone())).await;
    for key in ["/elsewhere/of/some/one", "before", "~after"] {
        let op = Op::Put { key: key.into(), value: "x".into(), lease: 0 };
        kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
        let read = get(&cluster, "/api/v1/namespaces/default");
        tokio::time::timeout(Duration::from_secs(60), read).await.expect("the read waits");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_says_nothing_is_not_kept() {
    let kv = MemoryKv::new();
    let cluster = Cluster::start_on(Arc::new(kv.clone())).await;
    let full = json!({"name": "m", "labels": {}, "annotations": {}, "finalizers": [], "ownerReferences": [],
        "generateName": "", "selfLink": "", "generation": 0});
    let made = post(&cluster, MAPS, &json!({"metadata": full, "data": {"a": "b"}})).await;
    for field in ["labels", "annotations", "finalizers", "ownerReferences", "generateName", "selfLink", "generation"] {
        assert!(made["metadata"].get(field).is_none(), "{field}: {made}");
    }
    let kept: Value = serde_json::from_slice(&raw(&kv, "/registry/core/configmaps/default/m").await).unwrap();
    let mut shown = made.clone();
    shown["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(kept, shown);
    // Saying nothing again is no change.
    let again = put(&cluster, &format!("{MAPS}/m"), &json!({"metadata": full, "data": {"a": "b"}})).await;
    assert_eq!(revision(&again), revision(&made));
    let labelled = json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/hold"]}});
    let path = format!("{MAPS}/m");
    assert_eq!(cluster.json("PATCH", &path, "application/merge-patch+json", &labelled).await.0, 200);
    let bare = json!({"metadata": {"labels": {"a": null}, "finalizers": []}});
    let (code, bare) = cluster.json("PATCH", &path, "application/merge-patch+json", &bare).await;
    assert_eq!(code, 200);
    assert!(bare["metadata"].get("labels").is_none() && bare["metadata"].get("finalizers").is_none(), "{bare}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_change_seals_anew() {
    let below = MemoryKv::new();
    let (old, new) = (SealingKeys::generate().unwrap(), SealingKeys::generate().unwrap());
    let sealed = |keys: &[&String]| {
        let text = keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join("\n");
        Arc::new(SealedKv::new(Arc::new(below.clone()), SealingKeys::parse(&text).unwrap(), SENSITIVE))
    };
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
    let cluster = Cluster::start_on(sealed(&[&old])).await;
    let made = post(&cluster, SECRETS, &secret).await;
    drop(cluster);
    let cluster = Cluster::start_on(sealed(&[&new, &old])).await;
    let path = format!("{SECRETS}/s");
    let found = get(&cluster, &path).await;
    assert_eq!(revision(&found), revision(&made));
    let sealed_anew = put(&cluster, &path, &found).await;
    assert_ne!(revision(&sealed_anew), revision(&made));
    let value = raw(&below, "/registry/core/secrets/default/s").await;
    let id = SealingKeys::parse(&new).unwrap().first_id().to_owned();
    assert!(String::from_utf8_lossy(&value[..64.min(value.len())]).contains(&id));
    // Once is enough.
    let (code, same) = cluster.json("PATCH", &path, "application/merge-patch+json", &json!({})).await;
    assert_eq!((code, revision(&same)), (200, revision(&sealed_anew)));
    drop(cluster);
    let cluster = Cluster::start_on(sealed(&[&new])).await;
    assert_eq!(get(&cluster, &path).await["data"], json!({"a": "Yg=="}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_change_moves_to_the_version_that_is_stored() {
    let kv = MemoryKv::new();
    let cluster = Cluster::start_on(Arc::new(kv.clone())).await;
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}}}})
    };
    let definition = |stored: &str| {
        json!({"metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
            "versions": [version("v1", stored == "v1"), version("v2", stored == "v2")]}})
    };
    const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    post(&cluster, CRDS, &definition("v1")).await;
    let established = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    cluster
        .stream(established, "application/json", |seen| String::from_utf8_lossy(seen).contains("InitialNamesAccepted"))
        .await;
    let boats = "/apis/example.com/v1/namespaces/default/boats";
    let boat = json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "b"}, "spec": {"a": "x"}});
    let made = post(&cluster, boats, &boat).await;
    let path = format!("{boats}/b");
    let (_, same) = cluster.json("PATCH", &path, "application/merge-patch+json", &json!({})).await;
    assert_eq!(revision(&same), revision(&made));
    let mut later = get(&cluster, &format!("{CRDS}/boats.example.com")).await;
    later["spec"]["versions"] = definition("v2")["spec"]["versions"].clone();
    put(&cluster, &format!("{CRDS}/boats.example.com"), &later).await;
    // The definition is followed on the side: at some write, v2 is what is stored.
    let key = "/registry/example.com/boats/default/b";
    let moved = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        loop {
            let (code, now) = cluster.json("PATCH", &path, "application/merge-patch+json", &json!({})).await;
            assert_eq!(code, 200);
            if revision(&now) != revision(&made) {
                return now;
            }
            tokio::task::yield_now().await;
        }
    });
    let moved = moved.await.unwrap();
    let kept: Value = serde_json::from_slice(&raw(&kv, key).await).unwrap();
    assert_eq!((&kept["apiVersion"], &moved["apiVersion"]), (&json!("example.com/v2"), &json!("example.com/v1")));
    let (_, same) = cluster.json("PATCH", &path, "application/merge-patch+json", &json!({})).await;
    assert_eq!(revision(&same), revision(&moved));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_sets_the_first_roles_right() {
    let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
    let cluster = Cluster::start_on(kv.clone()).await;
    let change = async |path: &str, change: &dyn Fn(&mut Value)| {
        let path = format!("{RBAC}/{path}");
        let mut object = get(&cluster, &path).await;
        change(&mut object);
        put(&cluster, &path, &object).await;
    };
    let group = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}]);
    change("clusterrolebindings/system:node", &|binding| binding["subjects"] = group.clone()).await;
    let own = json!({"apiGroups": ["example.com"], "resources": ["boats"], "verbs": ["get"]});
    change("clusterroles/view", &|role| role["rules"] = json!([own])).await;
    change("clusterroles/edit", &|role| {
        role["metadata"]["annotations"] = json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
        role["rules"] = json!([own]);
    })
    .await;
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let secrets = || http::Request::builder().uri("/api/v1/secrets").body(bytes::Bytes::new()).unwrap();
    assert_eq!(cluster.send(node.clone(), secrets()).await.0, 200);
    drop(cluster);
    let cluster = Cluster::start_on(kv).await;
    assert_eq!(cluster.send(node, secrets()).await.0, 403);
    let rules = async |role: &str| {
        get(&cluster, &format!("{RBAC}/clusterroles/{role}")).await["rules"].as_array().unwrap().clone()
    };
    let view = rules("view").await;
    assert!(view.len() > 5 && view[0] == own, "{view:?}");
    assert_eq!(rules("edit").await, [own]);
    let binding = get(&cluster, &format!("{RBAC}/clusterrolebindings/system:node")).await;
    assert!(binding["subjects"].as_array().is_none_or(Vec::is_empty), "{binding}");
}
