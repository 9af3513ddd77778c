//! Why a node cannot have a pod, in kube-scheduler's words.

use std::fmt;

/// The first thing that keeps a pod from a node, in the order in which rules are asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    Cordoned,
    NodeName,
    Taint {
        key: String,
        value: String,
    },
    NodeAffinity,
    AddedAffinity,
    Ports,
    TooManyPods,
    /// `ever`: the node would have enough if it were empty.
    Insufficient {
        resource: String,
        ever: bool,
    },
    Volume(&'static str),
    /// `lasting`: the end of other pods would not help.
    Extender {
        reason: String,
        lasting: bool,
    },
    /// Why its claims on devices cannot be fulfilled there.
    Devices(String),
    SpreadLabel,
    Spread,
    Affinity,
    AntiAffinity,
    KeptAway,
}

impl Refusal {
    /// Whether the end of other pods on the node could help.
    pub fn may_be_preempted(&self) -> bool {
        match self {
            Self::Ports | Self::TooManyPods | Self::Spread | Self::AntiAffinity | Self::KeptAway => true,
            Self::Insufficient { ever, .. } => *ever,
            Self::Extender { lasting, .. } => !*lasting,
            Self::Volume(text) => {
                let volumes = [crate::volumes::USED_ALONE, crate::volumes::TOO_MANY, crate::volumes::DISK_IN_USE];
                volumes.contains(text)
            }
            Self::Cordoned
            | Self::NodeName
            | Self::Taint { .. }
            | Self::NodeAffinity
            | Self::AddedAffinity
            | Self::Devices(_)
            | Self::SpreadLabel
            | Self::Affinity => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("node(s) were unschedulable"),
            Self::NodeName => f.write_str("node(s) didn't match the requested node name"),
            Self::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::NodeAffinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::AddedAffinity => f.write_str("node(s) didn't match scheduler-enforced node affinity"),
            Self::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient { resource, .. } => write!(f, "Insufficient {resource}"),
            Self::Volume(text) => f.write_str(text),
            Self::Extender { reason, .. } => f.write_str(reason),
            Self::Devices(text) => f.write_str(text),
            Self::SpreadLabel => {
                f.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Self::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Self::Affinity => f.write_str("node(s) didn't match pod affinity rules"),
            Self::AntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::KeptAway => f.write_str("node(s) didn't satisfy existing pods anti-affinity rules"),
        }
    }
}
