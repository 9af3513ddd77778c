//! The watch cache: the live objects of all kinds in memory, fed by one watch on the store. Objects whose kind is not
//! served, because its definition is not there yet, wait as they are until it is.
//!
//! One feed for all kinds means one revision for all of them: a reader that has seen revision R anywhere sees
//! everything up to R everywhere.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_api::Status;
use dhow_api::registry::{KINDS, Kind, KindRef, builtin};
use dhow_store::{Event, EventKind, KeyRange, Kv, RangeRequest, WatchMessage, WatchRequest, WatchStream};
use futures::StreamExt;
use imbl::OrdMap;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::changes::{Changes, Log};
use crate::object::{Change, Stored};
use crate::revision::Revision;

/// Everything the API server stores lives under this prefix.
const ROOT: &str = "/registry/";
/// Before a store that does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Snapshots kept per kind so that later pages come from the revision of the first, and for how long once the objects
/// change: each holds what was replaced since. What is no longer kept is read from the store.
const SNAPSHOTS: usize = 16;
const SNAPSHOT_LIFE: Duration = Duration::from_secs(5 * 60);

pub type Objects = OrdMap<Arc<str>, Arc<Stored>>;

/// One kind's objects and recent changes.
struct KindCache {
    /// The row in whose form the objects are; `None` while nobody serves them.
    row: Option<KindRef>,
    objects: Objects,
    log: Arc<Log>,
    snapshots: VecDeque<Kept>,
}

/// A snapshot somebody may ask for again.
struct Kept {
    since: Instant,
    /// The row in whose form its objects are.
    definition: &'static str,
    revision: u64,
    objects: Objects,
}

type Shared = Arc<RwLock<KindCache>>;

pub struct Cache {
    kinds: RwLock<HashMap<String, Shared>>,
    revision: Revision,
}

impl KindCache {
    fn new(row: Option<KindRef>, revision: u64) -> Self {
        Self { row, objects: Objects::new(), log: Log::new(revision), snapshots: VecDeque::new() }
    }

    /// Shows the objects as this row does. Whoever watches the old one asks again.
    fn become_row(&mut self, row: Option<KindRef>) {
        let again = |stored: &Arc<Stored>| match stored.again(row.as_deref()) {
            Ok(stored) => Arc::new(stored),
            Err(status) => {
                tracing::error!(key = %stored.key, message = status.message, "an object has no other form");
                stored.clone()
            }
        };
        self.objects = self.objects.iter().map(|(key, stored)| (key.clone(), again(stored))).collect();
        self.snapshots.clear();
        self.log = self.log.reopen();
        self.row = row;
    }
}

impl Kept {
    fn is(&self, kind: &Kind, revision: u64) -> bool {
        self.revision == revision && self.definition == kind.definition
    }
}

/// A consistent view of a kind at a revision.
pub struct Snapshot {
    pub objects: Objects,
    pub revision: u64,
}

/// A place in a kind's changes: those already there, then those to come.
pub struct Subscription {
    pub past: Vec<Arc<Change>>,
    pub future: Changes,
}

impl Cache {
    /// Loads everything and follows the store until `shutdown`.
    pub async fn start(kv: Arc<dyn Kv>, shutdown: CancellationToken) -> Result<Arc<Self>, Error> {
        let cache = Arc::new(Self { kinds: RwLock::new(empty_kinds()), revision: Revision::default() });
        let feed = cache.load(&kv).await?;
        let following = cache.clone();
        tokio::spawn(async move {
            tokio::select! { () = following.follow(kv, feed) => {}, () = shutdown.cancelled() => {} }
        });
        Ok(cache)
    }

    /// Reads all objects, and opens the watch from the revision they were read at.
    async fn load(&self, kv: &Arc<dyn Kv>) -> Result<WatchStream, Error> {
        let request = RangeRequest::new(KeyRange::prefix(ROOT));
        let all = kv.range(request).await.map_err(Error::Store)?;
        let mut loaded: HashMap<&str, Objects> = HashMap::new();
        for entry in &all.kvs {
            let Some((prefix, cache)) = self.kind_of(&entry.key) else { continue };
            let row = cache.read().row.clone();
            let stored = Stored::decode(row.as_deref(), &entry.key, &entry.value, entry.mod_revision)
                .map_err(|status| Error::Corrupt(status.message))?;
            loaded.entry(prefix).or_default().insert(stored.key.clone(), Arc::new(stored));
        }
        for (prefix, cache) in self.kinds.read().iter() {
            let mut state = cache.write();
            state.objects = loaded.remove(prefix.as_str()).unwrap_or_default();
            state.snapshots.clear();
            // Who read the old log has missed what happened meanwhile.
            state.log.close();
            state.log = Log::new(all.revision);
        }
        // Of all keys: every write raises the revision that readers wait for, also one that is not ours.
        let watch = WatchRequest { range: KeyRange::prefix(""), start_revision: all.revision + 1 };
        let feed = kv.watch(watch).await.map_err(Error::Store)?;
        self.revision.reached(all.revision);
        Ok(feed)
    }

