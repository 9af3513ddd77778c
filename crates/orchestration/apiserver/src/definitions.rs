//! CustomResourceDefinitions: which kinds they add, what their status says of it, and how they go.
//!
//! A kind is served before its definition says `Established`, and no longer once its definition is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use dhow_api::custom::{Catalog, Definition, names, rows};
use dhow_api::registry::{KindRef, builtin};
use dhow_api::{Kind, Status, meta, time};
use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::ApiServer;
use crate::cache::Cache;
use crate::delete::{self, DeleteOptions};
use crate::info::ResourceTarget;
use crate::object::Stored;
use crate::store::Written;

pub const GROUP: &str = "apiextensions.k8s.io";
pub const KIND: &str = "CustomResourceDefinition";
/// Holds a definition until its objects are gone.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What definitions add to the kinds there are.
pub struct Definitions {
    catalog: ArcSwap<Catalog>,
    served: Mutex<HashMap<String, Served>>,
    /// Names of definitions whose objects are being deleted.
    ending: Mutex<HashSet<String>>,
    /// Told of a new catalog.
    pub changed: Notify,
}

/// One definition as it is served.
struct Served {
    /// What the rows depend on: the object's uid, generation and names, and whether it is being deleted.
    made_of: (String, i64, Value, bool),
    /// Changes with the specification: without, those who watch go on.
    specification: u64,
    rows: Vec<KindRef>,
}

impl Served {
    /// The row of the version that is stored.
    fn storage(&self) -> Option<&KindRef> {
        self.rows.iter().find(|row| row.is_storage())
    }
}

fn hash(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    let all = json!([object["metadata"]["uid"], object["spec"], object["status"]["acceptedNames"]]);
    all.to_string().hash(&mut hasher);
    hasher.finish()
}

fn row() -> Result<&'static Kind, Status> {
    builtin().by_kind(GROUP, "v1", KIND).ok_or_else(Status::no_such_resource)
}

impl Definitions {
    /// Serves what was established before the server started.
    pub fn load(cache: &Cache) -> Self {
        let this = Self {
            catalog: ArcSwap::from_pointee(Catalog::default()),
            served: Mutex::default(),
            ending: Mutex::default(),
            changed: Notify::new(),
        };
        if let Ok(objects) = row().and_then(|row| cache.objects(row)) {
            let objects: Vec<Value> = objects.values().filter_map(|stored| stored.value().ok()).collect();
            this.publish(cache, &objects, &[]);
        }
        this
    }

    /// The kinds there are now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Serves those of these definitions that are established; the others and those that are gone no longer.
    fn publish(&self, cache: &Cache, objects: &[Value], gone: &[String]) {
        let mut served = self.served.lock();
        let mut changed = false;
        let (established, others): (Vec<_>, Vec<_>) =
            objects.iter().partition(|object| names::holds(&object["status"], "Established"));
        for object in established {
            let name = meta::name(object).to_owned();
            let made_of = (
                meta::uid(object).to_owned(),
                meta::int(object, &["metadata", "generation"]),
                object["status"]["acceptedNames"].clone(),
                meta::deletion_timestamp(object).is_some(),
            );
            if served.get(&name).is_some_and(|known| known.made_of == made_of) {
                continue;
            }
            let definition = match Definition::parse(object) {
                Ok(definition) => Arc::new(definition),
                Err(error) => {
                    tracing::error!(definition = name, %error, "a definition cannot be served");
                    continue;
                }
            };
            let new = Served { made_of, specification: hash(object), rows: rows(&definition) };
            let same = served.get(&name).is_some_and(|known| known.specification == new.specification);
            if let Some(storage) = new.storage().filter(|_| !same) {
                cache.serve(storage.clone());
            }
            served.insert(name, new);
            changed = true;
        }
        for name in others.iter().map(|object| meta::name(object)).chain(gone.iter().map(String::as_str)) {
            let Some(old) = served.remove(name) else { continue };
            if let Some(storage) = old.storage() {
                cache.withdraw(storage);
            }
            changed = true;
        }
        if changed {
            self.catalog.store(Arc::new(Catalog::new(served.values().flat_map(|one| one.rows.iter().cloned()))));
            self.changed.notify_one();
        }
    }
}

