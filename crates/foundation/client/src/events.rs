//! Records `Event` objects, with repeats counted on one object.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;

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

/// Speaks for one component. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    client: Client,
    component: Arc<str>,
    host: Option<Arc<str>>,
    seen: Arc<Mutex<HashMap<Same, Seen>>>,
}

/// Beyond this many different events the counts start anew.
const REMEMBERED: usize = 4096;

impl EventRecorder {
    pub fn new(client: Client, component: &str) -> Self {
        Self { client, component: component.into(), host: None, seen: Arc::default() }
    }

    /// Names the node that the events come from.
    pub fn on_host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Records an event. A failure is logged: an event never stops what it tells of.
    pub async fn event(&self, about: ObjectReference, kind: EventType, reason: &str, message: &str) {
        if let Err(error) = self.record(about, kind, reason, message).await {
            tracing::debug!(%error, reason, "cannot record an event");
        }
    }

    async fn record(&self, about: ObjectReference, kind: EventType, reason: &str, message: &str) -> Result<(), Error> {
        let same = Same {
            uid: about.uid.clone().unwrap_or_default(),
            field_path: about.field_path.clone().unwrap_or_default(),
            kind,
            reason: reason.into(),
            message: message.into(),
        };
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let now = Time(Timestamp::now());
        if let Some((name, count)) = self.repeat(&same) {
            let patch = Patch::Merge(json!({"count": count, "lastTimestamp": now}));
            match self.client.patch::<Event>(Some(&namespace), &name, patch, None).await {
                Err(error) if error.is_not_found() => {}
                other => return other.map(drop),
            }
        }
        let name = event_name(about.name.as_deref().unwrap_or_default(), now.0);
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: about,
            reason: Some(reason.into()),
            message: Some(message.into()),
            type_: Some(kind.as_str().into()),
            source: Some(EventSource {
                component: Some(self.component.to_string()),
                host: self.host.as_deref().map(str::to_owned),
            }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            reporting_component: Some(self.component.to_string()),
            ..Event::default()
        };
        self.client.create(&event).await?;
        let mut seen = self.seen.lock();
        if seen.len() >= REMEMBERED {
            seen.clear();
        }
        seen.insert(same, Seen { name, count: 1 });
        Ok(())
    }

    /// The name and new count of an event said before.
    fn repeat(&self, same: &Same) -> Option<(String, i32)> {
        let mut seen = self.seen.lock();
        let entry = seen.get_mut(same)?;
        entry.count += 1;
        Some((entry.name.clone(), entry.count))
    }
}

/// `<object>.<nanoseconds in hexadecimal>`, as upstream names events.
fn event_name(object: &str, now: Timestamp) -> String {
    format!("{object}.{:x}", now.as_nanosecond())
}
