//! The history of StatefulSets and DaemonSets: one ControllerRevision per template, as `kubectl rollout` reads it.

use std::collections::HashSet;
use std::sync::Arc;

use dhow_client::{Client, DeleteParams, Error, Informer, Object, Patch, controller_reference, is_controlled_by};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use crate::common::{Labels, template_hash};
use crate::pods::claim;

/// On pods: the revision they were made of. On a DaemonSet's revisions: the hash in their name.
pub const POD_REVISION: &str = "controller-revision-hash";
/// On a StatefulSet's revisions: the hash in their name.
const HASH: &str = "controller.kubernetes.io/hash";

/// The patch that brings a template back: what `kubectl rollout undo` sends.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.as_ref()?.0.pointer("/spec/template")?.clone()).ok()
}

pub fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// The hash at the end of a revision's name.
pub fn hash(revision: &ControllerRevision) -> &str {
    name(revision).rsplit('-').next().unwrap_or_default()
}

fn same(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    // Read back and compared typed: a field the server spells out changes nothing.
    self::template(revision).as_ref() == Some(template)
}

/// What to do so that the newest revision is of the present template.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The newest is.
    Keep(Arc<ControllerRevision>),
    /// An old one is: a rollback. It becomes the newest.
    Renumber(Arc<ControllerRevision>, i64),
    /// None is.
    Create(i64),
}

/// Decides from the revisions, oldest first.
pub fn step(revisions: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Step {
    let next = revisions.last().map_or(1, |last| last.revision + 1);
    match revisions.iter().rev().find(|revision| same(revision, template)) {
        Some(found) if found.revision + 1 == next => Step::Keep(found.clone()),
        Some(found) => Step::Renumber(found.clone(), next),
        None => Step::Create(next),
    }
}

/// Revisions beyond the limit that no pod is of and that are not in `live`; oldest first.
pub fn surplus(
    revisions: &[Arc<ControllerRevision>],
    live: &HashSet<String>,
    limit: Option<i32>,
) -> Vec<Arc<ControllerRevision>> {
    let idle: Vec<_> =
        revisions.iter().filter(|one| !live.contains(name(one)) && !live.contains(hash(one))).cloned().collect();
    let excess = idle.len().saturating_sub(usize::try_from(limit.unwrap_or(10)).unwrap_or(0));
    idle.into_iter().take(excess).collect()
}

/// The revisions of one kind's objects.
pub struct History {
    client: Client,
    revisions: Informer<ControllerRevision>,
}

impl History {
    pub fn new(client: Client, revisions: Informer<ControllerRevision>) -> Self {
        Self { client, revisions }
    }

    /// The owner's revisions, oldest first.
    pub async fn of<K: Object>(
        &self,
        owner: &K,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
        let all = self.revisions.by_index("namespace", namespace);
        let mut owned = claim(&self.client, owner, selector, all, |_| true).await?;
        owned.sort_by_key(|one| (one.revision, one.metadata.creation_timestamp.as_ref().map(|time| time.0)));
        Ok(owned)
    }

    /// Makes the newest revision one of the template, and returns it. Counts `collisions` of names up.
    pub async fn advance<K: Object>(
        &self,
        owner: &K,
        revisions: &[Arc<ControllerRevision>],
        template: &PodTemplateSpec,
        collisions: &mut Option<i32>,
    ) -> Result<Arc<ControllerRevision>, Error> {
        let namespace = owner.metadata().namespace.as_deref();
        match step(revisions, template) {
            Step::Keep(revision) => Ok(revision),
            Step::Renumber(revision, number) => {
                let patch =
                    json!({"metadata": {"resourceVersion": revision.metadata.resource_version}, "revision": number});
                self.client.patch(namespace, name(&revision), Patch::Merge(patch), None).await.map(Arc::new)
            }
            Step::Create(number) => loop {
                let made = revision(owner, template, number, *collisions)?;
                match self.client.create(&made).await {
                    Ok(made) => return Ok(Arc::new(made)),
                    Err(error) if error.is_already_exists() => {
                        let there: ControllerRevision = self.client.get(namespace, name(&made)).await?;
                        if is_controlled_by(&there.metadata, owner) && same(&there, template) {
                            return Ok(Arc::new(there));
                        }
                        *collisions = Some(collisions.unwrap_or(0) + 1);
                    }
                    Err(error) => return Err(error),
                }
            },
        }
    }

    pub async fn prune(&self, surplus: &[Arc<ControllerRevision>]) -> Result<(), Error> {
        for one in surplus {
            let params = DeleteParams { uid: one.metadata.uid.clone(), ..DeleteParams::default() };
            match self.client.delete::<ControllerRevision>(one.metadata.namespace.as_deref(), name(one), &params).await
            {
                Err(error) if error.is_not_found() => {}
                other => other?,
            }
        }
        Ok(())
    }
}

fn revision<K: Object>(
    owner: &K,
    template: &PodTemplateSpec,
    number: i64,
    collisions: Option<i32>,
) -> Result<ControllerRevision, Error> {
    let hash = template_hash(template, collisions)?;
    let mut labels: Labels =
        template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    labels.insert(if K::KIND == "DaemonSet" { POD_REVISION } else { HASH }.into(), hash.clone());
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.metadata().name.as_deref().unwrap_or_default())),
            namespace: owner.metadata().namespace.clone(),
            labels: Some(labels),
            annotations: owner.metadata().annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data(template))),
        revision: number,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::apps::v1::StatefulSet;

    fn template_of(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}
        }))
        .unwrap()
    }

    fn made(image: &str, number: i64) -> Arc<ControllerRevision> {
        let owner = StatefulSet {
            metadata: ObjectMeta { name: Some("db".into()), ..ObjectMeta::default() },
            ..StatefulSet::default()
        };
        Arc::new(revision(&owner, &template_of(image), number, None).unwrap())
    }

    #[test]
    fn a_rollback_renumbers_and_a_new_template_makes_a_revision() {
        let known = [made("v1", 1), made("v2", 2)];
        assert_eq!(step(&[], &template_of("v1")), Step::Create(1));
        assert_eq!(step(&known, &template_of("v2")), Step::Keep(known[1].clone()));
        assert_eq!(step(&known, &template_of("v1")), Step::Renumber(known[0].clone(), 3));
        assert_eq!(step(&known, &template_of("v3")), Step::Create(3));
    }

    #[test]
    fn the_limit_spares_what_pods_are_of() {
        let known = [made("v1", 1), made("v2", 2), made("v3", 3)];
        let live = HashSet::from([name(&known[0]).to_owned(), hash(&known[2]).to_owned()]);
        assert_eq!(surplus(&known, &live, Some(0)), [known[1].clone()]);
        assert!(surplus(&known, &live, None).is_empty());
    }
}
