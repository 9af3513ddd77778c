//! The proxy behind a watch: what the API says reaches the kernel, and nothing is removed too early.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_client::{Body, Client, Error, Transport, full};
use dhow_net::proxy;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{Node, greeting, privileged, service, slice};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 80);

type Frames = mpsc::UnboundedReceiver<Value>;

/// An API with fixed lists and a watch on EndpointSlices that the test feeds.
struct Api {
    services: Vec<Value>,
    slices: Vec<Value>,
    frames: Mutex<Option<Frames>>,
}

#[async_trait::async_trait]
impl Transport for Api {
    async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
        let is_slices = request.uri().path().ends_with("/endpointslices");
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let body = if watches {
            let frames = if is_slices { self.frames.lock().take() } else { None };
            let stream = futures::stream::unfold(frames, |frames| async move {
                let Some(mut frames) = frames else { return std::future::pending().await };
                let frame = frames.recv().await?;
                let bytes = Bytes::from(format!("{frame}\n"));
                Some((Ok::<_, Error>(http_body::Frame::data(bytes)), Some(frames)))
            });
            StreamBody::new(stream).boxed_unsync()
        } else {
            let none = Vec::new();
            let items = match request.uri().path() {
                path if path.ends_with("/services") => &self.services,
                _ if is_slices => &self.slices,
                _ => &none,
            };
            full(json!({"metadata": {"resourceVersion": "10"}, "items": items}).to_string().into())
        };
        Ok(http::Response::new(body))
    }
}

fn versioned(object: &impl serde::Serialize, version: &str) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    value["metadata"]["resourceVersion"] = json!(version);
    value
}

#[tokio::test]
async fn what_the_api_says_reaches_the_kernel() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (client, one, two) = (node.pod().await, node.pod().await, node.pod().await);
    one.serve(8080, "one");
    two.serve(8080, "two");
    let web = service("web", json!({"clusterIP": VIP, "ports": [{"port": 80}]}));
    let before = slice("web", 8080, "TCP", &[one.ip]);
    let (feed, frames) = mpsc::unbounded_channel();
    let api = Api {
        services: vec![versioned(&web, "1")],
        slices: vec![versioned(&before, "2")],
        frames: Mutex::new(Some(frames)),
    };
    let shutdown = CancellationToken::new();
    let running = {
        let (net, shutdown) = (node.net.clone(), shutdown.clone());
        tokio::spawn(async move { proxy::run(Client::new(Arc::new(api)), net, "node", shutdown).await })
    };
    let until = async |name: &str| {
        let reached = async {
            while greeting(&client.netns, (VIP, 80)).ok().is_none_or(|(answered, _)| answered != name) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.unwrap();
    };
    until("one").await;
    let after = slice("web", 8080, "TCP", &[two.ip]);
    feed.send(json!({"type": "MODIFIED", "object": versioned(&after, "11")})).unwrap();
    until("two").await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap().0, "two", "services outlive the daemon");
}
