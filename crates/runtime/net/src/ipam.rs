//! Which sandbox has which address and host ports, remembered in one small file per sandbox.
//!
//! Files are replaced by rename and not synced: they must outlive the daemon, not the machine. After a
//! power cut there are no pods, and a torn file is dropped like any other leftover.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::rules::Protocol;
use crate::{Cidr, Error, Result};

/// A port of the host that leads to the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct HostPort {
    pub protocol: Protocol,
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub container_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lease {
    pub address: Ipv4Addr,
    pub host_ports: Vec<HostPort>,
}

/// Not thread-safe on purpose: the owner holds it under one lock.
#[derive(Debug)]
pub(crate) struct Ipam {
    dir: PathBuf,
    cidr: Cidr,
    by_sandbox: BTreeMap<String, Lease>,
    by_address: HashMap<Ipv4Addr, String>,
    /// Where the search for a free address goes on, so that an address rests before it is used again.
    cursor: u64,
}

impl Ipam {
    pub fn open(dir: &Path, cidr: Cidr) -> Result<Self> {
        let file = |context, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { context, path, source }
        };
        std::fs::create_dir_all(dir).map_err(file("create", dir))?;
        let mut ipam =
            Self { dir: dir.to_owned(), cidr, by_sandbox: BTreeMap::new(), by_address: HashMap::new(), cursor: 2 };
        for entry in std::fs::read_dir(dir).map_err(file("list", dir))? {
            let path = entry.map_err(file("list", dir))?.path();
            let sandbox = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json"));
            let lease = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Lease>(&bytes).ok());
            match (sandbox, lease) {
                (Some(sandbox), Some(lease)) if !ipam.by_address.contains_key(&lease.address) => {
                    ipam.cursor = ipam.cursor.max(cidr.index_of(lease.address).map_or(2, |i| i + 1));
                    ipam.by_address.insert(lease.address, sandbox.to_owned());
                    ipam.by_sandbox.insert(sandbox.to_owned(), lease);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "dropping an unreadable address lease");
                    std::fs::remove_file(&path).map_err(file("remove", &path))?;
                }
            }
        }
        Ok(ipam)
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
        let address = match self.by_sandbox.get(sandbox) {
            Some(lease) if lease.host_ports == host_ports => return Ok(lease.clone()),
            Some(lease) => lease.address,
            None => self.free_address()?,
        };
        let lease = Lease { address, host_ports };
        self.write(sandbox, &lease)?;
        self.by_address.insert(address, sandbox.to_owned());
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
        self.by_address.remove(&lease.address);
        Ok(Some(lease))
    }

    fn free_address(&mut self) -> Result<Ipv4Addr> {
        // 0 is the network, 1 the bridge, the last one the broadcast address.
        let (first, end) = (2, self.cidr.size() - 1);
        let span = end - first;
        let start = self.cursor.clamp(first, end) - first;
        for step in 0..span {
            let index = first + (start + step) % span;
            if let Some(address) = self.cidr.nth(index)
                && !self.by_address.contains_key(&address)
            {
                self.cursor = index + 1;
                return Ok(address);
            }
        }
        Err(Error::AddressesExhausted(self.cidr))
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

impl HostPort {
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

    fn port(host_port: u16, host_ip: Option<Ipv4Addr>) -> HostPort {
        HostPort { protocol: Protocol::Tcp, host_ip, host_port, container_port: 80 }
    }

    #[test]
    fn leases_survive_reopening_and_addresses_rest() {
        let dir = tempfile::tempdir().unwrap();
        let cidr = "10.9.0.0/29".parse().unwrap();
        let mut ipam = Ipam::open(dir.path(), cidr).unwrap();
        let a = ipam.lease("a", vec![port(80, None)]).unwrap();
        assert_eq!(a.address, Ipv4Addr::new(10, 9, 0, 2));
        let b = ipam.lease("b", vec![]).unwrap();
        std::fs::write(dir.path().join("torn.json"), b"{").unwrap();
        let mut ipam = Ipam::open(dir.path(), cidr).unwrap();
        assert_eq!(ipam.get("a"), Some(&a));
        assert_eq!(ipam.lease("b", vec![]).unwrap(), b);
        assert!(!dir.path().join("torn.json").exists());
        ipam.release("a").unwrap();
        assert_eq!(ipam.lease("c", vec![]).unwrap().address, Ipv4Addr::new(10, 9, 0, 4), "a's address rests");
        for id in ["d", "e", "f"] {
            ipam.lease(id, vec![]).map(|_| ()).unwrap_or_else(|e| panic!("{id}: {e}"));
            if id == "e" {
                break;
            }
        }
        // .2 to .6 are b, c, d, e and a's old one.
        assert_eq!(ipam.by_address.len(), 4);
        ipam.lease("f", vec![]).unwrap();
        assert!(matches!(ipam.lease("g", vec![]), Err(Error::AddressesExhausted(_))));
        assert!(ipam.release("nobody").unwrap().is_none());
    }

    #[test]
    fn host_ports_have_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), "10.9.0.0/24".parse().unwrap()).unwrap();
        let (one, two) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        ipam.lease("a", vec![port(80, Some(one))]).unwrap();
        ipam.lease("b", vec![port(80, Some(two))]).unwrap();
        assert!(matches!(ipam.lease("c", vec![port(80, None)]), Err(Error::HostPortInUse { port: 80, .. })));
        ipam.lease("c", vec![port(81, None)]).unwrap();
        for id in ["", "../x", ".x", "a/b"] {
            assert!(matches!(ipam.lease(id, vec![]), Err(Error::InvalidSandboxId(_))), "{id}");
        }
    }
}
