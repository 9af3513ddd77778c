//! The networks of this node's pods, one of each family: given by the cluster with the Node, remembered for restarts without
//! it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dhow_client::{Client, Error, Informer, Key, ListParams, Patch};
use dhow_net::Cidr;
use dhow_net::peers::OUTER_ADDRESS;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::place::Place;

fn record(place: &Place) -> PathBuf {
    place.data_dir.join("net/pod-network")
}

/// What the node had so far.
pub fn known(place: &Place) -> Result<Option<Vec<Cidr>>> {
    let path = record(place);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let all: Result<Vec<Cidr>, _> = text.split_whitespace().map(str::parse).collect();
            all.map(Some).with_context(|| format!("read {}", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Makes the Node unless it is there, and waits until it has its networks.
pub async fn obtain(client: &Client, place: &Place) -> Result<Vec<Cidr>> {
    let known = known(place)?;
    let node = match client.get::<Node>(None, &place.node_name).await {
        Ok(node) => node,
        Err(error) if error.is_not_found() => create(client, place, known.as_deref()).await?,
        Err(error) => return Err(error).context("look up the node"),
    };
    announce(client, place, &node).await?;
    let networks = match networks_of(&node) {
        Some(networks) => networks,
        None => wait(client, place).await?,
    };
    if let Some(known) = known.filter(|known| known.first() != networks.first()) {
        bail!(
            "the pods of this node have addresses in {}, but the cluster gives the node {}: another node has them now; run \
             `dhow down --purge`, then join again",
            joined(&known, ", "),
            joined(&networks, ", ")
        );
    }
    let path = record(place);
    std::fs::create_dir_all(place.data_dir.join("net")).context("create the network's folder")?;
    std::fs::write(&path, joined(&networks, "\n") + "\n").with_context(|| format!("write {}", path.display()))?;
    Ok(networks)
}

fn joined(networks: &[Cidr], by: &str) -> String {
    networks.iter().map(Cidr::to_string).collect::<Vec<_>>().join(by)
}

/// A node that is new, or that somebody deleted: then it keeps its pods' addresses if they are still free.
async fn create(client: &Client, place: &Place, known: Option<&[Cidr]>) -> Result<Node> {
    let mut node = Node::default();
    node.metadata.name = Some(place.node_name.clone());
    if let Some(known) = known {
        let spec = node.spec.get_or_insert_default();
        spec.pod_cidr = known.first().map(Cidr::to_string);
        spec.pod_cidrs = Some(known.iter().map(Cidr::to_string).collect());
    }
    match client.create(&node).await {
        Err(Error::Api { code: 422, .. }) if known.is_some() => {
            node.spec = None;
            client.create(&node).await
        }
        other => other,
    }
    .context("register the node")
}

/// Says where others reach this node, if that is not where they would look.
async fn announce(client: &Client, place: &Place, node: &Node) -> Result<()> {
    let outer: Vec<String> = place.outer_addresses.iter().map(ToString::to_string).collect();
    let wanted = (!outer.is_empty()).then(|| outer.join(","));
    let held = node.metadata.annotations.as_ref().and_then(|held| held.get(OUTER_ADDRESS));
    if held == wanted.as_ref() {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"metadata": {"annotations": {OUTER_ADDRESS: wanted}}}));
    client.patch::<Node>(None, &place.node_name, patch, None).await.context("announce the node's address")?;
    Ok(())
}

fn networks_of(node: &Node) -> Option<Vec<Cidr>> {
    let spec = node.spec.as_ref()?;
    let mut networks: Vec<Cidr> = Vec::new();
    for network in spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|text| text.parse().ok()) {
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    (!networks.is_empty()).then_some(networks)
}

async fn wait(client: &Client, place: &Place) -> Result<Vec<Cidr>> {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let own = ListParams { field_selector: Some(format!("metadata.name={}", place.node_name)), ..Default::default() };
    let nodes = Informer::<Node>::start(client.clone(), own, None, stop);
    let changed = std::sync::Arc::new(Notify::new());
    let wake = changed.clone();
    nodes.on_change(move |_| wake.notify_one());
    loop {
        let node = nodes.get(&Key::new(None, &place.node_name));
        if let Some(networks) = node.as_deref().and_then(networks_of) {
            return Ok(networks);
        }
        changed.notified().await;
    }
}
