//! `Net`: opens, owns and removes the node's network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::NetConfig;
use crate::gate::Gate;
use crate::ipam::Ipam;
use crate::kernel::Kernel;
use crate::{Cidr, Error, Family, Networks, Result, base_table};

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
    pub(crate) gate: Gate,
}

impl Net {
    /// Brings bridge, table and sysctls to what `config` says. Where they are so already, nothing changes.
    pub async fn open(mut config: NetConfig) -> Result<Arc<Self>> {
        config.check()?;
        let kernel = Kernel::connect(config.host_netns.take(), &config.table)?;
        if config.mtu == 0 {
            let outer = config.pod_cidr.family();
            let underlay = kernel.underlay_mtu(config.node_ip(outer)).await?;
            config.mtu = config.mode.pod_mtu(underlay, outer).max(config.smallest_mtu());
        }
        let ipam = Ipam::open(&config.state_dir.join("leases"), config.networks())?;
        for networks in config.networks() {
            turn_on_forwarding(&kernel, &config, networks.family()).await?;
        }
        // The way to pods that plugins connect is the plugins'.
        let prefix = |n: Networks| if config.plugins { Cidr::host(n.gateway()).prefix() } else { n.pods.prefix() };
        let gateways: Vec<(IpAddr, u8)> = config.networks().map(|n| (n.gateway(), prefix(n))).collect();
        let bridge_index = kernel.ensure_bridge(&config.bridge, &gateways, config.mtu).await?;
        if config.networks().any(|networks| networks.family() == Family::V6) {
            // Neighbours are asked for with the link-local address. It comes with the first pod, and looking for its
            // double would hold up that pod's first packets for more than a second.
            kernel.sysctl(&format!("ipv6/conf/{}/accept_dad", config.bridge), "0").await?;
        }
        // NodePorts and host ports on 127.0.0.1; the table's guard chain keeps pods out of it.
        kernel.sysctl(&format!("ipv4/conf/{}/route_localnet", config.bridge), "1").await?;
        kernel.sysctl(&format!("ipv4/conf/{}/send_redirects", config.bridge), "0").await?;
        base_table::ensure(&kernel, &config).await?;
        // The host itself needs a way to service addresses, also on a machine without a default route.
        for networks in config.networks() {
            kernel.ensure_link_route(networks.services, bridge_index, networks.gateway()).await?;
        }
        let net = Arc::new(Self {
            ipam: parking_lot::Mutex::new(ipam),
            pods: tokio::sync::Mutex::default(),
            gate: Gate::default(),
            config,
            kernel,
            bridge_index,
        });
        net.converge_host_ports().await?;
        Ok(net)
    }

    /// The address of the bridge in the primary family: the pods' default gateway.
    pub fn bridge_gateway(&self) -> IpAddr {
        self.config.networks().next().map_or(self.config.pod_cidr.network(), |networks| networks.gateway())
    }

    /// Its addresses in all families, the primary one's first.
    pub fn bridge_gateways(&self) -> Vec<IpAddr> {
        self.config.networks().map(|networks| networks.gateway()).collect()
    }

    /// What it was opened with.
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Removes every rule, link, address and route of ours, and forgets all addresses.
    pub async fn purge(&self) -> Result<()> {
        let _pods = self.pods.lock().await;
        self.drop_balancer_addresses().await?;
        self.kernel.remove_table().await?;
        for link in self.kernel.pod_links(self.bridge_index).await? {
            self.kernel.remove_link(&link).await?;
        }
        self.purge_peers().await?;
        // Its addresses and routes go with it.
        self.kernel.remove_link(&self.config.bridge).await?;
        let mut parts = vec!["leases".to_owned()];
        for family in Family::BOTH {
            let marker = forwarding_marker(family);
            if let Ok(interfaces) = std::fs::read_to_string(self.config.state_dir.join(marker)) {
                self.kernel.sysctl(forwarding_key(family), "0").await?;
                for interface in interfaces.lines() {
                    let key = format!("ipv6/conf/{interface}/accept_ra");
                    // The interface may be gone since.
                    if let Err(error) = self.kernel.sysctl(&key, "1").await {
                        tracing::debug!(%error, "cannot put back what was changed");
                    }
                }
            }
            parts.push(marker.to_owned());
        }
        let dir = &self.config.state_dir;
        for part in parts {
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

/// Is there where forwarding was off before us; says which interfaces listen to routers on our account.
fn forwarding_marker(family: Family) -> &'static str {
    match family {
        Family::V4 => "forwarding-was-off",
        Family::V6 => "forwarding-was-off-v6",
    }
}

fn forwarding_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4/ip_forward",
        Family::V6 => "ipv6/conf/all/forwarding",
    }
}

/// Remembers that it was off, so that purge can turn it off again.
async fn turn_on_forwarding(kernel: &Kernel, config: &NetConfig, family: Family) -> Result<()> {
    if kernel.sysctl(forwarding_key(family), "1").await? != "0" {
        return Ok(());
    }
    let listening = match family {
        Family::V4 => Vec::new(),
        Family::V6 => kernel.keep_router_advertisements().await?,
    };
    let path = config.state_dir.join(forwarding_marker(family));
    std::fs::write(&path, listening.join("\n")).map_err(|source| Error::File { context: "write", path, source })
}
