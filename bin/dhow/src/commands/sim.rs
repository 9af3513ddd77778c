//! `dhow sim`: nodes and pods that are only objects, to see how the scheduler places them and how fast.
#![allow(clippy::print_stdout)]

mod alone;
mod through;
mod trace;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::cli::SimArgs;
use trace::Entry;

/// Label of everything that is simulated.
const LABEL: &str = "dhow.io/simulated";

/// What was seen, at the end.
#[derive(Debug, Default)]
struct Report {
    bound: usize,
    pending: usize,
    seconds: f64,
    /// Why pods wait, with how many.
    reasons: std::collections::BTreeMap<String, usize>,
}

impl Report {
    fn print(&self) {
        let rate = if self.seconds > 0.0 { self.bound as f64 / self.seconds } else { 0.0 };
        println!(
            "{} pods bound in {:.2} s: {rate:.0} pods per second; {} pending",
            self.bound, self.seconds, self.pending
        );
        for (reason, pods) in &self.reasons {
            println!("  {pods} pods: {reason}");
        }
    }
}

pub async fn run(args: SimArgs) -> Result<()> {
    if args.nodes == 0 {
        bail!("a simulation needs nodes: give --nodes");
    }
    let entries = match &args.trace {
        Some(file) => trace::read(file)?,
        None => (0..args.pods).map(|number| Entry::plain(number, &args.pod_cpu, &args.pod_memory)).collect(),
    };
    let report = match args.alone {
        true => tokio::task::spawn_blocking(move || alone::run(&args, &entries)).await??,
        false => through::run(&args, &entries).await?,
    };
    report.print();
    Ok(())
}

fn node(number: usize, args: &SimArgs) -> Result<Node> {
    let name = format!("sim-{number}");
    let size = json!({"cpu": args.node_cpu, "memory": args.node_memory, "pods": "110"});
    let node = json!({
        "metadata": {"name": name, "labels": {
            LABEL: "true", "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": format!("zone-{}", number % args.zones.max(1)),
        }},
        "status": {"allocatable": size, "capacity": size, "conditions": [{
            "type": "Ready", "status": "True", "reason": "Simulated", "message": "made by dhow sim",
        }]},
    });
    Ok(serde_json::from_value(node)?)
}

fn pod(entry: &Entry, namespace: &str) -> Result<Pod> {
    let mut requests = json!({"cpu": entry.cpu, "memory": entry.memory});
    if entry.gpus > 0 {
        requests["nvidia.com/gpu"] = json!(entry.gpus.to_string());
    }
    let pod = json!({
        "metadata": {"name": entry.name, "namespace": namespace, "labels": {LABEL: "true"}},
        "spec": {
            "containers": [{"name": "sim", "image": "simulated", "resources": {"requests": requests}}],
            "terminationGracePeriodSeconds": 0,
        },
    });
    Ok(serde_json::from_value(pod)?)
}
