//! `dhow image`: the node's images, through the API server's node proxy.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use comfy_table::{Table, presets};
use dhow_client::{Client, ListParams};
use http::{Method, Request};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::connect;
use crate::cli::{ImageCommand, Output};

pub async fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Import { connect: args, files } => {
            let client = connect(&args)?;
            let node = any_node(&client).await?;
            for file in files {
                let archive = tokio::fs::read(&file).await.with_context(|| format!("read {}", file.display()))?;
                let path = format!("/api/v1/nodes/{node}/proxy/images/import");
                let names = send(&client, Method::POST, &path, archive.into()).await?;
                for name in names["images"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    eprintln!("imported {name}");
                }
            }
            Ok(())
        }
        ImageCommand::Ls { connect: args, output } => {
            let client = connect(&args)?;
            let node = any_node(&client).await?;
            let images =
                send(&client, Method::GET, &format!("/api/v1/nodes/{node}/proxy/images"), Bytes::new()).await?;
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&images)?),
                Output::Yaml => print!("{}", serde_saphyr::to_string(&images)?),
                Output::Table => println!("{}", table(&images)),
            }
            Ok(())
        }
    }
}

fn table(images: &Value) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(vec!["IMAGE", "ID", "SIZE"]);
    for image in images["images"].as_array().into_iter().flatten() {
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let size = format!("{:.1} MiB", image["size"].as_f64().unwrap_or(0.0) / (1024.0 * 1024.0));
        for tag in image["repo_tags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            table.add_row(vec![tag, id.get(..12).unwrap_or(id), &size]);
        }
    }
    table
}

async fn any_node(client: &Client) -> Result<String> {
    let nodes = client.list::<Node>(None, &ListParams::default()).await?;
    nodes.items.into_iter().find_map(|node| node.metadata.name).context("the cloud has no node yet")
}

async fn send(client: &Client, method: Method, path: &str, body: Bytes) -> Result<Value> {
    let request = Request::builder().method(method).uri(path).body(body).context("build the request")?;
    let response = client.request(request).await?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        let text = String::from_utf8_lossy(&answer).into_owned();
        let message =
            serde_json::from_slice::<Value>(&answer).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        bail!("{}", message.unwrap_or(text));
    }
    serde_json::from_slice(&answer).context("read the server's answer")
}
