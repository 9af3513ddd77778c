//! The shim: one process per pod sandbox that outlives the daemon.

use std::ffi::OsString;
use std::process::ExitCode;

/// First argument under which the binary is a shim.
pub const COMMAND: &str = "sandbox-shim";

/// Runs the shim. Must be called before any thread exists.
pub fn main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
