//! Which sandbox has which address and host ports, remembered in one small file per sandbox.
//!
//! Files are replaced by rename and not synced: they must outlive the daemon, not the machine. After a
//! power cut there are no pods, and a torn file is dropped like any other leftover.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::rules::Protocol;
use crate::{Error, Family, Networks, Result};

/// A port of the host that leads to the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct HostPort {
    pub protocol: Protocol,
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lease {
    /// One of each family, the primary one first. Files of earlier versions hold a single one.
    #[serde(alias = "address", deserialize_with = "one_or_more")]
    pub addresses: Vec<IpAddr>,
    pub host_ports: Vec<HostPort>,
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Addresses {
        One(IpAddr),
        More(Vec<IpAddr>),
    }
    match <Addresses as serde::Deserialize>::deserialize(deserializer)? {
        Addresses::One(address) => Ok(vec![address]),
        Addresses::More(addresses) => Ok(addresses),
    }
}

impl Lease {
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// The addresses of one family.
#[derive(Debug)]
struct Pool {
    networks: Networks,
    by_address: HashMap<IpAddr, String>,
    /// Where the search for a free address goes on, so that an address rests before it is used again.
    cursor: u64,
}

/// Not thread-safe on purpose: the owner holds it under one lock.
#[derive(Debug)]
pub(crate) struct Ipam {
    dir: PathBuf,
    by_sandbox: BTreeMap<String, Lease>,
    /// The primary family's first.
    pools: Vec<Pool>,
}

impl Ipam {
    pub fn open(dir: &Path, networks: impl Iterator<Item = Networks>) -> Result<Self> {
        let file = |context, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { context, path, source }
        };
        std::fs::create_dir_all(dir).map_err(file("create", dir))?;
        let pools = networks.map(|networks| Pool { networks, by_address: HashMap::new(), cursor: 2 }).collect();
        let mut ipam = Self { dir: dir.to_owned(), by_sandbox: BTreeMap::new(), pools };
        for entry in std::fs::read_dir(dir).map_err(file("list", dir))? {
            let path = entry.map_err(file("list", dir))?.path();
            let sandbox = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json"));
            let lease = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Lease>(&bytes).ok());
            let taken = |address: &IpAddr| ipam.pools.iter().any(|pool| pool.by_address.contains_key(address));
            match (sandbox, lease) {
                (Some(sandbox), Some(lease)) if !lease.addresses.iter().any(taken) => ipam.hold(sandbox, lease),
                _ => {
                    tracing::warn!(path = %path.display(), "dropping an unreadable address lease");
                    std::fs::remove_file(&path).map_err(file("remove", &path))?;
                }
            }
        }
        Ok(ipam)
    }

    fn hold(&mut self, sandbox: &str, lease: Lease) {
        for pool in &mut self.pools {
            if let Some(address) = lease.address(pool.networks.family()) {
                pool.cursor = pool.cursor.max(pool.networks.pods.index_of(address).map_or(2, |index| index + 1));
                pool.by_address.insert(address, sandbox.to_owned());
            }
        }
        self.by_sandbox.insert(sandbox.to_owned(), lease);
    }

    pub fn get(&self, sandbox: &str) -> Option<&Lease> {
        self.by_sandbox.get(sandbox)
    }

    pub fn leases(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.by_sandbox.iter()
    }

    /// The sandbox' lease, made now if it has none. Host ports of other sandboxes are refused.
    pub fn lease(&mut self, sandbox: &str, host_ports: Vec<HostPort>) -> Result<Lease> {
        if sandbox.is_empty() || sandbox.len() > 200 || sandbox.contains(['/', '\0']) || sandbox.starts_with('.') {
            return Err(Error::InvalidSandboxId(sandbox.to_owned()));
        }
        for wanted in &host_ports {
            let holder = self
                .by_sandbox
                .iter()
                .find(|(id, lease)| *id != sandbox && lease.host_ports.iter().any(|held| held.overlaps(wanted)));
            if let Some((owner, _)) = holder {
                let (port, protocol) = (wanted.host_port, wanted.protocol.name());
                return Err(Error::HostPortInUse { port, protocol, owner: owner.clone() });
            }
        }
        let addresses = match self.by_sandbox.get(sandbox) {
            Some(lease) if lease.host_ports == host_ports => return Ok(lease.clone()),
            Some(lease) => lease.addresses.clone(),
            None => self.pools.iter().map(Pool::free_address).collect::<Result<_>>()?,
        };
        let lease = Lease { addresses, host_ports };
        self.write(sandbox, &lease)?;
        for pool in &mut self.pools {
            let Some(address) = lease.address(pool.networks.family()) else { continue };
            if pool.by_address.insert(address, sandbox.to_owned()).is_none() {
                pool.cursor = pool.networks.pods.index_of(address).map_or(2, |index| index + 1);
            }
        }
        self.by_sandbox.insert(sandbox.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Forgets the sandbox; nothing happens when it is not known.
    pub fn release(&mut self, sandbox: &str) -> Result<Option<Lease>> {
        let Some(lease) = self.by_sandbox.get(sandbox).cloned() else { return Ok(None) };
        let path = self.path(sandbox);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::File { context: "remove", path, source });
            }
            _ => {}
        }
        self.by_sandbox.remove(sandbox);
        for pool in &mut self.pools {
            pool.by_address.retain(|_, holder| holder != sandbox);
        }
        Ok(Some(lease))
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    fn write(&self, sandbox: &str, lease: &Lease) -> Result<()> {
        let path = self.path(sandbox);
        let temporary = self.dir.join(format!(".{sandbox}.new"));
        let bytes = serde_json::to_vec(lease).map_err(std::io::Error::from);
        bytes
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|source| Error::File { context: "write", path, source })
    }
}

