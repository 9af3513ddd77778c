//! Exit codes, documented in `--help`, and how an error is shown.
#![allow(clippy::print_stderr)]

use std::process::ExitCode;

const FAILURE: u8 = 1;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const TIMEOUT: u8 = 5;
const UNAUTHORISED: u8 = 6;
const INCOMPLETE: u8 = 7;

/// Marks an error as a deadline that passed.
#[derive(Debug)]
pub struct TimedOut(pub String);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimedOut {}

/// Marks an error as something that is not there.
#[derive(Debug)]
pub struct NotFound(pub String);

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFound {}

/// Marks the end of a command that we ran for somebody and that failed by itself: it has said why.
#[derive(Debug)]
pub struct ChildFailed(pub u8);

impl std::fmt::Display for ChildFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the command ended with exit code {}", self.0)
    }
}

impl std::error::Error for ChildFailed {}

/// Marks an error as something that could be done in part only.
#[derive(Debug)]
pub struct Incomplete(pub String);

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Incomplete {}

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
