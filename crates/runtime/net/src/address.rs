//! IPv4 networks in CIDR notation.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::Error;

/// An IPv4 network; host bits are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The network `address` is in; `None` for a prefix over 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { network: Ipv4Addr::from_bits(address.to_bits() & mask_bits(prefix)), prefix })
    }

    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_bits(self.prefix))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask_bits(self.prefix) == self.network.to_bits()
    }

    /// Addresses in the network, the network's own and broadcast included.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address `index` places after the network's own; `None` outside.
    pub fn nth(self, index: u64) -> Option<Ipv4Addr> {
        (index < self.size()).then(|| Ipv4Addr::from_bits(self.network.to_bits() + index as u32))
    }

    /// How far `address` is from the network's own; `None` outside.
    pub fn index_of(self, address: Ipv4Addr) -> Option<u64> {
        self.contains(address).then(|| u64::from(address.to_bits() - self.network.to_bits()))
    }
}

fn mask_bits(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        Self::new(address.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?).ok_or_else(invalid)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_clears_host_bits() {
        let cidr: Cidr = "10.42.3.9/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.42.3.0/24");
        assert_eq!(cidr.nth(1), Some(Ipv4Addr::new(10, 42, 3, 1)));
        assert_eq!(cidr.nth(256), None);
        assert_eq!(cidr.index_of(Ipv4Addr::new(10, 42, 3, 255)), Some(255));
        assert!(!cidr.contains(Ipv4Addr::new(10, 42, 4, 0)));
    }

    #[test]
    fn extremes() {
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::BROADCAST));
        assert_eq!("1.2.3.4/32".parse::<Cidr>().unwrap().size(), 1);
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/-1", "fd00::/64"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
