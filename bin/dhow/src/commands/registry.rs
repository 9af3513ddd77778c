//! `dhow registry`: what the cluster's registry has, asked as whom the kubeconfig names.
#![allow(clippy::print_stdout)]

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use comfy_table::{Table, presets};
use dhow_client::Client;
use dhow_image::Reference;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::image::{cluster_registry, print, size};
use crate::cli::{ConnectArgs, ImageOutput, RegistryCommand};
use crate::exit::NotFound;

/// Severities, as columns.
const SEVERITIES: [(&str, &str); 5] =
    [("critical", "C"), ("high", "H"), ("medium", "M"), ("low", "L"), ("unknown", "?")];

pub async fn run(command: RegistryCommand) -> Result<()> {
    match command {
        RegistryCommand::Artifacts { connect, name, output } => {
            let found = artifacts(&connect, &name).await?;
            match output {
                ImageOutput::Table | ImageOutput::Wide => println!("{}", table(&found, output == ImageOutput::Wide)),
                other => print(&found, other)?,
            }
        }
        RegistryCommand::Usage { connect, name, output } => {
            let found = artifacts(&connect, &name).await?;
            let usage = json!({ "repository": found["repository"], "usage": found["usage"] });
            match output {
                ImageOutput::Table | ImageOutput::Wide => println!("{}", days(&usage)),
                other => print(&usage, other)?,
            }
        }
    }
    Ok(())
}

/// Repository and tag of a name with or without the registry's host before it.
fn parse(name: &str, is_host: impl Fn(&str) -> bool) -> Result<(String, Option<String>)> {
    let below = name.split_once('/').filter(|(host, _)| is_host(host)).map_or(name, |(_, below)| below);
    // Any host will do, so that what follows is read as names of images are.
    let reference = Reference::parse(&format!("registry.local/{below}"))?;
    let is_tagged = below.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if reference.digest.is_some() {
        bail!("{name}: name a tag, not a digest");
    }
    Ok((reference.repository, reference.tag.filter(|_| is_tagged)))
}

/// All that there is about a repository, or about one tag of it.
async fn artifacts(connect: &ConnectArgs, name: &str) -> Result<Value> {
    let found = cluster_registry(connect).await?;
    let (client, hosting) = found.context("the cluster has no registry of its own")?;
    let (repository, tag) = parse(name, |host| hosting.is_called(host))?;
    let mut tags: Vec<Value> = Vec::new();
    let mut last: Option<String> = None;
    loop {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(tag.iter().map(|tag| ("tag", tag))).extend_pairs(last.iter().map(|last| ("last", last)));
        let mut page = get(&client, &format!("/v2/{repository}/_dhow/artifacts?{}", query.finish())).await?;
        if let Value::Array(more) = page["tags"].take() {
            tags.extend(more);
        }
        last = page["next"].as_str().map(str::to_owned);
        if last.is_none() {
            page["tags"] = Value::Array(tags);
            return Ok(page);
        }
    }
}

async fn get(client: &Client, path: &str) -> Result<Value> {
    let request = Request::get(path).body(Bytes::new()).context("build the request")?;
    let response = client.request(request).await.context("ask the cluster's registry")?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(answer);
    }
    let said = answer["errors"][0]["message"].as_str().unwrap_or("no reason given");
    if status == StatusCode::NOT_FOUND {
        return Err(NotFound(said.to_owned()).into());
    }
    bail!("the cluster's registry answers {status}: {said}");
}

fn joined(values: &Value) -> String {
    let texts: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

fn severities(found: &Value) -> String {
    if !found.is_object() {
        return "-".to_owned();
    }
    let counts = SEVERITIES.iter().map(|(name, short)| (found[name].as_u64().unwrap_or(0), short));
    let texts: Vec<String> =
        counts.filter(|(count, _)| *count > 0).map(|(count, short)| format!("{count}{short}")).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(" ") }
}

fn table(found: &Value, wide: bool) -> Table {
    let mut table = Table::new();
    let mut header = vec!["TAG", "DIGEST", "SIZE", "SIGNED", "SBOM", "VULNERABILITIES"];
    if wide {
        header.extend(["PUSHED", "REFERRERS"]);
    }
    table.load_style(presets::NOTHING).set_header(header);
    for tag in found["tags"].as_array().into_iter().flatten() {
        let digest = tag["digest"].as_str().unwrap_or_default();
        let short = digest.get(..19).unwrap_or(digest);
        let mut row = vec![
            tag["tag"].as_str().unwrap_or_default().to_owned(),
            if wide { digest.to_owned() } else { short.to_owned() },
            size(&tag["size"]),
            joined(&tag["signatures"]),
            joined(&tag["sboms"]),
            severities(&tag["vulnerabilities"]),
        ];
        if wide {
            row.push(tag["pushed"].as_str().unwrap_or_default().to_owned());
            row.push(tag["referrers"].as_array().map_or(0, Vec::len).to_string());
        }
        table.add_row(row);
    }
    table
}

fn days(found: &Value) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["DAY", "PULLS", "PUSHES"]);
    for (day, count) in found["usage"].as_object().into_iter().flatten() {
        table.add_row([day.clone(), count["pulls"].to_string(), count["pushes"].to_string()]);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_have_a_host_or_none() {
        let parse = |name| parse(name, |host| host == "10.0.0.5:5443").unwrap();
        assert_eq!(parse("team/app"), ("team/app".to_owned(), None));
        assert_eq!(parse("team/app:1"), ("team/app".to_owned(), Some("1".to_owned())));
        assert_eq!(parse("10.0.0.5:5443/team/app:1"), ("team/app".to_owned(), Some("1".to_owned())));
    }

    #[test]
    fn severities_are_short() {
        assert_eq!(severities(&Value::Null), "-");
        assert_eq!(severities(&json!({"critical": 0, "high": 0})), "none");
        assert_eq!(severities(&json!({"critical": 2, "high": 0, "unknown": 1})), "2C 1?");
    }
}
