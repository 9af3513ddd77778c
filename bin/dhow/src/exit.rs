//! Exit codes, documented in `--help`, and how an error is shown.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const TIMEOUT: u8 = 5;
const UNAUTHORISED: u8 = 6;
const INCOMPLETE: u8 = 7;

/// All that commands end with, and what it says.
pub const CODES: &[(u8, &str)] = &[
    (0, "success"),
    (FAILURE, "failure, or `dhow doctor` found a problem"),
    (USAGE, "wrong usage"),
    (NOT_FOUND, "not found"),
    (CONFLICT, "conflict, or already there"),
    (TIMEOUT, "timed out"),
    (UNAUTHORISED, "not authorised"),
    (INCOMPLETE, "done in part: something could not be reached"),
];

/// The end of `dhow --help`.
pub fn help() -> String {
    let codes: Vec<String> = CODES.iter().map(|(code, says)| format!("{code} {says}")).collect();
    format!("Exit codes: {}. `dhow exec` ends as the command does, `dhow oci` as runc.", codes.join("; "))
}

/// Marks an error as a deadline that passed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TimedOut(pub String);

/// Marks an error as something that is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(pub String);

/// Marks an error as something that is otherwise by now than it was taken to be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Conflict(pub String);

/// Marks the end of a command that we ran for somebody and that failed by itself: it has said why.
#[derive(Debug, thiserror::Error)]
#[error("the command ended with exit code {0}")]
pub struct ChildFailed(pub u8);

/// Marks an error as something that could be done in part only.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Incomplete(pub String);

/// Shows an error with its causes on standard error and picks the exit code.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(ChildFailed(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            eprintln!("dhow: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    if error.is::<TimedOut>() {
        return TIMEOUT;
    }
    if error.is::<NotFound>() {
        return NOT_FOUND;
    }
    if error.is::<Conflict>() {
        return CONFLICT;
    }
    if error.is::<Incomplete>() {
        return INCOMPLETE;
    }
    match error.downcast_ref::<dhow_client::Error>() {
        Some(error) if error.is_not_found() => NOT_FOUND,
        Some(error) if error.is_conflict() || error.is_already_exists() => CONFLICT,
        Some(error) if error.is_unauthorized() || error.is_forbidden() => UNAUTHORISED,
        _ => FAILURE,
    }
}
