//! Informers: a local copy of a kind, kept by list and watch, shared by everyone in the process who needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use crate::client::ListParams;
use crate::key::{Key, Object};
use crate::watch::{Watch, WatchEvent};
use crate::{Client, Error};

/// How the local copy changed.
#[derive(Debug, Clone)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is now, or was last.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => object,
        }
    }
}

type Handler<K> = Arc<dyn Fn(&Change<K>) + Send + Sync>;
type IndexFn<K> = Arc<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

struct Shared<K> {
    state: RwLock<State<K>>,
    /// Also orders changes: whoever applies one holds it, so that handlers see changes in order.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: signal::Sender<bool>,
}

/// A handle on a kind's local copy. Cheap to clone.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const PAGE: u32 = 500;

impl<K: Object> Informer<K> {
    /// Starts to list and watch until `shutdown`.
    pub fn start(client: Client, scope: ListParams, namespace: Option<&str>, shutdown: CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            state: RwLock::new(State { objects: BTreeMap::new(), indexes: HashMap::new() }),
            handlers: Mutex::new(Vec::new()),
            synced: signal::channel(false).0,
        });
        let reflector = Reflector { client, scope, namespace: namespace.map(str::to_owned), shared: shared.clone() };
        tokio::spawn(async move {
            let running = reflector.run();
            tokio::select! { () = running => {}, () = shutdown.cancelled() => {} }
        });
        Self { shared }
    }

    /// Returns once the first list is in.
    pub async fn synced(&self) {
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.shared.state.read().objects.get(key).cloned()
    }

    /// Everything, in key order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.state.read().objects.values().cloned().collect()
    }

    /// Makes objects findable by the values `values` gives for them.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let mut state = self.shared.state.write();
        let mut index = Index { values: Arc::new(values), keys: HashMap::new() };
        for (key, object) in &state.objects {
            index.insert(key, object);
        }
        state.indexes.insert(name, index);
    }

    /// The objects with a value in an index added before; none for an unknown index.
    pub fn by_index(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        let state = self.shared.state.read();
        let keys = state.indexes.get(name).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// Calls `handler` for every change from now on, first with what is there already as `Added`. It must not block.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.list() {
            handler(&Change::Added(object));
        }
        handlers.push(Arc::new(handler));
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

impl<K: Object> Shared<K> {
    /// Applies one change and tells the handlers.
    fn apply(&self, key: Key, object: Option<K>) {
        let handlers = self.handlers.lock();
        let change = self.state.write().apply(key, object.map(Arc::new));
        if let Some(change) = change {
            handlers.iter().for_each(|handler| handler(&change));
        }
    }

    /// Makes the copy equal to a full list.
    fn replace(&self, listed: Vec<K>) {
        let listed: BTreeMap<Key, K> = listed.into_iter().map(|object| (Key::of(object.metadata()), object)).collect();
        let gone: Vec<Key> =
            self.state.read().objects.keys().filter(|key| !listed.contains_key(key)).cloned().collect();
        for key in gone {
            self.apply(key, None);
        }
        for (key, object) in listed {
            self.apply(key, Some(object));
        }
    }
}

impl<K: Object> State<K> {
    fn apply(&mut self, key: Key, object: Option<Arc<K>>) -> Option<Change<K>> {
        let version = |object: &K| object.metadata().resource_version.clone();
        let old = self.objects.get(&key).cloned();
        if let (Some(old), Some(new)) = (&old, &object)
            && version(old) == version(new)
        {
            return None;
        }
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            if let Some(new) = &object {
                index.insert(&key, new);
            }
        }
        match (old, object) {
            (old, Some(new)) => {
                self.objects.insert(key, new.clone());
                Some(old.map_or_else(|| Change::Added(new.clone()), |old| Change::Updated { old, new: new.clone() }))
            }
            (Some(old), None) => {
                self.objects.remove(&key);
                Some(Change::Deleted(old))
            }
            (None, None) => None,
        }
    }
}

struct Reflector<K> {
    client: Client,
    scope: ListParams,
    namespace: Option<String>,
    shared: Arc<Shared<K>>,
}

