//! `dhow sim`: nodes and pods that are only objects, to see how the scheduler places them, how fast, and what is left over.
#![allow(clippy::print_stdout)]

mod alone;
mod entry;
mod heartbeat;
mod objects;
mod report;
mod shape;
mod through;
mod trace;
mod watching;

use std::io::IsTerminal;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::SimArgs;
use entry::{Entry, Size};

/// Label of everything that is simulated.
const LABEL: &str = "dhow.io/simulated";

/// What is to be simulated.
struct Plan {
    /// Of one node.
    node: Size,
    /// Pods that are there before anything is measured.
    first: Vec<Entry>,
    /// Pods whose way to a node is measured, in the order in which they come.
    measured: Vec<Entry>,
}

pub async fn run(args: SimArgs) -> Result<()> {
    if args.nodes == 0 {
        bail!("a simulation needs nodes: give --nodes");
    }
    let node = Size::read(&args.node_cpu, &args.node_memory, args.node_gpus)?;
    let plan = match &args.trace {
        Some(file) => Plan { node, first: Vec::new(), measured: trace::read(file, args.trace_format, &node)? },
        None => {
            let pod = Size::read(&args.pod_cpu, &args.pod_memory, 0)?;
            let (first, measured) = shape::entries(args.shape, args.nodes, args.pods, &pod, &node);
            Plan { node, first, measured }
        }
    };
    if plan.measured.is_empty() {
        bail!("there are no pods to simulate");
    }
    let output = args.output;
    let report = match args.alone {
        true => tokio::task::spawn_blocking(move || alone::run(&args, &plan)).await??,
        false => through::run(&args, plan).await?,
    };
    report.print(output)
}

/// Shown on a terminal only.
fn bar(what: &str, length: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{msg:16} {bar:30} {pos}/{len}  {per_sec}  {elapsed_precise}";
    let bar = ProgressBar::new(length as u64).with_message(what.to_owned());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
