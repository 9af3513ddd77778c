//! What becomes of pods and nodes: a watch that reads no more of each than it has to, so that a million fit.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Buf, BytesMut};
use dhow_client::Client;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::LABEL;

/// A pod or a node as the API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Seen {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
    #[serde(rename = "continue")]
    more: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    taints: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    nominated_node_name: Option<String>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: Option<String>,
}

impl Seen {
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    pub fn is_bound(&self) -> bool {
        self.spec.node_name.as_deref().is_some_and(|node| !node.is_empty())
    }

    /// Whether a node takes pods.
    pub fn is_open(&self) -> bool {
        self.spec.taints.is_empty()
    }

    /// Why it waits, unless others end for it.
    pub fn why(&self) -> Option<&str> {
        let nominated = self.status.nominated_node_name.as_deref().is_some_and(|node| !node.is_empty());
        let mut conditions = self.status.conditions.iter().filter(|c| c.kind == "PodScheduled" && c.status == "False");
        conditions.next().filter(|_| !nominated)?.message.as_deref()
    }
}

#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    object: Seen,
}

#[derive(Deserialize)]
struct Page {
    metadata: Metadata,
    items: Vec<Seen>,
}

pub enum Change {
    Seen(Seen),
    Gone(String),
}

/// What is simulated of a collection.
fn path(collection: &str, more: &str) -> String {
    format!("{collection}?labelSelector={LABEL}%3Dtrue{more}")
}

/// Tells what is there, then every change until told to stop. The first list is in when this returns.
pub async fn start(
    client: &Client,
    collection: &str,
    mut tell: impl FnMut(Change) + Send + 'static,
    stop: CancellationToken,
) -> Result<()> {
    let mut revision = list(client, collection, &mut tell).await?;
    let (client, collection) = (client.clone(), collection.to_owned());
    tokio::spawn(async move {
        let watching = async {
            loop {
                match follow(&client, &collection, &mut revision, &mut tell).await {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::debug!(error = format!("{error:#}"), "the watch broke; listing again");
                        // A list that fails is tried again, not faster than the server can say no.
                        while let Err(error) = list(&client, &collection, &mut tell).await.map(|now| revision = now) {
                            tracing::warn!(error = format!("{error:#}"), "cannot list what is simulated; trying again");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            }
        };
        tokio::select! { () = watching => {}, () = stop.cancelled() => {} }
    });
    Ok(())
}

async fn list(client: &Client, collection: &str, tell: &mut impl FnMut(Change)) -> Result<String> {
    let mut more = "&limit=500".to_owned();
    loop {
        let body = client.open(&path(collection, &more)).await.context("list what is simulated")?;
        let bytes = body.collect().await.context("list what is simulated")?.to_bytes();
        let page: Page = serde_json::from_slice(&bytes).context("list what is simulated")?;
        page.items.into_iter().for_each(|pod| tell(Change::Seen(pod)));
        match page.metadata.more.filter(|token| !token.is_empty()) {
            Some(token) => {
                let token: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
                more = format!("&limit=500&continue={token}");
            }
            None => return Ok(page.metadata.resource_version),
        }
    }
}

/// Until the server ends the watch, which it does now and then.
async fn follow(client: &Client, collection: &str, revision: &mut String, tell: &mut impl FnMut(Change)) -> Result<()> {
    let query = format!("&watch=true&allowWatchBookmarks=true&resourceVersion={revision}");
    let mut body = client.open(&path(collection, &query)).await.context("watch what is simulated")?;
    let mut buffer = BytesMut::new();
    let mut searched = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("watch what is simulated")?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n').map(|at| searched + at) {
            let line = buffer.split_to(end);
            buffer.advance(1);
            searched = 0;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let frame: Frame = serde_json::from_slice(&line).context("read a change")?;
            match frame.kind.as_str() {
                "ERROR" => anyhow::bail!("the watch is too old"),
                "BOOKMARK" => {}
                "DELETED" => tell(Change::Gone(frame.object.metadata.name.clone())),
                _ => tell(Change::Seen(frame.object.clone())),
            }
            revision.clone_from(&frame.object.metadata.resource_version);
        }
        searched = buffer.len();
    }
    Ok(())
}
