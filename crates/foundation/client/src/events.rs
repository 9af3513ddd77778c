//! Records `Event` objects, with repeats counted on one object.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;

use crate::key::Object;
use crate::{Client, Error, Patch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// A reference to an object, as events and bindings carry it.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let metadata = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.into()),
        kind: Some(K::KIND.into()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

/// Events that say the same about the same object share one `Event`.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    field_path: String,
    kind: EventType,
    reason: String,
    message: String,
}

struct Seen {
    name: String,
    count: i32,
}

/// Beyond this many different events the counts start anew.
const REMEMBERED: usize = 4096;
/// Events that wait to be written; more are lost, for nobody may wait for them.
const WAITING: usize = 1024;

/// Speaks for one component. Cheap to clone. Whoever tells of something never waits for it to be written.
#[derive(Clone)]
pub struct EventRecorder {
    host: Option<Arc<str>>,
    queue: mpsc::Sender<Told>,
}

/// One thing that happened.
struct Told {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    host: Option<Arc<str>>,
    at: Timestamp,
}

impl EventRecorder {
    /// Starts the task that writes; it ends with the last clone.
    pub fn new(client: Client, component: &str) -> Self {
        let (queue, mut told) = mpsc::channel::<Told>(WAITING);
        let mut writer = Writer { client, component: component.into(), seen: HashMap::new() };
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                let reason = event.reason.clone();
                if let Err(error) = writer.write(event).await {
                    tracing::debug!(%error, reason, "cannot record an event");
                }
            }
        });
        Self { host: None, queue }
    }

    /// Names the node that the events come from.
    pub fn on_host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Records an event, soon. A failure is logged: an event never stops what it tells of.
    pub fn event(&self, about: ObjectReference, kind: EventType, reason: &str, message: &str) {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        let told = Told { about, kind, reason, message, host: self.host.clone(), at: Timestamp::now() };
        if let Err(error) = self.queue.try_send(told) {
            tracing::warn!(%error, "an event is lost");
        }
    }
}

/// Turns what happened into objects, counting what happens again.
struct Writer {
    client: Client,
    component: String,
    seen: HashMap<Same, Seen>,
}

impl Writer {
    async fn write(&mut self, told: Told) -> Result<(), Error> {
        let same = Same {
            uid: told.about.uid.clone().unwrap_or_default(),
            field_path: told.about.field_path.clone().unwrap_or_default(),
            kind: told.kind,
            reason: told.reason.clone(),
            message: told.message.clone(),
        };
        let namespace = told.about.namespace.clone().unwrap_or_else(|| "default".into());
        let at = Time(told.at);
        if let Some(seen) = self.seen.get_mut(&same) {
            seen.count += 1;
            let patch = Patch::Merge(json!({"count": seen.count, "lastTimestamp": at}));
            match self.client.patch::<Event>(Some(&namespace), &seen.name, patch, None).await {
                Err(error) if error.is_not_found() => {}
                other => return other.map(drop),
            }
        }
        let name = event_name(told.about.name.as_deref().unwrap_or_default(), told.at);
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: told.about,
            reason: Some(told.reason),
            message: Some(told.message),
            type_: Some(told.kind.as_str().into()),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: told.host.as_deref().map(str::to_owned),
            }),
            first_timestamp: Some(at.clone()),
            last_timestamp: Some(at),
            count: Some(1),
            reporting_component: Some(self.component.clone()),
            ..Event::default()
        };
        self.client.create(&event).await?;
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(same, Seen { name, count: 1 });
        Ok(())
    }
}

/// `<object>.<nanoseconds in hexadecimal>`, as upstream names events.
fn event_name(object: &str, now: Timestamp) -> String {
    format!("{object}.{:x}", now.as_nanosecond())
}
