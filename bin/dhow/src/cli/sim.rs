//! Simulated clusters.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ConnectArgs, Output};

#[derive(Debug, Args)]
pub struct SimArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Simulated nodes.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub nodes: usize,
    /// Simulated pods.
    #[arg(long, default_value_t = 1000, value_name = "N", conflicts_with = "trace")]
    pub pods: usize,
    /// What the pods ask for, in the shapes of Kubernetes' scheduler_perf.
    #[arg(long, value_enum, default_value_t = SimShape::Basic, conflicts_with = "trace")]
    pub shape: SimShape,
    /// Replay pods from a trace instead.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Columns of the trace.
    #[arg(long, value_enum, default_value_t = TraceFormat::Auto, requires = "trace")]
    pub trace_format: TraceFormat,
    /// How much faster than in the trace time passes.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = factor)]
    pub speed: f64,
    /// The scheduler alone, in this process: no cloud is touched, and a trace's time passes at once.
    #[arg(long)]
    pub alone: bool,
    /// Keep what was made, instead of removing it at the end.
    #[arg(long)]
    pub keep: bool,
    /// Namespace of the pods.
    #[arg(long, default_value = "dhow-sim", value_name = "NAME")]
    pub namespace: String,
    /// Seconds to wait for the last pod.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout: u64,
    #[arg(long, default_value = "32", value_name = "QUANTITY")]
    pub node_cpu: String,
    #[arg(long, default_value = "128Gi", value_name = "QUANTITY")]
    pub node_memory: String,
    /// GPUs of each node, as nvidia.com/gpu.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub node_gpus: u32,
    /// Pods that a node may run.
    #[arg(long, default_value_t = 110, value_name = "N")]
    pub node_pods: u32,
    #[arg(long, default_value = "100m", value_name = "QUANTITY")]
    pub pod_cpu: String,
    #[arg(long, default_value = "100Mi", value_name = "QUANTITY")]
    pub pod_memory: String,
    /// Zones over which nodes are spread.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub zones: usize,
    /// Requests under way at a time.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub requests: u16,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SimShape {
    /// CPU and memory.
    Basic,
    /// Nodes of some zones.
    NodeAffinity,
    /// All in one zone.
    Affinity,
    /// No two on a node.
    AntiAffinity,
    /// Evenly over zones.
    Spread,
    /// As evenly as it can be over zones and nodes.
    PreferredSpread,
    /// Important ones, on nodes that are full of others.
    Preemption,
    /// Nodes and pods come and go meanwhile.
    Churn,
    /// One for each node.
    Daemonset,
    /// Beside some that fit nowhere.
    Unschedulable,
    /// Each with a claim that is bound to a volume.
    Volumes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceFormat {
    /// CSV with a header, or JSON lines.
    Auto,
    /// First line names columns: name, cpu_milli, memory_mib, num_gpu, creation_time, deletion_time, priority.
    Csv,
    /// One JSON object a line: name, cpu, memory, gpus, create, delete, priority.
    Jsonl,
    /// Alibaba's cluster-trace-v2018, batch_task.csv.
    #[value(name = "alibaba-2018-batch")]
    Alibaba2018Batch,
    /// Alibaba's cluster-trace-v2018, container_meta.csv.
    #[value(name = "alibaba-2018-containers")]
    Alibaba2018Containers,
    /// Google's ClusterData2011, task_events.
    #[value(name = "google-2011")]
    Google2011,
}

fn factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if factor.is_finite() && factor > 0.0 { Ok(factor) } else { Err("must be above 0".to_owned()) }
}
