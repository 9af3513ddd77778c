//! Flags of the commands that look after a cloud and what runs in it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ConnectArgs, Output, PlaceArgs};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Pass on standard input.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal; with -i, this one.
    #[arg(short, long)]
    pub tty: bool,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// The container [default: the first one].
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// A pod or a workload: its name, or KIND/NAME, such as deployment/web.
    #[arg(value_name = "NAME")]
    pub target: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// A pod or a workload: its name, or KIND/NAME, such as deployment/web.
    #[arg(value_name = "NAME")]
    pub target: String,
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// This container only [default: all].
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Go on as lines come, from containers that start later, too.
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many lines of each container.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// Not older than this, such as 90s or 1h.
    #[arg(long, value_parser = crate::commands::token::parse_life, value_name = "DURATION")]
    pub since: Option<std::time::Duration>,
    /// Of the containers before they were last started again.
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// With the time of each line.
    #[arg(long)]
    pub timestamps: bool,
}

#[derive(Debug, Subcommand)]
pub enum TopCommand {
    /// What each node uses of what it has.
    #[command(alias = "node")]
    Nodes(TopOutput),
    /// What each pod uses, and of what it asked for.
    #[command(alias = "pod")]
    Pods {
        #[command(flatten)]
        output: TopOutput,
        #[arg(short, long, default_value = "default")]
        namespace: String,
        #[arg(short = 'A', long, conflicts_with = "namespace")]
        all_namespaces: bool,
        /// Pods with these labels only.
        #[arg(short = 'l', long, value_name = "SELECTOR")]
        selector: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct TopOutput {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// The largest first.
    #[arg(long, value_enum)]
    pub sort_by: Option<SortBy>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    Cpu,
    Memory,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Run the control plane alone, without a node.
    #[arg(long)]
    pub server: bool,
    /// Where the binary goes; one of another version that is there is kept beside it.
    #[arg(long, default_value = "/usr/local/bin/dhow", value_name = "FILE")]
    pub binary: PathBuf,
    /// The unit to write.
    #[arg(long, default_value = "/etc/systemd/system/dhow.service", value_name = "FILE")]
    pub unit: PathBuf,
    /// Print the unit instead.
    #[arg(long, conflicts_with = "remove")]
    pub print: bool,
    /// Do not start it now.
    #[arg(long)]
    pub no_start: bool,
    /// Take unit and binary away again.
    #[arg(long)]
    pub remove: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the settings are valid, and where they are not.
    Check(ConfigArgs),
    /// Print the settings in force: defaults, file, `FILE.d/*.yaml` and variables together.
    Print {
        #[command(flatten)]
        config: ConfigArgs,
        /// Only what differs from the defaults.
        #[arg(long)]
        changed: bool,
        #[arg(short, long, value_enum, default_value_t = ConfigOutput::Yaml)]
        output: ConfigOutput,
    },
    /// Print the reference of all settings, as docs/configuration.md has it.
    Reference,
    /// Print the JSON schema of the settings file, for editors.
    Schema,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConfigOutput {
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The settings file; `FILE.d/*.yaml` is read before it.
    #[arg(long, env = "DHOW_CONFIG", default_value = crate::settings::DEFAULT_FILE, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
pub struct SupportBundleArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// File to write, a compressed tar [default: dhow-support-<time>.tar.gz in this folder].
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Of this program only.
    #[arg(long)]
    pub client: bool,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}