/// Follows the definitions until the server ends. What is done for a change depends on the change alone, not on how
/// many definitions there are.
pub async fn follow(server: Arc<ApiServer>) {
    let Ok(kind) = row() else { return };
    loop {
        let Ok((snapshot, mut changes)) = server.store.cache.snapshot_and_subscribe(kind) else { return };
        let mut known = Known::default();
        snapshot.objects.values().for_each(|stored| known.learn(stored));
        // Those that went unseen are no longer served either.
        known.due.extend(server.definitions.served.lock().keys().cloned());
        drop(snapshot);
        loop {
            if let Err(status) = settle(&server, kind, &mut known).await {
                tracing::warn!(message = status.message, "cannot settle the definitions");
            }
            let mut change = tokio::select! {
                change = changes.recv() => Some(change),
                () = tokio::time::sleep(PAUSE), if !known.due.is_empty() => None,
                () = server.shutdown.cancelled() => return,
            };
            // Those that came meanwhile are settled together.
            while let Some(Ok(one)) = change {
                match one.deleted {
                    true => known.forget(&one.object.header.name),
                    false => known.learn(&one.object),
                }
                change = changes.recv().now_or_never();
            }
            if let Some(Err(_)) = change {
                // Something was missed.
                break;
            }
        }
    }
}

/// The definitions as far as they concern each other.
#[derive(Default)]
struct Known {
    all: HashMap<String, One>,
    /// Who holds a name of a group.
    holders: HashMap<(String, String), String>,
    /// Those of a group that lack a name.
    waiting: HashMap<String, BTreeSet<String>>,
    /// Those to look at.
    due: BTreeSet<String>,
}

struct One {
    stored: Arc<Stored>,
    /// The definition without its schemas.
    outline: Value,
}

impl Known {
    fn learn(&mut self, stored: &Arc<Stored>) {
        let name = stored.header.name.clone();
        self.due.insert(name.clone());
        match self.all.get_mut(&name) {
            Some(one) => one.stored = stored.clone(),
            None => drop(self.all.insert(name, One { stored: stored.clone(), outline: Value::Null })),
        }
    }

    fn forget(&mut self, name: &str) {
        self.due.insert(name.to_owned());
        if let Some(one) = self.all.remove(name) {
            self.settle(name, &one.outline, &Value::Null);
        }
    }

    /// Notes what a definition holds now. Names that it gives up are for those who wait.
    fn settle(&mut self, name: &str, before: &Value, after: &Value) {
        let group = |outline: &Value| meta::text(outline, &["spec", "group"]).to_owned();
        let held = |outline: &Value| names::held(outline).map(|one| (group(outline), one)).collect::<HashSet<_>>();
        let (old, new) = (held(before), held(after));
        for one in old.difference(&new) {
            if self.holders.get(one).is_some_and(|holder| holder == name) {
                self.holders.remove(one);
            }
            self.due.extend(self.waiting.get(&one.0).into_iter().flatten().cloned());
        }
        self.holders.extend(new.into_iter().map(|one| (one, name.to_owned())));
        if let Some(waiting) = self.waiting.get_mut(&group(before)) {
            waiting.remove(name);
        }
        if !after.is_null() && !names::holds(&after["status"], "NamesAccepted") {
            self.waiting.entry(group(after)).or_default().insert(name.to_owned());
        }
    }

    /// The others that hold a name which a definition wants.
    fn rivals(&self, definition: &Value) -> Vec<&Value> {
        let group = meta::text(definition, &["spec", "group"]);
        let holders = names::wanted(definition).filter_map(|one| self.holders.get(&(group.to_owned(), one)));
        holders.filter_map(|name| self.all.get(name)).map(|one| &one.outline).collect()
    }
}

/// A definition without its schemas, which may be large.
fn outline(definition: &Value) -> Value {
    let spec = &definition["spec"];
    json!({
        "metadata": {"name": meta::name(definition)},
        "spec": {"group": spec["group"], "names": spec["names"]},
        "status": definition["status"],
    })
}

