//! `cargo xtask up`: from a bare clone to a demo that answers.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{images, setup, shell};

#[derive(clap::Args)]
pub struct Args {
    /// Build without optimisation (faster to build, slower to run).
    #[arg(long)]
    debug: bool,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::UP_NEEDS)?;
    let profile = if args.debug { "debug" } else { "release" };
    shell::step(&format!("building dhow ({profile})"));
    let mut build = vec!["build", "--package", "dhow"];
    if !args.debug {
        build.push("--release");
    }
    shell::run("cargo", &build)?;
    let binary = shell::target_dir().join(profile).join("dhow");
    let binary = binary.to_str().context("the target folder's path is not UTF-8")?;

    shell::step("building the demo's images");
    images::run(images::ImagesArgs::only(DEMO_IMAGES))?;

    shell::step("starting the cloud");
    shell::run(binary, &["up"])?;

    shell::step("loading the images");
    let mut import = vec!["image".to_owned(), "import".to_owned()];
    import.extend(DEMO_IMAGES.iter().map(|name| archive(name)));
    shell::run(binary, &import.iter().map(String::as_str).collect::<Vec<_>>())?;

    shell::step("deploying the demo");
    let url = shell::output(binary, &["deploy", "examples/demo/demo.yaml"])?;
    let Some(url) = url.lines().next() else { bail!("the demo was deployed without an address") };
    shell::run(
        "curl",
        &["--fail", "--silent", "--show-error", "--retry", "10", "--retry-connrefused", "--output", "/dev/null", url],
    )?;
    shell::step(&format!("the demo answers on {url}"));
    Ok(())
}

/// What the demo runs, by the names of the archives.
pub const DEMO_IMAGES: &[&str] = &["nginx", "mariadb", "demo-app-v1", "demo-app-v2"];

fn archive(name: &str) -> String {
    Path::new("target/images").join(format!("{name}.tar")).display().to_string()
}
