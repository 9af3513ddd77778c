//! Extension servers behind APIServices, with the machine's real kubectl.
#![allow(clippy::unwrap_used)]

mod harness;

use std::net::Ipv4Addr;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use dhow_apiserver::{AccessConfig, FRONT_PROXY_CLIENT, FrontProxy, UserInfo};
use dhow_base::pki::ClusterCa;
use dhow_base::tls::{self, LiveCert};
use harness::Cluster;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const VERSION: &str = "/apis/metrics.k8s.io/v1beta1";
const OBJECT: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";

/// A server of metrics.k8s.io/v1beta1 that believes the front proxy only.
struct Extension {
    port: u16,
    ca: ClusterCa,
    /// Paths and headers of what it was asked, and the body.
    asked: Arc<Mutex<Vec<(String, http::HeaderMap, Bytes)>>>,
    stop: CancellationToken,
}

fn answer(path: &str) -> (u16, Value) {
    let node = json!({
        "kind": "NodeMetrics",
        "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": {"name": "n1"},
        "timestamp": "2026-01-01T00:00:00Z",
        "window": "10s",
        "usage": {"cpu": "250m", "memory": "512Mi"},
    });
    let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    match path {
        VERSION => {
            let resources = [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)];
            let list = json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": "metrics.k8s.io/v1beta1",
                "resources": resources,
            });
            (200, list)
        }
        "/openapi/v2" => {
            let kind = json!([{"group": "metrics.k8s.io", "version": "v1beta1", "kind": "NodeMetrics"}]);
            let definition = json!({"description": "What a node uses", "type": "object", "x-kubernetes-group-version-kind": kind,
                "properties": {"usage": {"description": "how much", "type": "object"}}});
            let item =
                json!({"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/io.metrics.NodeMetrics"}}}}});
            let document = json!({"swagger": "2.0", "info": {"title": "metrics"}, "paths": {(format!("{VERSION}/nodes")): item, "/theirs": {}},
                "definitions": {"io.metrics.NodeMetrics": definition}});
            (200, document)
        }
        "/openapi/v3" => {
            let url = "/openapi/v3/apis/metrics.k8s.io/v1beta1?hash=1";
            (200, json!({"paths": {"apis/metrics.k8s.io/v1beta1": {"serverRelativeURL": url}}}))
        }
        "/openapi/v3/apis/metrics.k8s.io/v1beta1" => (200, json!({"openapi": "3.0.0", "info": {"title": "metrics"}})),
        path if path == format!("{VERSION}/nodes") => {
            let api_version = "metrics.k8s.io/v1beta1";
            (200, json!({"kind": "NodeMetricsList", "apiVersion": api_version, "metadata": {}, "items": [node]}))
        }
        _ => {
            (404, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}))
        }
    }
}

/// Says back what it is told until the other end is silent.
async fn echo(switched: hyper::upgrade::OnUpgrade) {
    let (mut read, mut write) = tokio::io::split(TokioIo::new(switched.await.unwrap()));
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    write.shutdown().await.unwrap();
}

impl Extension {
    async fn serve(front_proxy_ca: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(folder.path()).unwrap();
        let pair = ca.issue_server("metrics", &["metrics.kube-system.svc".into()]).unwrap();
        let acceptor = TlsAcceptor::from(tls::server_config(&pair, Some(front_proxy_ca)).unwrap());
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let stop = CancellationToken::new();
        let (shared, stopped) = (asked.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, asked, stopped) = (acceptor.clone(), shared.clone(), stopped.clone());
                tokio::spawn(stopped.run_until_cancelled_owned(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    assert!(tls.get_ref().1.peer_certificates().is_some(), "no certificate of the front proxy");
                    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let asked = asked.clone();
                        async move {
                            if let Some(protocol) = request.headers().get("upgrade").cloned() {
                                asked.lock().push((
                                    request.uri().path().into(),
                                    request.headers().clone(),
                                    Bytes::new(),
                                ));
                                tokio::spawn(echo(hyper::upgrade::on(request)));
                                let switched = http::Response::builder().status(101).header("upgrade", protocol);
                                let body = StreamBody::new(futures::stream::empty()).boxed_unsync();
                                return Ok(switched.header("connection", "Upgrade").body(body).unwrap());
                            }
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes();
                            let path = parts.uri.path().to_owned();
                            asked.lock().push((path.clone(), parts.headers, body));
                            let (code, document) = answer(&path);
                            let first = futures::stream::iter([Ok(Frame::data(Bytes::from(document.to_string())))]);
                            let watching = parts.uri.query().unwrap_or_default().contains("watch=true");
                            // A watch says something and stays open.
                            let body = match watching {
                                true => StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending()))
                                    .boxed_unsync(),
                                false => StreamBody::new(first).boxed_unsync(),
                            };
                            let response =
                                http::Response::builder().status(code).header("content-type", "application/json");
                            Ok::<_, hyper::Error>(
                                response
                                    .body::<http_body_util::combinators::UnsyncBoxBody<Bytes, hyper::Error>>(body)
                                    .unwrap(),
                            )
                        }
                    });
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(tls), service)
                        .await;
                }));
            }
        }));
        Self { port, ca, asked, stop }
    }

    fn last(&self, path: &str) -> (http::HeaderMap, Bytes) {
        let asked = self.asked.lock();
        let (_, headers, body) = asked.iter().rev().find(|(one, ..)| one == path).unwrap();
        (headers.clone(), body.clone())
    }
}

