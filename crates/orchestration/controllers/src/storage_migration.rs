//! Writes all objects of a resource anew, so that they are stored in its present storage version
//! (`StorageVersionMigration`), and then says of a custom resource that no other version is stored any more.
//!
//! What is stored as it should be is not written: a migration that was cut short begins again and does the rest.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Change, Client, Error, Informer, Key, Outcome, Patch, Queue, Reconcile};
use http::Method;
use k8s_openapi::Metadata;
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ListMeta, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use crate::common::since_creation;
use crate::resources::{Resource, call, get_as, kinds_of_version};

const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
/// On the definition of a custom resource.
const MIGRATING: &str = "StorageMigrating";
const PAGE: u32 = 500;
/// A resource that is not there may be about to come.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);
/// Lists without what the objects hold.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

pub struct Migrations {
    client: Client,
    migrations: Informer<StorageVersionMigration>,
}

fn holds(migration: &StorageVersionMigration, kind: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == kind && one.status == "True")
}

fn is_over(migration: &StorageVersionMigration) -> bool {
    holds(migration, SUCCEEDED) || holds(migration, FAILED)
}

/// The one of several migrations of a resource whose turn it is: one that has begun, else the oldest.
fn next(all: &[Arc<StorageVersionMigration>]) -> Option<&Arc<StorageVersionMigration>> {
    all.iter().filter(|one| !is_over(one)).min_by_key(|one| {
        let made = one.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (!holds(one, RUNNING), made, one.metadata.name.clone())
    })
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: ObjectMeta,
}

impl Migrations {
    pub fn new(client: Client, migrations: Informer<StorageVersionMigration>, queue: &Queue) -> Arc<Self> {
        migrations.add_index("resource", |one| vec![resource_key(one)]);
        let (to, of) = (queue.clone(), migrations.clone());
        migrations.on_change(move |change| {
            let one = change.object();
            to.add(Key::of(one.metadata()));
            // When one is over, or gone, it is the turn of the next.
            if is_over(one) || matches!(change, Change::Deleted(_)) {
                of.by_index("resource", &resource_key(one)).iter().for_each(|other| to.add(Key::of(other.metadata())));
            }
        });
        Arc::new(Self { client, migrations })
    }

