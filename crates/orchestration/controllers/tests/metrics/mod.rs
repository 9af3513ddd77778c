//! A server of the three metrics APIs behind the API server, whose answers the test sets.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use base64::Engine as _;
use dhow_apiserver::{AccessConfig, FRONT_PROXY_CLIENT, FrontProxy};
use dhow_base::pki::ClusterCa;
use dhow_base::tls::{self, LiveCert};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::fake::Cloud;

pub const GROUPS: [(&str, &str); 3] =
    [("metrics.k8s.io", "v1beta1"), ("custom.metrics.k8s.io", "v1beta2"), ("external.metrics.k8s.io", "v1beta1")];

pub struct Metrics {
    port: u16,
    front_proxy: ClusterCa,
    own: ClusterCa,
    /// Items of the list that a path answers with; the query is not looked at.
    answers: Arc<Mutex<HashMap<String, Value>>>,
    /// Queries as they came, by path.
    pub asked: Arc<Mutex<HashMap<String, String>>>,
}

impl Metrics {
    pub async fn serve() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let front_proxy = ClusterCa::load_or_create(&folder.path().join("proxy")).unwrap();
        let own = ClusterCa::load_or_create(&folder.path().join("own")).unwrap();
        let pair = own.issue_server("metrics", &["metrics.kube-system.svc".into()]).unwrap();
        let mut config = (*tls::server_config(&pair, Some(front_proxy.cert_pem())).unwrap()).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = Self { port, front_proxy, own, answers: Arc::default(), asked: Arc::default() };
        let (answers, asked) = (this.answers.clone(), this.asked.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, answers, asked) = (acceptor.clone(), answers.clone(), asked.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    let mut seen = Vec::new();
                    // Requests without a body, one after the other.
                    loop {
                        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                            let mut buffer = [0; 4096];
                            match stream.read(&mut buffer).await {
                                Ok(0) | Err(_) => return,
                                Ok(count) => seen.extend_from_slice(&buffer[..count]),
                            }
                        }
                        let end = seen.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
                        let head = String::from_utf8(seen.drain(..end).collect()).unwrap();
                        let target = head.split(' ').nth(1).unwrap();
                        let (path, query) = target.split_once('?').unwrap_or((target, ""));
                        asked.lock().insert(path.to_owned(), query.to_owned());
                        let (code, body) = match answers.lock().get(path) {
                            Some(items) => {
                                ("200 OK", json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
                            }
                            None if GROUPS
                                .iter()
                                .any(|(group, version)| path == format!("/apis/{group}/{version}")) =>
                            {
                                (
                                    "200 OK",
                                    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": path.trim_start_matches("/apis/"), "resources": []}),
                                )
                            }
                            None => (
                                "404 Not Found",
                                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no such metric", "reason": "NotFound", "code": 404}),
                            ),
                        };
                        let body = body.to_string();
                        let text = format!(
                            "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if stream.write_all(text.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        this
    }

    /// How the API server proves to be the front proxy.
    pub fn access(&self) -> AccessConfig {
        let client = LiveCert::new(&self.front_proxy.issue_client(FRONT_PROXY_CLIENT, &[]).unwrap()).unwrap();
        let front_proxy = FrontProxy { ca_pem: self.front_proxy.cert_pem().to_owned(), client: Arc::new(client) };
        AccessConfig { front_proxy: Some(front_proxy), ..AccessConfig::default() }
    }

    /// Makes the API server lead the metrics APIs here.
    pub async fn register(&self, cloud: &Cloud) {
        let metadata = json!({"name": "metrics", "namespace": "kube-system"});
        cloud.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 443}]}})).await;
        let labels = json!({"kubernetes.io/service-name": "metrics"});
        let metadata = json!({"name": "metrics-1", "namespace": "kube-system", "labels": labels});
        cloud
            .apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}], "ports": [{"port": self.port}]}))
            .await;
        let bundle = base64::engine::general_purpose::STANDARD.encode(self.own.cert_pem());
        for (group, version) in GROUPS {
            let name = format!("{version}.{group}");
            let service = json!({"name": "metrics", "namespace": "kube-system"});
            let spec = json!({"group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                "caBundle": bundle, "service": service});
            cloud
                .apply(json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name}, "spec": spec}))
                .await;
            cloud.kubectl(&["wait", "--for=condition=Available", &format!("apiservice/{name}"), "--timeout=30s"]).await;
        }
    }

    pub fn set(&self, path: &str, items: Value) {
        self.answers.lock().insert(path.to_owned(), items);
    }

    /// Lets every pod use this much of a processor.
    pub fn cpu(&self, pods: &[String], cpu: &str) {
        let now = k8s_openapi::jiff::Timestamp::now() + std::time::Duration::from_secs(60);
        let item = |pod: &String| {
            json!({"metadata": {"name": pod, "namespace": "default"}, "timestamp": now.to_string(), "window": "15s",
                "containers": [{"name": "c", "usage": {"cpu": cpu, "memory": "10Mi"}}]})
        };
        self.set("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods", pods.iter().map(item).collect());
    }
}
