//! Images: whoever was told to judge them at start says which may run, and what they are called so that these are what runs.

use std::collections::{BTreeMap, BTreeSet};

use dhow_api::registry::Subresource;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::{Attributes, Operation, cached};
use crate::ApiServer;

const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// In the audit log.
const AUDIT: &str = "images.dhow.io/unsigned";

/// A pod as far as its images go.
#[derive(Debug, Clone, Default)]
pub struct PodImages {
    pub namespace: String,
    pub namespace_labels: BTreeMap<String, String>,
    /// Secrets of that namespace that it pulls with.
    pub pull_secrets: Vec<String>,
    /// As the pod has them; none that it ran already.
    pub images: Vec<String>,
}

/// What is said of a pod's images.
#[derive(Debug, Clone, Default)]
pub struct ImageVerdict {
    /// Why it may not run.
    pub refused: Vec<String>,
    /// What its maker is to know.
    pub warnings: Vec<String>,
    /// What the audit log is to say.
    pub audit: Vec<String>,
    /// What an image is to be called instead.
    pub pinned: BTreeMap<String, String>,
}

/// Says which images may run.
#[async_trait::async_trait]
pub trait ImageJudge: Send + Sync + 'static {
    async fn judge(&self, pod: PodImages) -> ImageVerdict;
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    LISTS.into_iter().flat_map(move |list| meta::items(pod, &["spec", list]))
}

fn images(pod: &Value) -> BTreeSet<String> {
    containers(pod)
        .map(|container| meta::text(container, &["image"]).to_owned())
        .filter(|image| !image.is_empty())
        .collect()
}

/// Judges what a pod would run, and names it by what was judged.
pub async fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    let Some(judge) = &server.image_judge else { return Ok(()) };
    let is_about_images = match attributes.operation {
        Operation::Create => attributes.subresource.is_none(),
        Operation::Update => matches!(attributes.subresource, None | Some(Subresource::EphemeralContainers)),
        Operation::Delete | Operation::Connect => false,
    };
    if !is_about_images || !attributes.is("", "Pod") {
        return Ok(());
    }
    let known = attributes.old.map(images).unwrap_or_default();
    let images: Vec<String> = images(&attributes.object).difference(&known).cloned().collect();
    if images.is_empty() {
        return Ok(());
    }
    let namespace = attributes.namespace.unwrap_or_default().to_owned();
    let labels = cached(server, "", "namespaces", None, &namespace).and_then(|found| found.value().ok());
    let labels = meta::object(labels.as_ref().unwrap_or(&Value::Null), &["metadata", "labels"]).into_iter().flatten();
    let pull_secrets = meta::items(&attributes.object, &["spec", "imagePullSecrets"]);
    let verdict = judge.judge(PodImages {
        namespace_labels: labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
        pull_secrets: pull_secrets.iter().map(|secret| meta::text(secret, &["name"]).to_owned()).collect(),
        namespace,
        images,
    });
    let verdict = verdict.await;
    verdict.warnings.iter().for_each(|text| attributes.warnings.add(text));
    if !verdict.audit.is_empty() {
        attributes.record(AUDIT, &verdict.audit.join("; "));
    }
    if !verdict.refused.is_empty() {
        return Err(attributes.forbidden(&verdict.refused.join("; ")));
    }
    for list in LISTS {
        let containers = attributes.object["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(name) = container["image"].as_str().and_then(|image| verdict.pinned.get(image)) {
                container["image"] = Value::String(name.clone());
            }
        }
    }
    Ok(())
}