    /// The resource in the version that its group prefers; `None` if there is none.
    async fn find(&self, migration: &StorageVersionMigration) -> Result<Option<Resource>, Error> {
        let wanted = &migration.spec.clone().unwrap_or_default().resource;
        let version = if wanted.group.is_empty() {
            "v1".to_owned()
        } else {
            match call(&self.client, Method::GET, &format!("/apis/{}", wanted.group), "", Vec::new()).await {
                Ok(group) => group["preferredVersion"]["groupVersion"].as_str().unwrap_or_default().to_owned(),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        let found = kinds_of_version(&self.client, &version).await?;
        Ok(found.into_iter().find(|one| one.plural == wanted.resource && one.can("list") && one.can("patch")))
    }

    async fn definition(&self, migration: &StorageVersionMigration) -> Result<Option<CustomResourceDefinition>, Error> {
        let wanted = migration.spec.clone().unwrap_or_default().resource;
        match self.client.get(None, &format!("{}.{}", wanted.resource, wanted.group)).await {
            Ok(definition) => Ok(Some(definition)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes which generation of a definition is migrated to.
    async fn begin_definition(&self, migration: &StorageVersionMigration) -> Result<(), Error> {
        let Some(definition) = self.definition(migration).await? else { return Ok(()) };
        let message = format!("Migration {} is running", migration.metadata.name.as_deref().unwrap_or_default());
        self.write_definition(&definition, ("True", "MigrationRunning", message), None).await
    }

    /// Nothing but the storage version is stored any more, if that is still the same.
    async fn end_definition(&self, migration: &StorageVersionMigration, done: bool) -> Result<(), Error> {
        let Some(definition) = self.definition(migration).await? else { return Ok(()) };
        let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let begun = conditions.into_iter().find(|one| one.type_ == MIGRATING);
        if begun.is_none_or(|one| one.reason.as_deref() != Some("MigrationRunning")) {
            return Ok(());
        }
        let same = begun.is_some_and(|one| one.observed_generation == definition.metadata.generation);
        if !done {
            let told = ("True", "MigrationFailed", "The migration has failed".to_owned());
            return self.write_definition(&definition, told, None).await;
        }
        let storage = definition.spec.versions.iter().find(|version| version.storage).filter(|_| same);
        let message = match storage {
            Some(_) => "The migration has succeeded and the stored versions have been updated",
            None => {
                "The migration has succeeded but the stored versions have not been updated due to a generation mismatch"
            }
        };
        let told = ("False", "MigrationSucceeded", message.to_owned());
        self.write_definition(&definition, told, storage.map(|version| version.name.as_str())).await
    }

    async fn write_definition(
        &self,
        definition: &CustomResourceDefinition,
        (status, reason, message): (&str, &str, String),
        stored: Option<&str>,
    ) -> Result<(), Error> {
        let mut conditions =
            definition.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.retain(|one| one.type_ != MIGRATING);
        conditions.push(CustomResourceDefinitionCondition {
            type_: MIGRATING.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(Timestamp::now())),
            observed_generation: definition.metadata.generation,
        });
        let mut patch = json!({
            "metadata": {"uid": definition.metadata.uid, "resourceVersion": definition.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        if let Some(stored) = stored {
            patch["status"]["storedVersions"] = json!([stored]);
        }
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(patch);
        self.client.patch::<CustomResourceDefinition>(None, name, patch, Some("status")).await.map(drop)
    }

    /// Sets a condition, which ends `Running` unless it is that.
    async fn tell(
        &self,
        migration: &StorageVersionMigration,
        (kind, reason, message): (&str, &str, &str),
        revision: Option<String>,
    ) -> Result<StorageVersionMigration, Error> {
        let mut changed = migration.clone();
        let status = changed.status.get_or_insert_default();
        status.resource_version = revision.or_else(|| status.resource_version.take());
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|one| one.type_ != RUNNING && one.type_ != kind);
        conditions.push(Condition {
            type_: kind.into(),
            status: "True".into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: Time(Timestamp::now()),
            observed_generation: None,
        });
        self.client.update_status(&changed).await
    }

    async fn fail(&self, migration: &StorageVersionMigration, message: &str) -> Result<Outcome, Error> {
        self.end_definition(migration, false).await?;
        self.tell(migration, (FAILED, "StorageVersionMigrationFailed", message), None).await?;
        Ok(Outcome::Done)
    }

    /// One page of a list, without what the objects hold.
    async fn page(&self, resource: &Resource, limit: u32, rest: &str) -> Result<Page, Error> {
        let path = format!("{}?limit={limit}&continue={rest}", resource.path(None, None));
        let answer = get_as(&self.client, &path, METADATA).await?;
        serde_json::from_value(answer).map_err(|source| Error::Decode { context: format!("read {path}"), source })
    }

    /// Writes each object as it is. The server does so only where it is stored otherwise.
    async fn rewrite(&self, resource: &Resource) -> Result<(), Error> {
        let mut rest = String::new();
        loop {
            let page = self.page(resource, PAGE, &rest).await?;
            for Item { metadata } in page.items {
                let path = resource.path(metadata.namespace.as_deref(), metadata.name.as_deref());
                let seen = json!({"metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version}});
                let body = seen.to_string().into_bytes();
                match call(&self.client, Method::PATCH, &path, "application/merge-patch+json", body).await {
                    // Written by others, gone, or gone and made anew: in any case there is nothing left to do.
                    Err(error) if error.is_conflict() || error.is_not_found() => {}
                    other => drop(other?),
                }
            }
            rest = page.metadata.continue_.unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
        }
    }
}

fn resource_key(migration: &StorageVersionMigration) -> String {
    let resource = migration.spec.clone().unwrap_or_default().resource;
    format!("{}.{}", resource.resource, resource.group)
}

/// Whether an error may be over when it is tried again.
fn may_pass(error: &Error) -> bool {
    match error {
        // Too much at once, an expired page, a server that is away.
        Error::Api { code, .. } => matches!(code, 410 | 429) || *code >= 500,
        _ => true,
    }
}

#[async_trait::async_trait]
impl Reconcile for Migrations {
    fn name(&self) -> &'static str {
        "storage-version-migrator-controller"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(migration) = self.migrations.get(key).filter(|one| !is_over(one)) else { return Ok(Outcome::Done) };
        let rivals = self.migrations.by_index("resource", &resource_key(&migration));
        if next(&rivals).is_some_and(|first| first.metadata.uid != migration.metadata.uid) {
            return Ok(Outcome::Done);
        }
        let Some(resource) = self.find(&migration).await? else {
            if since_creation(&migration.metadata) < PATIENCE {
                return Ok(Outcome::RequeueAfter(RETRY));
            }
            return self.fail(&migration, "resource not found").await;
        };
        let mut migration = StorageVersionMigration::clone(&migration);
        if !holds(&migration, RUNNING) {
            self.begin_definition(&migration).await?;
            let now = self.page(&resource, 1, "").await?.metadata.resource_version;
            let told = (RUNNING, "MigrationRunning", "The migration is running");
            migration = self.tell(&migration, told, now).await?;
        }
        match self.rewrite(&resource).await {
            Ok(()) => {}
            Err(error) if may_pass(&error) => return Err(error),
            Err(error) => {
                return self.fail(&migration, &format!("migration encountered unhandled error: {error}")).await;
            }
        }
        self.end_definition(&migration, true).await?;
        self.tell(&migration, (SUCCEEDED, "StorageVersionMigrationSucceeded", ""), None).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn migration(name: &str, second: u32, condition: &str) -> Arc<StorageVersionMigration> {
        let condition = json!({"type": condition, "status": "True", "reason": "r", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{second}Z")},
                "spec": {"resource": {"group": "g", "resource": "r"}}, "status": {"conditions": [condition]}}))
            .unwrap(),
        )
    }

    #[test]
    fn one_migration_of_a_resource_runs_at_a_time() {
        let name = |all: &[Arc<StorageVersionMigration>]| next(all).map(|one| one.metadata.name.clone().unwrap());
        let (old, new, done) = (migration("old", 1, "x"), migration("new", 2, "x"), migration("done", 0, SUCCEEDED));
        assert_eq!(name(&[new.clone(), old.clone(), done.clone()]).unwrap(), "old");
        assert_eq!(name(&[migration("begun", 3, RUNNING), old, new]).unwrap(), "begun");
        assert_eq!(name(&[done]), None);
    }
}
