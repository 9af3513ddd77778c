//! Development tasks: `cargo xtask up | test | fuzz | images | tidy | descriptors`.
//!
//! Each task says on standard error what it does and leaves data on standard output.
#![allow(clippy::print_stderr, clippy::print_stdout)]

#[cfg(feature = "cri-proto")]
mod autoscaler_proto;
#[cfg(feature = "cri-proto")]
mod cri_proto;
mod descriptors;
mod images;
#[cfg(feature = "cri-proto")]
mod plugin_protos;
#[cfg(feature = "cri-proto")]
mod protos;
mod setup;
mod shell;
mod test;
mod tidy;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Development tasks for Dhow")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write the table of API messages from upstream's protobuf and Go declarations.
    Descriptors(descriptors::Args),
    /// Try the properties of what reads clients' input with many random cases.
    Fuzz {
        /// Cases of each property.
        #[arg(long, default_value_t = 100_000)]
        cases: u32,
        /// Only the properties whose names contain this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Generate the CRI client and server from their definition.
    #[cfg(feature = "cri-proto")]
    CriProto,
    /// Generate the client and server of node providers from their definition.
    #[cfg(feature = "cri-proto")]
    AutoscalerProto,
    /// Generate the clients and servers of plugins from their definitions.
    #[cfg(feature = "cri-proto")]
    PluginProtos,
    /// Build the images used by tests and examples from Debian packages, as oci-archives.
    Images(images::ImagesArgs),
    /// Run every check: set-up, tidy, formatting, lints, all tests.
    Test(test::Args),
    /// Build everything, start the cloud and deploy the demo.
    Up(up::Args),
    /// Check layering, module docs and file sizes.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    // Package managers and pods read what is made here as users of their own, whatever the caller keeps from others.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match Cli::parse().task {
        Task::Descriptors(args) => descriptors::run(&args),
        Task::Fuzz { cases, filter } => {
            let cases = format!("PROPTEST_CASES={cases}");
            let test = ["cargo", "test", "--release", "--package", "dhow-api", "--test", "properties"];
            shell::run("env", &[&[cases.as_str()], test.as_slice(), &["--", &filter]].concat())
        }
        #[cfg(feature = "cri-proto")]
        Task::AutoscalerProto => autoscaler_proto::run(),
        #[cfg(feature = "cri-proto")]
        Task::CriProto => cri_proto::run(),
        #[cfg(feature = "cri-proto")]
        Task::PluginProtos => plugin_protos::run(),
        Task::Images(args) => images::run(args),
        Task::Test(args) => test::run(&args),
        Task::Up(args) => up::run(&args),
        Task::Tidy => tidy::run(),
    }
}
