//! The images of a Compose project that says how to build them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use dhow_translate::{Build, Secret};
use serde_json::{Value, json};

use super::super::build;
use super::source::Deployable;
use crate::cli::{AttestArgs, BuildArgs, BuildNetwork, CacheArgs, ConnectArgs, ImageNode, LimitArgs, ProgressKind};

/// On pods of images that were built: another image makes other pods, though its name stays.
const IMAGE_ID: &str = "dhow.io/image-id";

/// Builds what is to be built, and notes in the objects which images came of it.
pub async fn build(connect: &ConnectArgs, wanted: &mut Deployable) -> Result<()> {
    for wanted_build in std::mem::take(&mut wanted.builds) {
        // Keeps a Dockerfile of the Compose file's own for as long as it is read.
        let folder = tempfile::tempdir().context("make a folder")?;
        let args = arguments(connect, &wanted_build, &folder)?;
        let service = &wanted_build.service;
        let id = build::build(&args).await.with_context(|| format!("build the image of service {service}"))?;
        let (Some(id), Some(name)) = (id, wanted_build.names.first()) else { continue };
        wanted.objects.iter_mut().for_each(|(_, object)| note(object, name, &id));
    }
    Ok(())
}

fn arguments(connect: &ConnectArgs, wanted: &Build, folder: &tempfile::TempDir) -> Result<BuildArgs> {
    let file = match &wanted.inline {
        Some(text) => {
            let path = folder.path().join("Dockerfile");
            std::fs::write(&path, text).context("write the Dockerfile of the Compose file")?;
            Some(path)
        }
        None => wanted.dockerfile.clone(),
    };
    let secret = |(id, secret): &(String, Secret)| match secret {
        Secret::File(path) => format!("id={id},src={}", path.display()),
        Secret::Variable(name) => format!("id={id},env={name}"),
    };
    Ok(BuildArgs {
        at: ImageNode { connect: connect.clone(), node: None },
        path: PathBuf::clone(&wanted.context),
        file,
        tag: wanted.names.clone(),
        target: wanted.target.clone(),
        build_arg: wanted
            .args
            .iter()
            .map(|(name, value)| value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")))
            .collect(),
        build_context: wanted.contexts.iter().map(|(name, source)| format!("{name}={source}")).collect(),
        label: wanted.labels.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        secret: wanted.secrets.iter().map(secret).collect(),
        ssh: wanted.ssh.clone(),
        no_cache: wanted.no_cache,
        no_cache_filter: wanted.no_cache_filter.clone(),
        pull: wanted.pull,
        platform: wanted.platform.clone(),
        network: wanted.network.as_deref().map(|network| match network {
            "none" => BuildNetwork::None,
            "host" => BuildNetwork::Host,
            _ => BuildNetwork::Default,
        }),
        output: None,
        push: false,
        progress: ProgressKind::Auto,
        quiet: false,
        iidfile: None,
        cache: CacheArgs { cache_from: wanted.cache_from.clone(), cache_to: wanted.cache_to.clone() },
        attest: AttestArgs { provenance: wanted.provenance.clone(), sbom: wanted.sbom.clone(), attest: Vec::new() },
        limits: LimitArgs::default(),
    })
}

/// Puts the image's id on the pods of a workload that runs it.
fn note(object: &mut Value, image: &str, id: &str) {
    let Some(template) = object.pointer_mut("/spec/template") else { return };
    let lists = ["containers", "initContainers"];
    let runs = lists.iter().filter_map(|list| template["spec"][list].as_array());
    if !runs.flatten().any(|container| container["image"] == image) {
        return;
    }
    template["metadata"]["annotations"][IMAGE_ID] = json!(id);
}
