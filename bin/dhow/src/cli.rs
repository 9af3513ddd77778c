//! The command line: nouns, verbs and flags.

mod backup;
mod build;
mod builds;
mod deploy;
mod images;
mod operations;
mod sim;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dhow_net::Cidr;

use crate::runtimes::RuntimeChoice;

pub use backup::{BackupArgs, BackupCommand, ListBackupsArgs, RestoreArgs, VerifyArgs};
pub use build::{AttestArgs, BuildArgs, BuildNetwork, CacheArgs, LimitArgs, ProgressKind};
pub use builds::{BuildsAt, BuildsCommand};
pub use deploy::{DeployArgs, RenderForm, SourceArgs, UndeployArgs};
pub use images::{ArchiveKind, ImageCommand, ImageNode, ImageOutput, RegistryCommand};
pub use operations::{
    ConfigArgs, ConfigCommand, ConfigOutput, DoctorArgs, ExecArgs, InstallArgs, LogsArgs, SortBy, SupportBundleArgs,
    TopCommand, TopOutput, VersionArgs,
};
pub use sim::{SimArgs, SimShape, TraceFormat};

/// A container cloud in one binary: Kubernetes API, containers, network and DNS on this machine.
#[derive(Debug, Parser)]
#[command(name = "dhow", version, propagate_version = true, after_help = crate::exit::help())]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the cloud on this machine and wait until it is ready.
    Up(UpArgs),
    /// Stop the cloud and its containers; data is kept unless --purge is given.
    Down(DownArgs),
    /// Make this machine a node of a cluster, and wait until it takes pods.
    Join(Box<JoinArgs>),
    /// Make, list and remove the tokens with which machines join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show what runs: nodes, workloads, memory, where the data lives.
    Status(StatusArgs),
    /// Look at machine, daemon and cluster, and say of all that is not well why, and what helps.
    Doctor(DoctorArgs),
    /// Apply a Compose project, Kubernetes YAML or a kustomization and follow it to a reachable address.
    Deploy(DeployArgs),
    /// Remove what was deployed; volumes are kept unless --volumes is given.
    Undeploy(UndeployArgs),
    /// Build an image from a Dockerfile, on a node that can run it at once.
    Build(Box<BuildArgs>),
    /// Run Builds, read what their runs write, stop them.
    #[command(subcommand)]
    Builds(BuildsCommand),
    /// Work with this node's images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look at what the cluster's registry of images has.
    #[command(subcommand)]
    Registry(RegistryCommand),
    /// Run containers from OCI bundles, without the cloud; the command line is runc's.
    Oci(Box<dhow_oci::cli::Args>),
    /// Run a command in a container of a pod, or of a running pod of a workload; its exit code is ours.
    Exec(ExecArgs),
    /// Print what the containers of a pod, or of all pods of a workload, write.
    Logs(LogsArgs),
    /// Show what nodes or pods use, beside what they have or asked for.
    #[command(subcommand)]
    Top(TopCommand),
    /// Put the binary in place and hand the daemon to systemd, from boot on.
    Install(Box<InstallArgs>),
    /// Check the settings file, or print the settings in force.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make, list, check and restore backups of the state.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Gather what helps to find out what is wrong into one file, without any secret.
    SupportBundle(SupportBundleArgs),
    /// Print the versions of this program and of the cluster.
    Version(VersionArgs),
    /// Print the kubeconfig of the administrator.
    Kubeconfig(ConnectArgs),
    /// Print a completion script.
    Completion { shell: clap_complete::Shell },
    /// Write the manual pages into a folder, one for each command.
    Man {
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Run the control plane alone in the foreground, or look after its store.
    Server(Box<ServerArgs>),
    /// Run server and node in the foreground (what `dhow up` starts, and a service manager may).
    #[command(name = "serve")]
    Serve(PlaceArgs),
    /// Run the node of a cluster that this machine joined, in the foreground (what `dhow join` starts).
    #[command(name = "serve-node")]
    ServeNode(PlaceArgs),
    /// Run the embedded container runtime alone, behind CRI v1, for crictl and other kubelets.
    Cri(CriArgs),
    /// Simulate nodes and pods, to see how they are placed and how fast.
    Sim(SimArgs),
    /// Run the cluster's name server (what the daemon starts).
    #[command(name = crate::nameserver::COMMAND, hide = true)]
    ServeDns {
        #[command(flatten)]
        place: PlaceArgs,
        /// Addresses of the pods' gateway, where it listens.
        #[arg(long, value_name = "IP", value_delimiter = ',', required = true)]
        gateway: Vec<IpAddr>,
    },
}

