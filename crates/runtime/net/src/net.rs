//! `Net`: opens, owns and removes the node's network.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::config::NetConfig;
use crate::ipam::Ipam;
use crate::kernel::Kernel;
use crate::{Error, Result, base_table};

/// The node's network. Dropping it changes nothing in the kernel: pods keep their connections.
#[derive(Debug)]
pub struct Net {
    pub(crate) config: NetConfig,
    pub(crate) kernel: Kernel,
    pub(crate) bridge_index: u32,
    pub(crate) ipam: parking_lot::Mutex<Ipam>,
    /// One change of pod state at a time; links are under the kernel's global lock anyway. Holds the sandboxes that were
    /// connected ahead of time and are not used yet.
    pub(crate) pods: tokio::sync::Mutex<BTreeSet<String>>,
}

impl Net {
    /// Brings bridge, table and sysctls to what `config` says. Where they are so already, nothing changes.
    pub async fn open(mut config: NetConfig) -> Result<Arc<Self>> {
        config.check()?;
        let kernel = Kernel::connect(config.host_netns.take(), &config.table)?;
        if config.mtu == 0 {
            config.mtu = config.mode.pod_mtu(kernel.underlay_mtu(config.node_ip).await?).max(576);
        }
        let forwarding = kernel.sysctl("ipv4/ip_forward", "1").await?;
        let ipam = Ipam::open(&config.state_dir.join("leases"), config.pod_cidr)?;
        if forwarding == "0" {
            remember_forwarding(&config)?;
        }
        let gateway = config.gateway();
        let bridge_index = kernel.ensure_bridge(&config.bridge, gateway, config.pod_cidr.prefix(), config.mtu).await?;
        // NodePorts and host ports on 127.0.0.1; the table's guard chain keeps pods out of it.
        kernel.sysctl(&format!("ipv4/conf/{}/route_localnet", config.bridge), "1").await?;
        kernel.sysctl(&format!("ipv4/conf/{}/send_redirects", config.bridge), "0").await?;
        base_table::ensure(&kernel, &config).await?;
        // The host itself needs a way to service addresses, also on a machine without a default route.
        kernel.ensure_link_route(config.service_cidr, bridge_index, gateway).await?;
        let net = Arc::new(Self {
            ipam: parking_lot::Mutex::new(ipam),
            pods: tokio::sync::Mutex::default(),
            config,
            kernel,
            bridge_index,
        });
        net.converge_host_ports().await?;
        Ok(net)
    }

    /// The address of the bridge: the pods' default gateway.
    pub fn bridge_gateway(&self) -> Ipv4Addr {
        self.config.gateway()
    }

    /// What it was opened with.
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Removes every rule, link, address and route of ours, and forgets all addresses.
    pub async fn purge(&self) -> Result<()> {
        let _pods = self.pods.lock().await;
        self.kernel.remove_table().await?;
        for link in self.kernel.pod_links(self.bridge_index).await? {
            self.kernel.remove_link(&link).await?;
        }
        self.purge_peers().await?;
        // Its addresses and routes go with it.
        self.kernel.remove_link(&self.config.bridge).await?;
        if forwarding_marker(&self.config).exists() {
            self.kernel.sysctl("ipv4/ip_forward", "0").await?;
        }
        let dir = &self.config.state_dir;
        for part in ["leases", "forwarding-was-off"] {
            let path = dir.join(part);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::File { context: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn forwarding_marker(config: &NetConfig) -> std::path::PathBuf {
    config.state_dir.join("forwarding-was-off")
}

/// So that purge can turn forwarding off again where we turned it on.
fn remember_forwarding(config: &NetConfig) -> Result<()> {
    let path = forwarding_marker(config);
    std::fs::write(&path, b"").map_err(|source| Error::File { context: "write", path, source })
}