/// Brings what is served and what the definitions that are due say of themselves in line. Those that fail stay due.
async fn settle(server: &Arc<ApiServer>, kind: &Kind, known: &mut Known) -> Result<(), Status> {
    let now = time::rfc3339(Timestamp::now());
    let (mut settled, mut gone) = (BTreeMap::new(), Vec::new());
    while !known.due.is_empty() {
        let due = std::mem::take(&mut known.due);
        let (mut there, absent): (Vec<String>, Vec<String>) =
            due.into_iter().partition(|name| known.all.contains_key(name));
        gone.extend(absent);
        // Names belong to who came first.
        there.sort_by_cached_key(|name| known.all.get(name).map(|one| one.stored.header.creation_timestamp.clone()));
        for name in there {
            let Some(stored) = known.all.get(&name).map(|one| one.stored.clone()) else { continue };
            let before = stored.value()?;
            let mut status = names::status(&before, known.rivals(&before), &now);
            if stored.header.deletion_timestamp.is_some() {
                names::ending(&mut status, &now);
            }
            let mut after = before.clone();
            after["status"] = status;
            let fresh = outline(&after);
            let old = known.all.get_mut(&name).map(|one| std::mem::replace(&mut one.outline, fresh.clone()));
            known.settle(&name, &old.unwrap_or_default(), &fresh);
            settled.insert(name, (stored, before, after));
        }
    }
    let values: Vec<Value> = settled.values().map(|(_, _, after)| after.clone()).collect();
    server.definitions.publish(&server.store.cache, &values, &gone);
    let mut result = Ok(());
    for (name, (stored, before, after)) in &settled {
        // One that changed meanwhile comes back here.
        if before != after
            && let Err(status) = server.store.update(kind, stored, after).await
        {
            known.due.insert(name.clone());
            result = Err(status);
            continue;
        }
        let held = || meta::items(after, &["metadata", "finalizers"]).iter().any(|one| one == FINALIZER);
        if stored.header.deletion_timestamp.is_some() && held() {
            end(server, after);
        }
    }
    result
}

/// Notes on a definition that is about to be deleted that its objects go first.
pub fn hold(object: &mut Value) {
    let finalizers = meta::metadata_mut(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|one| one == FINALIZER)
    {
        list.push(json!(FINALIZER));
    }
}

/// Deletes the objects of a definition and then lets it go, unless that is under way.
fn end(server: &Arc<ApiServer>, object: &Value) {
    let name = meta::name(object).to_owned();
    if !server.definitions.ending.lock().insert(name.clone()) {
        return;
    }
    let definition = Definition::parse(object).map(Arc::new);
    let server = server.clone();
    tokio::spawn(async move {
        loop {
            let storage = definition.as_ref().ok().and_then(|one| rows(one).into_iter().find(|row| row.is_storage()));
            let done = async {
                if let Some(storage) = &storage {
                    empty(&server, storage).await?;
                }
                release(&server, &name).await
            };
            tokio::select! {
                done = done => match done {
                    Ok(()) => break,
                    Err(status) => tracing::warn!(definition = name, message = status.message, "cannot end a definition"),
                },
                () = server.shutdown.cancelled() => break,
            }
            tokio::time::sleep(PAUSE).await;
        }
        server.definitions.ending.lock().remove(&name);
    });
}

/// Deletes all objects of a kind, and returns when they are gone.
async fn empty(server: &Arc<ApiServer>, kind: &KindRef) -> Result<(), Status> {
    loop {
        // A kind without a place in the cache has no objects.
        let Ok((snapshot, mut changes)) = server.store.cache.snapshot_and_subscribe(kind) else { return Ok(()) };
        if snapshot.objects.is_empty() {
            return Ok(());
        }
        let mut begun = false;
        for object in snapshot.objects.values().filter(|object| object.header.deletion_timestamp.is_none()) {
            begun = true;
            let namespace = Some(object.header.namespace.clone()).filter(|namespace| !namespace.is_empty());
            let target = ResourceTarget {
                kind: kind.clone(),
                namespace,
                name: Some(object.header.name.clone()),
                subresource: None,
                rest: String::new(),
                watch: false,
            };
            match delete::delete(server, &target, &object.header.name, &DeleteOptions::default(), None).await {
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        if !begun {
            // Finalizers hold what is left.
            let _ = changes.recv().await;
        }
    }
}

/// Takes the finalizer off a definition whose objects are gone.
async fn release(server: &Arc<ApiServer>, name: &str) -> Result<(), Status> {
    let kind = row()?;
    loop {
        let stored = match server.store.get(kind, None, name).await {
            Err(status) if status.code == 404 => return Ok(()),
            other => other?,
        };
        let mut object = stored.value()?;
        let finalizers = meta::metadata_mut(&mut object).entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut() {
            list.retain(|one| one != FINALIZER);
        }
        let last = meta::items(&object, &["metadata", "finalizers"]).is_empty();
        let written = match last {
            true => server.store.delete(kind, &stored).await?,
            false => server.store.update(kind, &stored, &object).await?,
        };
        if let Written::Done(_) = written {
            return Ok(());
        }
    }
}
