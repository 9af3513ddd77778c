//! Places pods on nodes: a pure decision over a snapshot, and a thin loop around it.

mod affinity;
mod engine;
mod place;
pub mod resources;
mod run;
mod snapshot;
mod taints;
mod topology;

pub use engine::{Engine, Outcome};
pub use place::{Decision, Unschedulable, place};
pub use run::{SchedulerConfig, run};
pub use snapshot::{NodeInfo, PodKey, Snapshot};
