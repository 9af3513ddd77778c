//! `dhow undeploy`: removes what was deployed, and waits until it is gone.
#![allow(clippy::print_stderr)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dhow_client::{Client, Informer, ListParams, Object};
use dhow_translate::PROJECT;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::project::{self, Found};
use super::{connect, source};
use crate::cli::UndeployArgs;
use crate::exit::{NotFound, TimedOut};

pub async fn run(args: UndeployArgs) -> Result<()> {
    let client = connect(&args.connect)?;
    let namespace = args.source.namespace.clone();
    let (name, found, applier) = match (&args.source.project, args.source.paths.is_empty()) {
        (Some(project), true) => {
            let applier = Applier::new(client.clone(), "default".to_owned());
            let found = project::find(&applier, project, namespace.as_deref()).await?;
            (Some(project.clone()), found, applier)
        }
        (None, true) => bail!("name what was deployed, or give --project"),
        _ => {
            let wanted = source::read(&args.source)?;
            let mut applier = Applier::new(client.clone(), wanted.namespace.clone());
            let found = match &wanted.project {
                Some(project) => project::find(&applier, project, Some(&wanted.namespace)).await?,
                None => of_files(&mut applier, &wanted).await?,
            };
            (wanted.project, found, applier)
        }
    };
    if found.is_empty() {
        bail!(NotFound(match name {
            Some(name) => format!("nothing is deployed as {name}"),
            None => "nothing of it is deployed".to_owned(),
        }));
    }
    let gone = remove(&applier, &found, args.volumes).await?;
    if args.timeout == 0 {
        return Ok(());
    }
    let waiting = wait(&client, name.as_deref(), &gone);
    if tokio::time::timeout(Duration::from_secs(args.timeout), waiting).await.is_err() {
        bail!(TimedOut(format!("not all is gone after {} s: see `kubectl get all -l {PROJECT}`", args.timeout)));
    }
    Ok(())
}

/// Exactly the objects of the files.
async fn of_files(applier: &mut Applier, wanted: &source::Deployable) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (from, manifest) in wanted.objects.iter().rev() {
        let target = applier.target(manifest.clone()).await.with_context(|| format!("find {from}"))?;
        if let Some(object) = applier.get(&target.path).await? {
            found.push(Found {
                kind: target.kind,
                namespace: target.namespace,
                name: target.name,
                path: target.path,
                object,
            });
        }
    }
    Ok(found)
}

/// Removes all but volumes that are to stay, and namespaces that hold them. Returns what is going.
async fn remove<'a>(applier: &Applier, found: &'a [Found], volumes: bool) -> Result<Vec<&'a Found>> {
    let kept: BTreeSet<&str> =
        found.iter().filter(|one| one.is_volume() && !volumes).filter_map(|one| one.namespace.as_deref()).collect();
    let mut gone = Vec::new();
    for one in found {
        if one.is_volume() && !volumes {
            eprintln!("{} kept (--volumes removes it)", one.what());
        } else if one.kind == "Namespace" && kept.contains(one.name.as_str()) {
            eprintln!("{} kept with its volumes", one.what());
        } else if one.delete(applier).await? {
            eprintln!("{} removed", one.what());
            gone.push(one);
        }
    }
    Ok(gone)
}

/// Until no pod of the project runs, and volumes and namespaces that were removed are gone.
async fn wait(client: &Client, project: Option<&str>, gone: &[&Found]) {
    if let Some(project) = project {
        let scope = ListParams { label_selector: Some(format!("{PROJECT}={project}")), ..ListParams::default() };
        let namespaces: BTreeSet<&str> = gone.iter().filter_map(|one| one.namespace.as_deref()).collect();
        let own = |pod: &Pod| pod.metadata.namespace.as_deref().is_some_and(|namespace| namespaces.contains(namespace));
        until_none::<Pod>(client, scope, own).await;
    }
    let names = |kind: &str| -> BTreeSet<(Option<String>, String)> {
        gone.iter().filter(|one| one.kind == kind).map(|one| (one.namespace.clone(), one.name.clone())).collect()
    };
    let claims = names("PersistentVolumeClaim");
    if !claims.is_empty() {
        until_none::<PersistentVolumeClaim>(client, ListParams::default(), |claim| is_one_of(claim, &claims)).await;
    }
    let namespaces = names("Namespace");
    if !namespaces.is_empty() {
        until_none::<Namespace>(client, ListParams::default(), |namespace| is_one_of(namespace, &namespaces)).await;
    }
}

fn is_one_of<K: Object>(object: &K, names: &BTreeSet<(Option<String>, String)>) -> bool {
    let metadata = object.metadata();
    names.contains(&(metadata.namespace.clone(), metadata.name.clone().unwrap_or_default()))
}

async fn until_none<K: Object>(client: &Client, scope: ListParams, counts: impl Fn(&K) -> bool) {
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    let all = Informer::<K>::start(client.clone(), scope, None, shutdown);
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    all.on_change(move |_| wake.notify_one());
    all.synced().await;
    while all.list().iter().any(|object| counts(object)) {
        changed.notified().await;
    }
}
