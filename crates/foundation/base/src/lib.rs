//! Configuration, logging, TLS and PKI, connections, metrics and the service graph; knows nothing of containers.

pub mod config;
pub mod connect;
pub mod directory;
pub mod duration;
mod error;
pub mod files;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod pki;
pub mod schedule;
pub mod service;
pub mod tls;

pub use error::{Error, Result, chain};
