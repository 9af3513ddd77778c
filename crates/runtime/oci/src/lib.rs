//! A low-level OCI runtime and the shim that holds a pod's containers. Synchronous; unsafe lives here.
//!
//! Invariants:
//! - A container's process is made by the single-threaded shim only, never by the asynchronous daemon.
//! - The shim outlives the daemon; its containers die with the shim.
//! - No path inside a container is followed by name: each is resolved beneath the container's root.
//! - All mounts of a sandbox are in mount namespaces of its own; none is ever seen on the host.

// Namespaces, `clone3`, `execve` and terminals have no safe form; each use carries its reason.
#![allow(unsafe_code)]

mod birth;
pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod defaults;
pub mod error;
pub mod protocol;
mod setup;
pub mod shim;
pub mod spec;
mod sys;
pub mod wire;

pub use error::{Error, Result};
pub use setup::capabilities::CAPABILITIES;
