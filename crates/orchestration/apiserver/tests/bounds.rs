//! How deep and how large a document may become, by any road; options and tokens that do not hold; and that everything
//! that was accepted can be read again.
#![allow(clippy::unwrap_used)]

mod harness;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dhow_api::bounds::{MAX_DEPTH, MAX_STORED};
use dhow_api::{cbor, protobuf};
use dhow_apiserver::UserInfo;
use dhow_base::pki::SaKey;
use harness::Cluster;
use serde_json::{Value, json};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

/// A kind that keeps whatever it is given.
async fn define(cluster: &Cluster) {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": open}}]},
    });
    cluster.run("admin", &["create", "-f", "-"], &definition.to_string()).await.unwrap();
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/things.example.com", "--timeout=30s"]).await;
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |value, _| json!({ "a": value }))
}

fn thing(name: &str, levels: usize) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": nested(levels)})
}

async fn send(cluster: &Cluster, method: &str, path: &str, media_type: &str, body: Vec<u8>) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", media_type);
    let request = request.header("accept", JSON).body(Bytes::from(body)).unwrap();
    let (code, _, body) = cluster.send(UserInfo::new("admin", &["system:masters"]), request).await;
    (code, serde_json::from_slice(&body).unwrap())
}

#[track_caller]
fn refused(what: &str, (found, status): (u16, Value), code: u16, reason: &str, words: &str) {
    let message = status["message"].as_str().unwrap_or_default();
    assert!(found == code && status["reason"] == reason && message.contains(words), "{what}: {found} {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_becomes_too_deep_to_be_read() {
    let cluster = Cluster::start().await;
    define(&cluster).await;
    // One level is the object itself.
    let most = MAX_DEPTH - 1;
    assert_eq!(cluster.json("POST", THINGS, JSON, &thing("json", most)).await.0, 201);
    let (code, status) = send(&cluster, "POST", THINGS, "application/cbor", cbor::encode(&thing("cbor", most))).await;
    assert_eq!(code, 201, "{status}");
    let block = |levels: usize| {
        let lines = (1..levels).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
        let last = format!("{}a: 1\n", " ".repeat(levels));
        format!("apiVersion: example.com/v1\nkind: Thing\nmetadata: {{name: yaml}}\nspec:\n{lines}{last}").into_bytes()
    };
    let (code, status) = send(&cluster, "POST", THINGS, "application/yaml", block(most - 1)).await;
    assert_eq!(code, 201, "{status}");
    for (what, media_type, body) in [
        ("JSON", JSON, thing("deep", most + 1).to_string().into_bytes()),
        ("CBOR", "application/cbor", cbor::encode(&thing("deep", most + 1))),
        ("YAML", "application/yaml", block(most + 1)),
    ] {
        refused(what, send(&cluster, "POST", THINGS, media_type, body).await, 400, "BadRequest", "");
    }
    // In protobuf a list is no level of its own, but in JSON it is.
    let schema = (0..45).fold(json!({"type": "string"}), |schema, _| json!({"allOf": [schema]}));
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "b.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "b", "kind": "B"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let document = protobuf::document(&definition).unwrap();
    let answer = send(&cluster, "POST", definitions, "application/vnd.kubernetes.protobuf", document).await;
    assert!(!answer.1["message"].as_str().unwrap_or_default().contains("max depth"), "{}", answer.1);
    let schema = (0..60).fold(json!({"type": "string"}), |schema, _| json!({"allOf": [schema]}));
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
    let document = protobuf::document(&definition).unwrap();
    let answer = send(&cluster, "POST", definitions, "application/vnd.kubernetes.protobuf", document).await;
    refused("protobuf", answer, 400, "BadRequest", "exceeded max depth");

    let one = format!("{THINGS}/json");
    let below = format!("/spec{}", "/a".repeat(most));
    for (what, patch) in [
        ("add", json!([{"op": "replace", "path": below, "value": {"a": 1}}])),
        ("copy", json!([{"op": "copy", "from": "/spec", "path": "/spec/a/a"}])),
        (
            "move",
            json!([{"op": "copy", "from": "/spec", "path": "/b"}, {"op": "move", "from": "/b", "path": "/spec/b"}]),
        ),
    ] {
        refused(what, cluster.json("PATCH", &one, JSON_PATCH, &patch).await, 422, "Invalid", "exceeded max depth");
    }
    let merged = cluster.json("PATCH", &one, MERGE, &json!({"spec": nested(most + 1)})).await;
    refused("merge", merged, 400, "BadRequest", "");
    let applied = format!("{one}?fieldManager=m&force=true");
    let applied = cluster.json("PATCH", &applied, "application/apply-patch+yaml", &thing("json", most + 1)).await;
    refused("apply", applied, 400, "BadRequest", "");

    // Everything that is there is read, in every form, alone and in lists.
    for accept in [JSON, "application/yaml", "application/cbor"] {
        for path in [THINGS, &one] {
            let request = http::Request::builder().uri(path).header("accept", accept).body(Bytes::new()).unwrap();
            let (code, _, body) = cluster.send(UserInfo::new("admin", &["system:masters"]), request).await;
            assert!(code == 200 && body.len() > 500, "{accept} {path}: {code}");
        }
    }
    let listed = cluster.json("GET", THINGS, JSON, &Value::Null).await;
    assert_eq!(listed.1["items"].as_array().map(Vec::len), Some(3));
    assert!(cluster.kubectl(&["get", "things", "json", "-o", "yaml"]).await.contains("kind: Thing"));
    cluster.kubectl(&["delete", "things", "--all"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_grows_beyond_what_is_stored() {
    let cluster = Cluster::start().await;
    define(&cluster).await;
    let large = |bytes: usize| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"k": "x".repeat(bytes)}});
    let words = format!("Request entity too large: limit is {MAX_STORED}");
    let answer = cluster.json("POST", THINGS, JSON, &large(MAX_STORED)).await;
    refused("create", answer, 413, "RequestEntityTooLarge", &words);
    assert_eq!(cluster.json("POST", THINGS, JSON, &large(MAX_STORED / 2)).await.0, 201);
    let one = format!("{THINGS}/a");
    let more = json!({"spec": {"l": "x".repeat(MAX_STORED / 2)}});
    refused("merge", cluster.json("PATCH", &one, MERGE, &more).await, 413, "RequestEntityTooLarge", &words);
    // A patch that doubles the object with each of few operations.
    let doubling: Vec<Value> =
        (0..40).map(|n| json!({"op": "copy", "from": "/spec", "path": format!("/spec/c{n}")})).collect();
    let answer = cluster.json("PATCH", &one, JSON_PATCH, &json!(doubling)).await;
    refused("copies", answer, 422, "Invalid", "Unable to copy, the accumulated size increase of copy is");
    let many = json!(vec![json!({"op": "test", "path": "/kind", "value": "Thing"}); 10_001]);
    let answer = cluster.json("PATCH", &one, JSON_PATCH, &many).await;
    let words = "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001";
    refused("operations", answer, 413, "RequestEntityTooLarge", words);
    let notes = json!({"metadata": {"name": "a", "annotations": {"k": "x".repeat(256 << 10)}}});
    let answer = cluster.json("POST", MAPS, JSON, &notes).await;
    refused("annotations", answer, 422, "Invalid", "metadata.annotations: Too long: may not be more than 262144 bytes");
    let data = json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat((1 << 20) + 1)}});
    let answer = cluster.json("POST", MAPS, JSON, &data).await;
    refused("data", answer, 422, "Invalid", "Too long: may not be more than 1048576 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_are_none() {
    let cluster = Cluster::start().await;
    let map = json!({"metadata": {"name": "a"}});
    assert_eq!(cluster.json("POST", MAPS, JSON, &map).await.0, 201);
    let long = "m".repeat(129);
    for (query, words) in [
        ("dryRun=some", "dryRun: Unsupported value: \"some\": supported values: \"All\""),
        (
            "fieldValidation=maybe",
            "fieldValidation: Unsupported value: \"maybe\": supported values: \"Ignore\", \"Strict\", \"Warn\"",
        ),
        (&format!("fieldManager={long}"), "may not be longer than 128"),
        ("fieldManager=a%07b", "should only contain printable characters"),
    ] {
        refused(query, cluster.json("POST", &format!("{MAPS}?{query}"), JSON, &map).await, 422, "Invalid", words);
    }
    let one = format!("{MAPS}/a");
    let patch = cluster.json("PATCH", &format!("{one}?force=true"), MERGE, &json!({})).await;
    refused("force", patch, 422, "Invalid", "force: Forbidden: may not be specified for non-apply patch");
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let apply = cluster.json("PATCH", &one, "application/apply-patch+yaml", &apply).await;
    refused("no manager", apply, 422, "Invalid", "fieldManager: Required value: is required for apply patch");
    for (body, code, reason, words) in [
        (
            json!({"propagationPolicy": "Sometimes"}),
            422,
            "Invalid",
            "propagationPolicy: Unsupported value: \"Sometimes\"",
        ),
        (json!({"propagationPolicy": "Orphan", "orphanDependents": true}), 422, "Invalid", "cannot be both set"),
        (json!({"dryRun": ["some"]}), 422, "Invalid", "dryRun: Unsupported value"),
        (json!({"gracePeriodSeconds": "soon"}), 400, "BadRequest", "cannot unmarshal string"),
        (
            json!({"preconditions": {"uid": "other"}}),
            409,
            "Conflict",
            "Precondition failed: UID in precondition: other, UID in object meta:",
        ),
        (
            json!({"preconditions": {"resourceVersion": "1"}}),
            409,
            "Conflict",
            "Precondition failed: ResourceVersion in precondition: 1",
        ),
        (json!({"kind": "Pod", "apiVersion": "v1"}), 400, "BadRequest", ""),
    ] {
        refused(&body.to_string(), cluster.json("DELETE", &one, JSON, &body).await, code, reason, words);
    }
    let answer = send(&cluster, "DELETE", &one, "text/plain", b"{}".to_vec()).await;
    refused(
        "a type of options",
        answer,
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format",
    );
    for (metadata, words) in [
        (json!({"labels": {"a b": "c"}}), "metadata.labels: Invalid value: \"a b\""),
        (json!({"labels": {"a": "b c"}}), "metadata.labels: Invalid value: \"b c\""),
        (json!({"annotations": {"-": "c"}}), "metadata.annotations: Invalid value: \"-\""),
        (json!({"finalizers": ["x y"]}), "metadata.finalizers: Invalid value: \"x y\""),
        (json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]}), "metadata.ownerReferences"),
        (json!({"generateName": "A_"}), "metadata.generateName: Invalid value: \"A_\""),
    ] {
        let mut metadata = metadata;
        if metadata["generateName"].is_null() {
            metadata["name"] = json!("b");
        }
        let answer = cluster.json("POST", MAPS, JSON, &json!({ "metadata": metadata })).await;
        refused(&metadata.to_string(), answer, 422, "Invalid", words);
    }
    assert_eq!(cluster.json("DELETE", &format!("{one}?orphanDependents=true"), JSON, &json!({})).await.0, 200);
}

