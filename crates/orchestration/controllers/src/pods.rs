//! What every owner of pods does with them: claim, create, delete, hear of their changes.

use std::sync::Arc;

use dhow_client::{
    Change, Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Object, Patch, Queue, controller_of,
    controller_reference, is_controlled_by, reference,
};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::json;

use crate::common::{Expectations, in_ending_namespace, selects};

/// The objects among `candidates` that `owner` manages; adopts orphans that it selects and that `adoptable` lets it
/// have, and releases those that it no longer selects.
pub async fn claim<K: Object, C: Object>(
    client: &Client,
    owner: &K,
    selector: &LabelSelector,
    candidates: Vec<Arc<C>>,
    adoptable: impl Fn(&C) -> bool + Send,
) -> Result<Vec<Arc<C>>, Error> {
    let leaving = owner.metadata().deletion_timestamp.is_some();
    let mut still_there = None;
    let mut claimed = Vec::new();
    for object in candidates {
        let metadata = object.metadata();
        let selected = selects(selector, metadata.labels.as_ref());
        if is_controlled_by(metadata, owner) {
            if selected {
                claimed.push(object);
            } else if !leaving {
                own(client, &*object, owner, false).await?;
            }
        } else if selected
            && !leaving
            && metadata.deletion_timestamp.is_none()
            && controller_of(metadata).is_none()
            && adoptable(&object)
        {
            // The copy of the owner may be of one that was deleted and made anew meanwhile.
            if still_there.is_none() {
                still_there = Some(is_current(client, owner).await?);
            }
            if still_there == Some(true) {
                claimed.extend(own(client, &*object, owner, true).await?.map(Arc::new));
            }
        }
    }
    Ok(claimed)
}

/// Whether the server still has this very owner, and not on its way out.
async fn is_current<K: Object>(client: &Client, owner: &K) -> Result<bool, Error> {
    let metadata = owner.metadata();
    match client.get::<K>(metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default()).await {
        Ok(now) => Ok(now.metadata().uid == metadata.uid && now.metadata().deletion_timestamp.is_none()),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Adopts or releases an object. One that is gone meanwhile is no error.
async fn own<K: Object, C: Object>(client: &Client, object: &C, owner: &K, adopt: bool) -> Result<Option<C>, Error> {
    let metadata = object.metadata();
    let mut owners = metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|known| Some(&known.uid) != owner.metadata().uid.as_ref());
    if adopt {
        owners.push(controller_reference(owner));
    }
    let owners = (!owners.is_empty()).then_some(owners);
    let patch = json!({"metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version, "ownerReferences": owners,
    }});
    let name = metadata.name.as_deref().unwrap_or_default();
    match client.patch(metadata.namespace.as_deref(), name, Patch::Merge(patch), None).await {
        Err(error) if error.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}

/// A pod of the template, managed by `owner`, with a generated name.
pub fn from_template<K: Object>(owner: &K, template: &PodTemplateSpec) -> Pod {
    let given = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.metadata().name.as_deref().unwrap_or_default())),
            namespace: owner.metadata().namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates and deletes pods for one controller, and remembers what the informer has not shown yet.
#[derive(Clone)]
pub struct PodControl {
    pub client: Client,
    pub recorder: EventRecorder,
    pub expectations: Arc<Expectations>,
}

impl PodControl {
    pub fn new(client: Client, component: &str) -> Self {
        let recorder = EventRecorder::new(client.clone(), component);
        Self { client, recorder, expectations: Arc::default() }
    }

    /// Announces what `create` and `delete` are about to do. Once per reconciliation: the last call counts.
    pub fn expect(&self, key: &Key, creations: usize, deletions: &[Arc<Pod>]) {
        let creations = i64::try_from(creations).unwrap_or(i64::MAX);
        self.expectations.expect(key, creations, deletions.iter().map(|pod| uid(pod)));
    }

    /// Creates pods in batches that double while all goes well, so that a failing template costs few calls.
    pub async fn create<K: Object>(&self, key: &Key, owner: &K, pods: &[Pod]) -> Result<(), Error> {
        let (mut left, mut batch) = (pods, 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let results = join_all(now.iter().map(|pod| self.client.create(pod))).await;
            left = later;
            batch *= 2;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
                        self.recorder.event(reference(owner), EventType::Normal, "SuccessfulCreate", &message);
                    }
                    Err(error) => {
                        self.expectations.created(key);
                        failure = Some(error);
                    }
                }
            }
            if let Some(error) = failure {
                // What was not tried will not be seen either.
                left.iter().for_each(|_| self.expectations.created(key));
                if in_ending_namespace(&self.client, &error, key.namespace()).await {
                    return Ok(());
                }
                let message = format!("Error creating: {error}");
                self.recorder.event(reference(owner), EventType::Warning, "FailedCreate", &message);
                return Err(error);
            }
        }
        Ok(())
    }

    pub async fn delete<K: Object>(&self, key: &Key, owner: &K, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let results = join_all(pods.iter().map(|pod| async {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let params = DeleteParams { uid: pod.metadata.uid.clone(), ..DeleteParams::default() };
            let result = self.client.delete::<Pod>(pod.metadata.namespace.as_deref(), name, &params).await;
            match result {
                Ok(()) => {
                    let message = format!("Deleted pod: {name}");
                    self.recorder.event(reference(owner), EventType::Normal, "SuccessfulDelete", &message);
                    Ok(())
                }
                Err(error) => {
                    self.expectations.deleted(key, &uid(pod));
                    if error.is_not_found() || error.is_conflict() {
                        return Ok(());
                    }
                    let message = format!("Error deleting: {error}");
                    self.recorder.event(reference(owner), EventType::Warning, "FailedDelete", &message);
                    Err(error)
                }
            }
        }))
        .await;
        results.into_iter().collect()
    }

    /// Wakes owners of kind `K` when their pods change, and those that might adopt an orphan. `selector` is an owner's.
    pub fn watch<K: Object>(
        &self,
        pods: &Informer<Pod>,
        owners: &Informer<K>,
        queue: &Queue,
        selector: fn(&K) -> Option<LabelSelector>,
    ) {
        let (queue, owners, expectations) = (queue.clone(), owners.clone(), self.expectations.clone());
        pods.on_change(move |change| {
            let pod = change.object();
            if let Change::Updated { old, .. } = change
                && let Some(before) = owner_key::<K>(old).filter(|before| Some(before) != owner_key::<K>(pod).as_ref())
            {
                queue.add(before);
            }
            let Some(key) = owner_key::<K>(pod) else {
                if controller_of(&pod.metadata).is_none() && !matches!(change, Change::Deleted(_)) {
                    for owner in owners.by_index("namespace", pod.metadata.namespace.as_deref().unwrap_or_default()) {
                        if selector(&owner).is_some_and(|selector| selects(&selector, pod.metadata.labels.as_ref())) {
                            queue.add(Key::of(owner.metadata()));
                        }
                    }
                }
                return;
            };
            if matches!(change, Change::Added(_)) {
                expectations.created(&key);
            }
            if matches!(change, Change::Deleted(_)) || pod.metadata.deletion_timestamp.is_some() {
                expectations.deleted(&key, pod.metadata.uid.as_deref().unwrap_or_default());
            }
            queue.add(key);
        });
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// The key of the owner of kind `K` that manages a pod.
fn owner_key<K: Object>(pod: &Pod) -> Option<Key> {
    let owner =
        controller_of(&pod.metadata).filter(|owner| owner.kind == K::KIND && owner.api_version == K::API_VERSION)?;
    Some(Key::new(pod.metadata.namespace.as_deref(), &owner.name))
}
