//! Tells others what was pushed and deleted in a project: as a CloudEvent, or as docker-registry tells it.
//!
//! Deliveries are kept in memory: each is tried for about a minute, and what is under way when the server ends is lost. Nobody
//! who pushes waits for them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_base::metrics::Counters;
use dhow_client::{Client, Informer, Key};
use dhow_image::Registries;
use http::{HeaderValue, Request, header};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::kinds::{Format, HookEvent, Project, Webhook};
use crate::events::{Action, Event};
use crate::projects::project_of;
use crate::{Registry, Result};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const TRIES: u32 = 6;
/// Deliveries under way; further events wait in their turn.
const AT_ONCE: usize = 16;
/// In a hook's Secret: the value of the header `Authorization`.
const AUTHORIZATION: &str = "authorization";

/// Delivers until `stop`.
pub async fn run(
    registry: Registry,
    client: Client,
    projects: Informer<Project>,
    host: String,
    stop: CancellationToken,
) {
    let deliveries = registry.0.config.metrics.counter(
        "dhow_registry_webhook_deliveries_total",
        "Events told to projects' webhooks.",
        &["project", "result"],
    );
    let sender = Arc::new(Sender { client, registries: registry.0.config.registries.clone(), host, deliveries });
    let mut events = registry.events();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let event = tokio::select! { event = events.recv() => event, () = stop.cancelled() => return };
        let event = match event {
            Ok(event) => Arc::new(event),
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "webhooks are too slow; events were not told");
                continue;
            }
            Err(RecvError::Closed) => return stop.cancelled().await,
        };
        let name = project_of(&event.repository).to_owned();
        let Some(project) = projects.get(&Key::new(None, &name)) else { continue };
        for hook in project.spec.webhooks.iter().filter(|hook| wants(hook, &event)) {
            let turn =
                tokio::select! { turn = Arc::clone(&turns).acquire_owned() => turn, () = stop.cancelled() => return };
            let Ok(turn) = turn else { return };
            let (sender, hook, event, name) = (Arc::clone(&sender), hook.clone(), Arc::clone(&event), name.clone());
            let stop = stop.clone();
            tokio::spawn(async move {
                let _turn = turn;
                tokio::select! { () = sender.deliver(&name, &hook, &event) => {}, () = stop.cancelled() => {} }
            });
        }
    }
}

fn wants(hook: &Webhook, event: &Event) -> bool {
    let kind = match event.action {
        Action::Push => HookEvent::Push,
        Action::Delete => HookEvent::Delete,
    };
    // Collections tell of repositories, not of anything that has a name.
    let named = event.digest.is_some() || !event.tags.is_empty();
    named && (hook.events.is_empty() || hook.events.contains(&kind))
}

struct Sender {
    client: Client,
    registries: Arc<Registries>,
    /// What references call the registry.
    host: String,
    deliveries: Counters,
}

impl Sender {
    /// Tries until the other side has it, or it is no use.
    async fn deliver(&self, project: &str, hook: &Webhook, event: &Event) {
        // The same for every try, so that the other side knows it again.
        let id = uuid::Uuid::new_v4().to_string();
        let now = jiff::Timestamp::now().to_string();
        let (kind, body) = written(hook.format, event, &self.host, &id, &now);
        let mut pause = FIRST_PAUSE;
        let mut failed = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            match self.send(hook, kind, &body).await {
                Ok(()) => return self.deliveries.with(&[project, "delivered"]).inc(),
                Err(error) => failed = error,
            }
        }
        self.deliveries.with(&[project, "failed"]).inc();
        tracing::warn!(project, webhook = hook.url, error = failed, "an event could not be told");
    }

    async fn send(&self, hook: &Webhook, kind: &'static str, body: &Value) -> Result<(), String> {
        let mut request = Request::post(&hook.url).header(header::CONTENT_TYPE, kind);
        if let Some(secret) = &hook.authorization {
            let found = self.client.get::<Secret>(Some(&secret.namespace), &secret.name).await;
            let found = found.map_err(|error| format!("read the Secret of the webhook: {error}"))?;
            let value = found.data.as_ref().and_then(|data| data.get(AUTHORIZATION));
            let value = value.ok_or_else(|| format!("the Secret of the webhook has no {AUTHORIZATION}"))?;
            let mut value = HeaderValue::from_bytes(value.0.trim_ascii())
                .map_err(|_| "the Secret of the webhook has what no header can".to_owned())?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Bytes::from(body.to_string())).map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(PATIENCE, self.registries.send(request)).await;
        let answer = answer.map_err(|_| format!("no answer for {} s", PATIENCE.as_secs()))?;
        let status = answer.map_err(|error| error.chain())?.status();
        if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
    }
}

