//! Several servers on one store, in one process: where clients inside the cluster find them, and what they may not do
//! both.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dhow_apiserver::{AccessConfig, ApiServer, Config, ServiceRange, UserInfo};
use dhow_base::pki::{ClusterCa, SaKey};
use dhow_base::tls;
use dhow_client::Client;
use dhow_store::{
    Error, Kv, LeaseId, MemoryKv, RangeRequest, RangeResponse, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use futures::StreamExt;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A server that is known to the others under this address.
async fn server(kv: Arc<dyn Kv>, address: [u8; 4], folder: &std::path::Path) -> (Client, CancellationToken) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = ClusterCa::load_or_create(folder).unwrap();
    let shutdown = CancellationToken::new();
    let config = Config {
        advertise: SocketAddr::from((address, 6443)),
        service_ranges: vec![ServiceRange { first: [10, 43, 0, 0].into(), prefix: 24 }],
        api_service_ip: [10, 43, 0, 1].into(),
        node_ports: 30000..=30049,
        sa_key: SaKey::load_or_create(&folder.join("sa.key")).unwrap(),
        node_tls: tls::client_config(ca.cert_pem(), None).unwrap(),
        member_ttl: Some(2),
        image_judge: None,
        backup: None,
        access: AccessConfig::default(),
    };
    let server = ApiServer::new(kv, config, shutdown.clone()).await.unwrap();
    (server.client(UserInfo::new("admin", &["system:masters"])), shutdown)
}

