//! `PodNetwork` for `Net`: links, addresses and host ports of sandboxes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use dhow_cri::{NetworkRequest, PodNetwork};
use nlink::netlink::nftables::SetElement;

use crate::base_table::{HOST_IP_PORTS, HOST_PORTS, filled_sets};
use crate::ipam::{HostPort, Lease};
use crate::kernel::{Batch, VETH_PREFIX, configure_pod};
use crate::proxy::names::fingerprint;
use crate::rules::{Protocol, destination_key, endpoint_value, port_key, set_name};
use crate::shape::Bandwidth;
use crate::{Error, Family, Net, Networks, Result};

#[async_trait::async_trait]
impl PodNetwork for Net {
    async fn attach(&self, netns: BorrowedFd<'_>, request: &NetworkRequest) -> Result<Vec<IpAddr>, dhow_cri::Error> {
        let addresses = self.attach_sandbox(netns, request).await?;
        // Nothing of the pod runs yet, so nobody can have used what policies are about to close.
        if let Err(error) = self.gate.pass(request, &addresses).await {
            self.detach(&request.sandbox_id).await?;
            return Err(error.into());
        }
        Ok(addresses)
    }

    async fn prepare(&self, netns: BorrowedFd<'_>, sandbox_id: &str) -> Result<(), dhow_cri::Error> {
        let mut prepared = self.pods.lock().await;
        let lease = self.ipam.lock().lease(sandbox_id, Vec::new())?;
        if let Err(error) = self.connect(netns, sandbox_id, &lease).await {
            if let Err(cleanup) = self.disconnect(sandbox_id).await {
                tracing::warn!(sandbox = sandbox_id, error = %cleanup, "cannot undo a failed preparation");
            }
            return Err(error.into());
        }
        prepared.insert(sandbox_id.to_owned());
        Ok(())
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), dhow_cri::Error> {
        let mut prepared = self.pods.lock().await;
        prepared.remove(sandbox_id);
        self.gate.forget(sandbox_id);
        Ok(self.disconnect(sandbox_id).await?)
    }

    async fn retain(&self, live_sandboxes: &[String]) -> Result<(), dhow_cri::Error> {
        let _pods = self.pods.lock().await;
        let live: BTreeSet<&str> = live_sandboxes.iter().map(String::as_str).collect();
        let dead: Vec<String> =
            self.ipam.lock().leases().map(|(id, _)| id).filter(|id| !live.contains(id.as_str())).cloned().collect();
        for id in dead {
            self.disconnect(&id).await?;
        }
        let known: BTreeSet<String> = live.iter().map(|id| link_name(id)).collect();
        for link in self.kernel.pod_links(self.bridge_index).await.map_err(dhow_cri::Error::from)? {
            if !known.contains(&link) {
                self.kernel.remove_link(&link).await.map_err(dhow_cri::Error::from)?;
            }
        }
        self.converge_host_ports().await?;
        Ok(())
    }
}

impl Net {
    async fn attach_sandbox(&self, netns: BorrowedFd<'_>, request: &NetworkRequest) -> Result<Vec<IpAddr>> {
        let id = request.sandbox_id.as_str();
        let host_ports = host_ports(request)?;
        let bandwidth = Bandwidth::parse(&request.annotations)?;
        let mut prepared = self.pods.lock().await;
        let lease = self.ipam.lock().lease(id, host_ports)?;
        if prepared.remove(id) {
            if !lease.host_ports.is_empty() {
                self.converge_host_ports().await?;
            }
            if bandwidth.is_limited() {
                self.shape(netns, &link_name(id), bandwidth).await?;
            }
            return Ok(lease.addresses);
        }
        let connected = async {
            self.connect(netns, id, &lease).await?;
            if bandwidth.is_limited() {
                self.shape(netns, &link_name(id), bandwidth).await?;
            }
            Ok(())
        };
        match connected.await {
            Ok(()) => Ok(lease.addresses),
            Err(error) => {
                if let Err(cleanup) = self.disconnect(id).await {
                    tracing::warn!(sandbox = id, error = %cleanup, "cannot undo a failed attach");
                }
                Err(error)
            }
        }
    }

    async fn connect(&self, netns: BorrowedFd<'_>, id: &str, lease: &Lease) -> Result<()> {
        let name = link_name(id);
        if self.kernel.link_index(&name).await?.is_none() {
            self.kernel.add_pod_link(&name, self.bridge_index, self.config.mtu, netns).await?;
        }
        let with_gateway = |networks: Networks| Some((lease.address(networks.family())?, networks.gateway()));
        let addresses: Vec<(IpAddr, IpAddr)> = self.config.networks().filter_map(with_gateway).collect();
        configure_pod(netns, &addresses).await?;
        if !lease.host_ports.is_empty() {
            self.converge_host_ports().await?;
        }
        Ok(())
    }

