//! Key-value and blob storage: traits, the suites every backend runs, and the backends.

mod error;
mod kv;

pub use error::Error;
pub use kv::*;