struct Proxied {
    cluster: Cluster,
    extension: Extension,
}

fn admin() -> UserInfo {
    UserInfo::new("admin", &["system:masters"])
}

impl Proxied {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(folder.path()).unwrap();
        let client = LiveCert::new(&ca.issue_client(FRONT_PROXY_CLIENT, &[]).unwrap()).unwrap();
        let front_proxy = Some(FrontProxy { ca_pem: ca.cert_pem().to_owned(), client: Arc::new(client) });
        let cluster = Cluster::start_with(AccessConfig { front_proxy, ..AccessConfig::default() }).await;
        let extension = Extension::serve(ca.cert_pem()).await;
        Self { cluster, extension }
    }

    async fn post(&self, path: &str, body: Value) {
        let (code, answer) = self.cluster.json("POST", path, "application/json", &body).await;
        assert!(code < 300, "{answer}");
    }

    async fn create_service(&self) {
        let service = json!({"metadata": {"name": "metrics"}, "spec": {"ports": [{"port": 443}]}});
        self.post("/api/v1/namespaces/kube-system/services", service).await;
    }

    async fn create_endpoints(&self) {
        let slice = json!({
            "metadata": {"name": "metrics-1", "labels": {"kubernetes.io/service-name": "metrics"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
            "ports": [{"port": self.extension.port}],
        });
        self.post("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", slice).await;
    }

    async fn register(&self) {
        let bundle = base64::engine::general_purpose::STANDARD.encode(self.extension.ca.cert_pem());
        let object = json!({
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": bundle,
                "service": {"name": "metrics", "namespace": "kube-system"},
            },
        });
        self.post("/apis/apiregistration.k8s.io/v1/apiservices", object).await;
    }

    /// Returns when the condition has this reason.
    async fn reason(&self, wanted: &str) {
        let path = "/apis/apiregistration.k8s.io/v1/apiservices?watch=true&fieldSelector=metadata.name%3Dv1beta1.metrics.k8s.io&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        let said = format!("\"reason\":\"{wanted}\"");
        let has = |seen: &[u8]| String::from_utf8_lossy(seen).contains(&said);
        self.cluster.stream(path, "application/json", has).await;
    }

    async fn get(&self, user: UserInfo, path: &str) -> (u16, String) {
        let request = http::Request::builder().uri(path).body(Bytes::new()).unwrap();
        let (code, _, body) = self.cluster.send(user, request).await;
        (code, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_server_is_part_of_the_api() {
    let proxied = Proxied::start().await;
    let Proxied { cluster, extension } = &proxied;
    proxied.register().await;
    proxied.reason("ServiceNotFound").await;
    let (code, text) = proxied.get(admin(), &format!("{VERSION}/nodes")).await;
    assert_eq!((code, text.trim()), (503, "service unavailable"));
    proxied.create_service().await;
    proxied.reason("EndpointsNotFound").await;
    proxied.create_endpoints().await;
    proxied.reason("Passed").await;

    let node = json!({"metadata": {"name": "n1"}});
    proxied.post("/api/v1/nodes", node).await;
    let status =
        json!({"status": {"capacity": {"cpu": "1", "memory": "1Gi"}, "allocatable": {"cpu": "1", "memory": "1Gi"}}});
    let (code, answer) =
        cluster.json("PATCH", "/api/v1/nodes/n1/status", "application/merge-patch+json", &status).await;
    assert_eq!(code, 200, "{answer}");
    let raw = cluster.kubectl(&["get", "--raw", &format!("{VERSION}/nodes")]).await;
    assert!(raw.contains("NodeMetricsList"), "{raw}");
    let top = cluster.kubectl(&["top", "nodes"]).await;
    assert!(top.contains("n1") && top.contains("250m") && top.contains("25%") && top.contains("512Mi"), "{top}");
    let resources = cluster.kubectl(&["api-resources", "--api-group=metrics.k8s.io"]).await;
    assert!(resources.contains("NodeMetrics") && resources.contains("metrics.k8s.io/v1beta1"), "{resources}");
    let services = cluster.kubectl(&["get", "apiservices"]).await;
    assert!(services.contains("kube-system/metrics"), "{services}");
    assert!(services.lines().any(|line| line.starts_with("v1.apps ") && line.contains("Local")), "{services}");

    let (code, group) = proxied.get(admin(), "/apis/metrics.k8s.io").await;
    assert!(code == 200 && group.contains("metrics.k8s.io/v1beta1"), "{group}");
    let (_, root) = proxied.get(admin(), "/openapi/v3").await;
    assert!(root.contains("apis/metrics.k8s.io/v1beta1?hash=1"), "{root}");
    let (code, _) = proxied.get(admin(), "/openapi/v3/apis/metrics.k8s.io/v1beta1").await;
    assert_eq!(code, 200);

    // A watch's first bytes come while it is open.
    cluster.stream(&format!("{VERSION}/nodes?watch=true"), "application/json", |seen| !seen.is_empty()).await;

    // Its server goes away: the first to notice tells the condition.
    extension.stop.cancel();
    let failed = async {
        loop {
            let (code, text) = proxied.get(admin(), &format!("{VERSION}/nodes")).await;
            if code == 503 {
                return text;
            }
        }
    };
    let text = tokio::time::timeout(std::time::Duration::from_secs(30), failed).await.unwrap();
    assert!(text.contains("error trying to reach service") || text.contains("service unavailable"), "{text}");
    proxied.reason("FailedDiscoveryCheck").await;
    let (code, _) =
        cluster.json("DELETE", "/api/v1/namespaces/kube-system/services/metrics", "application/json", &json!({})).await;
    assert_eq!(code, 200);
    proxied.reason("ServiceNotFound").await;
    let (code, _) = cluster.json("DELETE", OBJECT, "application/json", &json!({})).await;
    assert_eq!(code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_servers_learn_who_asks_and_nothing_else() {
    let proxied = Proxied::start().await;
    let Proxied { cluster, extension } = &proxied;
    proxied.create_service().await;
    proxied.create_endpoints().await;
    proxied.register().await;
    proxied.reason("Passed").await;
    let mut jane = UserInfo::new("jane", &["dev"]);
    jane.uid = "u1".into();
    jane.extra.insert("example.com/Team".into(), vec!["blue".into()]);
    let request = || {
        http::Request::builder()
            .method("POST")
            .uri(format!("{VERSION}/namespaces/default/pods"))
            .header("x-remote-user", "root")
            .header("x-remote-group", "system:masters")
            .header("x_remote_user", "root")
            .header("x-remote-extra-scope", "all")
            .header("authorization", "Bearer secret")
            .header("x-kept", "yes")
            .body(Bytes::from_static(b"{\"a\":1}"))
            .unwrap()
    };
    let (code, _, body) = cluster.send(jane.clone(), request()).await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(code, 403, "{text}");
    assert!(text.contains("cannot create resource \\\"pods\\\" in API group \\\"metrics.k8s.io\\\""), "{text}");

    let role = "create clusterrole metrics --verb=create --resource=pods.metrics.k8s.io";
    cluster.kubectl(&role.split(' ').collect::<Vec<_>>()).await;
    cluster.kubectl(&["create", "clusterrolebinding", "metrics", "--clusterrole=metrics", "--user=jane"]).await;
    let (code, ..) = cluster.send(jane, request()).await;
    assert_eq!(code, 404, "the extension server's own answer");
    let (headers, body) = extension.last(&format!("{VERSION}/namespaces/default/pods"));
    let all =
        |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(all("x-remote-user"), ["jane"]);
    assert_eq!(all("x-remote-uid"), ["u1"]);
    assert_eq!(all("x-remote-group"), ["dev", "system:authenticated"]);
    assert_eq!(all("x-remote-extra-example.com%2fteam"), ["blue"]);
    assert_eq!(all("x-kept"), ["yes"]);
    for gone in ["authorization", "x-remote-extra-scope", "x_remote_user"] {
        assert!(all(gone).is_empty(), "{gone}");
    }
    assert_eq!(body, Bytes::from_static(b"{\"a\":1}"));

    let (code, _) = proxied.get(admin(), &format!("{VERSION}/nodes/../../../../api")).await;
    assert_eq!(code, 404);
    let (_, map) = cluster
        .json("GET", "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication", "", &json!(null))
        .await;
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    assert!(map["data"]["requestheader-client-ca-file"] != map["data"]["client-ca-file"], "{map}");
    let me = ["auth", "can-i", "get", "configmaps/extension-apiserver-authentication", "-n", "kube-system", "--as=m"];
    cluster
        .kubectl(&[
            "create",
            "rolebinding",
            "m",
            "-n",
            "kube-system",
            "--role=extension-apiserver-authentication-reader",
            "--user=m",
        ])
        .await;
    assert_eq!(cluster.kubectl(&me).await.trim(), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_group_versions_have_their_objects() {
    let cluster = Cluster::start().await;
    let collection = "/apis/apiregistration.k8s.io/v1/apiservices";
    let (_, before) = cluster.json("GET", &format!("{collection}/v1.apps"), "", &json!(null)).await;
    assert_eq!(before["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!(before["status"]["conditions"][0]["reason"], "Local");
    let (code, _) = cluster.json("DELETE", &format!("{collection}/v1.apps"), "application/json", &json!({})).await;
    assert_eq!(code, 200);
    let changed = |kind: &'static str, name: &'static str| {
        move |seen: &[u8]| {
            let text = String::from_utf8_lossy(seen).into_owned();
            text.lines().any(|line| {
                line.contains(&format!("\"type\":\"{kind}\"")) && line.contains(&format!("\"name\":\"{name}\""))
            })
        }
    };
    let revision = before["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!("{collection}?watch=true&resourceVersion={revision}");
    cluster
        .stream(&watch, "application/json", move |seen| {
            changed("DELETED", "v1.apps")(seen) && changed("ADDED", "v1.apps")(seen)
        })
        .await;
    let crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: cups.tea.example.com}\nspec:\n  group: tea.example.com\n  scope: Namespaced\n  names: {plural: cups, kind: Cup}\n  versions:\n  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}\n";
    cluster.run("admin", &["create", "-f", "-"], crd).await.unwrap();
    cluster.stream(&watch, "application/json", changed("ADDED", "v1.tea.example.com")).await;
    cluster.kubectl(&["delete", "crd", "cups.tea.example.com"]).await;
    cluster.stream(&watch, "application/json", changed("DELETED", "v1.tea.example.com")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_go_through() {
    let proxied = Proxied::start().await;
    proxied.create_service().await;
    proxied.create_endpoints().await;
    proxied.register().await;
    proxied.reason("Passed").await;
    let cluster = &proxied.cluster;
    let pair = cluster.ca.issue_client("somebody", &["system:masters"]).unwrap();
    let mut config = (*tls::client_config(cluster.ca.cert_pem(), Some(&pair)).unwrap()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = tokio::net::TcpStream::connect(cluster.url.trim_start_matches("https://")).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let path = format!("{VERSION}/nodes/n1/shell");
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: \
         v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    stream.write_all(b"hello").await.unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"hello");
    // One end's silence is passed on, and ends the session.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
    let (headers, _) = proxied.extension.last(&path);
    assert_eq!(headers["x-remote-user"], "somebody");
    assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
    assert_eq!(
        (&headers["upgrade"], &headers["connection"]),
        (&"websocket".parse().unwrap(), &"Upgrade".parse().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_version_2_holds_theirs() {
    let proxied = Proxied::start().await;
    let theirs = "io.metrics.NodeMetrics";
    let whole = async || {
        let (code, text) = proxied.get(admin(), "/openapi/v2").await;
        assert_eq!(code, 200);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert!(whole().await["definitions"].get(theirs).is_none());
    proxied.create_service().await;
    proxied.create_endpoints().await;
    proxied.register().await;
    proxied.reason("Passed").await;
    let document = whole().await;
    assert_eq!(document["definitions"][theirs]["description"], "What a node uses");
    assert!(document["paths"].get("/theirs").is_none() && document["paths"].get(format!("{VERSION}/nodes")).is_some());
    assert!(document["definitions"].get("io.k8s.api.core.v1.Pod").is_some());
    // In protobuf as well, which old clients ask for.
    let request = http::Request::builder()
        .uri("/openapi/v2")
        .header("accept", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    let (code, _, body) = proxied.cluster.send(admin(), request.body(Bytes::new()).unwrap()).await;
    assert!(code == 200 && body.windows(theirs.len()).any(|window| window == theirs.as_bytes()));
    let delete = proxied.cluster.json("DELETE", OBJECT, "application/json", &json!({})).await;
    assert_eq!(delete.0, 200, "{}", delete.1);
    let gone = async { while whole().await["definitions"].get(theirs).is_some() {} };
    tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.unwrap();
}
