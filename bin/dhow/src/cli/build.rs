//! What `dhow build` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ImageNode;

#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    pub at: ImageNode,
    /// Folder of the context, its address (a git repository, `#REF:FOLDER` says what of it, or an archive or Dockerfile by HTTP),
    /// or `-` for a Dockerfile or an archive on standard input.
    #[arg(value_name = "PATH|ADDRESS|-")]
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
    /// A context in the place of a stage or image: a folder, docker-image://NAME, oci-layout://FOLDER, or
    /// an address as that of the build's own context.
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
    /// What the image is to run on; several, between commas, make an index [default: what the node is].
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
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub attest: AttestArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Steps from other builders, and for them.
#[derive(Debug, Clone, Default, Args)]
pub struct CacheArgs {
    /// Use steps that others made: `type=registry,ref=NAME`, `type=local,src=FOLDER[,tag=TAG]`, or a name; may be repeated.
    #[arg(long, value_name = "CACHE")]
    pub cache_from: Vec<String>,
    /// Give the steps to others: `type=registry,ref=NAME`, `type=local,dest=FOLDER[,tag=TAG]` or `type=inline`, with
    /// `mode=min|max`, `compression=gzip|zstd|uncompressed` and `ignore-error=true`; may be repeated.
    #[arg(long, value_name = "CACHE")]
    pub cache_to: Vec<String>,
}

/// What is stated about the image.
#[derive(Debug, Clone, Default, Args)]
pub struct AttestArgs {
    /// State how the image came to be: `true`, or `mode=max` to tell arguments and the Dockerfile, too.
    #[arg(long, value_name = "PROVENANCE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub provenance: Option<String>,
    /// State which packages are in the image.
    #[arg(long, value_name = "SBOM", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sbom: Option<String>,
    /// The same in other words: `type=provenance[,mode=max]`, `type=sbom`; may be repeated.
    #[arg(long, value_name = "STATEMENT")]
    pub attest: Vec<String>,
}

/// What each step may use, if less than the node's settings allow.
#[derive(Debug, Clone, Default, Args)]
pub struct LimitArgs {
    /// Memory of a step, such as `512m`.
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Processes and threads of a step.
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<i64>,
    /// Weight beside other builds; 1024 is the usual one.
    #[arg(short, long, value_name = "WEIGHT")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period.
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_quota: Option<i64>,
    /// Length of a period.
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<u64>,
    /// Processors to use, such as `0-2,4`.
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
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