    async fn disconnect(&self, id: &str) -> Result<()> {
        self.kernel.remove_link(&link_name(id)).await?;
        let Some(lease) = self.ipam.lock().get(id).cloned() else { return Ok(()) };
        if !lease.host_ports.is_empty() {
            let ports: Vec<(HostPort, Lease)> =
                lease.host_ports.iter().map(|port| (port.clone(), lease.clone())).collect();
            let mut batch = self.kernel.batch();
            for (set, gone) in elements(&ports) {
                let held = self.kernel.elements(&set).await?;
                batch = self.change(batch, &set, &held, &[], &gone);
            }
            batch.commit().await?;
            if lease.host_ports.iter().any(|port| port.protocol == Protocol::Udp) {
                for address in &lease.addresses {
                    self.kernel.forget_udp_flows(None, None, Some(*address)).await?;
                }
            }
        }
        self.ipam.lock().release(id)?;
        Ok(())
    }

    /// Makes the host port maps say exactly what the leases say.
    pub(crate) async fn converge_host_ports(&self) -> Result<()> {
        let ports: Vec<(HostPort, Lease)> = {
            let ipam = self.ipam.lock();
            ipam.leases().flat_map(|(_, l)| l.host_ports.iter().map(|p| (p.clone(), l.clone()))).collect()
        };
        let mut batch = self.kernel.batch();
        for (set, wanted) in elements(&ports) {
            let held = self.kernel.elements(&set).await?;
            let stale: Vec<SetElement> = held.iter().filter(|h| !wanted.iter().any(|w| same(w, h))).cloned().collect();
            batch = self.change(batch, &set, &held, &wanted, &stale);
        }
        batch.commit().await
    }

    /// Queues removal of what is `stale` and held, and addition of what is `wanted` and not held.
    fn change<'a>(
        &self,
        mut batch: Batch<'a>,
        set: &str,
        held: &[SetElement],
        wanted: &[SetElement],
        stale: &[SetElement],
    ) -> Batch<'a> {
        let sets = filled_sets(&self.kernel);
        let Some(definition) = sets.iter().find(|s| s.name() == set) else { return batch };
        let stale: Vec<SetElement> = stale.iter().filter(|s| held.iter().any(|h| same(s, h))).cloned().collect();
        let missing: Vec<SetElement> = wanted.iter().filter(|w| !held.iter().any(|h| same(w, h))).cloned().collect();
        batch = batch.remove_elements(definition, &stale);
        batch.add_elements(definition, &missing)
    }
}

fn same(a: &SetElement, b: &SetElement) -> bool {
    a.key() == b.key() && a.data() == b.data()
}

/// What each of the host port maps holds for these.
fn elements(ports: &[(HostPort, Lease)]) -> Vec<(String, Vec<SetElement>)> {
    let mut maps = Vec::new();
    for family in Family::BOTH {
        let (mut by_port, mut by_address) = (Vec::new(), Vec::new());
        for (port, lease) in ports.iter().filter(|(port, _)| port.serves(family)) {
            let Some(address) = lease.address(family) else { continue };
            let endpoint = endpoint_value(SocketAddr::new(address, port.container_port));
            match port.host_ip {
                None => by_port.push(port_key(port.protocol, port.host_port).value(endpoint)),
                Some(ip) => by_address.push(destination_key((ip, port.protocol, port.host_port)).value(endpoint)),
            }
        }
        maps.push((set_name(family, HOST_PORTS), by_port));
        maps.push((set_name(family, HOST_IP_PORTS), by_address));
    }
    maps
}

fn host_ports(request: &NetworkRequest) -> Result<Vec<HostPort>> {
    let mapped = request.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    mapped
        .map(|mapping| {
            let protocol = Protocol::parse(&mapping.protocol)
                .ok_or_else(|| Error::UnsupportedProtocol(mapping.protocol.clone()))?;
            let host_ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
            let (host_port, container_port) = (mapping.host_port, mapping.container_port);
            Ok(HostPort { protocol, host_ip, host_port, container_port })
        })
        .collect()
}

/// The host end's name: interface names are short, sandbox ids are not.
fn link_name(sandbox_id: &str) -> String {
    let fingerprint = fingerprint(sandbox_id.as_bytes());
    format!("{VETH_PREFIX}{}", &fingerprint[..10])
}
