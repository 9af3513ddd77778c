//! `cargo xtask test`: everything that has to pass.

use anyhow::Result;

use crate::{images, setup, shell, tidy, up};

#[derive(clap::Args)]
pub struct Args {
    /// Leave out formatting and lints (for a quick look while working).
    #[arg(long)]
    no_lint: bool,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::TEST_NEEDS)?;
    shell::step("tidy");
    tidy::run()?;
    if !args.no_lint {
        shell::step("formatting");
        shell::run("cargo", &["fmt", "--all", "--check"])?;
        shell::step("lints");
        shell::run("cargo", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    }
    shell::step("images for the end-to-end test");
    images::run(images::ImagesArgs::only(&[up::DEMO_IMAGES, &["busybox"]].concat()))?;
    shell::step("tests");
    // The end-to-end test drives the binary as a person would.
    shell::run("cargo", &["build", "--package", "dhow"])?;
    if !shell::has("cargo-nextest") {
        return shell::run("cargo", &["test", "--workspace"]);
    }
    shell::run("cargo", &["nextest", "run", "--workspace", "--profile", "ci"])
}
