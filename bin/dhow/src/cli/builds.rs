//! What `dhow builds` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ConnectArgs;

#[derive(Debug, Args)]
pub struct BuildsAt {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

#[derive(Debug, Subcommand)]
pub enum BuildsCommand {
    /// Run a Build once, and print the name of the run.
    Start {
        #[command(flatten)]
        at: BuildsAt,
        /// The Build.
        #[arg(value_name = "NAME")]
        name: String,
        /// Send this folder, without what its .dockerignore leaves out; for Builds whose source is an upload.
        #[arg(long, value_name = "DIR", conflicts_with = "revision")]
        from: Option<PathBuf>,
        /// A branch, a tag or a commit in the place of the Build's own.
        #[arg(long, value_name = "REF")]
        revision: Option<String>,
        /// Print the log until the run ends, and fail if it fails.
        #[arg(short, long)]
        follow: bool,
    },
    /// Print the log of a run, or of the newest run of a Build.
    Logs {
        #[command(flatten)]
        at: BuildsAt,
        /// The run or the Build.
        #[arg(value_name = "NAME")]
        name: String,
        /// Go on as lines come, until the run ends.
        #[arg(short, long)]
        follow: bool,
        /// The last so many lines.
        #[arg(long, value_name = "LINES")]
        tail: Option<u64>,
        /// Print the time of each line.
        #[arg(long)]
        timestamps: bool,
    },
    /// Stop a run, or keep it from beginning.
    Cancel {
        #[command(flatten)]
        at: BuildsAt,
        /// The run.
        #[arg(value_name = "NAME")]
        name: String,
    },
}
