//! From the command line to what the node is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use dhow_builder::api::{CacheFrom, CacheTarget, CacheTo, Context, Listings, Request, StepLimits};
use dhow_builder::dockerfile::{Dockerfile, Instruction};
use dhow_builder::{Attest, ProvenanceMode};
use dhow_image::Reference;
use dhow_image::api::Credentials;

use super::super::image;
use super::cache;
use super::context::Sources;
use super::output::Destination;
use crate::cli::{AttestArgs, BuildArgs, BuildNetwork, LimitArgs};

/// Largest secret, as in BuildKit.
const MAX_SECRET: usize = 500 << 10;

pub async fn make(args: &BuildArgs, sources: &Sources, destination: &Destination) -> Result<Request> {
    let mut contexts: BTreeMap<String, Context> = BTreeMap::new();
    contexts.insert(String::new(), sources.own.clone());
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
    let cache_to = args.cache.cache_to.iter().map(|text| Ok(cache::to(text)?.0)).collect::<Result<Vec<_>>>()?;
    Ok(Request {
        dockerfile: sources.dockerfile.clone(),
        file: sources.file.clone(),
        target: args.target.clone(),
        args: arguments,
        labels: args.label.iter().map(pair).collect(),
        platform: args.platform.clone(),
        contexts,
        listings: Listings::new(),
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
        credentials: credentials(args, sources, &cache_to).await,
        cache_from: sources.caches.clone(),
        cache_to,
        attest: attest(&args.attest)?,
        limits: limits(&args.limits)?,
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

/// `true`, `false`, or what is more to be said.
fn attest(args: &AttestArgs) -> Result<Attest> {
    let mut wanted = Attest::default();
    let long = |kind: &str, text: &Option<String>| text.as_ref().map(|text| format!("type={kind},{text}"));
    let long = [long("provenance", &args.provenance), long("sbom", &args.sbom)];
    for text in long.into_iter().flatten().chain(args.attest.iter().cloned()) {
        let (mut kind, mut mode, mut on) = ("", ProvenanceMode::Min, true);
        for field in text.split(',') {
            match field.split_once('=').unwrap_or((field, "")) {
                ("type", name) => kind = name,
                ("mode", "min") => mode = ProvenanceMode::Min,
                ("mode", "max") => mode = ProvenanceMode::Max,
                ("true" | "1", "") | ("disabled", "false") | ("enabled", "true") | ("version", "v1") => {}
                ("false" | "0", "") | ("disabled", "true" | "") | ("enabled", "false") => on = false,
                _ => {
                    bail!("--attest {text}: {field:?} is none of type=provenance|sbom, mode=min|max and disabled=true")
                }
            }
        }
        match kind {
            "provenance" => wanted.provenance = on.then_some(mode),
            "sbom" => wanted.sbom = on,
            other => bail!("--attest {text}: type {other:?} is neither provenance nor sbom"),
        }
    }
    Ok(wanted)
}

fn limits(args: &LimitArgs) -> Result<StepLimits> {
    let size = |text: &String| {
        let bytes = dhow_builder::size(text).and_then(|bytes| i64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
        bytes.with_context(|| format!("--memory {text}: a size such as 512m"))
    };
    let memory = args.memory.as_ref().map(size).transpose()?;
    if args.pids_limit.is_some_and(|limit| limit < 1) {
        bail!("--pids-limit: at least 1");
    }
    Ok(StepLimits {
        memory,
        pids: args.pids_limit,
        cpu_shares: args.cpu_shares,
        cpu_quota: args.cpu_quota,
        cpu_period: args.cpu_period,
        cpuset_cpus: args.cpuset_cpus.clone(),
    })
}

/// What the user has for the registries of all images that the build reads or writes.
async fn credentials(args: &BuildArgs, sources: &Sources, cache_to: &[CacheTo]) -> BTreeMap<String, Credentials> {
    let stages = Dockerfile::parse(&sources.dockerfile).map(|file| file.stages).unwrap_or_default();
    let copied =
        stages.iter().flat_map(|stage| &stage.instructions).filter_map(|instruction| match &instruction.value {
            Instruction::Copy(copying) | Instruction::Add(copying) => copying.from.clone(),
            _ => None,
        });
    let contexts = sources.named.iter().filter_map(|(_, context)| match context {
        Context::Image(name) => Some(name.clone()),
        _ => None,
    });
    let caches = sources.caches.iter().filter_map(|from| match from {
        CacheFrom::Registry(name) => Some(name.clone()),
        CacheFrom::Folder(..) => None,
    });
    let targets = cache_to.iter().filter_map(|to| match &to.to {
        CacheTarget::Registry(name) => Some(name.clone()),
        _ => None,
    });
    let read = stages.iter().map(|stage| stage.base.clone()).chain(copied).chain(contexts).chain(caches);
    let (mut all, mut asked) = (BTreeMap::new(), BTreeSet::new());
    for name in read.chain(args.tag.iter().cloned()).chain(targets) {
        let Ok(reference) = Reference::parse(&name) else { continue };
        if all.contains_key(&reference.registry) {
            continue;
        }
        // Without them a registry may still answer; and says so if not.
        if let Some(found) = login(args, &name, asked.insert(reference.registry.clone())).await {
            all.insert(reference.registry, found);
        }
    }
    all
}

/// What the user has for an image's registry; what the cluster gives for its own, if it is asked.
async fn login(args: &BuildArgs, name: &str, ask: bool) -> Option<Credentials> {
    let found = match image::own_credentials(name).await {
        Ok(None) if ask => image::of_cluster(&args.at, name).await,
        own => own,
    };
    found.ok().flatten()
}

/// Adds what the user has for a registry; whether there is anything.
pub async fn log_in(request: &mut Request, args: &BuildArgs, registry: &str) -> bool {
    // Credentials may be for a part of a registry, but those are not known to be the ones.
    match login(args, &format!("{registry}/image"), true).await {
        Some(found) => request.credentials.insert(registry.to_owned(), found).is_none(),
        None => false,
    }
}
