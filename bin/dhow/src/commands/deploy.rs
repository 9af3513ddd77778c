//! `dhow deploy`: applies a project, follows the roll-out, ends with addresses.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod apply;
mod diff;
mod images;
mod project;
mod rollout;
mod source;
pub mod undeploy;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::connect;
use crate::cli::{DeployArgs, RenderForm};
use crate::exit::TimedOut;
use apply::{Applied, Applier};
use source::Deployable;

pub async fn run(args: DeployArgs) -> Result<()> {
    let mut wanted = source::read(&args.source)?;
    for warning in &wanted.warnings {
        eprintln!("warning: {warning}");
    }
    if args.render || args.output.is_some() {
        return render(&wanted, args.output.unwrap_or(RenderForm::Yaml));
    }
    if args.prune && wanted.project.is_none() {
        bail!("--prune has to know what belongs together: give --project");
    }
    let client = connect(&args.connect)?;
    let mut applier = Applier::new(client.clone(), wanted.namespace.clone());
    if args.diff {
        return diff::run(&mut applier, &wanted, args.prune).await;
    }
    images::build(&args.connect, &mut wanted).await?;
    let applied = apply_all(&mut applier, &wanted).await?;
    match rolled_out(&client, &args, &applied).await {
        Ok(()) => {}
        Err(error) if args.rollback_on_failure => {
            eprintln!("the roll-out failed: {error:#}");
            roll_back(&applier, applied).await?;
            return Err(error.context("rolled back"));
        }
        Err(error) => return Err(error),
    }
    if args.prune
        && let Some(name) = &wanted.project
    {
        prune(&applier, name, &wanted, &applied).await?;
    }
    for url in rollout::addresses(&client, &applied).await? {
        println!("{url}");
    }
    Ok(())
}

async fn apply_all(applier: &mut Applier, wanted: &Deployable) -> Result<Vec<Applied>> {
    let mut applied = Vec::new();
    for (source, manifest) in &wanted.objects {
        let object = applier.apply(manifest.clone(), false).await.with_context(|| format!("apply {source}"))?;
        eprintln!("{} {}", object.what(), object.change);
        applied.push(object);
    }
    Ok(applied)
}

async fn rolled_out(client: &dhow_client::Client, args: &DeployArgs, applied: &[Applied]) -> Result<()> {
    if args.timeout == 0 {
        return Ok(());
    }
    let waiting = rollout::follow(client, applied, std::io::stderr().is_terminal());
    match tokio::time::timeout(Duration::from_secs(args.timeout), waiting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let why = rollout::explain(client, applied).await?;
            Err(error.context(why.trim_start().to_owned()))
        }
        Err(_) => {
            let why = rollout::explain(client, applied).await?;
            bail!(TimedOut(format!("not available after {} s\n{why}", args.timeout)));
        }
    }
}

/// The last first: what others need stays longest.
async fn roll_back(applier: &Applier, applied: Vec<Applied>) -> Result<()> {
    for object in applied.iter().rev().filter(|object| object.change != "unchanged") {
        let done = applier.restore(object).await.with_context(|| format!("put {} back", object.what()))?;
        eprintln!("{} {done}", object.what());
    }
    Ok(())
}

async fn prune(applier: &Applier, name: &str, wanted: &Deployable, applied: &[Applied]) -> Result<()> {
    let keep: Vec<&str> = applied.iter().map(|object| object.path.as_str()).collect();
    for found in project::stale(applier, name, wanted, &keep).await? {
        found.delete(applier).await?;
        eprintln!("{} removed", found.what());
    }
    Ok(())
}

fn render(wanted: &Deployable, form: RenderForm) -> Result<()> {
    match form {
        RenderForm::Json => {
            let items: Vec<_> = wanted.objects.iter().map(|(_, object)| object).collect();
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
            println!("{}", serde_json::to_string_pretty(&list)?);
        }
        RenderForm::Yaml => {
            for (_, object) in &wanted.objects {
                print!("---\n{}", yaml(object)?);
            }
        }
    }
    Ok(())
}

/// An object as YAML that ends in a line break.
fn yaml(object: &serde_json::Value) -> Result<String> {
    let text = serde_saphyr::to_string(object).context("write YAML")?;
    Ok(text.trim_end().to_owned() + "\n")
}
