//! Where a cloud lives: flags resolved once into folders, addresses and names.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use dhow_net::{Cidr, Family};

use crate::cli::{AdmissionPlugin, EtcdEndpoints, LogFormat, PlaceArgs};
use crate::keys;
use crate::networks::ClusterNetworks;
use crate::runtimes::RuntimeChoice;

/// Everything about the place that the parts need to know.
#[derive(Debug, Clone)]
pub struct Place {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// The same, and that of the other family, if this machine has one and its cloud uses both.
    pub node_ips: Vec<IpAddr>,
    pub networks: ClusterNetworks,
    /// Where node ports answer; everywhere when empty.
    pub nodeport_addresses: Vec<Cidr>,
    pub api_port: u16,
    pub node_port: u16,
    /// What was asked to run the containers; see [`crate::runtimes::choose`].
    pub runtime: Option<RuntimeChoice>,
    /// The etcd servers that keep the state; `None` when the data folder does.
    pub etcd: Option<EtcdPlace>,
    /// File with the token that opens the cluster's keys in etcd, for a server that joins.
    pub token_file: Option<PathBuf>,
    /// After so long another server leads in place of one that went silent.
    pub leader_lease: Duration,
    /// Further names and addresses under which the API is reached.
    pub tls_sans: Vec<String>,
    pub authentication_config: Option<PathBuf>,
    pub audit: Option<AuditPlace>,
    pub admission_plugins: Vec<AdmissionPlugin>,
    /// The file of settings.
    pub config: PathBuf,
    pub log_format: LogFormat,
    /// Sandboxes that wait, ready made, for pods; the settings say how many if nobody else does.
    pub slots: Option<usize>,
    /// How packets travel to other nodes' pods.
    pub pod_network: dhow_net::peers::Mode,
    /// Where other nodes reach this one, if that is not the node's own address of the family.
    pub outer_addresses: Vec<IpAddr>,
}

/// What is recorded of requests, and where to.
#[derive(Debug, Clone)]
pub struct AuditPlace {
    pub policy: PathBuf,
    pub log: Option<PathBuf>,
    /// MiB.
    pub max_size: u32,
    /// Days.
    pub max_age: u32,
    pub max_backups: u32,
    pub webhook: Option<PathBuf>,
}

/// Where the etcd servers are, and the files that prove both sides.
#[derive(Debug, Clone)]
pub struct EtcdPlace {
    pub endpoints: EtcdEndpoints,
    pub ca: Option<PathBuf>,
    /// Certificate and private key.
    pub client: Option<(PathBuf, PathBuf)>,
}

pub const DEFAULT_DATA_DIR: &str = "/var/lib/dhow";
/// All pods of the cluster, unless it is told otherwise.
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";
/// What a node that runs the cluster's name server says of itself.
pub const SERVES_DNS: &str = "dns.dhow.io/serves";
/// As whom the name server calls the API.
pub const DNS_USER: &str = "system:kube-dns";
pub const SERVICE_CIDR: &str = "10.43.0.0/16";
pub const CLUSTER_DOMAIN: &str = "cluster.local";
pub const BRIDGE: &str = "dhow0";
pub const TABLE: &str = "dhow";
pub const NODE_PORTS: (u16, u16) = (30000, 32767);