    async fn follow(self: Arc<Self>, kv: Arc<dyn Kv>, mut feed: WatchStream) {
        loop {
            match feed.next().await {
                Some(Ok(WatchMessage::Events { revision, events })) => {
                    for event in events {
                        self.apply(&event);
                    }
                    self.revision.reached(revision);
                }
                Some(Ok(WatchMessage::Progress { revision })) => self.revision.reached(revision),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the store's watch broke; loading again");
                    feed = self.load_again(&kv).await;
                }
                None => return,
            }
        }
    }

    /// Loads once the store answers again. What happened meanwhile nobody can tell those who watch, so they are cut off
    /// and list again.
    async fn load_again(&self, kv: &Arc<dyn Kv>) -> WatchStream {
        loop {
            match self.load(kv).await {
                Ok(fresh) => return fresh,
                Err(error) => tracing::error!(%error, "cannot load the store; trying again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn apply(&self, event: &Event) {
        let Some((_, cache)) = self.kind_of(&event.kv.key) else { return };
        let revision = event.kv.mod_revision;
        let deleted = event.kind == EventKind::Delete;
        let value = match (deleted, &event.previous) {
            (false, _) => &event.kv.value,
            (true, Some(previous)) => &previous.value,
            (true, None) => return,
        };
        let decode = |row: &Option<KindRef>| Stored::decode(row.as_deref(), &event.kv.key, value, revision);
        let row = cache.read().row.clone();
        let decoded = decode(&row);
        let mut state = cache.write();
        let decoded = if same_row(&state.row, &row) { decoded } else { decode(&state.row) };
        let stored = match decoded {
            Ok(stored) => Arc::new(stored),
            Err(status) => return tracing::error!(message = status.message, "skipping a change"),
        };
        let previous = if deleted {
            state.objects.remove(&stored.key)
        } else {
            state.objects.insert(stored.key.clone(), stored.clone())
        };
        while state.snapshots.front().is_some_and(|kept| kept.since.elapsed() > SNAPSHOT_LIFE) {
            state.snapshots.pop_front();
        }
        // Under the lock, so that a subscriber misses nothing.
        state.log.push(Change::new(revision, stored, previous, deleted));
    }

    /// The place of a key's kind, made if nobody serves the kind yet.
    fn kind_of<'a>(&self, key: &'a [u8]) -> Option<(&'a str, Shared)> {
        // `/registry/<group>/<plural>/…`
        let key = std::str::from_utf8(key).ok().filter(|key| key.starts_with(ROOT))?;
        let end = key.match_indices('/').nth(3)?.0;
        let prefix = &key[..=end];
        let known = self.kinds.read().get(prefix).cloned();
        Some((prefix, known.unwrap_or_else(|| self.place(prefix))))
    }

    fn place(&self, prefix: &str) -> Shared {
        // What happened before is not known here.
        let state = KindCache::new(None, self.revision());
        let empty = || Arc::new(RwLock::new(state));
        self.kinds.write().entry(prefix.to_owned()).or_insert_with(empty).clone()
    }

    fn cache(&self, kind: &Kind) -> Result<Shared, Status> {
        self.kinds.read().get(&kind.storage_prefix()).cloned().ok_or_else(Status::no_such_resource)
    }

    /// Shows the objects of a custom kind as the row of its stored version does.
    pub fn serve(&self, row: KindRef) {
        self.place(&row.storage_prefix()).write().become_row(Some(row));
    }

    /// The kind is gone: whoever watches it is told so, and what is left of its objects waits.
    pub fn withdraw(&self, row: &Kind) {
        let mut kinds = self.kinds.write();
        let Some(cache) = kinds.get(&row.storage_prefix()).cloned() else { return };
        let mut state = cache.write();
        state.become_row(None);
        if state.objects.is_empty() {
            kinds.remove(&row.storage_prefix());
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision.now()
    }

    /// Returns once everything up to `revision` is in.
    pub async fn wait_for(&self, revision: u64) {
        self.revision.wait_for(revision).await;
    }

    /// One object as the cache knows it.
    pub fn get(&self, kind: &Kind, key: &str) -> Option<Arc<Stored>> {
        self.stored(kind, key).map(|stored| stored.in_form(kind))
    }

    /// One object of a built-in kind of version 1.
    pub fn find(&self, group: &str, plural: &str, namespace: Option<&str>, name: &str) -> Option<Arc<Stored>> {
        let kind = builtin().get(group, "v1", plural)?;
        self.get(kind, &kind.storage_key(namespace, name))
    }

    /// One object in the form in which the kind is stored.
    pub fn stored(&self, kind: &Kind, key: &str) -> Option<Arc<Stored>> {
        self.cache(kind).ok()?.read().objects.get(key).cloned()
    }

    /// The revision of a kind's newest change.
    pub fn changed(&self, kind: &Kind) -> u64 {
        self.cache(kind).map_or(0, |cache| cache.read().log.revision())
    }

    /// The kind's objects now, for the server's own use: no page will be asked of them.
    pub fn objects(&self, kind: &Kind) -> Result<Objects, Status> {
        Ok(in_form(kind, self.cache(kind)?.read().objects.clone()))
    }

    /// The kind's objects now.
    pub fn snapshot(&self, kind: &Kind) -> Result<Snapshot, Status> {
        let cache = self.cache(kind)?;
        let state = cache.read();
        let (objects, revision) = (state.objects.clone(), state.log.revision().max(self.revision()));
        drop(state);
        Ok(Snapshot { objects: in_form(kind, objects), revision })
    }

    /// Keeps a snapshot for a while: more of it will be asked for.
    pub fn keep(&self, kind: &Kind, snapshot: Snapshot) -> Result<(), Status> {
        let cache = self.cache(kind)?;
        let mut state = cache.write();
        let Snapshot { objects, revision } = snapshot;
        if !state.snapshots.iter().any(|kept| kept.is(kind, revision)) {
            if state.snapshots.len() == SNAPSHOTS {
                state.snapshots.pop_front();
            }
            state.snapshots.push_back(Kept { since: Instant::now(), definition: kind.definition, revision, objects });
        }
        Ok(())
    }

    /// The kind's objects as they are in a snapshot that is still kept.
    pub fn snapshot_at(&self, kind: &Kind, revision: u64) -> Result<Option<Snapshot>, Status> {
        let cache = self.cache(kind)?;
        let state = cache.read();
        let kept = state.snapshots.iter().find(|kept| kept.is(kind, revision));
        Ok(kept.map(|kept| Snapshot { objects: kept.objects.clone(), revision }))
    }

    /// All changes after `revision`, and those to come, in the stored form.
    pub fn subscribe(&self, kind: &Kind, revision: u64) -> Result<Subscription, Status> {
        let cache = self.cache(kind)?;
        let state = cache.read();
        let read = state.log.after(revision);
        let (past, future) = read.map_err(|compacted| Status::watch_expired(revision, compacted))?;
        Ok(Subscription { past, future })
    }

    /// The objects now together with all changes to come.
    pub fn snapshot_and_subscribe(&self, kind: &Kind) -> Result<(Snapshot, Changes), Status> {
        let cache = self.cache(kind)?;
        let state = cache.read();
        let objects = in_form(kind, state.objects.clone());
        let snapshot = Snapshot { objects, revision: state.log.revision().max(self.revision()) };
        Ok((snapshot, state.log.from_now()))
    }
}

/// Objects as a row of the registry shows them: few rows keep theirs in another form.
fn in_form(kind: &Kind, objects: Objects) -> Objects {
    match kind.is_storage() {
        true => objects,
        false => objects.iter().map(|(key, stored)| (key.clone(), stored.in_form(kind))).collect(),
    }
}

fn same_row(one: &Option<KindRef>, other: &Option<KindRef>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => std::ptr::eq::<Kind>(&**one, &**other),
        _ => false,
    }
}

fn empty_kinds() -> HashMap<String, Shared> {
    let builtin = KINDS.iter().filter(|kind| kind.is_storage());
    let empty = |kind: &'static Kind| Arc::new(RwLock::new(KindCache::new(Some(kind.into()), 0)));
    builtin.map(|kind| (kind.storage_prefix(), empty(kind))).collect()
}