/// Where this cloud lives on the machine and in the network.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// Folder of everything that must survive a reboot.
    #[arg(long, env = "DHOW_DATA_DIR", default_value = crate::place::DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Folder of sockets and run-time state; lost at reboot.
    #[arg(long, env = "DHOW_RUN_DIR", default_value = "/run/dhow", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Name of this machine's node [default: the host name].
    #[arg(long, env = "DHOW_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address under which this machine is reached, or one of each family [default: those of the default routes].
    #[arg(long, env = "DHOW_NODE_IP", value_delimiter = ',', value_name = "IP[,IP]")]
    pub node_ip: Vec<IpAddr>,
    /// Addresses of all pods: a network, or one of IPv4 and one of IPv6, the preferred one first [default: 10.42.0.0/16].
    #[arg(long, env = "DHOW_POD_CIDR", value_delimiter = ',', value_name = "CIDR[,CIDR]")]
    pub pod_cidr: Vec<Cidr>,
    /// Addresses of services, in the families of --pod-cidr [default: 10.43.0.0/16].
    #[arg(long, env = "DHOW_SERVICE_CIDR", value_delimiter = ',', value_name = "CIDR[,CIDR]")]
    pub service_cidr: Vec<Cidr>,
    /// Node ports answer on the node's addresses inside these networks [default: on all].
    #[arg(long, env = "DHOW_NODEPORT_ADDRESSES", value_delimiter = ',', value_name = "CIDR,...")]
    pub nodeport_addresses: Vec<Cidr>,
    /// Port of the Kubernetes API.
    #[arg(long, env = "DHOW_API_PORT", default_value_t = 6443, value_name = "PORT")]
    pub api_port: u16,
    /// Port of the node agent's API.
    #[arg(long, env = "DHOW_NODE_PORT", default_value_t = 10250, value_name = "PORT")]
    pub node_port: u16,
    /// What runs the containers [default: embedded, or what this cloud has had so far].
    #[arg(long, env = "DHOW_RUNTIME", value_name = "embedded|containerd://SOCKET|crio://SOCKET|docker://SOCKET")]
    pub runtime: Option<RuntimeChoice>,
    /// Where the state is kept: in the data folder, or in these etcd servers [default: the data folder].
    #[arg(long, env = "DHOW_STORE", value_name = "etcd://HOST:PORT[,...]")]
    pub store: Option<EtcdEndpoints>,
    /// Certificate authority of the etcd servers.
    #[arg(long, env = "DHOW_STORE_CA", requires = "store", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Certificate to show to the etcd servers.
    #[arg(long, env = "DHOW_STORE_CERT", requires = "store_key", value_name = "FILE")]
    pub store_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, env = "DHOW_STORE_KEY", requires = "store_cert", value_name = "FILE")]
    pub store_key: Option<PathBuf>,
    /// File with the server token of the cluster in these etcd servers, for a server that joins it; for `dhow join`, with
    /// the token to join with.
    #[arg(long, env = "DHOW_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Seconds after which another server leads in place of one that went silent.
    #[arg(
        long,
        env = "DHOW_LEADER_ELECT_LEASE_DURATION",
        default_value_t = 15,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(3..=3600)
    )]
    pub leader_elect_lease_duration: u64,
    /// Another name or address under which the API is reached, such as a load balancer's; may be repeated.
    #[arg(long, env = "DHOW_TLS_SAN", value_delimiter = ',', value_name = "NAME")]
    pub tls_san: Vec<String>,
    /// Whose tokens are believed beside the cluster's own, and who is anonymous: an AuthenticationConfiguration.
    #[arg(long, env = "DHOW_AUTHENTICATION_CONFIG", value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// What is recorded of requests: an audit Policy [default: nothing].
    #[arg(long, env = "DHOW_AUDIT_POLICY", value_name = "FILE")]
    pub audit_policy: Option<PathBuf>,
    /// Where it is recorded [default: audit.log in the data folder].
    #[arg(long, env = "DHOW_AUDIT_LOG", requires = "audit_policy", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Size at which that file is put aside and a new one begun.
    #[arg(long, env = "DHOW_AUDIT_LOG_MAX_SIZE", requires = "audit_policy", default_value_t = 100, value_name = "MIB")]
    pub audit_log_max_size: u32,
    /// Age at which files put aside are removed; 0 for never.
    #[arg(long, env = "DHOW_AUDIT_LOG_MAX_AGE", requires = "audit_policy", default_value_t = 0, value_name = "DAYS")]
    pub audit_log_max_age: u32,
    /// Files put aside that are kept; 0 for all.
    #[arg(
        long,
        env = "DHOW_AUDIT_LOG_MAX_BACKUPS",
        requires = "audit_policy",
        default_value_t = 10,
        value_name = "COUNT"
    )]
    pub audit_log_max_backups: u32,
    /// Who is sent what is recorded: a kubeconfig of that server. Without --audit-log, no file is written then.
    #[arg(long, env = "DHOW_AUDIT_WEBHOOK", requires = "audit_policy", value_name = "FILE")]
    pub audit_webhook: Option<PathBuf>,
    /// Admission plugins to turn on beside the usual ones.
    #[arg(long, env = "DHOW_ENABLE_ADMISSION_PLUGINS", value_enum, value_delimiter = ',', value_name = "PLUGIN,...")]
    pub enable_admission_plugins: Vec<AdmissionPlugin>,
    /// Settings of the node, of registries and of the image store, as YAML; `FILE.d/*.yaml` is read before it.
    #[arg(long, env = "DHOW_CONFIG", default_value = crate::settings::DEFAULT_FILE, value_name = "FILE")]
    pub config: PathBuf,
    /// How many pod sandboxes wait, ready made, for pods to come; each holds about a MiB and an address [default: 2].
    #[arg(long, env = "DHOW_POD_SLOTS", value_name = "N")]
    pub pod_slots: Option<usize>,
    /// How packets travel to other nodes' pods: by routes where nodes share a link and by VXLAN elsewhere, or always one.
    #[arg(long, env = "DHOW_POD_NETWORK", default_value = "auto", value_name = "auto|routes|vxlan")]
    pub pod_network: dhow_net::peers::Mode,
    /// Address under which other nodes reach this one, where that is not the node's own; or one of each family.
    #[arg(long = "node-external-ip", env = "DHOW_NODE_EXTERNAL_IP", value_delimiter = ',', value_name = "IP[,IP]")]
    pub outer_addresses: Vec<IpAddr>,
    /// Log format.
    #[arg(long, env = "DHOW_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
}

