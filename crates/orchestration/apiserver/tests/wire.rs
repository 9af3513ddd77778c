//! Bodies and answers in every form: protobuf, YAML, metadata only; field validation; bad input.
#![allow(clippy::unwrap_used)]

mod harness;

use bytes::Bytes;
use dhow_api::protobuf;
use dhow_apiserver::UserInfo;
use harness::Cluster;
use http::Request;
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn admin() -> UserInfo {
    UserInfo::new("admin", &["system:masters"])
}

fn deployment(name: &str) -> Value {
    json!({
        "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"nodeName": "", "containers": [{"name": "c", "image": "i"}]}}},
    })
}

fn request(method: &str, path: &str, media_type: &str, accept: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .header("accept", accept)
        .body(body.into())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_both_ways() {
    let cluster = Cluster::start().await;
    let body = protobuf::document(&deployment("a")).unwrap();
    let (code, headers, answer) = cluster
        .send(
            admin(),
            request("POST", DEPLOYMENTS, PROTOBUF, "application/vnd.kubernetes.protobuf,application/json", body),
        )
        .await;
    assert_eq!((code, headers["content-type"].to_str().unwrap()), (201, PROTOBUF));
    let created = protobuf::decode(&answer).unwrap();
    assert_eq!((&created["kind"], &created["spec"]["replicas"]), (&json!("Deployment"), &json!(0)));
    assert!(created["metadata"]["uid"].is_string());

    let (_, stored) = cluster.json("GET", &format!("{DEPLOYMENTS}/a"), "", &Value::Null).await;
    assert_eq!(stored["spec"]["template"]["spec"].get("nodeName"), None);
    let (_, _, list) = cluster.send(admin(), request("GET", DEPLOYMENTS, "", PROTOBUF, "")).await;
    let list = protobuf::decode(&list).unwrap();
    assert_eq!(list["kind"], "DeploymentList");
    assert_eq!(list["items"][0]["spec"]["template"]["spec"], stored["spec"]["template"]["spec"]);
    assert!(list["metadata"]["resourceVersion"].is_string());

    let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, _, list) = cluster.send(admin(), request("GET", DEPLOYMENTS, "", partial, "")).await;
    let list = protobuf::decode(&list).unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("PartialObjectMetadataList"), &json!("a"))
    );

    let (code, _, missing) = cluster.send(admin(), request("GET", &format!("{DEPLOYMENTS}/b"), "", PROTOBUF, "")).await;
    assert_eq!(code, 404);
    assert_eq!(protobuf::decode(&missing).unwrap()["reason"], "NotFound");

    let options = json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "preconditions": {"uid": "other"}});
    let body = protobuf::document(&options).unwrap();
    let (code, ..) =
        cluster.send(admin(), request("DELETE", &format!("{DEPLOYMENTS}/a"), PROTOBUF, PROTOBUF, body)).await;
    assert_eq!(code, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protobuf_watch_is_framed() {
    let cluster = Cluster::start().await;
    cluster.json("POST", DEPLOYMENTS, "application/json", &deployment("a")).await;
    let path = format!(
        "{DEPLOYMENTS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let frames = |bytes: &[u8]| {
        let (mut found, mut rest) = (Vec::new(), bytes);
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(frame) = tail.get(..length) else { break };
            found.push(frame.to_vec());
            rest = &tail[length..];
        }
        found
    };
    let seen = cluster.stream(&path, PROTOBUF, |bytes| frames(bytes).len() == 2).await;
    let events = frames(&seen);
    // Field 1 is the event's type; the object is a whole document inside.
    assert!(events[0].starts_with(b"\x0a\x05ADDED") && events[1].starts_with(b"\x0a\x08BOOKMARK"));
    let document = events[0].windows(4).position(|window| window == b"k8s\0").unwrap();
    assert_eq!(protobuf::decode(&events[0][document..]).unwrap()["metadata"]["name"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_in_upstreams_words() {
    let cluster = Cluster::start().await;
    let good = protobuf::document(&deployment("a")).unwrap();
    for (media_type, body, code, words) in [
        (PROTOBUF, b"nonsense".to_vec(), 400, "provided data does not appear to be a protobuf message"),
        (PROTOBUF, good[..good.len() / 2].to_vec(), 400, "unexpected EOF"),
        ("application/json", b"{".to_vec(), 400, "json parse error"),
        ("application/json", "[".repeat(100_000).into_bytes(), 400, "the object provided is unrecognized"),
        ("application/json", b"{\"kind\":\"Pod\"}".to_vec(), 400, "does not match the expected type"),
        (
            "application/json",
            b"{\"spec\":{\"replicas\":\"x\"}}".to_vec(),
            400,
            "Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        ("text/csv", b"a,b".to_vec(), 415, "the body of the request was in an unknown format"),
        ("application/json", vec![b'{', 0xff, b'}'], 400, "json parse error"),
    ] {
        let (status, _, answer) =
            cluster.send(admin(), request("POST", DEPLOYMENTS, media_type, "application/json", body)).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let message = answer["message"].as_str().unwrap();
        assert!(status == code && message.contains(words), "{status} {message}");
    }
    let (code, _, _) = cluster.send(admin(), request("GET", DEPLOYMENTS, "", "text/html", "")).await;
    assert_eq!(code, 406);
    let (_, _, yaml) = cluster.send(admin(), request("GET", DEPLOYMENTS, "", "application/yaml", "")).await;
    assert!(std::str::from_utf8(&yaml).unwrap().contains("kind: DeploymentList"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_validated_as_asked() {
    let cluster = Cluster::start().await;
    let body = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","name":"a"},"dta":{"x":"y"}}"#;
    let path = "/api/v1/namespaces/default/configmaps";
    let post = |validation: &str| {
        request("POST", &format!("{path}?fieldValidation={validation}"), "application/json", "application/json", body)
    };
    let (code, _, answer) = cluster.send(admin(), post("Strict")).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(code, 400);
    assert_eq!(
        answer["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \
         \"metadata.name\", unknown field \"dta\""
    );
    let (code, _, _) = cluster.send(admin(), post("Sloppy")).await;
    assert_eq!(code, 422);
    let (code, headers, answer) = cluster.send(admin(), post("Warn")).await;
    let warnings: Vec<&str> = headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(code, 201);
    assert_eq!(warnings, [r#"299 - "duplicate field \"metadata.name\"""#, r#"299 - "unknown field \"dta\"""#]);
    assert!(!String::from_utf8_lossy(&answer).contains("dta"));

    let patch = |validation: &str| {
        let path = format!("{path}/a?fieldValidation={validation}");
        request("PATCH", &path, "application/merge-patch+json", "application/json", r#"{"nope":1}"#)
    };
    let (code, _, answer) = cluster.send(admin(), patch("Strict")).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(code, 422);
    assert!(answer["message"].as_str().unwrap().ends_with("strict decoding error: unknown field \"nope\""), "{answer}");
    let (code, headers, _) = cluster.send(admin(), patch("Ignore")).await;
    assert!(code == 200 && !headers.contains_key("warning"));

    // kubectl finds out by itself that the server validates.
    let manifest = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: b}, dta: {x: y}}";
    let refused = cluster.run("admin", &["create", "-f", "-"], manifest).await.unwrap_err();
    assert!(refused.contains("unknown field \"dta\""), "{refused}");
}

/// Every generator of `kubectl create`, through the real client.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl_creates() {
    let cluster = Cluster::start().await;
    for line in [
        "deployment d --image=nginx --replicas=2 --port=80",
        "service clusterip c --tcp=80:8080",
        "service nodeport n --tcp=80",
        "service externalname e --external-name=example.com",
        "configmap cm --from-literal=a=b",
        "secret generic s --from-literal=a=b",
        "secret tls t --cert=CERT --key=KEY",
        "secret docker-registry r --docker-username=u --docker-password=p",
        "job j --image=busybox -- true",
        "cronjob cj --image=busybox --schedule=@daily -- true",
        "role ro --verb=get --resource=pods",
        "rolebinding rb --role=ro --user=jane",
        "clusterrole cr --verb=list --resource=nodes",
        "clusterrolebinding crb --clusterrole=cr --group=dev",
        "serviceaccount sa",
        "quota q --hard=pods=3,requests.cpu=1500m",
        "poddisruptionbudget p --selector=app=d --min-available=50%",
        "priorityclass pc --value=10 --description=ten",
        "ingress i --rule=example.com/*=c:80",
        "namespace ns",
    ] {
        let file = |name: &str| cluster.folder.path().join(name).display().to_string();
        let line = line.replace("CERT", &file("admin.pem")).replace("KEY", &file("admin.key"));
        let args: Vec<&str> = std::iter::once("create").chain(line.split(' ')).collect();
        cluster.kubectl(&args).await;
    }
    assert_eq!(
        cluster.kubectl(&["get", "quota", "q", "-o", "jsonpath={.spec.hard}"]).await,
        r#"{"pods":"3","requests.cpu":"1500m"}"#
    );
    assert_eq!(cluster.kubectl(&["get", "pdb", "p", "-o", "jsonpath={.spec.minAvailable}"]).await, "50%");
    let token = cluster.kubectl(&["create", "token", "sa"]).await;
    assert_eq!(token.trim().split('.').count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn cbor_both_ways() {
    const CBOR: &str = "application/cbor";
    let cluster = Cluster::start().await;
    let body = dhow_api::cbor::encode(&deployment("a"));
    let (code, headers, answer) = cluster.send(admin(), request("POST", DEPLOYMENTS, CBOR, CBOR, body)).await;
    assert_eq!((code, headers["content-type"].to_str().unwrap()), (201, CBOR));
    assert_eq!(dhow_api::cbor::decode(&answer).unwrap()["metadata"]["name"], "a");
    let (_, _, list) = cluster.send(admin(), request("GET", DEPLOYMENTS, "", CBOR, "")).await;
    assert_eq!(dhow_api::cbor::decode(&list).unwrap()["items"][0]["spec"]["replicas"], 0);
    let (code, ..) = cluster.send(admin(), request("POST", DEPLOYMENTS, CBOR, CBOR, &b"\xa1\x01"[..])).await;
    assert_eq!(code, 400);
    let path = format!("{DEPLOYMENTS}?watch=true");
    let complete = |bytes: &[u8]| dhow_api::cbor::decode(bytes).is_ok();
    let seen = cluster.stream(&path, "application/cbor-seq", complete).await;
    assert_eq!(dhow_api::cbor::decode(&seen).unwrap()["type"], "ADDED");
}
