//! Empties namespaces that are being deleted, pods first, then lets them go. The status tells what is left.

mod conditions;

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Change, Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use http::Method;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::garbage::Gone;
use crate::resources::{Resource, call, discover, discover_all};
use conditions::{Left, conditions};

/// Objects that go this close together cost one more look.
const SETTLE: Duration = Duration::from_millis(20);
/// When kinds are asked for again whose server is away, and what could not be deleted is tried again.
const AGAIN: Duration = Duration::from_secs(15);

pub struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
}

impl Namespaces {
    pub fn new(client: Client, namespaces: Informer<Namespace>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        namespaces.on_change(move |change| {
            // Its own words in the status wake nobody.
            let told = |old: &Namespace, new: &Namespace| {
                old.metadata.deletion_timestamp == new.metadata.deletion_timestamp && old.spec == new.spec
            };
            let is_news = !matches!(change, Change::Updated { old, new } if told(old, new));
            if is_news && change.object().metadata.deletion_timestamp.is_some() {
                to.add(Key::of(&change.object().metadata));
            }
        });
        Arc::new(Self { client, namespaces })
    }

    /// What tells the controller that an object in a namespace is gone: one being emptied is looked at again.
    pub fn content_gone(namespaces: &Informer<Namespace>, queue: &Queue) -> Gone {
        let (namespaces, queue) = (namespaces.clone(), queue.clone());
        let ending = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_some();
        Arc::new(move |gone: Option<&str>| {
            let found: Vec<_> = match gone {
                Some(name) => namespaces.get(&Key::new(None, name)).into_iter().collect(),
                None => namespaces.list(),
            };
            for namespace in found.iter().filter(|namespace| ending(namespace)) {
                queue.add_after(Key::of(&namespace.metadata), SETTLE);
            }
        })
    }

    /// Deletes all objects of a kind and tells which are still there.
    async fn delete(&self, resource: &Resource, namespace: &str) -> Result<Vec<Value>, Error> {
        let path = resource.path(Some(namespace), None);
        let mut listed = call(&self.client, Method::GET, &path, "", Vec::new()).await?;
        let items = listed["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        for item in items.iter().filter(|item| item["metadata"]["deletionTimestamp"].is_null()) {
            let Some(name) = item["metadata"]["name"].as_str() else { continue };
            let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
            let path = resource.path(Some(namespace), Some(name));
            match call(&self.client, Method::DELETE, &path, "application/json", options.to_string().into_bytes()).await
            {
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                other => drop(other?),
            }
        }
        if items.is_empty() {
            return Ok(items);
        }
        let mut left = call(&self.client, Method::GET, &path, "", Vec::new()).await?;
        Ok(left["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// As [`Self::delete`]; what is left, or why it failed, goes into `left`.
    async fn empty(&self, resource: &Resource, namespace: &str, left: &mut Left) {
        match self.delete(resource, namespace).await {
            Ok(items) if items.is_empty() => {}
            Ok(items) => {
                let group = resource.api_version.rsplit_once('/').map_or("", |(group, _)| group);
                left.objects.insert(format!("{}.{group}", resource.plural), items.len());
                for finalizer in items.iter().filter_map(|item| item["metadata"]["finalizers"].as_array()).flatten() {
                    *left.finalizers.entry(finalizer.as_str().unwrap_or_default().to_owned()).or_default() += 1;
                }
            }
            Err(error) => left.failures.push(error.to_string()),
        }
    }

    /// Deletes what the namespace has: pods before what they need, events last, for emptying the rest makes some.
    async fn empty_all(&self, namespace: &str) -> Result<Left, Error> {
        let (kinds, undiscovered) = discover_all(&self.client).await?;
        let mut left = Left { undiscovered, ..Left::default() };
        let mut own: Vec<_> =
            kinds.iter().filter(|one| one.namespaced && one.can("list") && one.can("delete")).collect();
        let is_pods = |one: &Resource| one.plural == "pods" && one.api_version == "v1";
        own.sort_by_key(|one| !is_pods(one));
        for resource in own.into_iter().filter(|one| one.plural != "events") {
            self.empty(resource, namespace, &mut left).await;
            if is_pods(resource) && !left.objects.is_empty() {
                break;
            }
        }
        Ok(left)
    }

    async fn tell(&self, namespace: &Namespace, left: &Left) -> Result<(), Error> {
        let before = namespace.status.clone().unwrap_or_default();
        let now = conditions(before.conditions.as_deref().unwrap_or_default(), left, Timestamp::now());
        if before.conditions.as_ref() == Some(&now) {
            return Ok(());
        }
        let mut told = namespace.clone();
        told.status.get_or_insert_default().conditions = Some(now);
        match self.client.update_status(&told).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for Namespaces {
    fn name(&self) -> &'static str {
        "namespace"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Outcome::Done) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|one| one == "kubernetes") {
            return Ok(Outcome::Done);
        }
        let left = self.empty_all(&key.name).await?;
        if !left.is_nothing() {
            self.tell(&namespace, &left).await?;
            // The last object to go wakes us; nobody tells of the rest.
            let waits = left.undiscovered.is_empty() && left.failures.is_empty();
            return Ok(if waits { Outcome::Done } else { Outcome::RequeueAfter(AGAIN) });
        }
        for resource in discover(&self.client).await?.iter().filter(|one| one.plural == "events" && one.can("delete")) {
            self.delete(resource, &key.name).await?;
        }
        let mut released: Value = serde_json::to_value(&*namespace)
            .map_err(|source| Error::Decode { context: "encode namespace".into(), source })?;
        released["apiVersion"] = json!("v1");
        released["kind"] = json!("Namespace");
        released["spec"]["finalizers"] = finalizers.iter().filter(|one| *one != "kubernetes").cloned().collect();
        let path = format!("/api/v1/namespaces/{}/finalize", key.name);
        match call(&self.client, Method::PUT, &path, "application/json", released.to_string().into_bytes()).await {
            Err(error) if error.is_not_found() => {}
            other => drop(other?),
        }
        Ok(Outcome::Done)
    }
}
