//! The server over real mutual TLS against a scripted runtime.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use dhow_base::pki::{CertPair, ClusterCa};
use dhow_base::tls;
use dhow_cri::runtime::DiskUsage;
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::*;
use crate::disk::PodDisk;
use crate::testing::{FakeRuntime, container, sandbox};

struct Fixture {
    _dir: tempfile::TempDir,
    ca: ClusterCa,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(&dir.path().join("pki")).unwrap();
        let pair = ca.issue_server("node", &["127.0.0.1".to_owned()]).unwrap();
        let tls = tls::server_config(&pair, Some(ca.cert_pem())).unwrap();
        let runtime = FakeRuntime::default();
        let pod = sandbox("s");
        let logs = crate::config::log_directory(dir.path(), &pod.pod);
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(logs.join("0.log"), "2026-01-01T00:00:00Z stdout F first\n").unwrap();
        for (attempt, exit) in [(0, Some(1)), (1, None)] {
            let mut run = container("s", "a", attempt, exit);
            run.log_path = format!("{attempt}.log").into();
            runtime.containers.lock().push(run);
        }
        runtime.sandboxes.lock().push(pod);
        let server = Server {
            node: "n".into(),
            root_dir: dir.path().into(),
            runtime: Arc::new(runtime),
            pods: Box::new(|| vec![Arc::new(Pod::default())]),
            image_api: Some(Arc::new(|request| {
                let path = request.uri().path().to_owned();
                Box::pin(async move { text(StatusCode::OK, "text/plain", path) })
            })),
            image_traffic: Box::new(|| dhow_image::Traffic { from_nodes: 7, ..Default::default() }),
            probes: Box::new(BTreeMap::new),
            settings: NodeSettings::default(),
            meter: usage::Meter::default(),
            volumes: Box::new(|_| Box::pin(async { Vec::new() })),
            disks: Box::new(|| {
                let used = |bytes| DiskUsage { bytes, inodes: 1 };
                let mut disk = PodDisk { rest: used(1), ..PodDisk::default() };
                disk.layers.insert("a".into(), used(100));
                disk.logs.insert("a".into(), used(20));
                Disks::from([("u".to_owned(), Arc::new(disk))])
            }),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        tokio::spawn(async move { serve(listener, &tls, Arc::new(server), stop).await });
        Self { _dir: dir, ca, address, shutdown }
    }

    fn apiserver(&self) -> CertPair {
        self.ca.issue_client("dhow-apiserver", &[]).unwrap()
    }

    async fn send(&self, client: Option<&CertPair>, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let config = tls::client_config(self.ca.cert_pem(), client).unwrap();
        let mut config = config.as_ref().clone();
        config.alpn_protocols.clear();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, body: &'static str) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(Full::from(body)).unwrap();
        let answer = self.send(Some(&self.apiserver()), request).await;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn socket(&self, path: &str, protocols: &str) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
        let request = Request::builder()
            .uri(path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, base64::prelude::BASE64_STANDARD.encode([7; 16]))
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocols)
            .body(Full::default())
            .unwrap();
        let answer = self.send(Some(&self.apiserver()), request).await;
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()[header::SEC_WEBSOCKET_PROTOCOL], protocols.split(',').next().unwrap());
        let io = hyper::upgrade::on(answer).await.unwrap();
        WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Client, None).await
    }
}

#[tokio::test]
async fn only_the_api_server_and_masters_are_let_in() {
    let fixture = Fixture::new().await;
    let ca = &fixture.ca;
    for (client, want) in [
        (None, 401),
        (Some(ca.issue_client("system:node:n", &["system:nodes"]).unwrap()), 403),
        (Some(ca.issue_client("x", &["dhow-apiserver"]).unwrap()), 403),
        (Some(ca.issue_client("system:masters", &["x"]).unwrap()), 403),
        (Some(ca.issue_client("admin", &["x", "system:masters"]).unwrap()), 200),
        (Some(fixture.apiserver()), 200),
    ] {
        let request = Request::builder().uri("/healthz").body(Full::default()).unwrap();
        assert_eq!(fixture.send(client.as_ref(), request).await.status(), want);
    }
}

#[tokio::test]
async fn other_nodes_get_layers_and_nothing_else() {
    let fixture = Fixture::new().await;
    let node = fixture.ca.issue_client("system:node:other", &["system:nodes"]).unwrap();
    let ask = async |client: &CertPair, method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).body(Full::default()).unwrap();
        fixture.send(Some(client), request).await.status().as_u16()
    };
    assert_eq!(ask(&node, "GET", "/images/layers/sha256:0?repository=r.io/a").await, 200);
    for (method, path) in [
        ("POST", "/images/layers/sha256:0"),
        ("GET", "/images/layers"),
        ("GET", "/images/layers/sha256:0/more"),
        ("GET", "/images/layers/../export"),
        ("GET", "/images"),
        ("GET", "/images/inspect?name=a"),
        ("GET", "/images/export?name=a"),
        ("POST", "/images/pull?name=a"),
        ("DELETE", "/images?name=a"),
        ("GET", "/healthz"),
        ("GET", "/pods"),
        ("GET", "/metrics"),
        ("GET", "/configz"),
        ("GET", "/stats/summary"),
        ("GET", "/containerLogs/default/p/a"),
        ("GET", "/exec/default/p/a?command=sh"),
        ("POST", "/exec/default/p/a?command=sh"),
        ("GET", "/attach/default/p/a"),
        ("GET", "/portForward/default/p?port=1"),
    ] {
        assert_eq!(ask(&node, method, path).await, 403, "{method} {path}");
    }
    // The name and the group go together.
    for (name, groups) in [("other", &["system:nodes"]), ("system:node:other", &["system:authenticated"])] {
        let client = fixture.ca.issue_client(name, groups).unwrap();
        assert_eq!(ask(&client, "GET", "/images/layers/sha256:0?repository=r.io/a").await, 403, "{name}");
    }
}