async fn send(client: &Client, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = client.request(request.body(body).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Waits for the addresses behind `default/kubernetes`.
async fn endpoints(client: &Client, wanted: &[&str]) {
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let mut last = Value::Null;
    for _ in 0..200 {
        last = send(client, "GET", path, &Value::Null).await.1;
        let found: Vec<&str> = last["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|endpoint| endpoint["addresses"][0].as_str())
            .collect();
        if found == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{wanted:?}: {last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_the_servers_that_live() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryKv::new();
    let (first, _one) = server(Arc::new(kv.clone()), [192, 0, 2, 2], folder.path()).await;
    endpoints(&first, &["192.0.2.2"]).await;
    let (second, stop) = server(Arc::new(kv.clone()), [192, 0, 2, 1], folder.path()).await;
    endpoints(&first, &["192.0.2.1", "192.0.2.2"]).await;
    endpoints(&second, &["192.0.2.1", "192.0.2.2"]).await;
    // Longer than a silent one would be believed in.
    tokio::time::sleep(Duration::from_secs(3)).await;
    endpoints(&second, &["192.0.2.1", "192.0.2.2"]).await;
    stop.cancel();
    endpoints(&first, &["192.0.2.2"]).await;
}

/// Half of the requests to each server, all at once; how many got each code.
async fn hammer(clients: &[Client; 2], path: &str, bodies: impl Iterator<Item = Value>) -> Vec<(u16, Value)> {
    let sent = bodies.enumerate().map(|(number, body)| {
        let (client, path) = (clients[number % 2].clone(), path.to_owned());
        tokio::spawn(async move { send(&client, "POST", &path, &body).await })
    });
    let sent: Vec<_> = sent.collect();
    let mut answers = Vec::new();
    for one in sent {
        answers.push(one.await.unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_scarce_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryKv::new();
    let (first, _one) = server(Arc::new(kv.clone()), [192, 0, 2, 1], folder.path()).await;
    let (second, _two) = server(Arc::new(kv.clone()), [192, 0, 2, 2], folder.path()).await;
    let clients = [first, second];
    let count = |answers: &[(u16, Value)], code: u16| answers.iter().filter(|(got, _)| *got == code).count();

    // More ports are asked for than there are.
    let services = (0..80).map(|number| {
        json!({"metadata": {"name": format!("s{number}")}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
    });
    let path = "/api/v1/namespaces/default/services";
    let answers = hammer(&clients, path, services).await;
    let (made, full) = (count(&answers, 201), count(&answers, 422));
    assert_eq!((made, full), (50, 30), "{:?}", answers.iter().find(|(code, _)| !matches!(code, 201 | 422)));
    let all = send(&clients[0], "GET", path, &Value::Null).await.1["items"].take();
    let unique = |of: &dyn Fn(&Value) -> Value| {
        let found: Vec<String> = all.as_array().unwrap().iter().map(|one| of(one).to_string()).collect();
        let distinct: std::collections::HashSet<&String> = found.iter().collect();
        (found.len(), distinct.len())
    };
    assert_eq!(unique(&|service| service["spec"]["clusterIP"].clone()), (51, 51));
    assert_eq!(unique(&|service| service["spec"]["ports"][0]["nodePort"].clone()), (51, 51));

    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "10"}}});
    let (code, _) = send(&clients[0], "POST", "/api/v1/namespaces/kube-public/resourcequotas", &quota).await;
    assert_eq!(code, 201);
    let maps = (0..60).map(|number| json!({"metadata": {"name": format!("c{number}")}}));
    let answers = hammer(&clients, "/api/v1/namespaces/kube-public/configmaps", maps).await;
    assert_eq!((count(&answers, 201), count(&answers, 403)), (10, 50), "{answers:?}");
    let (_, quota) = send(&clients[1], "GET", "/api/v1/namespaces/kube-public/resourcequotas/q", &Value::Null).await;
    assert_eq!(quota["status"]["used"]["count/configmaps"], "10");
}

/// A store whose watches break when told so, and whose lists fail while it is away.
#[derive(Default)]
struct Flaky {
    inner: MemoryKv,
    away: AtomicBool,
    cut: Mutex<CancellationToken>,
}

#[async_trait::async_trait]
impl Kv for Flaky {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        if self.away.load(Ordering::Relaxed) { Err(Error::Closed) } else { self.inner.range(request).await }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        self.inner.txn(txn).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        let cut = self.cut.lock().clone();
        let stream = self.inner.watch(request).await?.take_until(cut.cancelled_owned());
        Ok(stream.chain(futures::stream::once(async { Err(Error::Closed) })).boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.inner.current_revision().await
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        self.inner.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.inner.lease_revoke(id).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_store_was_away_nobody_misses_anything() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(Flaky::default());
    let (client, _one) = server(kv.clone(), [192, 0, 2, 1], folder.path()).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let before = send(&client, "GET", path, &Value::Null).await.1["metadata"]["resourceVersion"].take();
    let watch = format!("{path}?watch=true&resourceVersion={}", before.as_str().unwrap());
    let mut open = client.open(&watch).await.unwrap();
    kv.away.store(true, Ordering::Relaxed);
    std::mem::take(&mut *kv.cut.lock()).cancel();
    // Written while nobody follows; acknowledged once somebody does.
    let writer = client.clone();
    let write =
        tokio::spawn(async move { send(&writer, "POST", path, &json!({"metadata": {"name": "meanwhile"}})).await.0 });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!write.is_finished());
    kv.away.store(false, Ordering::Relaxed);
    assert_eq!(write.await.unwrap(), 201);
    // The open watch ends, and cannot be resumed from before.
    let ended = tokio::time::timeout(Duration::from_secs(10), open.frame()).await.unwrap();
    assert!(ended.is_none(), "{ended:?}");
    let mut again = client.open(&watch).await.unwrap();
    let frame = again.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(String::from_utf8_lossy(&frame).contains("\"code\":410"), "{frame:?}");
    let (_, list) = send(&client, "GET", path, &Value::Null).await;
    assert!(list["items"].as_array().unwrap().iter().any(|item| item["metadata"]["name"] == "meanwhile"));
    let (code, _) = send(&client, "POST", path, &json!({"metadata": {"name": "after"}})).await;
    assert_eq!(code, 201);
}
