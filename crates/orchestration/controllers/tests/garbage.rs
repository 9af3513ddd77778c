//! What goes with its owners, and what does not, against a real API server.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dhow_client::{Body, Client, Error, Transport};
use dhow_controllers::{ControllersConfig, run_all};
use fake::Cloud;
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn garbage_with_another_owner_stays_and_circles_go() {
    let cloud = Cloud::start().await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let uid = async |name: &str| cloud.get(&format!("configmap/{name}"), "{.metadata.uid}").await;
    let owned = |name: &str, owners: &[(&str, String)]| {
        let owner = |(name, uid): &(&str, String)| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true});
        let mut map = map(name);
        map["metadata"]["ownerReferences"] = owners.iter().map(owner).collect();
        map
    };
    for name in ["going", "staying"] {
        cloud.apply(map(name)).await;
    }
    let (going, staying) = (uid("going").await, uid("staying").await);
    cloud.apply(owned("both", &[("going", going.clone()), ("staying", staying)])).await;
    cloud.apply(owned("one", &[("going", going)])).await;
    cloud.kubectl(&["delete", "configmap", "going", "--cascade=foreground", "--timeout=30s"]).await;
    cloud.until(&["get", "configmap", "one", "--ignore-not-found", "-o", "name"], "").await;
    assert_eq!(cloud.get("configmap/both", "{.metadata.ownerReferences[*].name}").await, "staying");

    // Each owned by the next, and the last by the first.
    for name in ["a", "b", "c"] {
        cloud.apply(map(name)).await;
    }
    for (name, owner) in [("a", "c"), ("b", "a"), ("c", "b")] {
        cloud.apply(owned(name, &[(owner, uid(owner).await)])).await;
    }
    cloud.kubectl(&["delete", "configmap", "a", "--cascade=foreground", "--timeout=30s"]).await;
    cloud.until(&["get", "configmap", "a", "b", "c", "--ignore-not-found", "-o", "name"], "").await;
}

/// Controllers' way to the server, on which an object is given to nobody just before its deletion arrives.
struct Between {
    inner: Client,
    let_go: AtomicBool,
}

#[async_trait::async_trait]
impl Transport for Between {
    async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
        let path = request.uri().path().to_owned();
        let deletes = request.method() == http::Method::DELETE && path.ends_with("/let-go");
        if deletes && !self.let_go.swap(true, Ordering::SeqCst) {
            let patch = http::Request::patch(&path)
                .header("content-type", "application/merge-patch+json")
                .body(Bytes::from_static(br#"{"metadata": {"ownerReferences": null}}"#))
                .unwrap();
            assert!(self.inner.request(patch).await?.status().is_success());
        }
        self.inner.request(request).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_let_go_meanwhile_is_not_deleted() {
    let cloud = Cloud::start_without_controllers().await;
    let inner = cloud.client("controllers", "system:kube-controller-manager", &["system:masters"]);
    let between = Arc::new(Between { inner, let_go: AtomicBool::new(false) });
    let shutdown = CancellationToken::new();
    let _stopped = shutdown.clone().drop_guard();
    tokio::spawn(run_all(Client::new(between.clone()), ControllersConfig::default(), shutdown));
    let orphan = |name: &str| {
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "0000"});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [owner]}})
    };
    cloud.apply(orphan("let-go")).await;
    // Nobody owns it any more, because of what happened between the collector's look and its deletion.
    cloud.until(&["get", "configmap", "let-go", "-o", "jsonpath={.metadata.ownerReferences}"], "").await;
    assert!(between.let_go.load(Ordering::SeqCst));
    // What the collector does later is done with what it has heard by then.
    cloud.apply(orphan("later")).await;
    cloud.until(&["get", "configmap", "later", "--ignore-not-found", "-o", "name"], "").await;
    assert_eq!(cloud.get("configmap/let-go", "{.metadata.name}").await, "let-go");
}
