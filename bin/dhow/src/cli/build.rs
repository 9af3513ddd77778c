//! What `dhow build` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ImageNode;

#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    pub at: ImageNode,
    /// Folder of the context, or `-` for a Dockerfile or an archive on standard input.
    #[arg(value_name = "PATH|-")]
    pub path: PathBuf,
    /// The Dockerfile, or `-` for standard input [default: `Dockerfile` in the context].
    #[arg(short, long, value_name = "FILE|-")]
    pub file: Option<PathBuf>,
    /// Name of the image; may be repeated.
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub tag: Vec<String>,
    /// The stage to build [default: the last one].
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// A build argument; without a value it is taken from the environment.
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// A context in the place of a stage or image: a folder, docker-image://NAME or oci-layout://FOLDER.
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<String>,
    /// A label of the image.
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// A secret for RUN --mount=type=secret: `id=NAME[,src=FILE|,env=VARIABLE]`.
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// An SSH agent for RUN --mount=type=ssh: `default`, or `NAME=SOCKET`; the node is to be this machine.
    #[arg(long, value_name = "AGENT")]
    pub ssh: Vec<String>,
    /// Use nothing that was made before.
    #[arg(long)]
    pub no_cache: bool,
    /// Use nothing that was made before for these stages.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,
    /// Ask the registry for base images even if they are here.
    #[arg(long)]
    pub pull: bool,
    /// What the image is to run on [default: what the node is].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Network of RUN steps that name none.
    #[arg(long, value_enum)]
    pub network: Option<BuildNetwork>,
    /// Where the result goes: `type=image|oci|docker|tar|local[,dest=PATH][,compression=gzip|zstd|uncompressed][,push=true]`, a folder, or
    /// `-` for an archive of the files [default: the node's images].
    #[arg(short, long, value_name = "OUTPUT")]
    pub output: Option<String>,
    /// Push the image under its names, with your docker credentials if you have some.
    #[arg(long)]
    pub push: bool,
    #[arg(long, value_enum, default_value_t = ProgressKind::Auto, env = "BUILDKIT_PROGRESS")]
    pub progress: ProgressKind,
    /// Print nothing but the image's id.
    #[arg(short, long)]
    pub quiet: bool,
    /// Write the image's id to a file.
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BuildNetwork {
    Default,
    None,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressKind {
    /// `tty` on a terminal, `plain` elsewhere.
    Auto,
    Plain,
    Tty,
    Quiet,
}
