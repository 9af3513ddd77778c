//! `cargo xtask test`: everything that has to pass.

use anyhow::Result;

use crate::{images, setup, shell, tidy};

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
    shell::step("images for the end-to-end tests");
    images::run(images::ImagesArgs::all())?;
    shell::step("tests");
    // The end-to-end tests drive the binary as a person would. Made together with the tests, so that both use the same
    // dependencies: alone, it would have them built a second time.
    shell::run("cargo", &["build", "--workspace", "--bins", "--tests"])?;
    if !shell::has("cargo-nextest") {
        return shell::run("cargo", &["test", "--workspace"]);
    }
    shell::run("cargo", &["nextest", "run", "--workspace", "--profile", "ci"])
}
