//! Empties namespaces that are being deleted, then lets them go.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use http::Method;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use crate::garbage::Gone;
use crate::resources::{Resource, call, discover};

/// Objects that go this close together cost one more look.
const SETTLE: Duration = Duration::from_millis(20);

pub struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
}

impl Namespaces {
    pub fn new(client: Client, namespaces: Informer<Namespace>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        namespaces.on_change(move |change| {
            if change.object().metadata.deletion_timestamp.is_some() {
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

    /// Deletes all objects of a kind and tells how many are still there.
    async fn empty(&self, resource: &Resource, namespace: &str) -> Result<usize, Error> {
        let path = resource.path(Some(namespace), None);
        let listed = call(&self.client, Method::GET, &path, "", Vec::new()).await?;
        let items = listed["items"].as_array().cloned().unwrap_or_default();
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
            return Ok(0);
        }
        let left = call(&self.client, Method::GET, &path, "", Vec::new()).await?;
        Ok(left["items"].as_array().map_or(0, Vec::len))
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
        let mut left = 0;
        for resource in discover(&self.client).await? {
            if resource.namespaced && resource.can("list") && resource.can("delete") && resource.plural != "events" {
                left += self.empty(&resource, &key.name).await?;
            }
        }
        if left > 0 {
            // The last of them to go wakes us.
            return Ok(Outcome::Done);
        }
        // Events last: emptying the rest makes some.
        for resource in discover(&self.client).await?.iter().filter(|one| one.plural == "events" && one.can("delete")) {
            self.empty(resource, &key.name).await?;
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