impl Place {
    pub fn resolve(args: &PlaceArgs) -> Result<Self> {
        let node_name = match &args.node_name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        let file = |path: &PathBuf| std::path::absolute(path).with_context(|| format!("resolve {}", path.display()));
        let etcd = match &args.store {
            None => None,
            Some(endpoints) => Some(EtcdPlace {
                endpoints: endpoints.clone(),
                ca: args.store_ca.as_ref().map(file).transpose()?,
                client: match (&args.store_cert, &args.store_key) {
                    (Some(cert), Some(key)) => Some((file(cert)?, file(key)?)),
                    _ => None,
                },
            }),
        };
        let data_dir = std::path::absolute(&args.data_dir).context("resolve the data folder")?;
        let networks = ClusterNetworks::resolve(&data_dir, &args.pod_cidr, &args.service_cidr)?;
        let node_ips = node_ips(&args.node_ip, &networks)?;
        Ok(Self {
            data_dir,
            run_dir: std::path::absolute(&args.run_dir).context("resolve the run folder")?,
            node_name,
            node_ip: node_ips[0],
            node_ips,
            networks,
            nodeport_addresses: args.nodeport_addresses.clone(),
            api_port: args.api_port,
            node_port: args.node_port,
            runtime: args.runtime.clone(),
            etcd,
            token_file: args.token_file.as_ref().map(file).transpose()?,
            leader_lease: Duration::from_secs(args.leader_elect_lease_duration),
            tls_sans: args.tls_san.clone(),
            authentication_config: args.authentication_config.as_ref().map(file).transpose()?,
            audit: match &args.audit_policy {
                Some(policy) => Some(AuditPlace {
                    policy: file(policy)?,
                    log: args.audit_log.as_ref().map(file).transpose()?,
                    max_size: args.audit_log_max_size,
                    max_age: args.audit_log_max_age,
                    max_backups: args.audit_log_max_backups,
                    webhook: args.audit_webhook.as_ref().map(file).transpose()?,
                }),
                None => None,
            },
            admission_plugins: args.enable_admission_plugins.clone(),
            config: std::path::absolute(&args.config).context("resolve the settings file")?,
            log_format: args.log_format,
            slots: args.pod_slots,
            pod_network: args.pod_network,
            outer_addresses: args.outer_addresses.clone(),
        })
    }

    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("dhow.pid")
    }

    /// Folder of the embedded store.
    pub fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }

    /// Folder of the cluster's keys and certificates.
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The keys that seal Secrets in the store.
    pub fn sealing_keys(&self) -> PathBuf {
        self.pki_dir().join(keys::SEALING)
    }

    /// What opens the cluster's keys in etcd.
    pub fn server_token(&self) -> PathBuf {
        server_token(&self.data_dir)
    }

    /// Says that the embedded store is history, and where the state is now.
    pub fn moved_file(&self) -> PathBuf {
        moved_file(&self.data_dir)
    }

    pub fn log_file(&self) -> PathBuf {
        self.data_dir.join("dhow.log")
    }

    pub fn dns_pid_file(&self) -> PathBuf {
        self.run_dir.join("dns.pid")
    }

    /// How the name server's process reaches the API.
    pub fn dns_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("dns.kubeconfig")
    }

    /// The flags that resolve to this place again.
    pub fn as_args(&self) -> Vec<OsString> {
        let flags: [(&str, OsString); 9] = [
            ("--config", self.config.clone().into()),
            ("--data-dir", self.data_dir.clone().into()),
            ("--run-dir", self.run_dir.clone().into()),
            ("--node-name", self.node_name.clone().into()),
            ("--node-ip", joined(&self.node_ips).into()),
            ("--api-port", self.api_port.to_string().into()),
            ("--node-port", self.node_port.to_string().into()),
            ("--leader-elect-lease-duration", self.leader_lease.as_secs().to_string().into()),
            ("--pod-network", self.pod_network.name().into()),
        ];
        let mut flags = Vec::from(flags);
        flags.extend(self.slots.iter().map(|slots| ("--pod-slots", slots.to_string().into())));
        if !self.outer_addresses.is_empty() {
            flags.push(("--node-external-ip", joined(&self.outer_addresses).into()));
        }
        flags.extend(self.networks.as_args().map(|(flag, value)| (flag, value.into())));
        if !self.nodeport_addresses.is_empty() {
            flags.push(("--nodeport-addresses", joined(&self.nodeport_addresses).into()));
        }
        flags.extend(self.runtime.iter().map(|runtime| ("--runtime", runtime.to_string().into())));
        if let Some(etcd) = &self.etcd {
            flags.push(("--store", etcd.endpoints.text.clone().into()));
            flags.extend(etcd.ca.iter().map(|path| ("--store-ca", path.into())));
            if let Some((cert, key)) = &etcd.client {
                flags.extend([("--store-cert", cert.into()), ("--store-key", key.into())]);
            }
        }
        flags.extend(self.tls_sans.iter().map(|name| ("--tls-san", name.into())));
        let files = [("--token-file", &self.token_file), ("--authentication-config", &self.authentication_config)];
        flags.extend(files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?.into()))));
        if let Some(audit) = &self.audit {
            flags.extend([
                ("--audit-policy", audit.policy.clone().into()),
                ("--audit-log-max-size", audit.max_size.to_string().into()),
                ("--audit-log-max-age", audit.max_age.to_string().into()),
                ("--audit-log-max-backups", audit.max_backups.to_string().into()),
            ]);
            flags.extend(audit.log.iter().map(|path| ("--audit-log", path.into())));
            flags.extend(audit.webhook.iter().map(|path| ("--audit-webhook", path.into())));
        }
        for plugin in &self.admission_plugins {
            let name = plugin.to_possible_value().map(|value| value.get_name().to_owned());
            flags.extend(name.map(|name| ("--enable-admission-plugins", name.into())));
        }
        flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    /// Top control group of all containers.
    pub fn cgroup(&self) -> String {
        cgroup(&self.data_dir)
    }

    pub fn api_url(&self) -> String {
        format!("https://{}", std::net::SocketAddr::new(self.node_ip, self.api_port))
    }
}

