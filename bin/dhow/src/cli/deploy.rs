//! What `dhow deploy` and `dhow undeploy` take.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ConnectArgs;

/// What is deployed, and how it is read.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// A Compose file (further ones are laid on it), Kubernetes YAML, a folder of either or with a kustomization, or `-`
    /// for standard input.
    #[arg(value_name = "PATH|-")]
    pub paths: Vec<PathBuf>,
    /// Namespace for objects that name none [default: `default`; for Compose, one of the project's own, named like it].
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Name of the project [default for Compose: its `name`, or the folder's]; objects of Kubernetes YAML get its label.
    #[arg(short, long, env = "COMPOSE_PROJECT_NAME", value_name = "NAME")]
    pub project: Option<String>,
    /// A profile of the Compose file to have as well; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub profile: Vec<String>,
    /// A file of variables for the Compose file, in place of `.env`; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DeployArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Show what would change, as the server would store it, and change nothing.
    #[arg(long, conflicts_with = "render")]
    pub diff: bool,
    /// Print the objects and change nothing; no cloud is needed.
    #[arg(long)]
    pub render: bool,
    /// The form of the printed objects; implies --render.
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<RenderForm>,
    /// Remove objects of the project that it no longer has; volumes are kept.
    #[arg(long)]
    pub prune: bool,
    /// Put everything back as it was if the roll-out fails.
    #[arg(long)]
    pub rollback_on_failure: bool,
    /// Seconds to wait for the roll-out; 0 does not wait.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RenderForm {
    Yaml,
    Json,
}

#[derive(Debug, Args)]
pub struct UndeployArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    /// Remove volumes and what they hold, too.
    #[arg(long)]
    pub volumes: bool,
    /// Seconds to wait until all is gone; 0 does not wait.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}
