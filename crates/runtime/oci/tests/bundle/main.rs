//! Bundles through our runtime, runc and crun: the same command lines, with equal results.
//!
//! The test binary is also the runtime that it drives. Cases need root; peers that are not installed are an error, since
//! a comparison with nobody proves nothing.
#![allow(clippy::unwrap_used)]

mod cases;
mod escapes;
mod stage;

use std::process::ExitCode;

use clap::Parser;
use libtest_mimic::{Arguments, Trial};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: dhow_oci::cli::Args,
}

fn main() -> ExitCode {
    if std::env::var_os(stage::AS_RUNTIME).is_some() {
        return dhow_oci::cli::main(Cli::parse().args);
    }
    let trials = cases::CASES
        .iter()
        .chain(escapes::CASES)
        .map(|(name, case)| Trial::test(*name, move || case(name).map_err(|error| error.to_string().into())))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
