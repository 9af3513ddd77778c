//! Deletes what lost all its owners, and carries out foreground and orphaning deletions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use dhow_client::{Client, Error, Key, Outcome, Queue, Reconcile};
use http::Method;
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::resources::{Resource, call, discover, open};

const PAUSE: Duration = Duration::from_secs(1);
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

#[derive(Clone)]
struct Entry {
    resource: Arc<Resource>,
    metadata: Arc<ObjectMeta>,
}

/// Every object by uid, and who names it as an owner.
#[derive(Default)]
struct Graph {
    entries: HashMap<String, Entry>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.entries.remove(uid) {
            for owner in entry.metadata.owner_references.iter().flatten() {
                if let Some(all) = self.dependents.get_mut(&owner.uid) {
                    all.remove(uid);
                    if all.is_empty() {
                        self.dependents.remove(&owner.uid);
                    }
                }
            }
        }
    }

    fn insert(&mut self, uid: &str, entry: Entry) {
        self.remove(uid);
        for owner in entry.metadata.owner_references.iter().flatten() {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.into());
        }
        self.entries.insert(uid.into(), entry);
    }

    fn dependents(&self, uid: &str) -> Vec<(String, Entry)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.entries.get(uid)?.clone()))).collect()
    }
}

pub struct Garbage {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    /// The kinds that are watched, each with what ends its watch.
    resources: Mutex<HashMap<Arc<Resource>, CancellationToken>>,
    queue: Queue,
    gone: Gone,
    shutdown: CancellationToken,
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Told the namespace of an object that went, or `None` when objects may have gone unseen.
pub type Gone = Arc<dyn Fn(Option<&str>) + Send + Sync>;

impl Garbage {
    /// Watches every kind that the server has, also those that definitions add later, and tells `gone` what goes.
    pub async fn start(
        client: Client,
        queue: Queue,
        gone: Gone,
        shutdown: &CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let shutdown = shutdown.clone();
        let this = Arc::new(Self { client, graph: Arc::default(), resources: Mutex::default(), queue, gone, shutdown });
        this.watch_all().await?;
        let definitions = this.clone();
        tokio::spawn(async move {
            let follow = async {
                loop {
                    if let Err(error) = definitions.follow_definitions().await {
                        tracing::debug!(%error, "cannot follow the definitions of kinds; trying again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            tokio::select! { () = follow => {}, () = definitions.shutdown.cancelled() => {} }
        });
        Ok(this)
    }

    /// Begins to watch kinds that are new, and forgets those that are gone.
    async fn watch_all(self: &Arc<Self>) -> Result<(), Error> {
        let found: HashSet<_> = discover(&self.client)
            .await?
            .into_iter()
            .filter(|one| ["list", "watch", "delete"].iter().all(|verb| one.can(verb)) && one.plural != "events")
            .map(Arc::new)
            .collect();
        let mut resources = self.resources.lock();
        for resource in &found {
            if resources.contains_key(resource) {
                continue;
            }
            let stop = self.shutdown.child_token();
            resources.insert(resource.clone(), stop.clone());
            let (this, resource) = (self.clone(), resource.clone());
            tokio::spawn(async move {
                let follow = async {
                    loop {
                        if let Err(error) = this.follow(&resource).await {
                            tracing::debug!(kind = resource.kind, %error, "garbage watch failed; listing again");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                };
                tokio::select! { () = follow => {}, () = stop.cancelled() => {} }
            });
        }
        let mut gone = Vec::new();
        resources.retain(|resource, stop| {
            let stays = found.contains(resource);
            if !stays {
                stop.cancel();
                gone.push(resource.clone());
            }
            stays
        });
        drop(resources);
        gone.iter().for_each(|resource| self.forget(resource, |_| false));
        Ok(())
    }

    /// Looks at the kinds again whenever a definition changes, until its watch ends.
    async fn follow_definitions(self: &Arc<Self>) -> Result<(), Error> {
        let listed = call(&self.client, Method::GET, DEFINITIONS, "", Vec::new()).await?;
        self.watch_all().await?;
        let version = listed["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let path = format!("{DEFINITIONS}?watch=true&resourceVersion={version}");
        let (_, mut body) = open(&self.client, Method::GET, &path, "", Vec::new()).await?;
        while let Some(frame) = body.frame().await {
            if frame?.is_data() {
                self.watch_all().await?;
            }
        }
        Ok(())
    }

    async fn follow(&self, resource: &Arc<Resource>) -> Result<(), Error> {
        let path = resource.path(None, None);
        let listed = call(&self.client, Method::GET, &path, "", Vec::new()).await?;
        let items = listed["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let there: HashSet<&str> = items.iter().filter_map(|item| item["metadata"]["uid"].as_str()).collect();
        self.forget(resource, |uid| there.contains(uid));
        items.iter().for_each(|item| self.seen(resource, &item["metadata"]));
        (self.gone)(None);
        let version = listed["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let path = format!("{path}?watch=true&allowWatchBookmarks=true&resourceVersion={version}");
        let (_, mut body) = open(&self.client, Method::GET, &path, "", Vec::new()).await?;
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                buffer.extend_from_slice(&data);
            }
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let event: Value = serde_json::from_slice(&buffer.split_to(end + 1)).unwrap_or_default();
                let metadata = &event["object"]["metadata"];
                match event["type"].as_str() {
                    Some("ADDED" | "MODIFIED") => self.seen(resource, metadata),
                    Some("DELETED") => self.deleted(metadata["uid"].as_str().unwrap_or_default()),
                    Some("ERROR") => return Ok(()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes out the objects of a kind that are not there any more.
    fn forget(&self, resource: &Arc<Resource>, there: impl Fn(&str) -> bool) {
        let gone: Vec<String> = {
            let graph = self.graph.lock();
            let own = graph.entries.iter().filter(|(_, entry)| entry.resource == *resource);
            own.filter(|(uid, _)| !there(uid)).map(|(uid, _)| uid.clone()).collect()
        };
        gone.iter().for_each(|uid| self.deleted(uid));
    }

    fn seen(&self, resource: &Arc<Resource>, metadata: &Value) {
        let Ok(metadata) = serde_json::from_value::<ObjectMeta>(metadata.clone()) else { return };
        let Some(uid) = metadata.uid.clone() else { return };
        let concerns = metadata.owner_references.is_some() || metadata.deletion_timestamp.is_some();
        let mut owners: HashSet<_> =
            metadata.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect();
        {
            let mut graph = self.graph.lock();
            // One that it does not name any more may have waited for it.
            let before = graph.entries.get(&uid).and_then(|entry| entry.metadata.owner_references.as_ref());
            owners.extend(before.into_iter().flatten().map(|owner| owner.uid.clone()));
            graph.insert(&uid, Entry { resource: resource.clone(), metadata: Arc::new(metadata) });
        }
        if concerns {
            self.queue.add(Key::new(None, &uid));
        }
        // An owner in foreground deletion waits for its dependents.
        owners.iter().for_each(|owner| self.queue.add(Key::new(None, owner)));
    }

    fn deleted(&self, uid: &str) {
        let mut graph = self.graph.lock();
        let metadata = graph.entries.get(uid).map(|entry| Arc::clone(&entry.metadata));
        let dependents = graph.dependents(uid);
        graph.remove(uid);
        drop(graph);
        if let Some(namespace) = metadata.as_ref().and_then(|metadata| metadata.namespace.as_deref()) {
            (self.gone)(Some(namespace));
        }
        let owners = metadata.as_ref().and_then(|metadata| metadata.owner_references.as_ref());
        dependents.iter().for_each(|(dependent, _)| self.queue.add(Key::new(None, dependent)));
        owners.into_iter().flatten().for_each(|owner| self.queue.add(Key::new(None, &owner.uid)));
    }

    async fn delete(&self, uid: &str, entry: &Entry, propagation: &str) -> Result<(), Error> {
        // As it was when its owners were looked at: it may have been given to nobody meanwhile, by an orphaning deletion whose
        // owner's end was heard of first. The change that is met brings it here again.
        let version = &entry.metadata.resource_version;
        let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation,
                          "preconditions": {"uid": uid, "resourceVersion": version}});
        let body = body.to_string().into_bytes();
        match call(&self.client, Method::DELETE, &path(entry), "application/json", body).await {
            Err(error) if error.is_conflict() => Ok(()),
            other => settled(other),
        }
    }

    async fn patch(&self, entry: &Entry, mut metadata: Value) -> Result<(), Error> {
        metadata["resourceVersion"] = json!(entry.metadata.resource_version);
        let body = json!({"metadata": metadata}).to_string().into_bytes();
        settled(call(&self.client, Method::PATCH, &path(entry), "application/merge-patch+json", body).await)
    }

    async fn unfinalize(&self, entry: &Entry, finalizer: &str) -> Result<(), Error> {
        let left: Vec<_> = entry.metadata.finalizers.iter().flatten().filter(|one| *one != finalizer).collect();
        self.patch(entry, json!({"finalizers": some(left)})).await
    }

    /// How it stands with an owner. The copy may be behind or not see a kind, so absence is asked of the server.
    async fn owner(&self, entry: &Entry, owner: &OwnerReference) -> Result<Owner, Error> {
        if let Some(known) = self.graph.lock().entries.get(&owner.uid) {
            return Ok(known.metadata.as_ref().into());
        }
        let group = |version: &str| version.split_once('/').map(|(group, _)| group.to_owned());
        let known = {
            let resources = self.resources.lock();
            let same = |one: &Resource| one.kind == owner.kind && group(&one.api_version) == group(&owner.api_version);
            resources.keys().find(|one| same(one)).cloned()
        };
        // An unknown kind proves nothing: never delete on a guess.
        let Some(resource) = known else { return Ok(Owner::Solid) };
        let path = resource.path(entry.metadata.namespace.as_deref(), Some(&owner.name));
        match call(&self.client, Method::GET, &path, "", Vec::new()).await {
            Err(error) if error.is_not_found() => Ok(Owner::Absent),
            other => {
                let metadata: ObjectMeta = serde_json::from_value(other?["metadata"].take())
                    .map_err(|source| Error::Decode { context: format!("read {path}"), source })?;
                Ok(if metadata.uid.as_ref() == Some(&owner.uid) { (&metadata).into() } else { Owner::Absent })
            }
        }
    }

    /// Deletes or keeps an object, whatever its owners say.
    async fn follow_owners(&self, uid: &str, entry: &Entry, dependents: &[(String, Entry)]) -> Result<(), Error> {
        let owners = entry.metadata.owner_references.clone().unwrap_or_default();
        let mut found = Vec::new();
        for owner in &owners {
            found.push(self.owner(entry, owner).await?);
        }
        let circle = dependents.iter().any(|(_, dependent)| Owner::from(dependent.metadata.as_ref()) == Owner::Waiting);
        match fate(&found, !dependents.is_empty(), circle) {
            Fate::Keep => Ok(()),
            Fate::Leave => {
                let solid: Vec<_> = owners
                    .iter()
                    .zip(&found)
                    .filter(|(_, state)| **state == Owner::Solid)
                    .map(|(one, _)| one)
                    .collect();
                self.patch(entry, json!({"ownerReferences": some(solid)})).await
            }
            Fate::Delete { foreground, unblock } => {
                if unblock {
                    let mut free = owners.clone();
                    free.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
                    if free != owners {
                        self.patch(entry, json!({"ownerReferences": free})).await?;
                    }
                }
                let has = |finalizer: &str| entry.metadata.finalizers.iter().flatten().any(|one| one == finalizer);
                let propagation = match (foreground, has(ORPHAN), has(FOREGROUND)) {
                    (true, ..) | (false, false, true) => "Foreground",
                    (false, true, _) => "Orphan",
                    (false, false, false) => "Background",
                };
                self.delete(uid, entry, propagation).await
            }
        }
    }
}

/// How it stands with an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Absent,
    Solid,
    /// Being deleted, after those that it owns.
    Waiting,
}

impl From<&ObjectMeta> for Owner {
    fn from(metadata: &ObjectMeta) -> Self {
        let foreground = metadata.finalizers.iter().flatten().any(|one| one == FOREGROUND);
        if metadata.deletion_timestamp.is_some() && foreground { Self::Waiting } else { Self::Solid }
    }
}

/// What follows for an object from its owners.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    /// It stays, without the owners that go.
    Leave,
    /// `foreground`: after those that it owns in turn. `unblock`: one of them waits for it already, round a circle.
    Delete {
        foreground: bool,
        unblock: bool,
    },
}

fn fate(owners: &[Owner], has_dependents: bool, circle: bool) -> Fate {
    let any = |state: Owner| owners.contains(&state);
    match (any(Owner::Solid), any(Owner::Waiting), any(Owner::Absent)) {
        (_, false, false) => Fate::Keep,
        (true, ..) => Fate::Leave,
        (false, true, _) if has_dependents => Fate::Delete { foreground: true, unblock: circle },
        _ => Fate::Delete { foreground: false, unblock: false },
    }
}

fn path(entry: &Entry) -> String {
    entry.resource.path(entry.metadata.namespace.as_deref(), entry.metadata.name.as_deref())
}

/// What is gone already needs nothing more.
fn settled(result: Result<Value, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

#[async_trait::async_trait]
impl Reconcile for Garbage {
    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let uid = key.name.as_ref();
        let (entry, dependents) = {
            let graph = self.graph.lock();
            let Some(entry) = graph.entries.get(uid).cloned() else { return Ok(Outcome::Done) };
            (entry, graph.dependents(uid))
        };
        let has = |finalizer: &str| entry.metadata.finalizers.iter().flatten().any(|one| one == finalizer);
        if entry.metadata.deletion_timestamp.is_some() {
            if has(ORPHAN) {
                for (_, dependent) in &dependents {
                    let owners = dependent.metadata.owner_references.iter().flatten();
                    let left: Vec<_> = owners.filter(|owner| owner.uid != uid).collect();
                    self.patch(dependent, json!({"ownerReferences": some(left)})).await?;
                }
                self.unfinalize(&entry, ORPHAN).await?;
            } else if has(FOREGROUND) {
                let blocks = |owner: &OwnerReference| owner.uid == uid && owner.block_owner_deletion == Some(true);
                let blocked = dependents
                    .iter()
                    .any(|(_, dependent)| dependent.metadata.owner_references.iter().flatten().any(blocks));
                // Each of them sees to itself.
                let alive = dependents.iter().filter(|(_, one)| one.metadata.deletion_timestamp.is_none());
                alive.for_each(|(own, _)| self.queue.add(Key::new(None, own)));
                if !blocked {
                    self.unfinalize(&entry, FOREGROUND).await?;
                }
            }
            return Ok(Outcome::Done);
        }
        self.follow_owners(uid, &entry, &dependents).await?;
        Ok(Outcome::Done)
    }
}

/// An empty list is left out of an object, as upstream's JSON has it.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_decide_what_becomes_of_an_object() {
        use Owner::{Absent, Solid, Waiting};
        assert_eq!(fate(&[], true, false), Fate::Keep);
        assert_eq!(fate(&[Solid], false, false), Fate::Keep);
        assert_eq!(fate(&[Solid, Absent], false, false), Fate::Leave);
        assert_eq!(fate(&[Solid, Waiting], true, false), Fate::Leave, "a valid owner keeps it");
        assert_eq!(fate(&[Absent, Absent], true, false), Fate::Delete { foreground: false, unblock: false });
        assert_eq!(fate(&[Waiting], false, false), Fate::Delete { foreground: false, unblock: false });
        assert_eq!(fate(&[Waiting, Absent], true, false), Fate::Delete { foreground: true, unblock: false });
        assert_eq!(fate(&[Waiting], true, true), Fate::Delete { foreground: true, unblock: true });
    }
}
