//! Our pod network for runtimes that ask for theirs by CNI: a plugin that they start, and who answers it in the daemon.
//!
//! The plugin decides nothing. It hands what it was told to the daemon over a socket and prints the answer, so that the
//! network has one owner. CNI specification 1.0.0.

mod plugin;
mod server;

pub use plugin::{asked_for, main};
pub use server::{Server, install, uninstall};

/// The plugin's type, and thereby the name of its program.
pub const TYPE: &str = "dhow-cni";
/// Versions of CNI whose requests and results are alike.
const VERSIONS: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];

/// What the plugin was started with: its environment and standard input.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Request {
    command: String,
    container: String,
    netns: String,
    interface: String,
    /// `KEY=value;…`
    args: String,
    config: serde_json::Value,
}

/// Failure in CNI's shape; codes from 100 on are a plugin's own.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Failure {
    code: u32,
    msg: String,
    details: String,
}

/// Codes that the specification gives.
const INCOMPATIBLE_VERSION: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const IO_FAILURE: u32 = 5;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN: u32 = 11;
const NETWORK_FAILURE: u32 = 100;

impl Failure {
    fn new(code: u32, msg: &str, details: impl ToString) -> Self {
        Self { code, msg: msg.to_owned(), details: details.to_string() }
    }
}
