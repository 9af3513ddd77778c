//! From the command line to what the node is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use dhow_builder::api::{Context, Request};
use dhow_builder::dockerfile::Dockerfile;
use dhow_image::Reference;
use dhow_image::api::Credentials;

use super::super::image;
use super::context::Sources;
use super::output::Destination;
use crate::cli::{BuildArgs, BuildNetwork};

/// Largest secret, as in BuildKit.
const MAX_SECRET: usize = 500 << 10;

pub async fn make(args: &BuildArgs, sources: &Sources, destination: &Destination) -> Result<Request> {
    let mut contexts: BTreeMap<String, Context> = BTreeMap::new();
    contexts.insert(String::new(), Context::Folder(0));
    for (name, context) in &sources.named {
        contexts.insert(name.clone(), context.clone());
    }
    let mut arguments = BTreeMap::new();
    for argument in &args.build_arg {
        match argument.split_once('=') {
            Some((name, value)) => drop(arguments.insert(name.to_owned(), value.to_owned())),
            None => {
                if let Ok(value) = std::env::var(argument) {
                    arguments.insert(argument.clone(), value);
                }
            }
        }
    }
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) if !text.is_empty() => Some(text.parse().context("SOURCE_DATE_EPOCH is a number of seconds")?),
        _ => None,
    };
    Ok(Request {
        dockerfile: sources.dockerfile.clone(),
        file: sources.file.clone(),
        target: args.target.clone(),
        args: arguments,
        labels: args.label.iter().map(pair).collect(),
        platform: args.platform.clone(),
        contexts,
        secrets: secrets(&args.secret)?,
        agents: agents(&args.ssh)?,
        no_cache: args.no_cache,
        no_cache_stages: args.no_cache_filter.clone(),
        pull: args.pull,
        network: args.network.map(|network| {
            let name = match network {
                BuildNetwork::Default => "default",
                BuildNetwork::None => "none",
                BuildNetwork::Host => "host",
            };
            name.to_owned()
        }),
        epoch,
        names: args.tag.clone(),
        output: destination.output,
        push: args.push || destination.push,
        compression: destination.compression,
        credentials: credentials(args, sources).await,
        run: None,
    })
}

/// `id=NAME[,src=FILE|,env=VARIABLE]`; without either a variable of that name, else a file.
fn secrets(given: &[String]) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for text in given {
        let (mut id, mut file, mut variable) = (None, None, None);
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("src" | "source", value)) => file = Some(PathBuf::from(value)),
                Some(("env", value)) => variable = Some(value.to_owned()),
                Some(("type", "file" | "env")) => {}
                _ => bail!("--secret {text}: {field:?} is none of id=, src= and env="),
            }
        }
        let id = id.with_context(|| format!("--secret {text}: id= is missing"))?;
        let from_env = variable.or_else(|| file.is_none().then(|| id.clone()).filter(|id| std::env::var(id).is_ok()));
        let secret = match (&file, from_env) {
            (None, Some(name)) => {
                std::env::var(&name).with_context(|| format!("--secret {text}: {name}"))?.into_bytes()
            }
            (file, _) => {
                let path = file.clone().unwrap_or_else(|| PathBuf::from(&id));
                std::fs::read(&path).with_context(|| format!("--secret {text}: read {}", path.display()))?
            }
        };
        if secret.len() > MAX_SECRET {
            bail!("--secret {text}: larger than {MAX_SECRET} bytes");
        }
        all.insert(id, base64::engine::general_purpose::STANDARD.encode(secret));
    }
    Ok(all)
}

fn agents(given: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let mut all = BTreeMap::new();
    for text in given {
        let (id, socket) = match text.split_once('=') {
            Some((id, socket)) => (id, PathBuf::from(socket)),
            None => {
                let socket = std::env::var_os("SSH_AUTH_SOCK");
                (text.as_str(), socket.context("--ssh: SSH_AUTH_SOCK names no agent")?.into())
            }
        };
        all.insert(id.to_owned(), socket);
    }
    Ok(all)
}

/// What the user has for the registries of base images and of the image itself.
async fn credentials(args: &BuildArgs, sources: &Sources) -> BTreeMap<String, Credentials> {
    let bases = Dockerfile::parse(&sources.dockerfile).map(|file| file.stages).unwrap_or_default();
    let bases = bases.into_iter().map(|stage| stage.base);
    let (mut all, mut asked) = (BTreeMap::new(), BTreeSet::new());
    for name in bases.chain(args.tag.iter().cloned()) {
        let Ok(reference) = Reference::parse(&name) else { continue };
        if all.contains_key(&reference.registry) {
            continue;
        }
        // Without them a registry may still answer; and says so if not.
        let found = match image::own_credentials(&name).await {
            Ok(None) if asked.insert(reference.registry.clone()) => image::of_cluster(&args.at, &name).await,
            own => own,
        };
        if let Ok(Some(found)) = found {
            all.insert(reference.registry, found);
        }
    }
    all
}