impl Pool {
    fn free_address(&self) -> Result<IpAddr> {
        // 0 is the network, 1 the bridge.
        let (first, end) = (2, self.networks.end());
        let span = end - first;
        let start = self.cursor.clamp(first, end) - first;
        let candidates = (0..span).filter_map(|step| self.networks.pods.nth(first + (start + step) % span));
        let free = candidates.into_iter().find(|address| !self.by_address.contains_key(address));
        free.ok_or(Error::AddressesExhausted(self.networks.pods))
    }
}

impl HostPort {
    /// Whether it leads to an address of this family.
    pub fn serves(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| Family::of(ip) == family)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && (self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn port(host_port: u16, host_ip: Option<IpAddr>) -> HostPort {
        HostPort { protocol: Protocol::Tcp, host_ip, host_port, container_port: 80 }
    }

    fn networks(pods: &[&str]) -> std::vec::IntoIter<Networks> {
        let networks = pods.iter().map(|pods| {
            let pods = pods.parse().unwrap();
            Networks { pods, cluster: pods, services: pods }
        });
        networks.collect::<Vec<_>>().into_iter()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn leases_survive_reopening_and_addresses_rest() {
        let dir = tempfile::tempdir().unwrap();
        let pods = ["10.9.0.0/29"];
        let mut ipam = Ipam::open(dir.path(), networks(&pods)).unwrap();
        let a = ipam.lease("a", vec![port(80, None)]).unwrap();
        assert_eq!(a.addresses, [address("10.9.0.2")]);
        let b = ipam.lease("b", vec![]).unwrap();
        std::fs::write(dir.path().join("torn.json"), b"{").unwrap();
        let mut ipam = Ipam::open(dir.path(), networks(&pods)).unwrap();
        assert_eq!(ipam.get("a"), Some(&a));
        assert_eq!(ipam.lease("b", vec![]).unwrap(), b);
        assert!(!dir.path().join("torn.json").exists());
        ipam.release("a").unwrap();
        assert_eq!(ipam.lease("c", vec![]).unwrap().addresses, [address("10.9.0.4")], "a's address rests");
        // .2 to .6 are b, c, d, e and a's old one.
        for id in ["d", "e", "f"] {
            ipam.lease(id, vec![]).unwrap_or_else(|e| panic!("{id}: {e}"));
        }
        assert!(matches!(ipam.lease("g", vec![]), Err(Error::AddressesExhausted(_))));
        assert!(ipam.release("nobody").unwrap().is_none());
    }

    #[test]
    fn one_address_of_each_family() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"{"address":"10.9.0.2","host_ports":[]}"#;
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.path().join("old.json"), old).unwrap();
        let mut ipam = Ipam::open(dir.path(), networks(&["10.9.0.0/24", "fd09::/64"])).unwrap();
        assert_eq!(ipam.get("old").unwrap().addresses, [address("10.9.0.2")], "a file of an earlier version");
        let lease = ipam.lease("a", vec![]).unwrap();
        assert_eq!(lease.addresses, [address("10.9.0.3"), address("fd09::2")]);
        assert_eq!(ipam.lease("b", vec![]).unwrap().addresses, [address("10.9.0.4"), address("fd09::3")]);
        ipam.release("a").unwrap();
        let mut ipam = Ipam::open(dir.path(), networks(&["fd09::/125"])).unwrap();
        for (id, last) in [("c", 4), ("d", 5), ("e", 6), ("f", 7), ("g", 2)] {
            assert_eq!(ipam.lease(id, vec![]).unwrap().addresses, [address(&format!("fd09::{last}"))]);
        }
        assert!(matches!(ipam.lease("h", vec![]), Err(Error::AddressesExhausted(_))));
    }

    #[test]
    fn host_ports_have_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), networks(&["10.9.0.0/24"])).unwrap();
        let (one, two) = (address("192.0.2.1"), address("2001:db8::2"));
        ipam.lease("a", vec![port(80, Some(one))]).unwrap();
        ipam.lease("b", vec![port(80, Some(two))]).unwrap();
        assert!(matches!(ipam.lease("c", vec![port(80, None)]), Err(Error::HostPortInUse { port: 80, .. })));
        ipam.lease("c", vec![port(81, None)]).unwrap();
        for id in ["", "../x", ".x", "a/b"] {
            assert!(matches!(ipam.lease(id, vec![]), Err(Error::InvalidSandboxId(_))), "{id}");
        }
    }
}
