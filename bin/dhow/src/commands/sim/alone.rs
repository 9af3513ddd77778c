//! The scheduler by itself: no API, no store, as large as memory allows. Time in a trace passes at once.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use dhow_scheduler::{Engine, Outcome, PodKey};

use super::trace::Entry;
use super::{Report, node, pod};
use crate::cli::SimArgs;

const NAMESPACE: &str = "sim";
/// Pods that come at the same time are told together.
const BATCH: usize = 256;

/// When a pod ends, the earliest first.
#[derive(PartialEq)]
struct End(f64, PodKey);

impl Eq for End {}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for End {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0).then_with(|| other.1.cmp(&self.1))
    }
}

pub fn run(args: &SimArgs, entries: &[Entry]) -> Result<Report> {
    let engine = Engine::new("default-scheduler");
    for number in 0..args.nodes {
        engine.node_changed(Arc::new(node(number, args)?));
    }
    let mut report = Report::default();
    let mut ends: BinaryHeap<End> = BinaryHeap::new();
    let start = Instant::now();
    for batch in entries.chunks(BATCH) {
        for entry in batch {
            while let Some(End(_, key)) = ends.pop_if_due(entry.comes) {
                engine.pod_removed(&key);
            }
            let key = (NAMESPACE.to_owned(), entry.name.clone());
            engine.pod_changed(key.clone(), &Arc::new(pod(entry, NAMESPACE)?));
            ends.extend(entry.goes.map(|goes| End(goes, key)));
        }
        while let Some(decided) = engine.next() {
            for (key, pod, outcome) in decided {
                match outcome {
                    Outcome::Bind { node } => {
                        let mut bound = (*pod).clone();
                        bound.spec.get_or_insert_default().node_name = Some(node);
                        engine.pod_changed(key, &Arc::new(bound));
                        report.bound += 1;
                    }
                    Outcome::Wait(why) => *report.reasons.entry(why.to_string()).or_default() += 1,
                    other => bail!("a simulated pod came to {other:?}"),
                }
            }
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.pending = engine.waiting();
    Ok(report)
}

trait PopIfDue {
    fn pop_if_due(&mut self, now: f64) -> Option<End>;
}

impl PopIfDue for BinaryHeap<End> {
    fn pop_if_due(&mut self, now: f64) -> Option<End> {
        if self.peek()?.0 <= now { self.pop() } else { None }
    }
}
