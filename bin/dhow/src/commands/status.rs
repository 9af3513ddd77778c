//! `dhow status`: nodes, workloads, memory, and where things are.
#![allow(clippy::print_stdout)]

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use dhow_client::ListParams;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde::Serialize;

use super::connect;
use crate::cli::{Output, StatusArgs};
use crate::pidfile;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    daemon: Daemon,
    nodes: Vec<NodeLine>,
    pods_running: usize,
    pods_total: usize,
    services: usize,
    data_dir: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Daemon {
    running: bool,
    pid: Option<i32>,
    /// Resident memory in bytes.
    memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct NodeLine {
    name: String,
    ready: bool,
    address: String,
}

pub async fn run(args: StatusArgs) -> Result<()> {
    let client = connect(&args.connect)?;
    let all = ListParams::default();
    let nodes = client.list::<Node>(None, &all).await?;
    let pods = client.list::<Pod>(None, &all).await?;
    let services = client.list::<Service>(None, &all).await?;
    let pid = pidfile::holder(&args.connect.run_dir.join("dhow.pid")).map(|pid| pid.as_raw_nonzero().get());
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let status = Status {
        daemon: Daemon { running: pid.is_some(), pid, memory_bytes: pid.and_then(resident) },
        nodes: nodes.items.iter().map(node_line).collect(),
        pods_running: pods.items.iter().filter(|pod| phase(pod) == "Running").count(),
        pods_total: pods.items.len(),
        services: services.items.len(),
        data_dir: args.connect.data_dir.display().to_string(),
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status).context("encode status")?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&status).context("encode status")?),
        Output::Table => println!("{}", table(&status)),
    }
    Ok(())
}

fn table(status: &Status) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let memory = status.daemon.memory_bytes.map_or(String::new(), |bytes| format!(", {} MiB", bytes >> 20));
    let daemon = match status.daemon.pid {
        Some(pid) => format!("running (pid {pid}{memory})"),
        None => "not running on this machine".into(),
    };
    table.add_row(vec!["daemon".into(), daemon]);
    for node in &status.nodes {
        let state = if node.ready { "Ready" } else { "NotReady" };
        table.add_row(vec![format!("node {}", node.name), format!("{state}, {}", node.address)]);
    }
    table.add_row(vec!["pods".into(), format!("{} running of {}", status.pods_running, status.pods_total)]);
    table.add_row(vec!["services".into(), status.services.to_string()]);
    table.add_row(vec!["data".into(), status.data_dir.clone()]);
    table
}

fn node_line(node: &Node) -> NodeLine {
    let status = node.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
    let address = status
        .and_then(|status| status.addresses.as_ref())
        .and_then(|all| all.iter().find(|address| address.type_ == "InternalIP"))
        .map(|address| address.address.clone())
        .unwrap_or_default();
    NodeLine { name: node.metadata.name.clone().unwrap_or_default(), ready, address }
}

/// Resident memory of a process in bytes.
fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
