//! What was seen, for people and for programs.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::entry::Size;
use crate::cli::Output;

/// How long something took, for all times it was seen.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<u32>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    fn summary(&mut self) -> Option<Latency> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1)?;
        let at = |percent: usize| f64::from(self.0[(last * percent).div_ceil(100)]) / 1000.0;
        Some(Latency { p50: at(50), p90: at(90), p99: at(99), max: at(100) })
    }
}

/// In milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// Shares of all nodes' room, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Utilisation {
    pub cpu: f64,
    pub memory: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<f64>,
}

impl Utilisation {
    pub fn of(used: &Size, node: &Size, nodes: usize) -> Self {
        let share = |used: u64, has: u64| if has == 0 { 0.0 } else { used as f64 / (has as f64 * nodes as f64) };
        let gpu = (node.gpus > 0).then(|| share(used.gpus.into(), node.gpus.into()));
        Self { cpu: share(used.cpu, node.cpu), memory: share(used.memory, node.memory), gpu }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unschedulable {
    pub pods: usize,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub nodes: usize,
    pub pods: usize,
    pub bound: usize,
    pub pending: usize,
    pub preempted: usize,
    /// From the first pod to the last one with a node.
    pub seconds: f64,
    pub pods_per_second: f64,
    /// From the moment at which a pod was sent, or with the scheduler alone told, until it had its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_bind_ms: Option<Latency>,
    /// How long pods of a trace waited in the trace's time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_in_trace_ms: Option<Latency>,
    pub utilisation_at_end: Utilisation,
    pub utilisation_at_most: Utilisation,
    /// Those with most pods first.
    pub unschedulable: Vec<Unschedulable>,
    /// Resident memory in bytes, of the server or with the scheduler alone of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// What is counted while a simulation runs.
#[derive(Debug, Default)]
pub struct Counted {
    pub bound: usize,
    pub preempted: usize,
    pub times: Times,
    pub waits: Times,
    pub used: Size,
    pub most: Size,
}

impl Counted {
    pub fn occupy(&mut self, size: &Size) {
        self.used.add(size);
        self.most.cpu = self.most.cpu.max(self.used.cpu);
        self.most.memory = self.most.memory.max(self.used.memory);
        self.most.gpus = self.most.gpus.max(self.used.gpus);
    }
}

impl Report {
    pub fn new(
        mut counted: Counted,
        (nodes, node): (usize, &Size),
        pods: usize,
        time: Duration,
        told: impl Iterator<Item = String>,
    ) -> Self {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for reason in told {
            *reasons.entry(reason).or_default() += 1;
        }
        let mut unschedulable: Vec<Unschedulable> =
            reasons.into_iter().map(|(reason, pods)| Unschedulable { pods, reason }).collect();
        unschedulable.sort_by_key(|one| std::cmp::Reverse(one.pods));
        let seconds = time.as_secs_f64();
        Self {
            nodes,
            pods,
            bound: counted.bound,
            pending: pods.saturating_sub(counted.bound),
            preempted: counted.preempted,
            seconds,
            pods_per_second: if seconds > 0.0 { counted.bound as f64 / seconds } else { 0.0 },
            time_to_bind_ms: counted.times.summary(),
            wait_in_trace_ms: counted.waits.summary(),
            utilisation_at_end: Utilisation::of(&counted.used, node, nodes),
            utilisation_at_most: Utilisation::of(&counted.most, node, nodes),
            unschedulable,
            memory_bytes: None,
        }
    }

    pub fn print(&self, output: Output) -> Result<()> {
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(self).context("encode the report")?),
            Output::Yaml => print!("{}", serde_saphyr::to_string(self).context("encode the report")?),
            Output::Table => println!("{}", self.table()),
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut row = |name: &str, value: String| {
            table.add_row([name.to_owned(), value]);
        };
        row("NODES", self.nodes.to_string());
        row("PODS", format!("{} ({} bound, {} pending)", self.pods, self.bound, self.pending));
        if self.preempted > 0 {
            row("PREEMPTED", self.preempted.to_string());
        }
        row("TIME", format!("{:.2} s", self.seconds));
        row("PODS/S", format!("{:.0}", self.pods_per_second));
        let times = |of: &Latency| {
            format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, at most {:.1} ms", of.p50, of.p90, of.p99, of.max)
        };
        if let Some(latency) = &self.time_to_bind_ms {
            row("TIME TO BIND", times(latency));
        }
        if let Some(latency) = &self.wait_in_trace_ms {
            row("WAIT IN TRACE", times(latency));
        }
        let shares = |of: &Utilisation| {
            let gpu = of.gpu.map(|gpu| format!(", gpu {:.1} %", gpu * 100.0)).unwrap_or_default();
            format!("cpu {:.1} %, memory {:.1} %{gpu}", of.cpu * 100.0, of.memory * 100.0)
        };
        row("USED AT END", shares(&self.utilisation_at_end));
        row("USED AT MOST", shares(&self.utilisation_at_most));
        if let Some(bytes) = self.memory_bytes {
            row("MEMORY", indicatif::BinaryBytes(bytes).to_string());
        }
        for one in &self.unschedulable {
            row("UNSCHEDULABLE", format!("{} pods: {}", one.pods, one.reason));
        }
        table
    }
}

/// Resident memory of this process.
pub fn own_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_shares() {
        let mut counted = Counted { bound: 100, ..Counted::default() };
        (1..=100).for_each(|ms| counted.times.add(Duration::from_millis(ms)));
        counted.occupy(&Size { cpu: 1500, memory: 1 << 30, gpus: 0 });
        counted.used.subtract(&Size { cpu: 500, memory: 0, gpus: 0 });
        let node = Size { cpu: 1000, memory: 4 << 30, gpus: 0 };
        let told = ["no cpu", "no node", "no cpu"].map(str::to_owned).into_iter();
        let report = Report::new(counted, (2, &node), 103, Duration::from_secs(2), told);
        assert_eq!(report.time_to_bind_ms, Some(Latency { p50: 51.0, p90: 91.0, p99: 100.0, max: 100.0 }));
        assert!((report.utilisation_at_most.cpu - 0.75).abs() < 1e-9);
        assert!((report.utilisation_at_end.cpu - 0.5).abs() < 1e-9);
        assert_eq!((report.pending, report.unschedulable[0].pods), (3, 2));
        assert_eq!(report.unschedulable[0].reason, "no cpu");
        assert!((report.pods_per_second - 50.0).abs() < 1e-9);
    }
}