/// An admission plugin that is off unless it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AdmissionPlugin {
    #[value(name = "OwnerReferencesPermissionEnforcement")]
    OwnerReferencesPermissionEnforcement,
}

/// The members of an etcd cluster, as `etcd://host:port,host:port` (TLS) or `etcd+http://…` (on this machine only).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdEndpoints {
    pub text: String,
    /// As URLs.
    pub urls: Vec<String>,
}

impl std::str::FromStr for EtcdEndpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, hosts) = text.split_once("://").ok_or("it begins with etcd:// or etcd+http://")?;
        let http = match scheme {
            "etcd" => "https",
            "etcd+http" => "http",
            other => return Err(format!("{other:?} is no kind of store; it begins with etcd:// or etcd+http://")),
        };
        let mut urls = Vec::new();
        for host in hosts.split(',') {
            let authority: http::uri::Authority = host.parse().map_err(|error| format!("{host:?}: {error}"))?;
            if authority.port_u16().is_none() {
                return Err(format!("{host:?} has no port; etcd's is 2379"));
            }
            let name = authority.host().trim_matches(['[', ']']);
            let local = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            if http == "http" && !local {
                return Err(format!("{host:?} is another machine, and those are reached by TLS: use etcd://"));
            }
            urls.push(format!("{http}://{authority}"));
        }
        Ok(Self { text: text.to_owned(), urls })
    }
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServerArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(subcommand)]
    pub command: Option<ServerCommand>,
}

