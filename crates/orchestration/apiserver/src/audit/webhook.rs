//! Audit events for a server of others: posted in batches, as `EventList` of `audit.k8s.io/v1`.
//!
//! Events wait in a bounded queue. A batch that cannot be delivered is tried again, each time after a longer pause; in
//! the end, and when the queue is full, events are dropped and counted. No request waits for any of it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dhow_base::metrics::Counter;
use dhow_client::{Client, HttpsConfig};
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;

use crate::Error;

/// Events that wait.
const QUEUE: usize = 10_000;
/// Events that go together at most.
const BATCH: usize = 400;
/// How long the first event of a batch waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// How long the server may take for one batch.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often one batch is tried.
const TRIES: u32 = 5;

/// A server that wants the audit events.
pub struct AuditWebhook {
    /// Where to post to.
    path: String,
    way: Way,
    /// The pause before a batch is tried a second time; each later one is twice as long.
    pub pause: Duration,
}

enum Way {
    Tls(Client),
    /// To this machine itself.
    Plain(Box<Pool<HttpConnector, Full<Bytes>>>),
}

impl AuditWebhook {
    /// Reads a kubeconfig file whose current cluster is the server: the whole address counts, with its path. Plain
    /// HTTP is only for servers on this machine, because events tell much.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, Error> {
        let bad = |why: String| Error::Configuration(format!("audit webhook {}: {why}", path.display()));
        let config = HttpsConfig::from_kubeconfig(path, None).map_err(|error| bad(error.to_string()))?;
        let server: Uri = config.server.parse().map_err(|error| bad(format!("server {:?}: {error}", config.server)))?;
        let place = server.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        if server.scheme_str() != Some("http") {
            let client = Client::https(config).map_err(|error| bad(error.to_string()))?;
            return Ok(Self { path: place, way: Way::Tls(client), pause: Duration::from_secs(1) });
        }
        let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
            return Err(bad(format!("server {server} is neither https nor on this machine: use https")));
        }
        let pool = Pool::builder(TokioExecutor::new()).build(HttpConnector::new());
        Ok(Self { path: server.to_string(), way: Way::Plain(pool.into()), pause: Duration::from_secs(1) })
    }

    /// Begins to deliver what the returned end is given.
    pub fn start(self, lost: Counter) -> Sender {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(self.run(events, lost.clone()));
        Sender { queue, lost }
    }

    async fn run(self, mut events: mpsc::Receiver<Bytes>, lost: Counter) {
        let mut batch = Vec::new();
        while events.recv_many(&mut batch, BATCH).await > 0 {
            let more = async {
                let mut room = BATCH - batch.len();
                while room > 0 && events.recv_many(&mut batch, room).await > 0 {
                    room = BATCH - batch.len();
                }
            };
            // What is there when the time is over goes.
            let _ = tokio::time::timeout(WAIT, more).await;
            if let Err(error) = self.deliver(&batch).await {
                lost.add(batch.len() as u64);
                tracing::error!(events = batch.len(), error, "audit events are lost: the webhook does not take them");
            }
            batch.clear();
        }
    }

    async fn deliver(&self, batch: &[Bytes]) -> Result<(), String> {
        let body = body(batch);
        let mut pause = self.pause;
        let mut tried = 1;
        loop {
            let result = tokio::time::timeout(TIMEOUT, self.post(body.clone())).await;
            match result.unwrap_or_else(|_| Err("it does not answer in time".into())) {
                Ok(code) if code.is_success() => return Ok(()),
                // It would say so again.
                Ok(code) if code.is_client_error() && code != StatusCode::TOO_MANY_REQUESTS => {
                    return Err(format!("it answers {code}"));
                }
                Ok(code) if tried == TRIES => return Err(format!("it answers {code}")),
                Err(error) if tried == TRIES => return Err(error),
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            tried += 1;
        }
    }

    async fn post(&self, body: Bytes) -> Result<StatusCode, String> {
        let request = Request::post(self.path.as_str()).header(header::CONTENT_TYPE, "application/json");
        let bad = |error: http::Error| error.to_string();
        match &self.way {
            Way::Tls(client) => {
                let answer = client.request(request.body(body).map_err(bad)?).await;
                answer.map(|answer| answer.status()).map_err(|error| dhow_base::chain(&error))
            }
            Way::Plain(pool) => {
                let answer = pool.request(request.body(Full::new(body)).map_err(bad)?).await;
                answer.map(|answer| answer.status()).map_err(|error| dhow_base::chain(&error))
            }
        }
    }
}

/// The list of events that are JSON already.
fn body(events: &[Bytes]) -> Bytes {
    let mut body = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    body.extend(events.join(&b","[..]));
    body.extend_from_slice(b"]}");
    body.into()
}

/// The end that events are put into.
pub struct Sender {
    queue: mpsc::Sender<Bytes>,
    lost: Counter,
}

impl Sender {
    pub fn write(&self, event: Bytes) {
        if self.queue.try_send(event).is_err() {
            self.lost.inc();
        }
    }
}
