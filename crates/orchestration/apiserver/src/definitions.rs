//! CustomResourceDefinitions: which kinds they add, what their status says of it, and how they go.
//!
//! A kind is served before its definition says `Established`, and no longer once its definition is gone.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use dhow_api::custom::{Catalog, Definition, names, rows};
use dhow_api::registry::{KindRef, builtin};
use dhow_api::{Kind, Status, meta, time};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::ApiServer;
use crate::cache::{Cache, Objects};
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
            this.publish(cache, &objects);
        }
        this
    }

    /// The kinds there are now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Serves exactly the established ones of these definitions.
    fn publish(&self, cache: &Cache, objects: &[Value]) {
        let mut served = self.served.lock();
        let mut present = HashSet::new();
        let mut changed = false;
        for object in objects.iter().filter(|object| names::holds(&object["status"], "Established")) {
            let name = meta::name(object).to_owned();
            present.insert(name.clone());
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
        served.retain(|name, old| {
            let stays = present.contains(name);
            if let Some(storage) = old.storage().filter(|_| !stays) {
                cache.withdraw(storage);
            }
            changed |= !stays;
            stays
        });
        if changed {
            self.catalog.store(Arc::new(Catalog::new(served.values().flat_map(|one| one.rows.iter().cloned()))));
            self.changed.notify_one();
        }
    }
}

/// Follows the definitions until the server ends.
pub async fn follow(server: Arc<ApiServer>) {
    let Ok(kind) = row() else { return };
    loop {
        let Ok((snapshot, mut changes)) = server.store.cache.snapshot_and_subscribe(kind) else { return };
        let settled = settle(&server, kind, &snapshot.objects).await;
        if let Err(status) = &settled {
            tracing::warn!(message = status.message, "cannot settle the definitions");
        }
        tokio::select! {
            _ = changes.recv() => {}
            () = tokio::time::sleep(PAUSE), if settled.is_err() => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

/// Brings what is served and what the definitions say of themselves in line.
async fn settle(server: &Arc<ApiServer>, kind: &Kind, objects: &Objects) -> Result<(), Status> {
    let mut all: Vec<(&Arc<Stored>, Value)> =
        objects.values().map(|stored| Ok((stored, stored.value()?))).collect::<Result<_, Status>>()?;
    // Names belong to who came first.
    all.sort_by(|(one, _), (other, _)| {
        let age = |stored: &Stored| (stored.header.creation_timestamp.clone(), stored.header.name.clone());
        age(one).cmp(&age(other))
    });
    let now = time::rfc3339(Timestamp::now());
    let mut values: Vec<Value> = all.iter().map(|(_, value)| value.clone()).collect();
    for index in 0..values.len() {
        let others = values.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, value)| value);
        let mut status = names::status(&values[index], others, &now);
        if meta::deletion_timestamp(&values[index]).is_some() {
            names::ending(&mut status, &now);
        }
        values[index]["status"] = status;
    }
    server.definitions.publish(&server.store.cache, &values);
    for ((stored, before), after) in all.iter().zip(&values) {
        if *before != *after {
            // One that changed meanwhile comes back here.
            server.store.update(kind, stored, after).await?;
        }
        if stored.header.deletion_timestamp.is_some() && meta::items(after, &["metadata", "finalizers"]).iter().any(|one| one == FINALIZER) {
            end(server, after);
        }
    }
    Ok(())
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