#[tokio::test]
async fn plain_routes_answer() {
    let fixture = Fixture::new().await;
    let get = async |path| fixture.call("GET", path, "").await;
    assert_eq!(get("/containerLogs/default/p/a?previous=true").await, (StatusCode::OK, "first\n".into()));
    assert_eq!(get("/containerLogs/default/p/a").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("/containerLogs/other/p/a").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("/containerLogs/default/p/a?tailLines=x").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get("/exec/default/p/a?command=sh").await.0, StatusCode::BAD_REQUEST);
    assert!(get("/pods").await.1.contains("PodList"));
    let cadvisor = get("/metrics/cadvisor").await.1;
    assert!(cadvisor.contains("namespace=\"default\",pod=\"p\"} 7\n"), "{cadvisor}");
    let resource = get("/metrics/resource").await.1;
    assert!(resource.contains("pod_memory_working_set_bytes{namespace=\"default\",pod=\"p\"} 7\n"), "{resource}");
    assert!(get("/metrics").await.1.contains("kubelet_running_containers{container_state=\"running\"} 1\n"));
    assert!(get("/metrics").await.1.contains("dhow_image_fetched_bytes_total{from=\"node\"} 7\n"));
    assert!(get("/metrics/probes").await.1.contains("prober_probe_total"));
    assert!(get("/configz").await.1.contains("\"maxPods\":110"));
    assert_eq!(get("/metrics/none").await.0, StatusCode::NOT_FOUND);
    let summary: serde_json::Value = serde_json::from_str(&get("/stats/summary").await.1).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 5);
    assert_eq!(pod["containers"][0]["logs"]["usedBytes"], 20);
    assert_eq!(pod["ephemeral-storage"]["usedBytes"], 121);
    assert_eq!(pod["ephemeral-storage"]["capacityBytes"], summary["node"]["fs"]["capacityBytes"]);
    let systems = summary["node"]["systemContainers"].as_array().unwrap();
    assert_eq!((systems.len(), systems[0]["name"].as_str()), (1, Some("kubelet")), "{systems:?}");
    assert!(systems[0]["memory"]["workingSetBytes"].as_u64() > Some(0) && systems[0]["cpu"]["usageNanoCores"].is_u64());
    assert_eq!(pod["network"]["interfaces"], summary["node"]["network"]["interfaces"]);
    assert_eq!(get("/images").await.1, "/images");
    assert_eq!(fixture.call("POST", "/images/import", "x:1").await.1, r#"{"images":["x:1"]}"#);
    assert_eq!(fixture.call("POST", "/pods", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn exec_carries_every_channel_and_the_exit_code() {
    let fixture = Fixture::new().await;
    let path = "/exec/default/p/a?command=sh&command=-c&stdin=true&stdout=true&stderr=true";
    let mut socket = fixture.socket(path, "v5.channel.k8s.io,v4.channel.k8s.io").await;
    socket.send(Message::binary([&[4], br#"{"Width":80,"Height":24}"#.as_slice()].concat())).await.unwrap();
    socket.send(Message::binary(b"\0hello ".to_vec())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let mut channels = [String::new(), String::new(), String::new(), String::new()];
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message {
            channels[usize::from(data[0])] += std::str::from_utf8(&data[1..]).unwrap();
        }
    }
    assert_eq!(channels[1..3], ["hello [80x24]", "sh -c"]);
    let status: serde_json::Value = serde_json::from_str(&channels[3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "7"}));
}

#[tokio::test]
async fn older_channels_tell_of_failures_in_words_and_logs_come_in_messages() {
    let fixture = Fixture::new().await;
    let path = "/exec/default/p/a?command=sh&command=-c&stdout=true&stderr=true";
    let mut socket = fixture.socket(path, "channel.k8s.io").await;
    let mut said = [String::new(), String::new(), String::new(), String::new()];
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message {
            said[usize::from(data[0])] += std::str::from_utf8(&data[1..]).unwrap();
        }
    }
    assert_eq!(
        (said[2].as_str(), said[3].as_str()),
        ("sh -c", "command terminated with non-zero exit code: exit status 7")
    );
    let mut socket = fixture.socket("/containerLogs/default/p/a?previous=true", "binary.k8s.io").await;
    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first.into_data(), "first\n");
}

#[tokio::test]
async fn port_forward_begins_with_the_port_and_says_what_failed() {
    let fixture = Fixture::new().await;
    let mut socket = fixture.socket("/portForward/default/p?port=8080&port=1", "v4.channel.k8s.io").await;
    socket.send(Message::binary(b"\0ping".to_vec())).await.unwrap();
    let mut channels: [Vec<u8>; 4] = Default::default();
    while channels[0].len() < 6 || channels[3].len() < 3 {
        if let Message::Binary(data) = socket.next().await.unwrap().unwrap() {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
    }
    assert_eq!(channels[0], [&8080u16.to_le_bytes(), b"ping".as_slice()].concat());
    assert_eq!(channels[2], 1u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&channels[3][2..]).contains("connection refused"));
}
