//! Places pods on nodes: a pure decision over a snapshot, and a thin loop around it.

mod advice;
pub mod affinity;
mod config;
mod counts;
mod decider;
mod dra;
mod engine;
mod owners;
mod place;
mod preempt;
mod profile;
mod queue;
mod ranking;
mod reasons;
pub mod resources;
mod run;
mod score;
mod selecting;
mod shape;
mod snapshot;
pub mod taints;
mod topologies;
pub mod volumes;

pub use config::{ConfigError, profiles};
pub use dra::Reservation;
pub use engine::{Engine, GroupRule, Outcome};
pub use place::{Decision, Unschedulable, place};
pub use preempt::Preemption;
pub use profile::{Filters, Profile, Strategy, Weights};
pub use reasons::Refusal;
pub use run::{SchedulerConfig, run};
pub use snapshot::{NodeInfo, PodKey, Snapshot};
