//! The container runtime trait in the shape of CRI, its suite and its adapters.

mod archive;
pub mod cgroups;
pub mod cni;
pub mod cri_client;
pub mod docker;
pub mod embedded;
mod error;
pub mod links;
mod look;
pub mod network;
mod pause;
/// CRI's messages and services, generated.
pub mod proto;
mod proto_debug;
pub mod runtime;
pub mod server;
mod socket;
pub mod streaming;
pub mod suite;

pub use cri_client::request::CLOUD;
pub use error::Error;
pub use network::{NetworkRequest, PodNetwork};
pub use runtime::Runtime;
