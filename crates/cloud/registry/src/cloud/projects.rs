//! What the status of a project says.

use std::time::Duration;

use dhow_client::{Client, Error, Informer, Key, Outcome, Patch, Reconcile};
use serde_json::json;

use super::condition;
use super::kinds::{Project, ProjectStatus};
use crate::Registry;

/// Changes of a project within this time are written down together.
pub const SETTLE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(30);

pub struct Projects {
    pub registry: Registry,
    pub client: Client,
    pub projects: Informer<Project>,
}

#[async_trait::async_trait]
impl Reconcile for Projects {
    fn name(&self) -> &'static str {
        "registry-projects"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let metrics = &self.registry.0.metrics;
        let Some(project) = self.projects.get(key) else {
            metrics.project_bytes.remove(&[&key.name]);
            metrics.project_repositories.remove(&[&key.name]);
            return Ok(Outcome::Done);
        };
        let (repositories, bytes) = match self.registry.usage(&key.name).await {
            Ok(usage) => usage,
            Err(error) => {
                tracing::warn!(project = %key.name, %error, "cannot count what a project has");
                return Ok(Outcome::RequeueAfter(RETRY));
            }
        };
        metrics.project_bytes.with(&[&key.name]).set(bytes as f64);
        metrics.project_repositories.with(&[&key.name]).set(repositories as f64);
        let old = project.status.clone().unwrap_or_default();
        let rules = project.spec.rules();
        let verdict = rules.as_ref().map(|_| "it holds as it is written").map_err(|why| ("Invalid", why.as_str()));
        let status = ProjectStatus {
            observed_generation: project.metadata.generation,
            repositories,
            bytes,
            conditions: vec![condition("Accepted", verdict, &old.conditions)],
        };
        if status != old {
            let patch = Patch::Merge(json!({ "status": status }));
            match self.client.patch::<Project>(None, &key.name, patch, Some("status")).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }
}
