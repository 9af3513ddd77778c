//! A low-level OCI runtime and the shim that holds a pod's containers. Synchronous; unsafe lives here.

pub mod cgroup;
pub mod error;
pub mod shim;
pub mod spec;

pub use error::{Error, Result};
