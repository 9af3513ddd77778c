//! The container runtime trait in the shape of CRI, its suite and its adapters.

pub mod embedded;
mod error;
pub mod network;
pub mod runtime;
pub mod suite;

pub use error::Error;
pub use network::{NetworkRequest, PodNetwork};
pub use runtime::Runtime;
