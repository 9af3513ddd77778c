//! Steps from other builders, and for them.

use std::path::PathBuf;
use std::sync::Arc;

use dhow_image::{Auth, Compression, Digest, Layer, PullOptions, PushOptions, RemoteSteps};
use serde::{Deserialize, Serialize};

use crate::build::{Build, Tree};
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events};
use crate::report::Report;
use crate::{Builder, Job};

/// Where steps that others made are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheSource {
    /// Under this name in a registry.
    Registry(String),
    /// In an OCI layout, under this tag if one is said.
    Folder(PathBuf, Option<String>),
}

/// Which steps others get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Those whose layers are in the result.
    #[default]
    Min,
    /// All.
    Max,
}

/// The steps of a build that others get.
pub fn chosen(tree: &Tree, report: &Report, mode: CacheMode) -> Vec<(Digest, Vec<Layer>)> {
    let of_result = |layers: &[Layer]| layers.iter().all(|layer| tree.layers.contains(layer));
    let steps = report.steps.iter().filter(|(_, layers)| mode == CacheMode::Max || of_result(layers));
    steps.cloned().collect()
}

impl Builder {
    /// Looks what there is elsewhere. What cannot be had is only not used.
    pub(crate) async fn import(&self, job: &Job, events: &Events) -> Vec<RemoteSteps> {
        let mut found = Vec::new();
        for source in &job.cache_from {
            let name = match source {
                CacheSource::Registry(name) => format!("importing cache manifest from {name}"),
                CacheSource::Folder(..) => "importing cache manifest from a folder".to_owned(),
            };
            let step = events.begin(name);
            let steps = self.look(source, job).await;
            match steps {
                Ok(steps) => {
                    step.end(&Ok(()));
                    found.push(steps);
                }
                Err(error) => {
                    let text = format!("the cache is not used: {error}");
                    step.end(&Err::<(), _>(error));
                    events.tell(Event::Warning { text });
                }
            }
        }
        found
    }

    async fn look(&self, source: &CacheSource, job: &Job) -> Result<RemoteSteps> {
        let config = &self.inner.config;
        match source {
            CacheSource::Registry(name) => {
                let registry = dhow_image::Reference::parse(name)?.registry;
                let auth = job.auth.get(&registry).cloned().unwrap_or(Auth::Anonymous);
                let (registries, platform) = (Arc::clone(&config.registries), Some(job.wanted.platform.clone()));
                Ok(config.store.remote_steps(name, PullOptions { auth, registries, platform }).await?)
            }
            CacheSource::Folder(folder, tag) => {
                let (store, folder, tag) = (config.store.clone(), folder.clone(), tag.clone());
                blocking(move || Ok(store.steps_in(&folder, tag.as_deref())?)).await
            }
        }
    }

    /// Sends the steps of a build to a registry.
    pub async fn push_cache(
        &self,
        steps: Vec<(Digest, Vec<Layer>)>,
        name: &str,
        auth: Auth,
        compression: Compression,
    ) -> Result<Digest> {
        let config = &self.inner.config;
        let options = PushOptions { auth, registries: Arc::clone(&config.registries), chunk_bytes: None };
        config.store.push_steps(steps, name, options, compression).await.map_err(Error::from)
    }
}

impl Build {
    /// What a key was made into before, here or elsewhere; `known` are layers that it may begin with.
    pub async fn kept(&self, key: &Digest, known: &[Layer], fresh: bool) -> Result<Option<Vec<Layer>>> {
        if fresh {
            return Ok(None);
        }
        let store = &self.builder.inner.config.store;
        let mut found = store.kept(key);
        for from in &self.imported {
            if found.is_some() {
                break;
            }
            match store.take_step(from, key, known).await {
                Ok(taken) => found = taken,
                Err(error) => {
                    let error = Error::from(error);
                    self.events.tell(Event::Warning { text: format!("a step of the cache is not used: {error}") });
                }
            }
        }
        if let Some(layers) = &found {
            self.note(key, layers);
        }
        Ok(found)
    }
}
