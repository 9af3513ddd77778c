//! Places pods on nodes: a pure decision over a snapshot, and a thin loop around it.

pub mod affinity;
mod engine;
mod place;
pub mod resources;
mod run;
mod snapshot;
pub mod taints;
mod topology;
pub mod volumes;

pub use engine::{Engine, Outcome};
pub use place::{Decision, Unschedulable, place};
pub use run::{SchedulerConfig, run};
pub use snapshot::{NodeInfo, PodKey, Snapshot};
