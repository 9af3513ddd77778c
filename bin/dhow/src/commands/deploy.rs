//! `dhow deploy`: applies Kubernetes YAML, follows the roll-out, ends with addresses.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod apply;
mod rollout;

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::connect;
use crate::cli::DeployArgs;
use crate::exit::TimedOut;

pub async fn run(args: DeployArgs) -> Result<()> {
    let client = connect(&args.connect)?;
    let manifests = read_manifests(&args.path)?;
    if manifests.is_empty() {
        bail!("{} holds no object", args.path.display());
    }
    let mut applier = apply::Applier::new(client.clone(), args.namespace.clone());
    let mut applied = Vec::new();
    for (source, manifest) in manifests {
        let object = applier.apply(manifest).await.with_context(|| format!("apply {source}"))?;
        eprintln!("{} {}", object.what(), object.change);
        applied.push(object);
    }
    if args.timeout == 0 {
        return Ok(());
    }
    let waiting = rollout::follow(&client, &applied, std::io::stderr().is_terminal());
    match tokio::time::timeout(Duration::from_secs(args.timeout), waiting).await {
        Ok(result) => result?,
        Err(_) => {
            let why = rollout::explain(&client, &applied).await?;
            bail!(TimedOut(format!("not available after {} s\n{why}", args.timeout)));
        }
    }
    for url in rollout::addresses(&client, &applied).await? {
        println!("{url}");
    }
    Ok(())
}

/// All objects of a file, folder or standard input, each with where it came from.
fn read_manifests(path: &Path) -> Result<Vec<(String, Value)>> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        return parse("standard input", &text);
    }
    let mut found = Vec::new();
    for file in yaml_files(path)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        found.extend(parse(&file.display().to_string(), &text)?);
    }
    Ok(found)
}

fn yaml_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known)) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(source: &str, text: &str) -> Result<Vec<(String, Value)>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).with_context(|| format!("{source} is not valid YAML"))?;
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let place = format!("{source}, document {}", index + 1);
        match document {
            Value::Null => {}
            Value::Object(ref fields) if fields.get("kind").is_some_and(|kind| kind == "List") => {
                for item in document["items"].as_array().into_iter().flatten() {
                    objects.push((place.clone(), item.clone()));
                }
            }
            Value::Object(_) => objects.push((place, document)),
            _ => bail!("{place}: expected an object with apiVersion and kind"),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "kind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n";
        let kinds: Vec<String> =
            parse("x", text).unwrap().into_iter().map(|(_, object)| object["kind"].as_str().unwrap().into()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
    }

    #[test]
    fn a_scalar_is_refused_with_its_place() {
        let error = parse("file.yaml", "kind: A\n---\nhello\n").unwrap_err();
        assert!(error.to_string().contains("file.yaml, document 2"), "{error}");
    }
}
