//! Bad input over real HTTPS: upstream's status code, reason and the gist of its words; and others are unaffected.
#![allow(clippy::unwrap_used)]

mod harness;

use std::time::Duration;

use dhow_api::protobuf;
use dhow_base::tls;
use dhow_store::{KeyRange, Kv, MemoryKv, RangeRequest};
use harness::Cluster;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CBOR: &str = "application/cbor";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LIMIT: usize = 3 << 20;
const LONGEST: Duration = Duration::from_secs(60);

/// A connection of the administrator's, or of somebody who proves nothing.
async fn connect(cluster: &Cluster, admin: bool) -> TlsStream<TcpStream> {
    let pair = admin.then(|| cluster.ca.issue_client("admin", &["system:masters"]).unwrap());
    let mut config = (*tls::client_config(cluster.ca.cert_pem(), pair.as_ref()).unwrap()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let address = cluster.url.strip_prefix("https://").unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// Everything until the server closes, or breaks off after it answered a body that it did not want.
async fn read_answer(stream: &mut (impl AsyncReadExt + Unpin)) -> (u16, Value) {
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    let reading = async {
        while let Ok(length) = stream.read(&mut part).await
            && length > 0
        {
            answer.extend_from_slice(&part[..length]);
        }
    };
    tokio::time::timeout(LONGEST, reading).await.expect("an answer");
    let text = String::from_utf8_lossy(&answer);
    let code = text.get(9..12).unwrap_or_default().parse().unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body = body.find('{').map_or("", |begin| body[begin..].trim_end_matches(|c| c != '}'));
    (code, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// One request on a connection of its own, headers as given.
async fn exchange(cluster: &Cluster, admin: bool, head: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = connect(cluster, admin).await;
    let head = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer, and stop reading, before it has all.
    let _ = stream.write_all(body).await;
    read_answer(&mut stream).await
}

async fn post(cluster: &Cluster, path: &str, media_type: &str, body: &[u8]) -> (u16, Value) {
    exchange(cluster, true, &format!("POST {path} HTTP/1.1\r\ncontent-type: {media_type}"), body).await
}

async fn get(cluster: &Cluster, path: &str) -> (u16, Value) {
    exchange(cluster, true, &format!("GET {path} HTTP/1.1"), b"").await
}

#[track_caller]
fn check(what: &str, answer: &(u16, Value), code: u16, reason: &str, words: &str) {
    let (found, status) = answer;
    let message = status["message"].as_str().unwrap_or_default();
    assert!(
        *found == code && status["kind"] == "Status" && status["reason"] == reason && message.contains(words),
        "{what}: {found} {status}"
    );
    assert_eq!(status["code"], code, "{what}");
}

/// Others are served as if nothing had happened.
async fn is_well(cluster: &Cluster) {
    assert_eq!(get(cluster, "/api/v1/namespaces/default").await.0, 200);
}

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": "v"}})
}

/// A CBOR list in a list in a list.
fn deep_cbor() -> Vec<u8> {
    vec![0x81; 200_000]
}

/// A protobuf definition whose schema holds itself again and again: `not` in `not`.
fn deep_protobuf() -> Vec<u8> {
    let mut schema = json!({"type": "string"});
    for _ in 0..300 {
        schema = json!({"not": schema});
    }
    let crd = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "a.b.c"},
        "spec": {"group": "b.c", "scope": "Cluster", "names": {"plural": "a", "kind": "A"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    });
    protobuf::document(&crd).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read() {
    let cluster = Cluster::start().await;
    let good = protobuf::document(&map("a")).unwrap();
    let cbor = dhow_api::cbor::encode(&map("a"));
    let aliases: String = (1..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let one = format!("*a{}", level - 1);
        text + &format!("a{level}: &a{level} [{}]\n", vec![one; 9].join(","))
    });
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap)";
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("no body", JSON, Vec::new(), unrecognized),
        ("half an object", JSON, br#"{"kind":"ConfigMap","apiVers"#.to_vec(), unrecognized),
        ("two objects", JSON, b"{} {}".to_vec(), unrecognized),
        ("a list", JSON, b"[]".to_vec(), unrecognized),
        ("null", JSON, b"null".to_vec(), unrecognized),
        ("no UTF-8", JSON, b"{\"data\":{\"k\":\"\xff\"}}".to_vec(), unrecognized),
        ("deep JSON", JSON, [b"{\"a\":".repeat(100_000), b"1".to_vec()].concat(), unrecognized),
        ("a tab in YAML", YAML, b"a:\n\t- b: [".to_vec(), unrecognized),
        ("no UTF-8 in YAML", YAML, b"kind: \xff".to_vec(), unrecognized),
        ("deep YAML", YAML, b"[".repeat(100_000), unrecognized),
        ("a YAML bomb", YAML, aliases.into_bytes(), unrecognized),
        ("no protobuf", PROTOBUF, b"k8s".to_vec(), unrecognized),
        ("half a protobuf", PROTOBUF, good[..good.len() / 2].to_vec(), ""),
        ("half a CBOR", CBOR, cbor[..cbor.len() / 2].to_vec(), unrecognized),
        ("deep CBOR", CBOR, deep_cbor(), unrecognized),
        ("an endless CBOR", CBOR, vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], unrecognized),
        ("another kind", JSON, br#"{"kind":"Secret","apiVersion":"v1"}"#.to_vec(), "does not match the expected type"),
        ("another version", JSON, br#"{"kind":"ConfigMap","apiVersion":"v9"}"#.to_vec(), "does not match the expected"),
        ("wrong type", JSON, br#"{"kind":"ConfigMap","apiVersion":"v1","data":{"k":1}}"#.to_vec(), "cannot unmarshal"),
    ];
    for (what, media_type, body, words) in cases {
        check(what, &post(&cluster, MAPS, media_type, &body).await, 400, "BadRequest", words);
    }
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, status) = post(&cluster, definitions, PROTOBUF, &deep_protobuf()).await;
    assert!(matches!(code, 400 | 422), "{code} {status}");
    let words = "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml, application/vnd.kubernetes.protobuf";
    for media_type in ["text/plain", "application/xml", "application/x-www-form-urlencoded", "nonsense"] {
        let answer = post(&cluster, MAPS, media_type, map("a").to_string().as_bytes()).await;
        check(media_type, &answer, 415, "UnsupportedMediaType", words);
    }
    // Without a type it is JSON, and parameters do not matter.
    assert_eq!(
        exchange(&cluster, true, &format!("POST {MAPS} HTTP/1.1"), map("b").to_string().as_bytes()).await.0,
        201
    );
    assert_eq!(post(&cluster, MAPS, "application/json; charset=utf-8", map("c").to_string().as_bytes()).await.0, 201);
    let twice = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"d","name":"e"}}"#;
    let strict = format!("{MAPS}?fieldValidation=Strict");
    check("keys given twice", &post(&cluster, &strict, JSON, twice).await, 400, "BadRequest", "duplicate field");
    assert_eq!(post(&cluster, MAPS, JSON, twice).await.1["metadata"]["name"], "e");
    is_well(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large_or_never_come() {
    let cluster = Cluster::start().await;
    let words = "Request entity too large: limit is 3145728";
    let reason = "RequestEntityTooLarge";
    let large = json!({"metadata": {"name": "large"}, "data": {"k": "x".repeat(LIMIT)}}).to_string();
    check("large", &post(&cluster, MAPS, JSON, large.as_bytes()).await, 413, reason, words);

    // One that only says so is answered at once.
    let head = format!("POST {MAPS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {JSON}\r\n");
    let mut liar = connect(&cluster, true).await;
    liar.write_all(format!("{head}content-length: 99999999999\r\n\r\n{{").as_bytes()).await.unwrap();
    check("a lie", &read_answer(&mut liar).await, 413, reason, words);

    // One without an end stops being read.
    let (mut reader, mut writer) = tokio::io::split(connect(&cluster, true).await);
    writer.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 64 * LIMIT && writer.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    check("endless", &read_answer(&mut reader).await, 413, reason, words);
    drop(reader);
    assert!(tokio::time::timeout(LONGEST, sending).await.unwrap().unwrap() < 64 * LIMIT);

    // Less than was said, or nonsense where a chunk's length is to be: an error, and nothing is stored.
    for rest in ["content-length: 100\r\n\r\n{}", "transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n"] {
        let mut short = connect(&cluster, true).await;
        short.write_all(format!("{head}{rest}").as_bytes()).await.unwrap();
        short.shutdown().await.unwrap();
        let (code, _) = read_answer(&mut short).await;
        assert!(matches!(code, 0 | 400), "{code}");
    }
    let mut huge = connect(&cluster, true).await;
    let header = format!("GET {MAPS} HTTP/1.1\r\nhost: x\r\nx-huge: {}\r\n\r\n", "y".repeat(1 << 20));
    let _ = huge.write_all(header.as_bytes()).await;
    let (code, _) = read_answer(&mut huge).await;
    assert!(matches!(code, 0 | 431), "{code}");
    let many = "x: y\r\n".repeat(5000);
    let (code, _) = exchange(&cluster, true, &format!("GET {MAPS} HTTP/1.1\r\n{}", many.trim_end()), b"").await;
    assert_eq!(code, 431);
    assert_eq!(get(&cluster, MAPS).await.1["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_paths_that_mean_nothing() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        assert_eq!(post(&cluster, MAPS, JSON, map(name).to_string().as_bytes()).await.0, 201);
    }
    for (query, words) in [
        ("labelSelector=a%3D%3D%3Db", "unable to parse requirement: found '="),
        ("labelSelector=a%20in%20b", "unable to parse requirement"),
        ("labelSelector=-a", "name part must consist of alphanumeric characters"),
        ("labelSelector=a%3E%3Dx", "unable to parse requirement"),
        ("fieldSelector=nonsense", "invalid selector: 'nonsense'; can't understand 'nonsense'"),
        (
            "fieldSelector=spec.nope%3D1",
            "is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        ("limit=x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("limit=99999999999999999999", "strconv.ParseInt"),
        ("continue=nonsense", "continue key is not valid"),
        ("continue=e30", "continue key is not valid"),
        ("resourceVersion=x", "invalid resource version"),
        ("resourceVersion=-1", "invalid resource version"),
        ("watch=true&timeoutSeconds=x", "strconv.ParseInt"),
        ("watch=true&resourceVersion=x", "invalid resource version"),
    ] {
        check(query, &get(&cluster, &format!("{MAPS}?{query}")).await, 400, "BadRequest", words);
    }
    assert_eq!(get(&cluster, &format!("{MAPS}?limit=-1")).await.0, 200);
    let far = get(&cluster, &format!("{MAPS}?resourceVersion=999999")).await;
    check("a revision to come", &far, 504, "Timeout", "Too large resource version: 999999");
    check("the wrong match", &get(&cluster, &format!("{MAPS}?resourceVersionMatch=Exact")).await, 422, "Invalid", "");

    let nowhere = "the server could not find the requested resource";
    for path in [
        "/api/v1/namespaces/default/configmaps/a/nope",
        "/api/v1/namespaces/default/nope",
        "/apis/nope/v1/things",
        "/api/v9/pods",
        "/api/v1/configmaps/a",
        "/api/v1/namespaces/default/nodes",
        "/nope",
    ] {
        check(path, &get(&cluster, path).await, 404, "NotFound", nowhere);
    }
    for path in ["/api/v1/namespaces/default/configmaps/%2e%2e", "/api/v1/namespaces/default/configmaps/A_b%00"] {
        check(path, &get(&cluster, path).await, 404, "NotFound", "not found");
    }
    for name in ["A", "a_b", "-a", "a..b", "a/b", "", &"a".repeat(254)] {
        let answer = post(&cluster, MAPS, JSON, map(name).to_string().as_bytes()).await;
        check(name, &answer, 422, "Invalid", "metadata.name");
    }
    let elsewhere =
        post(&cluster, "/api/v1/namespaces/No_where/configmaps", JSON, map("a").to_string().as_bytes()).await;
    check("a bad namespace", &elsewhere, 404, "NotFound", "namespaces \"No_where\" not found");
    let other = json!({"metadata": {"name": "c", "namespace": "kube-system"}}).to_string();
    let words = "the namespace of the provided object does not match the namespace sent on the request";
    check("another namespace", &post(&cluster, MAPS, JSON, other.as_bytes()).await, 400, "BadRequest", words);
    let verb = exchange(&cluster, true, &format!("PUT {MAPS} HTTP/1.1"), b"{}").await;
    let words = "the server does not allow this method on the requested resource";
    check("a verb", &verb, 405, "MethodNotAllowed", words);
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_that_do_not_fit() {
    const JSON_PATCH: &str = "application/json-patch+json";
    const MERGE: &str = "application/merge-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    let cluster = Cluster::start().await;
    assert_eq!(post(&cluster, MAPS, JSON, map("a").to_string().as_bytes()).await.0, 201);
    let patch = async |name: &str, media_type: &str, body: &[u8]| {
        exchange(&cluster, true, &format!("PATCH {MAPS}/{name} HTTP/1.1\r\ncontent-type: {media_type}"), body).await
    };
    let words = "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, application/apply-patch+yaml";
    for (name, media_type, body) in [("a", JSON, "{}"), ("a", "", "{"), ("none", "text/plain", "{}")] {
        check(media_type, &patch(name, media_type, body.as_bytes()).await, 415, "UnsupportedMediaType", words);
    }
    for (media_type, body) in [(JSON_PATCH, "{}"), (JSON_PATCH, r#"[{"op":"jump"}]"#), (JSON_PATCH, "["), (MERGE, "[]")]
    {
        check(body, &patch("a", media_type, body.as_bytes()).await, 400, "BadRequest", "");
    }
    for body in [
        r#"[{"op":"remove","path":"/data/none"}]"#,
        r#"[{"op":"test","path":"/data/k","value":"other"}]"#,
        r#"[{"op":"replace","path":"/nope/nope","value":1}]"#,
        r#"[{"op":"move","from":"/data","path":"/data/k"}]"#,
        r#"[{"op":"add","path":"/data/k/deeper","value":1}]"#,
    ] {
        let words = "the server rejected our request due to an error in our request";
        check(body, &patch("a", JSON_PATCH, body.as_bytes()).await, 422, "Invalid", words);
    }
    let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec()].concat();
    for media_type in [JSON_PATCH, MERGE, STRATEGIC] {
        check(media_type, &patch("a", media_type, &deep).await, 400, "BadRequest", "");
        check(media_type, &patch("a", media_type, b"\"\xff\"").await, 400, "BadRequest", "");
    }
    let many = json!(vec![json!({"op": "test", "path": "/kind", "value": "ConfigMap"}); 10_001]).to_string();
    let words = "maximum operations in a JSON patch is 10000, got 10001";
    let (code, status) = patch("a", JSON_PATCH, many.as_bytes()).await;
    assert!(matches!(code, 400 | 413) && status["message"].as_str().unwrap().contains(words), "{code} {status}");
    let typed = patch("a", MERGE, br#"{"data":{"k":1}}"#).await;
    check("a patch of another type", &typed, 422, "Invalid", "patch: Invalid value");
    let apply = |body: &'static str| {
        let head = format!("PATCH {MAPS}/b?fieldManager=m HTTP/1.1\r\ncontent-type: application/apply-patch+yaml");
        let cluster = &cluster;
        async move { exchange(cluster, true, &head, body.as_bytes()).await }
    };
    for body in ["", "a: [", "[]", "kind: ConfigMap", "{apiVersion: v1, kind: Secret}"] {
        check(body, &apply(body).await, 400, "BadRequest", "");
    }
    assert_eq!(get(&cluster, &format!("{MAPS}/a")).await.1["data"], json!({"k": "v"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_prove_nothing() {
    let cluster = Cluster::start().await;
    let long = format!("Bearer {}", "x".repeat(8000));
    for value in [
        "Bearer nonsense",
        "Bearer a.b.c",
        "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4Iiwic3ViIjoic3lzdGVtOmFkbWluIn0.",
        "Bearer abcdef.0123456789abcdef",
        &long,
    ] {
        let head = format!("GET {MAPS} HTTP/1.1\r\nauthorization: {value}");
        check(value, &exchange(&cluster, false, &head, b"").await, 401, "Unauthorized", "Unauthorized");
    }
    is_well(&cluster).await;
}

/// Revisions that are gone: a page and a watch that come too late.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_is_told_so() {
    let kv = std::sync::Arc::new(MemoryKv::new());
    let cluster = Cluster::start_on(kv.clone()).await;
    for name in ["a", "b"] {
        assert_eq!(post(&cluster, MAPS, JSON, map(name).to_string().as_bytes()).await.0, 201);
    }
    let (_, page) = get(&cluster, &format!("{MAPS}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(post(&cluster, MAPS, JSON, map("c").to_string().as_bytes()).await.0, 201);
    // Neither the store nor a server that comes after knows the old state.
    let revision = kv.range(RangeRequest::new(KeyRange::prefix("/"))).await.unwrap().revision;
    kv.compact(revision).await.unwrap();
    drop(cluster);
    let cluster = Cluster::start_on(kv).await;
    let late = get(&cluster, &format!("{MAPS}?limit=1&continue={token}")).await;
    check("a page", &late, 410, "Expired", "The provided continue parameter is too old");
    let fresh = late.1["metadata"]["continue"].as_str().unwrap();
    assert_eq!(get(&cluster, &format!("{MAPS}?continue={fresh}")).await.0, 200);
    let (code, event) = get(&cluster, &format!("{MAPS}?watch=true&resourceVersion=1")).await;
    assert_eq!((code, &event["type"], &event["object"]["code"]), (200, &json!("ERROR"), &json!(410)));
    assert!(event["object"]["message"].as_str().unwrap().starts_with("too old resource version: 1 ("), "{event}");
}

/// Clients that do not go on: others do, and memory does not grow with what they leave unread.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_harm_nobody() {
    let cluster = Cluster::start().await;
    let mut unfinished = connect(&cluster, true).await;
    unfinished.write_all(b"GET /api/v1/pods HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut watch = connect(&cluster, true).await;
        let head = format!("GET {MAPS}?watch=true&timeoutSeconds=9223372036854775807 HTTP/1.1\r\nhost: x\r\n\r\n");
        watch.write_all(head.as_bytes()).await.unwrap();
        watch.read_exact(&mut [0; 15]).await.unwrap();
        unread.push(watch);
    }
    let resident = || -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    const SIZE: usize = 100_000;
    const WRITES: usize = 200;
    for number in 0..WRITES {
        let body = json!({"metadata": {"name": format!("m{number}")}, "data": {"k": "x".repeat(SIZE)}});
        assert_eq!(cluster.json("POST", MAPS, JSON, &body).await.0, 201);
    }
    // Every change is there once per use, not once per watcher: twenty of them would be 400 MB.
    let grown = resident().saturating_sub(before);
    assert!(grown < 10 * SIZE * WRITES, "{} MB", grown >> 20);
    is_well(&cluster).await;
    // A header that is never finished is given up.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(LONGEST, unfinished.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "still open");
}