impl<K: Object> Reflector<K> {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        // `None` means: list first.
        let mut version: Option<String> = None;
        loop {
            let begin = tokio::time::Instant::now();
            match self.list_and_watch(&mut version).await {
                // A watch that ran and ended in order is resumed at once.
                Ok(()) if begin.elapsed() > LONGEST_PAUSE => pause = FIRST_PAUSE,
                Ok(()) => tokio::time::sleep(jitter(FIRST_PAUSE)).await,
                Err(error) => {
                    // After an event that cannot be read, what follows it is seen by a list: watching again from the same
                    // revision would meet the same event for ever.
                    if error.is_gone() || matches!(error, Error::Decode { .. }) {
                        version = None;
                    }
                    tracing::debug!(kind = K::KIND, %error, "list or watch failed; retrying");
                    tokio::time::sleep(jitter(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn list_and_watch(&self, version: &mut Option<String>) -> Result<(), Error> {
        let from = match version.take() {
            Some(known) => known,
            None => self.list().await?,
        };
        *version = Some(from.clone());
        let mut watch = Watch::<K>::open(&self.client, self.namespace.as_deref(), &self.scope, &from).await?;
        while let Some(event) = watch.next().await {
            let (object, deleted) = match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark { resource_version } => {
                    *version = Some(resource_version);
                    continue;
                }
            };
            *version = object.metadata().resource_version.clone();
            let key = Key::of(object.metadata());
            self.shared.apply(key, (!deleted).then_some(object));
        }
        Ok(())
    }

    /// Lists all pages into the copy and returns the list's resource version.
    async fn list(&self) -> Result<String, Error> {
        let mut params = ListParams { limit: PAGE, ..self.scope.clone() };
        let mut items = Vec::new();
        loop {
            let page = self.client.list::<K>(self.namespace.as_deref(), &params).await?;
            items.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_ = Some(token),
                None => {
                    self.shared.replace(items);
                    self.shared.synced.send_replace(true);
                    return Ok(page.metadata.resource_version.unwrap_or_default());
                }
            }
        }
    }
}

/// Between a half and the whole, so that many clients do not retry in step.
fn jitter(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    pause / 2 + pause.mul_f64(f64::from(nanos % 1000) / 2000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    /// At its first revision the next event cannot be read; what it brought is in the list of the second.
    #[derive(Default)]
    struct OneBadEvent(AtomicU32);

    #[async_trait::async_trait]
    impl crate::Transport for OneBadEvent {
        async fn call(&self, request: http::Request<bytes::Bytes>) -> Result<http::Response<crate::Body>, Error> {
            let answer = |body: String| Ok(http::Response::new(crate::full(body.into())));
            let query = request.uri().query().unwrap_or_default();
            let version = self.0.load(Ordering::Relaxed);
            if !query.contains("watch=") {
                let name = if version == 0 { "first" } else { "second" };
                let items = [json!({"metadata": {"namespace": "default", "name": name, "resourceVersion": "1"}})];
                return answer(
                    json!({"metadata": {"resourceVersion": (version + 1).to_string()}, "items": items}).to_string(),
                );
            }
            if query.contains("resourceVersion=1") {
                self.0.store(1, Ordering::Relaxed);
                return answer("{\"type\": \"ADDED\", \"object\": {\"metadata\": \"unreadable\"}}\n".to_owned());
            }
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_read_is_made_up_for_by_a_list() {
        let stop = CancellationToken::new();
        let client = Client::new(Arc::new(OneBadEvent::default()));
        let informer = Informer::<ConfigMap>::start(client, ListParams::default(), None, stop.clone());
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        informer.on_change(move |change| {
            if let Change::Added(object) = change {
                let _ = tell.send(object.metadata.name.clone().unwrap_or_default());
            }
        });
        let mut seen = String::new();
        while seen != "second" {
            seen = told.recv().await.unwrap();
        }
        assert!(informer.list().iter().all(|object| object.metadata.name.as_deref() == Some("second")));
        stop.cancel();
    }
}