/// Tokens with the right signature whose time, audience or subject is not right, and one of a key that is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_hold_for_their_time_and_place() {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["create", "serviceaccount", "sa"]).await;
    let token = cluster.kubectl(&["create", "token", "sa"]).await;
    let part = |at: usize| -> Value {
        let text = token.trim().split('.').nth(at).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    };
    let (header, claims) = (part(0), part(1));
    let now = claims["iat"].as_i64().unwrap();
    let sign = |key: &SaKey, change: Value| {
        let mut claims = claims.clone();
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let mut head = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        head.kid = Some(header["kid"].as_str().unwrap().to_owned());
        let key = jsonwebtoken::EncodingKey::from_ec_pem(key.private_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&head, &claims, &key).unwrap()
    };
    let ours = SaKey::load_or_create(&cluster.folder.path().join("sa.key")).unwrap();
    let others = SaKey::load_or_create(&cluster.folder.path().join("other.key")).unwrap();
    let ask = async |token: String| {
        let bearer = format!("authorization: Bearer {token}");
        cluster.curl("/apis/apps/v1", &["-H", &bearer]).await
    };
    assert_eq!(ask(sign(&ours, json!({}))).await, "200");
    for (what, token) in [
        ("expired", sign(&ours, json!({"iat": now - 7200, "nbf": now - 7200, "exp": now - 3600}))),
        ("not yet", sign(&ours, json!({"nbf": now + 3600, "exp": now + 7200}))),
        ("another audience", sign(&ours, json!({"aud": ["elsewhere"]}))),
        ("another issuer", sign(&ours, json!({"iss": "https://elsewhere"}))),
        (
            "another account",
            sign(
                &ours,
                json!({"kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "sb", "uid": "x"}}}),
            ),
        ),
        (
            "an account of another life",
            sign(
                &ours,
                json!({"kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "sa", "uid": "x"}}}),
            ),
        ),
        ("another key", sign(&others, json!({}))),
    ] {
        assert_eq!(ask(token).await, "401", "{what}");
    }
}
