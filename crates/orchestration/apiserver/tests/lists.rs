//! Lists in pages and at revisions, streaming lists, bookmarks, deletes of collections, preconditions, dry runs.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"of": "test"}}})
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

async fn get(cluster: &Cluster, path: &str) -> (u16, Value) {
    cluster.json("GET", path, "", &Value::Null).await
}

async fn create(cluster: &Cluster, names: &[&str]) {
    for name in names {
        let (code, _) = cluster.json("POST", MAPS, "application/json", &map(name)).await;
        assert_eq!(code, 201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_come_from_one_revision() {
    let cluster = Cluster::start().await;
    create(&cluster, &["a", "b", "c"]).await;
    let (_, first) = get(&cluster, &format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    // More revisions than snapshots are kept of.
    for index in 0..80 {
        create(&cluster, &[&format!("x{index}")]).await;
        get(&cluster, MAPS).await;
    }
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = get(&cluster, &format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second), ["c"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, exact) = get(&cluster, &format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact")).await;
    assert_eq!(names(&exact), ["a", "b", "c"]);
    let (_, selected) = get(&cluster, &format!("{MAPS}?limit=1&labelSelector=of=test")).await;
    assert!(selected["metadata"].get("remainingItemCount").is_none());

    for (query, code) in [
        ("continue=nonsense", 400),
        ("resourceVersion=99999999", 504),
        ("resourceVersion=99999999&resourceVersionMatch=Exact", 504),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("resourceVersion=1&resourceVersionMatch=Sometimes", 422),
        ("sendInitialEvents=true", 422),
        ("watch=true&sendInitialEvents=true", 422),
        ("watch=true&resourceVersionMatch=NotOlderThan", 422),
        ("labelSelector=a%20in%20(", 400),
        ("fieldSelector=spec.colour%3Dred", 400),
        ("limit=many", 400),
    ] {
        let (found, status) = get(&cluster, &format!("{MAPS}?{query}")).await;
        assert_eq!((found, &status["kind"]), (code, &json!("Status")), "{query}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_list_ends_with_a_bookmark() {
    let cluster = Cluster::start().await;
    create(&cluster, &["a", "b"]).await;
    let query = "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&labelSelector=of=test";
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    let seen = cluster.stream(&format!("{MAPS}?{query}"), "application/json", |bytes| lines(bytes) == 3).await;
    let events: Vec<Value> = seen
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ADDED", "ADDED", "BOOKMARK"]);
    let bookmark = &events[2]["object"]["metadata"];
    assert_eq!(bookmark["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(bookmark["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let seen = cluster.stream(&format!("{MAPS}?{query}"), metadata, |bytes| lines(bytes) == 1).await;
    assert!(String::from_utf8_lossy(&seen).contains("\"kind\":\"PartialObjectMetadata\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_keep_their_conditions() {
    let cluster = Cluster::start().await;
    create(&cluster, &["a", "b"]).await;
    let path = format!("{MAPS}/a");
    let (_, a) = get(&cluster, &path).await;
    let mut stale = a.clone();
    stale["metadata"]["resourceVersion"] = json!("1");
    let (code, status) = cluster.json("PUT", &path, "application/json", &stale).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let mut other = a.clone();
    other["metadata"]["uid"] = json!("other");
    let (code, status) = cluster.json("PUT", &path, "application/json", &other).await;
    assert!(code == 409 && status["message"].as_str().unwrap().contains("Precondition failed: UID"), "{status}");

    for (method, body) in [("DELETE", json!({})), ("PATCH", json!({"data": {"k": "v"}}))] {
        let (code, _) = cluster
            .json(
                method,
                &format!("{path}?dryRun=All"),
                if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
                &body,
            )
            .await;
        assert_eq!(code, 200);
        assert_eq!(get(&cluster, &path).await.1, a);
    }
    let (code, _) = cluster.json("POST", &format!("{MAPS}?dryRun=All"), "application/json", &map("c")).await;
    assert_eq!(code, 201);
    assert_eq!(get(&cluster, &format!("{MAPS}/c")).await.0, 404);
    let (code, _) = cluster.json("POST", &format!("{MAPS}?dryRun=Some"), "application/json", &map("c")).await;
    assert_eq!(code, 422);
    let (code, _) = cluster.json("DELETE", &path, "application/json", &json!({"propagationPolicy": "Sometimes"})).await;
    assert_eq!(code, 422);

    let generated = json!({"metadata": {"generateName": "g-"}});
    let (code, made) = cluster.json("POST", MAPS, "application/json", &generated).await;
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(code == 201 && name.len() == 7 && name.starts_with("g-"), "{name}");

    let (code, gone) =
        cluster.json("DELETE", &format!("{MAPS}?labelSelector=of=test"), "application/json", &json!({})).await;
    assert_eq!((code, names(&gone)), (200, vec!["a", "b"]));
    let (_, left) = get(&cluster, &format!("{MAPS}?labelSelector=of=test")).await;
    assert!(names(&left).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_share_storage_see_each_other() {
    let cluster = Cluster::start().await;
    let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 3,
        "targetCPUUtilizationPercentage": 50}});
    let path = |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
    let (code, made) = cluster.json("POST", &path("v1"), "application/json", &v1).await;
    assert_eq!((code, &made["spec"]["targetCPUUtilizationPercentage"]), (201, &json!(50)), "{made}");
    let (_, list) = get(&cluster, &path("v2")).await;
    assert_eq!(list["items"][0]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    let change = json!({"spec": {"maxReplicas": 5}});
    let (code, changed) =
        cluster.json("PATCH", &format!("{}/a", path("v2")), "application/merge-patch+json", &change).await;
    assert_eq!((code, &changed["apiVersion"]), (200, &json!("autoscaling/v2")));
    let (_, seen) = get(&cluster, &format!("{}/a", path("v1"))).await;
    assert_eq!((&seen["apiVersion"], &seen["spec"]["maxReplicas"]), (&json!("autoscaling/v1"), &json!(5)));

    let event = json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "R", "message": "m", "type": "Normal"});
    let (code, _) = cluster.json("POST", "/api/v1/namespaces/default/events", "application/json", &event).await;
    assert_eq!(code, 201);
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let (_, list) = get(&cluster, &format!("{events}?fieldSelector=regarding.name%3Dp")).await;
    assert_eq!((&list["items"][0]["note"], &list["items"][0]["apiVersion"]), (&json!("m"), &json!("events.k8s.io/v1")));
    let lines = |bytes: &[u8]| bytes.contains(&b'\n');
    let seen = cluster.stream(&format!("{events}?watch=true"), "application/json", lines).await;
    assert!(String::from_utf8_lossy(&seen).contains("\"note\":\"m\""));
}