#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// `dhow backup create`.
    #[command(hide = true)]
    Backup(BackupArgs),
    /// `dhow backup verify`.
    #[command(hide = true)]
    Verify(VerifyArgs),
    /// `dhow backup restore`.
    #[command(hide = true)]
    Restore(RestoreArgs),
    /// Print the token with which a further server joins the cluster in etcd.
    Token(ConnectArgs),
    /// Copy a stopped cloud's state from the data folder into empty etcd servers, and use those from then on.
    MigrateStore(Box<PlaceArgs>),
    /// Encrypt the Secrets in a stopped cloud's store under a new key, and forget the old one.
    RotateKeys(Box<PlaceArgs>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    Human,
    Json,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Stay in the foreground instead of leaving a daemon behind.
    #[arg(long)]
    pub foreground: bool,
    /// Do not write the context into the invoking user's kubeconfig.
    #[arg(long)]
    pub no_kubeconfig: bool,
    /// Seconds to wait for readiness.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// A server of the cluster [default: the one this machine joined before].
    #[arg(env = "DHOW_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Token, as `dhow token create` prints it; --token-file and DHOW_TOKEN keep it from other users' eyes.
    #[arg(
        long,
        short,
        env = "DHOW_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file",
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// Digest of the public key of the cluster's authority, for a token that does not name it.
    #[arg(long = "discovery-token-ca-cert-hash", alias = "ca-hash", value_name = "sha256:HASH")]
    pub ca_hash: Option<String>,
    /// The cluster's authority itself.
    #[arg(long, alias = "certificate-authority", conflicts_with = "ca_hash", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Stay in the foreground instead of leaving a daemon behind.
    #[arg(long)]
    pub foreground: bool,
    /// Seconds to wait for readiness.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    Create {
        #[command(flatten)]
        connect: ConnectArgs,
        /// How long it lasts, such as 30m or 24h; 0 for ever.
        #[arg(long, default_value = "24h", value_parser = crate::commands::token::parse_life, value_name = "DURATION")]
        ttl: std::time::Duration,
        /// What it is for.
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// Print the whole command for the other machine.
        #[arg(long)]
        print_join_command: bool,
    },
    /// List the tokens, without their secrets.
    #[command(alias = "ls")]
    List {
        #[command(flatten)]
        connect: ConnectArgs,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Remove tokens.
    #[command(alias = "rm")]
    Delete {
        #[command(flatten)]
        connect: ConnectArgs,
        /// Their ids, or whole tokens.
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct CriArgs {
    /// Socket to serve at, for root only [default: cri.sock in the run folder].
    #[arg(long, value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
    /// Folder of images and containers.
    #[arg(long, default_value = "/var/lib/dhow-cri", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Folder of sockets and run-time state; lost at reboot.
    #[arg(long, default_value = "/run/dhow-cri", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Addresses of the pods, /20 to /29.
    #[arg(long, default_value = "10.44.0.0/24", value_name = "CIDR")]
    pub pod_cidr: String,
    /// Settings: those of registries, runtime handlers, containers' logs and ready sandboxes hold here [default: none].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log format.
    #[arg(long, env = "DHOW_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
}

#[derive(Debug, Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Also remove all data, network state and the kubeconfig context.
    #[arg(long)]
    pub purge: bool,
}

/// How to reach a running cloud.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// Kubeconfig to use [default: that of the cloud on this machine, else context "dhow" of the user's].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Folder of a cloud on this machine.
    #[arg(long, env = "DHOW_DATA_DIR", default_value = crate::place::DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Folder of its run-time state.
    #[arg(long, env = "DHOW_RUN_DIR", default_value = "/run/dhow", value_name = "DIR")]
    pub run_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn etcd_endpoints() {
        let urls = |text: &str| text.parse::<EtcdEndpoints>().map(|endpoints| endpoints.urls);
        assert_eq!(urls("etcd://a:2379,10.0.0.1:2379").unwrap(), ["https://a:2379", "https://10.0.0.1:2379"]);
        assert_eq!(urls("etcd+http://[::1]:2379").unwrap(), ["http://[::1]:2379"]);
        assert!(urls("etcd+http://10.0.0.1:2379").unwrap_err().contains("by TLS"));
        assert!(urls("etcd://a").unwrap_err().contains("no port"));
        assert!(urls("redis://a:1").unwrap_err().contains("no kind of store"));
        assert!(urls("a:2379").is_err());
    }
}
