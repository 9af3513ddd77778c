//! A webhook over TLS: answers reviews as a function says, and remembers what it was asked.
#![allow(clippy::unwrap_used, dead_code)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use dhow_base::tls;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::harness::Cluster;

/// What a hook does with a review's request.
pub enum Say {
    /// The response without its `uid`.
    Answer(Value),
    /// The whole document, right or wrong.
    Document(Value),
    /// A code other than 200.
    Fail(u16),
    /// Nothing, ever.
    Hang,
}

pub struct Hook {
    pub port: u16,
    /// The requests of all reviews, in order.
    pub asked: Mutex<Vec<(String, Value)>>,
    pub connections: AtomicUsize,
}

impl Hook {
    pub async fn serve(cluster: &Cluster, say: impl Fn(&str, &Value) -> Say + Send + Sync + 'static) -> Arc<Self> {
        let sans = ["127.0.0.1", "hook.default.svc"].map(str::to_owned);
        let pair = cluster.ca.issue_server("hook", &sans).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(tls::server_config(&pair, None).unwrap());
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let hook = Arc::new(Self { port, asked: Mutex::default(), connections: AtomicUsize::new(0) });
        let (shared, say) = (hook.clone(), Arc::new(say));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, hook, say) = (acceptor.clone(), shared.clone(), say.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    hook.connections.fetch_add(1, Ordering::SeqCst);
                    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let (hook, say) = (hook.clone(), say.clone());
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let review: Value = serde_json::from_slice(&body).unwrap();
                            hook.asked.lock().push((path.clone(), review["request"].clone()));
                            let (code, document) = match say(&path, &review["request"]) {
                                Say::Hang => std::future::pending().await,
                                Say::Fail(code) => (code, json!("out of order")),
                                Say::Document(document) => (200, document),
                                Say::Answer(mut response) => {
                                    response["uid"] = review["request"]["uid"].clone();
                                    let kind = "AdmissionReview";
                                    let version = "admission.k8s.io/v1";
                                    (200, json!({"kind": kind, "apiVersion": version, "response": response}))
                                }
                            };
                            let body = Full::new(Bytes::from(document.to_string()));
                            Ok::<_, hyper::Error>(http::Response::builder().status(code).body(body).unwrap())
                        }
                    });
                    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        hook
    }

    /// A `clientConfig` that leads here by URL.
    pub fn client_config(&self, cluster: &Cluster, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": ca_bundle(cluster)})
    }

    /// Paths of what was asked so far.
    pub fn paths(&self) -> Vec<String> {
        self.asked.lock().iter().map(|(path, _)| path.clone()).collect()
    }
}

pub fn ca_bundle(cluster: &Cluster) -> String {
    base64::engine::general_purpose::STANDARD.encode(cluster.ca.cert_pem())
}

/// A response that patches.
pub fn patching(operations: &Value) -> Say {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    Say::Answer(json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}