/// Media type and body.
fn written(format: Format, event: &Event, host: &str, id: &str, now: &str) -> (&'static str, Value) {
    let action = match event.action {
        Action::Push => "push",
        Action::Delete => "delete",
    };
    let Event { repository, digest, media_type, size, tags, user, .. } = event;
    match format {
        Format::CloudEvents => {
            let name = format!("{host}/{repository}");
            let body = json!({
                "specversion": "1.0", "id": id, "time": now, "source": format!("https://{name}"),
                "type": format!("io.dhow.registry.{action}"),
                "subject": digest.as_ref().map_or_else(|| tags.join(","), ToString::to_string),
                "datacontenttype": "application/json",
                "data": {
                    "repository": repository, "digest": digest, "mediaType": media_type, "size": size, "tags": tags,
                    "user": user, "references": tags.iter().map(|tag| format!("{name}:{tag}")).collect::<Vec<_>>(),
                },
            });
            ("application/cloudevents+json", body)
        }
        Format::Docker => {
            let of = |index: usize, tag: Option<&String>| {
                let url = digest.as_ref().map(|digest| format!("https://{host}/v2/{repository}/manifests/{digest}"));
                let mut target = json!({ "repository": repository });
                for (key, value) in [
                    ("mediaType", json!(media_type)),
                    ("size", json!(size)),
                    ("length", json!(size)),
                    ("digest", json!(digest)),
                    ("url", json!(url)),
                    ("tag", json!(tag)),
                ] {
                    if !value.is_null() {
                        target[key] = value;
                    }
                }
                json!({
                    "id": format!("{id}-{index}"), "timestamp": now, "action": action, "target": target,
                    "request": {"host": host}, "actor": {"name": user}, "source": {"addr": host},
                })
            };
            let events: Vec<Value> = match tags.is_empty() {
                true => vec![of(0, None)],
                false => tags.iter().enumerate().map(|(index, tag)| of(index, Some(tag))).collect(),
            };
            ("application/vnd.docker.distribution.events.v2+json", json!({ "events": events }))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use dhow_client::{Body, Transport};
    use dhow_image::Digest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn event(action: Action, tags: &[&str]) -> Event {
        Event {
            action,
            repository: "team/app".to_owned(),
            digest: Some(Digest::of(b"x")),
            media_type: Some("application/vnd.oci.image.manifest.v1+json".to_owned()),
            size: Some(7),
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            user: "ada".to_owned(),
        }
    }

    #[test]
    fn both_forms_say_who_did_what() {
        let push = event(Action::Push, &["1", "latest"]);
        let (kind, cloud) = written(Format::CloudEvents, &push, "r:1", "id", "now");
        assert_eq!((kind, &cloud["type"]), ("application/cloudevents+json", &json!("io.dhow.registry.push")));
        assert_eq!(cloud["data"]["references"], json!(["r:1/team/app:1", "r:1/team/app:latest"]));
        assert_eq!(cloud["subject"], json!(Digest::of(b"x")));
        let (_, docker) = written(Format::Docker, &push, "r:1", "id", "now");
        let tags: Vec<&Value> = docker["events"].as_array().unwrap().iter().map(|e| &e["target"]["tag"]).collect();
        assert_eq!(tags, ["1", "latest"]);
        assert_eq!(docker["events"][0]["actor"]["name"], "ada");
        let (_, gone) = written(Format::Docker, &event(Action::Delete, &[]), "r:1", "id", "now");
        assert!(gone["events"][0]["action"] == "delete" && gone["events"][0]["target"].get("tag").is_none());
    }

    #[test]
    fn hooks_choose_their_events() {
        let hook = |value| serde_json::from_value::<Webhook>(value).unwrap();
        let all = hook(json!({"url": "http://x"}));
        let pushes = hook(json!({"url": "http://x", "events": ["Push"]}));
        assert!(wants(&all, &event(Action::Delete, &[])) && !wants(&pushes, &event(Action::Delete, &[])));
        assert!(wants(&pushes, &event(Action::Push, &["1"])));
        let nameless = Event { digest: None, ..event(Action::Delete, &[]) };
        assert!(!wants(&all, &nameless));
    }

    /// Has one Secret.
    struct Api;

    #[async_trait::async_trait]
    impl Transport for Api {
        async fn call(&self, request: Request<Bytes>) -> Result<http::Response<Body>, dhow_client::Error> {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/ops/secrets/hook");
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"authorization": "QmVhcmVyIHg="}});
            Ok(http::Response::new(dhow_client::full(Bytes::from(secret.to_string()))))
        }
    }

    #[tokio::test]
    async fn a_delivery_is_tried_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let other_side = tokio::spawn(async move {
            let mut seen = Vec::new();
            for status in ["503 Service Unavailable", "204 No Content"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = Vec::new();
                while !text.ends_with(b"}") {
                    stream.read_buf(&mut text).await.unwrap();
                }
                seen.push(String::from_utf8(text).unwrap());
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        let metrics = dhow_base::metrics::Registry::new();
        let sender = Sender {
            client: Client::new(Arc::new(Api)),
            registries: Arc::default(),
            host: "r:1".to_owned(),
            deliveries: metrics.counter("d", "D.", &["project", "result"]),
        };
        let hook = json!({"url": url, "authorization": {"namespace": "ops", "name": "hook"}});
        sender.deliver("team", &serde_json::from_value(hook).unwrap(), &event(Action::Push, &["1"])).await;
        let seen = other_side.await.unwrap();
        assert!(
            seen[0].starts_with("POST /hook HTTP/1.1") && seen[0].contains("authorization: Bearer x"),
            "{}",
            seen[0]
        );
        let body = |text: &str| text.split("\r\n\r\n").nth(1).unwrap().to_owned();
        assert_eq!(body(&seen[0]), body(&seen[1]));
        assert_eq!(sender.deliveries.with(&["team", "delivered"]).get(), 1.0);
    }
}
