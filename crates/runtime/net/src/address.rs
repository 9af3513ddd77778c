//! Networks in CIDR notation, and the two address families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::Error;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// All addresses: what a packet filter asks no question for.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// A network of either family; host bits are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network `address` is in; `None` for a prefix that is too long.
    pub fn new(address: impl Into<IpAddr>, prefix: u8) -> Option<Self> {
        let address = address.into();
        let family = Family::of(address);
        let network = from_bits(family, to_bits(address) & mask_bits(family, prefix));
        (prefix <= family.bits()).then_some(Self { network, prefix })
    }

    /// This address alone.
    pub fn host(address: IpAddr) -> Self {
        Self { network: address, prefix: Family::of(address).bits() }
    }

    pub fn network(self) -> IpAddr {
        self.network
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn family(self) -> Family {
        Family::of(self.network)
    }

    pub fn is_ipv6(self) -> bool {
        self.network.is_ipv6()
    }

    pub fn mask(self) -> IpAddr {
        from_bits(self.family(), mask_bits(self.family(), self.prefix))
    }

    /// False for every address of the other family.
    pub fn contains(self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let family = self.family();
        Family::of(address) == family && to_bits(address) & mask_bits(family, self.prefix) == to_bits(self.network)
    }

    /// Addresses in the network, the network's own and broadcast included; `u64::MAX` when there are more.
    pub fn size(self) -> u64 {
        1u64.checked_shl(u32::from(self.family().bits() - self.prefix)).unwrap_or(u64::MAX)
    }

    /// The address `index` places after the network's own; `None` outside.
    pub fn nth(self, index: u64) -> Option<IpAddr> {
        (index < self.size()).then(|| from_bits(self.family(), to_bits(self.network) + u128::from(index)))
    }

    /// How far `address` is from the network's own; `None` outside, and past all that can be counted.
    pub fn index_of(self, address: impl Into<IpAddr>) -> Option<u64> {
        let address = address.into();
        self.contains(address).then(|| u64::try_from(to_bits(address) - to_bits(self.network)).ok())?
    }

    /// The first network of this prefix length inside.
    pub fn first_of(self, prefix: u8) -> Option<Self> {
        (prefix >= self.prefix).then(|| Self::new(self.network, prefix))?
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        // Never longer: it comes from an address of this family.
        Family::V4 => Ipv4Addr::from_bits(bits as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(bits).into(),
    }
}

fn mask_bits(family: Family, prefix: u8) -> u128 {
    let host = u32::from(family.bits().saturating_sub(prefix));
    let all = u128::MAX >> (128 - u32::from(family.bits()));
    all & u128::MAX.checked_shl(host).unwrap_or(0)
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
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        Self::new(address, prefix.parse().map_err(|_| invalid())?).ok_or_else(invalid)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_clears_host_bits() {
        let cidr: Cidr = "10.42.3.9/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.42.3.0/24");
        assert_eq!(cidr.nth(1), Some(address("10.42.3.1")));
        assert_eq!(cidr.nth(256), None);
        assert_eq!(cidr.index_of(address("10.42.3.255")), Some(255));
        assert!(!cidr.contains(Ipv4Addr::new(10, 42, 4, 0)));
        let cidr: Cidr = "fd42::9:1/64".parse().unwrap();
        assert_eq!(cidr.to_string(), "fd42::/64");
        assert_eq!((cidr.nth(1), cidr.mask()), (Some(address("fd42::1")), address("ffff:ffff:ffff:ffff::")));
        assert_eq!(cidr.index_of(address("fd42::1:0")), Some(65_536));
        assert!(!cidr.contains(address("fd42:0:0:1::")) && !cidr.contains(address("10.42.3.1")));
        assert_eq!("fd42::/56".parse::<Cidr>().unwrap().first_of(64), Some(cidr));
    }

    #[test]
    fn extremes() {
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::BROADCAST));
        assert_eq!("1.2.3.4/32".parse::<Cidr>().unwrap().size(), 1);
        let all: Cidr = "::/0".parse().unwrap();
        assert!(all.contains(address("ffff::1")) && !all.contains(address("1.2.3.4")));
        assert_eq!((all.size(), all.index_of(address("ffff::"))), (u64::MAX, None));
        assert_eq!(Cidr::host(address("fd42::1")).to_string(), "fd42::1/128");
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/-1", "fd00::/129", "fd00::"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
