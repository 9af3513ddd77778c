//! Volumes: which one serves a claim, where a pod can have its own, and what is to be written for it.
//!
//! A claim of a class that waits for its first consumer is decided together with the pod's node: an existing volume is
//! held for it, or the node is written on it for its provisioner. The pod is bound once all its claims are.

pub(crate) mod attach;
mod capacity;
pub mod local;
pub mod matching;
mod needs;
mod storage;
mod zones;

pub use needs::Step;
pub(crate) use needs::{
    DISK_IN_USE, NO_SPACE, NO_VOLUME, NONE_TO_BIND, Needs, OTHER_NODE, OTHER_ZONE, SOURCE_ELSEWHERE, TOO_MANY,
    USED_ALONE, claim_names, steps,
};
pub use storage::ClaimKey;
pub(crate) use storage::{Progress, Storage, keys};
