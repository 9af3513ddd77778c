//! `dhow version`: of this program, of the server and of the nodes.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use dhow_client::{Client, ListParams};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;
use serde_json::Value;

use super::connect;
use crate::cli::{ConnectArgs, Output, VersionArgs};

/// A server that does not answer by then is told of as such.
const QUESTION: Duration = Duration::from_secs(5);

/// What runs where.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    client: Own,
    /// As the API server tells it of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeVersion>,
}

#[derive(Debug, Serialize)]
struct Own {
    version: &'static str,
    platform: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeVersion {
    name: String,
    version: String,
    runtime: String,
    kernel: String,
    os: String,
}

impl Versions {
    /// Of this program alone.
    fn own() -> Self {
        let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
        Self { client: Own { version: env!("CARGO_PKG_VERSION"), platform }, server: None, nodes: Vec::new() }
    }

    /// Of everything, and why something is missing.
    pub async fn find(args: &ConnectArgs) -> (Self, Option<anyhow::Error>) {
        let mut versions = Self::own();
        let asked = async {
            let client = connect(args)?;
            versions.server = Some(server(&client).await?);
            let all = client.list::<Node>(None, &ListParams::default()).await?;
            versions.nodes = all.items.into_iter().map(node).collect();
            anyhow::Ok(())
        };
        let error = match tokio::time::timeout(QUESTION, asked).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(anyhow::anyhow!("the API did not answer within {} s", QUESTION.as_secs())),
        };
        (versions, error)
    }
}

pub async fn run(args: VersionArgs) -> Result<()> {
    let (versions, error) = if args.client { (Versions::own(), None) } else { Versions::find(&args.connect).await };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&versions).context("encode")?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&versions).context("encode")?),
        Output::Table => println!("{}", table(&versions)),
    }
    // One's own version is what was asked for first; without a cloud there is no other.
    if let Some(error) = error {
        eprintln!("The cluster's versions are unknown: {error:#}");
    }
    Ok(())
}

fn table(versions: &Versions) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_row(["client", versions.client.version, &versions.client.platform]);
    if let Some(server) = &versions.server {
        let text = |key: &str| server[key].as_str().unwrap_or_default();
        table.add_row(["server", text("gitVersion"), text("platform")]);
    }
    for node in &versions.nodes {
        let rest = format!("{}, kernel {}, {}", node.runtime, node.kernel, node.os);
        table.add_row([format!("node {}", node.name), node.version.clone(), rest]);
    }
    table
}

async fn server(client: &Client) -> Result<Value> {
    let body = client.open("/version").await?.collect().await.context("read the server's version")?.to_bytes();
    serde_json::from_slice(&body).context("read the server's version")
}

fn node(node: Node) -> NodeVersion {
    let info = node.status.and_then(|status| status.node_info).unwrap_or_default();
    NodeVersion {
        name: node.metadata.name.unwrap_or_default(),
        version: info.kubelet_version,
        runtime: info.container_runtime_version,
        kernel: info.kernel_version,
        os: info.os_image,
    }
}
