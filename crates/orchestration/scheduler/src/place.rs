//! The decision: which node, or why none.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;

use crate::decider::Decider;
use crate::profile::Profile;
use crate::reasons::Refusal;
use crate::snapshot::Snapshot;

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
    pub reasons: BTreeMap<Refusal, usize>,
    /// What the pod itself lacks, whatever the node; no node was asked.
    pub lack: Option<String>,
    /// Why ending other pods does not help, or what it did.
    pub preemption: Option<String>,
    /// What would have to change.
    pub advice: Option<String>,
}

impl Unschedulable {
    /// The reasons as kube-scheduler gives them, without what is added to them here.
    pub fn plain(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        if let Some(lack) = &self.lack {
            return format!("0/{} nodes are available: {lack}.", self.nodes);
        }
        // Different refusals may read the same.
        let mut by_text: BTreeMap<String, usize> = BTreeMap::new();
        for (reason, count) in &self.reasons {
            *by_text.entry(reason.to_string()).or_default() += count;
        }
        let mut reasons: Vec<String> = by_text.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        format!("0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plain())?;
        if let Some(preemption) = &self.preemption {
            write!(f, " preemption: {preemption}")?;
        }
        if let Some(advice) = &self.advice {
            write!(f, " {advice}")?;
        }
        Ok(())
    }
}

/// Decides as the default profile does, from nothing but the snapshot; it may add to what the snapshot counts.
pub fn place(snapshot: &mut Snapshot, pod: &Pod) -> Decision {
    Decider::new(Profile::default()).decide(snapshot, pod)
}
