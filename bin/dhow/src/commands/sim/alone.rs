//! The scheduler by itself: no API, no store, as large as memory allows. Time in a trace passes at once.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use dhow_scheduler::{Engine, Outcome, PodKey};

use super::entry::{Entry, Kind, Size};
use super::report::{Counted, Report, own_memory};
use super::{Plan, bar, objects};
use crate::cli::{SimArgs, SimShape};

const NAMESPACE: &str = "sim";
/// Pods that come at the same time are told together.
const BATCH: usize = 256;

/// When a pod ends, the earliest first.
struct End(f64, PodKey, Size);

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for End {}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for End {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then_with(|| other.1.cmp(&self.1))
    }
}

/// A pod that has no node yet.
struct Waiting<'a> {
    entry: &'a Entry,
    told: Instant,
    why: String,
}

struct Simulation<'a> {
    engine: Engine,
    counted: Counted,
    waiting: HashMap<PodKey, Waiting<'a>>,
    /// Sizes of pods that are there, for those that others end.
    there: HashMap<PodKey, Size>,
    ends: BinaryHeap<End>,
    /// In the trace.
    now: f64,
}

fn key(entry: &Entry) -> PodKey {
    (NAMESPACE.to_owned(), entry.name.to_string())
}

pub fn run(args: &SimArgs, plan: &Plan) -> Result<Report> {
    let engine = Engine::new(dhow_scheduler::DEFAULT_NAME);
    for number in 0..args.nodes {
        engine.node_changed(Arc::new(objects::node(number, args, &plan.node)?));
    }
    let claims = plan.measured.iter().filter_map(|entry| if let Kind::Claim(n) = entry.kind { Some(n) } else { None });
    for number in claims {
        let (mut volume, claim) = objects::volume(number, NAMESPACE, args.zones)?;
        volume.status = Some(serde_json::from_value(serde_json::json!({"phase": "Bound"}))?);
        let name = volume.metadata.name.clone().unwrap_or_default();
        engine.claim_changed((NAMESPACE.to_owned(), name.clone()), Some(Arc::new(claim)));
        engine.volume_changed(&name, Some(Arc::new(volume)));
    }
    let mut simulation = Simulation {
        engine,
        counted: Counted::default(),
        waiting: HashMap::new(),
        there: HashMap::new(),
        ends: BinaryHeap::new(),
        now: 0.0,
    };
    for batch in plan.first.chunks(BATCH) {
        simulation.arrive(batch)?;
    }
    let first = std::mem::take(&mut simulation.counted);
    simulation.counted.used = first.used;
    simulation.counted.most = first.used;
    simulation.waiting.clear();
    let progress = bar("pods", plan.measured.len());
    let start = Instant::now();
    let mut rest = &plan.measured[..];
    while let Some(next) = rest.first() {
        simulation.pass_until(next.comes)?;
        let same = rest.iter().take(BATCH).take_while(|entry| entry.comes <= next.comes).count().max(1);
        let (batch, later) = rest.split_at(same);
        simulation.arrive(batch)?;
        if args.shape == SimShape::Churn {
            simulation.churn(args, plan, later.len())?;
        }
        progress.inc(same as u64);
        rest = later;
    }
    // What still runs may make room for what still waits.
    while !simulation.waiting.is_empty() && !simulation.ends.is_empty() {
        let next = simulation.ends.peek().map_or(0.0, |end| end.0);
        simulation.pass_until(next)?;
    }
    let time = start.elapsed();
    progress.finish_and_clear();
    let told = simulation.waiting.into_values().map(|waiting| waiting.why);
    let size = (args.nodes, &plan.node);
    let mut report = Report::new(simulation.counted, size, plan.measured.len(), time, told);
    if args.trace.is_none() {
        report.wait_in_trace_ms = None;
    }
    report.memory_bytes = own_memory();
    Ok(report)
}

impl<'a> Simulation<'a> {
    fn arrive(&mut self, batch: &'a [Entry]) -> Result<()> {
        for entry in batch {
            let key = key(entry);
            let pod = Arc::new(objects::pod(entry, NAMESPACE, false)?);
            self.waiting.insert(key.clone(), Waiting { entry, told: Instant::now(), why: String::new() });
            self.engine.pod_changed(key, &pod);
        }
        self.decide()
    }

    /// Ends what ends before, in order, and lets what waits have its room at that time.
    fn pass_until(&mut self, time: f64) -> Result<()> {
        while self.ends.peek().is_some_and(|end| end.0 <= time) {
            let Some(End(at, key, size)) = self.ends.pop() else { break };
            self.now = at;
            // It may have been ended for another.
            if self.there.remove(&key).is_some() {
                self.engine.pod_removed(&key);
                self.counted.used.subtract(&size);
                self.decide()?;
            }
        }
        self.now = self.now.max(time);
        Ok(())
    }

    fn decide(&mut self) -> Result<()> {
        while let Some(decided) = self.engine.next() {
            for (key, pod, outcome) in decided {
                match outcome {
                    Outcome::Bind { node } => {
                        let mut bound = (*pod).clone();
                        bound.spec.get_or_insert_default().node_name = Some(node);
                        self.engine.pod_changed(key.clone(), &Arc::new(bound));
                        self.bound(key);
                    }
                    Outcome::Wait(why) => {
                        if let Some(waiting) = self.waiting.get_mut(&key) {
                            waiting.why = why.to_string();
                        }
                    }
                    Outcome::Preempt { preemption, .. } => {
                        for victim in preemption.victims {
                            if let Some(size) = self.there.remove(&victim) {
                                self.counted.used.subtract(&size);
                            }
                            self.counted.preempted += 1;
                            self.engine.pod_removed(&victim);
                        }
                    }
                    Outcome::Ignore => {}
                    other => bail!("a simulated pod came to {other:?}"),
                }
            }
        }
        Ok(())
    }

    fn bound(&mut self, key: PodKey) {
        let Some(waiting) = self.waiting.remove(&key) else { return };
        let entry = waiting.entry;
        self.counted.bound += 1;
        self.counted.occupy(&entry.size);
        self.counted.times.add(waiting.told.elapsed());
        self.counted.waits.add(Duration::from_secs_f64((self.now - entry.comes).max(0.0)));
        self.there.insert(key.clone(), entry.size);
        self.ends.extend(entry.runs.map(|runs| End(self.now + runs, key, entry.size)));
    }

    /// Nodes come and go, and so do the pods of the batch before.
    fn churn(&mut self, args: &SimArgs, plan: &Plan, turn: usize) -> Result<()> {
        let number = args.nodes + turn % 100;
        self.engine.node_removed(&objects::node_name(number));
        self.engine.node_changed(Arc::new(objects::node(number + 1, args, &plan.node)?));
        self.now += 1.0;
        self.pass_until(self.now)
    }
}
