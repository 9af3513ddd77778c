//! Where a cloud lives: flags resolved once into folders, addresses and names.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::{EtcdEndpoints, LogFormat, PlaceArgs};

/// Everything about the place that the parts need to know.
#[derive(Debug, Clone)]
pub struct Place {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub api_port: u16,
    pub node_port: u16,
    /// The etcd servers that keep the state; `None` when the data folder does.
    pub etcd: Option<EtcdPlace>,
    pub authentication_config: Option<PathBuf>,
    pub audit_policy: Option<PathBuf>,
    pub audit_log: Option<PathBuf>,
    /// The file of settings.
    pub config: PathBuf,
    pub log_format: LogFormat,
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
/// All pods of the cluster.
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";
/// The pods of the first node.
pub const POD_CIDR: &str = "10.42.0.0/24";
pub const SERVICE_CIDR: &str = "10.43.0.0/16";
/// The `default/kubernetes` Service.
pub const API_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 1);
/// The `kube-system/kube-dns` Service.
pub const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
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
        Ok(Self {
            data_dir: std::path::absolute(&args.data_dir).context("resolve the data folder")?,
            run_dir: std::path::absolute(&args.run_dir).context("resolve the run folder")?,
            node_name,
            node_ip: args.node_ip.unwrap_or_else(default_address),
            api_port: args.api_port,
            node_port: args.node_port,
            etcd,
            authentication_config: args.authentication_config.as_ref().map(file).transpose()?,
            audit_policy: args.audit_policy.as_ref().map(file).transpose()?,
            audit_log: args.audit_log.as_ref().map(file).transpose()?,
            config: std::path::absolute(&args.config).context("resolve the settings file")?,
            log_format: args.log_format,
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
        self.pki_dir().join("sealing.keys")
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
        let flags: [(&str, OsString); 7] = [
            ("--config", self.config.clone().into()),
            ("--data-dir", self.data_dir.clone().into()),
            ("--run-dir", self.run_dir.clone().into()),
            ("--node-name", self.node_name.clone().into()),
            ("--node-ip", self.node_ip.to_string().into()),
            ("--api-port", self.api_port.to_string().into()),
            ("--node-port", self.node_port.to_string().into()),
        ];
        let mut flags = Vec::from(flags);
        if let Some(etcd) = &self.etcd {
            flags.push(("--store", etcd.endpoints.text.clone().into()));
            flags.extend(etcd.ca.iter().map(|path| ("--store-ca", path.into())));
            if let Some((cert, key)) = &etcd.client {
                flags.extend([("--store-cert", cert.into()), ("--store-key", key.into())]);
            }
        }
        let files = [
            ("--authentication-config", &self.authentication_config),
            ("--audit-policy", &self.audit_policy),
            ("--audit-log", &self.audit_log),
        ];
        flags.extend(files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?.into()))));
        flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    /// Top control group of all containers. Two clouds on one machine, told apart by their data, must not share it:
    /// stopping one kills what is in it.
    pub fn cgroup(&self) -> String {
        if self.data_dir == Path::new(DEFAULT_DATA_DIR) {
            return "dhow".to_owned();
        }
        // FNV-1a: it must be the same for every version of this program.
        let bytes = self.data_dir.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("dhow-{hash:08x}")
    }

    pub fn api_url(&self) -> String {
        format!("https://{}", std::net::SocketAddr::new(self.node_ip, self.api_port))
    }
}

/// Kubernetes wants node names in lower case.
fn host_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
    let name = name.trim().to_ascii_lowercase();
    Ok(if name.is_empty() || name == "(none)" { "localhost".into() } else { name })
}

/// The source address of the default route; connecting a UDP socket sends nothing.
fn default_address() -> IpAddr {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| {
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
            socket.local_addr()
        })
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}