/// Top control group of the containers of the cloud with this data folder. Two clouds on one machine must not share it:
/// stopping one kills what is in it.
pub fn cgroup(data_dir: &Path) -> String {
    if data_dir == Path::new(DEFAULT_DATA_DIR) {
        return "dhow".to_owned();
    }
    // FNV-1a: it must be the same for every version of this program.
    let bytes = data_dir.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("dhow-{hash:08x}")
}

/// The file in a data folder that says that its store is history.
pub fn moved_file(data_dir: &Path) -> PathBuf {
    data_dir.join("store.moved")
}

/// The file of the server token in a data folder.
pub fn server_token(data_dir: &Path) -> PathBuf {
    data_dir.join("pki/server.token")
}

/// Kubernetes wants node names in lower case.
fn host_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
    let name = name.trim().to_ascii_lowercase();
    Ok(if name.is_empty() || name == "(none)" { "localhost".into() } else { name })
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// The machine's address of each family that the cluster has. The primary family's is a must: it is where the API is.
fn node_ips(asked: &[IpAddr], networks: &ClusterNetworks) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for (index, pods) in networks.pods.iter().enumerate() {
        let family = pods.family();
        let given = asked.iter().copied().find(|address| Family::of(*address) == family);
        let found = given.or_else(|| default_address(family).filter(|_| asked.is_empty()));
        match (found, index) {
            (Some(address), _) => addresses.push(address),
            (None, 0) => bail!(
                "pods have {} addresses first, so the node needs one, too: name it by --node-ip, or put the other \
                 family first in --pod-cidr and --service-cidr",
                family.name()
            ),
            (None, _) => {}
        }
    }
    if let Some(stranger) = asked.iter().find(|address| !addresses.contains(address)) {
        bail!("--node-ip {stranger} is one too many: one address of each family of --pod-cidr");
    }
    Ok(addresses)
}

/// The source address of the default route; connecting a UDP socket sends nothing.
fn default_address(family: Family) -> Option<IpAddr> {
    let (beyond, local): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::LOCALHOST.into()),
        Family::V6 => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::LOCALHOST.into()),
    };
    let socket = UdpSocket::bind((family.unspecified(), 0)).and_then(|socket| {
        socket.connect((beyond, 9))?;
        socket.local_addr()
    });
    match socket {
        Ok(address) => Some(address.ip()),
        // A machine without a network still runs a cloud for itself.
        Err(_) => Some(local).filter(|_| family == Family::V4),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A place below a folder, with everything else as it is by default.
    pub fn place(folder: &Path) -> Place {
        use clap::Parser;
        let text = folder.display().to_string();
        let command = ["dhow", "serve", "--node-name", "n", "--data-dir", &text, "--run-dir", &text];
        let crate::cli::Command::Serve(args) = crate::cli::Cli::parse_from(command).command else {
            panic!("another command")
        };
        fs::create_dir_all(folder).unwrap();
        Place::resolve(&args).unwrap()
    }
}
