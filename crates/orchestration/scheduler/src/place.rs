//! The decision: which node, or why none. A function of a snapshot and a pod, and of nothing else.
//!
//! Filters run in kube-scheduler's order and a node is out at the first that refuses it; its words are used for the
//! reasons. Among nodes that fit, the highest score wins, and of equals the first by name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use crate::resources::Request;
use crate::snapshot::{HostPort, NodeInfo, Snapshot, host_ports};
use crate::topology::{self, Rules};
use crate::volumes::Needs;
use crate::{affinity, taints};

/// What a pod asks of a node, worked out once per decision.
struct Demand<'a> {
    spec: &'a PodSpec,
    request: Request,
    ports: Vec<HostPort>,
    rules: Rules<'a>,
    volumes: Needs<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Place { node: String },
    Unschedulable(Unschedulable),
}

/// Why no node will do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unschedulable {
    /// Nodes looked at.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<String, usize>,
    /// The pod asks for something that is not supported; no node was asked.
    pub unsupported: Option<&'static str>,
    /// What the pod's own volumes lack, whatever the node; no node was asked.
    pub volumes: Option<String>,
}

impl std::fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(what) = self.unsupported {
            return write!(f, "{what} is not supported by this scheduler.");
        }
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        if let Some(lack) = &self.volumes {
            return write!(f, "0/{} nodes are available: {lack}.", self.nodes);
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

pub fn place(snapshot: &Snapshot, pod: &Pod) -> Decision {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let mut refused = Unschedulable { unsupported: topology::unsupported(spec), ..Unschedulable::default() };
    if refused.unsupported.is_some() {
        return Decision::Unschedulable(refused);
    }
    let volumes = match Needs::new(snapshot, pod) {
        Ok(volumes) => volumes,
        Err(lack) => {
            refused.nodes = snapshot.nodes().count();
            refused.volumes = Some(lack);
            return Decision::Unschedulable(refused);
        }
    };
    let rules = Rules::new(snapshot, pod, spec);
    let demand = Demand { spec, request: Request::of(pod), ports: host_ports(spec), rules, volumes };
    let mut candidates = Vec::new();
    for (name, info, node) in snapshot.nodes() {
        refused.nodes += 1;
        let reasons = refusals(&demand, info, node);
        if reasons.is_empty() {
            candidates.push((name, info, node));
        }
        for reason in reasons {
            *refused.reasons.entry(reason).or_default() += 1;
        }
    }
    match best(&demand, &candidates) {
        Some(node) => Decision::Place { node: node.to_owned() },
        None => Decision::Unschedulable(refused),
    }
}

/// Why `node` cannot take the pod; empty if it can.
fn refusals(demand: &Demand<'_>, info: &NodeInfo, node: &Node) -> Vec<String> {
    let spec = demand.spec;
    let cordoned = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    if cordoned && !taints::tolerates_cordon(spec) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if spec.node_name.as_deref().is_some_and(|n| !n.is_empty() && Some(n) != node.metadata.name.as_deref()) {
        return vec!["node(s) didn't match the requested node name".to_owned()];
    }
    if let Some(taint) = taints::blocking(spec, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    if !affinity::required(spec, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    if demand.ports.iter().any(|wanted| info.ports.keys().any(|taken| taken.conflicts(wanted))) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    let short = shortages(&demand.request, info);
    if !short.is_empty() {
        return short;
    }
    let refusal = demand.volumes.refuses(node).or_else(|| demand.rules.refuses(node));
    refusal.map(str::to_owned).into_iter().collect()
}

fn shortages(request: &Request, info: &NodeInfo) -> Vec<String> {
    let mut short = Vec::new();
    if info.pods >= info.capacity.pods {
        short.push("Too many pods".to_owned());
    }
    let (want, used, have) = (&request.amounts, &info.used, &info.capacity.amounts);
    let mut check = |name: &str, want: i64, used: i64, have: i64| {
        // What is not asked for cannot be lacking, even on an overfull node.
        if want > 0 && want > have.saturating_sub(used) {
            short.push(format!("Insufficient {name}"));
        }
    };
    check("cpu", want.cpu, used.cpu, have.cpu);
    check("memory", want.memory, used.memory, have.memory);
    check("ephemeral-storage", want.ephemeral, used.ephemeral, have.ephemeral);
    for (name, amount) in &want.extended {
        let used = used.extended.get(name).copied().unwrap_or(0);
        check(name, *amount, used, have.extended.get(name).copied().unwrap_or(0));
    }
    short
}

const MAX_SCORE: i64 = 100;
/// kube-scheduler's default weights.
const TAINT_WEIGHT: i64 = 3;
const AFFINITY_WEIGHT: i64 = 2;

fn best<'a>(demand: &Demand<'_>, candidates: &[(&'a std::sync::Arc<str>, &NodeInfo, &Node)]) -> Option<&'a str> {
    let preferred: Vec<i64> = candidates.iter().map(|(_, _, node)| affinity::preferred(demand.spec, node)).collect();
    let disliked: Vec<i64> = candidates.iter().map(|(_, _, node)| taints::discouraging(demand.spec, node)).collect();
    let (most_preferred, most_disliked) =
        (preferred.iter().copied().max().unwrap_or(0), disliked.iter().copied().max().unwrap_or(0));
    let mut best: Option<(i64, &'a str)> = None;
    for (i, (name, info, _)) in candidates.iter().enumerate() {
        let affinity = if most_preferred > 0 { preferred[i] * MAX_SCORE / most_preferred } else { 0 };
        let taints = if most_disliked > 0 { MAX_SCORE - disliked[i] * MAX_SCORE / most_disliked } else { MAX_SCORE };
        let score = resource_score(&demand.request, info) + AFFINITY_WEIGHT * affinity + TAINT_WEIGHT * taints;
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Least allocated plus balanced allocation, each up to 100.
fn resource_score(request: &Request, info: &NodeInfo) -> i64 {
    let free = |used: i64, capacity: i64| {
        if capacity <= 0 || used > capacity { 0 } else { (capacity - used).saturating_mul(MAX_SCORE) / capacity }
    };
    let capacity = &info.capacity.amounts;
    let cpu = info.scored_cpu.saturating_add(request.scored_cpu);
    let memory = info.scored_memory.saturating_add(request.scored_memory);
    let least = (free(cpu, capacity.cpu) + free(memory, capacity.memory)) / 2;

    let share = |used: i64, capacity: i64| if capacity <= 0 { 1.0 } else { (used as f64 / capacity as f64).min(1.0) };
    // Of two shares the standard deviation is half their difference.
    let apart = (share(cpu, capacity.cpu) - share(memory, capacity.memory)).abs() / 2.0;
    least + ((1.0 - apart) * MAX_SCORE as f64) as i64
}
