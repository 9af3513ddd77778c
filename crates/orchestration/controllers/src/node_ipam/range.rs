//! The cluster's pod network, cut into one network per node.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The most networks one range is cut into, as upstream bounds it.
const MAX_NETWORKS: u32 = 16;

/// A network in CIDR notation, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// The address from the left, so that both families are cut alike.
    bits: u128,
    prefix: u8,
    v4: bool,
}

impl Network {
    /// `None` unless the text is an address, a slash and a length that fits; bits beyond the length are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (bits, v4) = match address.parse::<IpAddr>().ok()? {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
            IpAddr::V6(address) => (address.to_bits(), false),
        };
        let network = Self { bits, prefix, v4 };
        (prefix <= network.width()).then(|| Self { bits: bits & network.mask(), ..network })
    }

    fn width(self) -> u8 {
        if self.v4 { 32 } else { 128 }
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }

    fn overlaps(self, other: Self) -> bool {
        let mask = self.mask() & other.mask();
        self.v4 == other.v4 && self.bits & mask == other.bits & mask
    }

    fn contains(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.overlaps(other)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.v4 {
            write!(f, "{}/{}", Ipv4Addr::from_bits((self.bits >> 96) as u32), self.prefix)
        } else {
            write!(f, "{}/{}", Ipv6Addr::from_bits(self.bits), self.prefix)
        }
    }
}

/// One of the cluster's ranges and who has what of it.
#[derive(Debug)]
pub struct Range {
    whole: Network,
    node_prefix: u8,
    /// Number of the network to its node.
    taken: HashMap<u64, String>,
    /// Where the search goes on, so that a network rests before another node gets it.
    cursor: u64,
}

impl Range {
    /// `node_prefix` is the length of each node's network.
    pub fn new(cidr: &str, node_prefix: u8) -> Result<Self, String> {
        let whole = Network::parse(cidr).ok_or_else(|| format!("{cidr:?} is no network in CIDR notation"))?;
        let bits = u32::from(node_prefix.saturating_sub(whole.prefix));
        if node_prefix < whole.prefix || node_prefix > whole.width() || bits > MAX_NETWORKS {
            let (least, most) = (whole.prefix, whole.prefix.saturating_add(16).min(whole.width()));
            return Err(format!("nodes' networks in {cidr} are between /{least} and /{most}, not /{node_prefix}"));
        }
        Ok(Self { whole, node_prefix, taken: HashMap::new(), cursor: 0 })
    }

    fn count(&self) -> u64 {
        1 << (self.node_prefix - self.whole.prefix)
    }

    fn nth(&self, index: u64) -> Network {
        let shift = 128 - u32::from(self.node_prefix);
        let offset = u128::from(index).checked_shl(shift).unwrap_or(0);
        Network { bits: self.whole.bits | offset, prefix: self.node_prefix, v4: self.whole.v4 }
    }

    /// The numbers of the networks that one overlaps.
    fn numbers(&self, network: Network) -> std::ops::Range<u64> {
        if !self.whole.overlaps(network) {
            return 0..0;
        }
        if network.contains(self.whole) {
            return 0..self.count();
        }
        let shift = 128 - u32::from(self.node_prefix);
        let first = (network.bits & !self.whole.mask()).checked_shr(shift).unwrap_or(0) as u64;
        let span = 1_u64 << self.node_prefix.saturating_sub(network.prefix);
        first..first + span
    }

    /// Notes what a node has; returns who else has it, if somebody does.
    pub fn occupy(&mut self, network: Network, node: &str) -> Option<String> {
        let mut other = None;
        for number in self.numbers(network) {
            match self.taken.get(&number) {
                Some(holder) if holder != node => other = Some(holder.clone()),
                Some(_) => {}
                None => drop(self.taken.insert(number, node.to_owned())),
            }
        }
        other
    }

    /// Gives back what a node has.
    pub fn release(&mut self, node: &str) {
        self.taken.retain(|_, holder| holder != node);
    }

    /// The network a node has or gets now; `None` if all are given.
    pub fn take(&mut self, node: &str) -> Option<Network> {
        if let Some(number) = self.taken.iter().find_map(|(number, holder)| (holder == node).then_some(*number)) {
            return Some(self.nth(number));
        }
        let count = self.count();
        let free =
            (0..count).map(|step| (self.cursor + step) % count).find(|number| !self.taken.contains_key(number))?;
        self.cursor = (free + 1) % count;
        self.taken.insert(free, node.to_owned());
        Some(self.nth(free))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn networks_are_given_once_and_rest() {
        let mut range = Range::new("10.42.0.0/22", 24).unwrap();
        let text = |network: Option<Network>| network.map(|network| network.to_string());
        assert_eq!(text(range.take("a")).as_deref(), Some("10.42.0.0/24"));
        assert_eq!(text(range.take("a")).as_deref(), Some("10.42.0.0/24"), "again");
        assert_eq!(text(range.take("b")).as_deref(), Some("10.42.1.0/24"));
        range.release("a");
        assert_eq!(text(range.take("c")).as_deref(), Some("10.42.2.0/24"), "what a had rests");
        assert_eq!(range.occupy(Network::parse("10.42.3.0/24").unwrap(), "d"), None);
        assert_eq!(range.occupy(Network::parse("10.42.3.128/25").unwrap(), "e").as_deref(), Some("d"));
        assert_eq!(text(range.take("f")).as_deref(), Some("10.42.0.0/24"));
        assert_eq!(range.take("g"), None);
        assert_eq!(range.occupy(Network::parse("192.0.2.0/24").unwrap(), "h"), None, "not from here");
    }

    #[test]
    fn a_wide_network_takes_all_that_are_in_it() {
        let mut range = Range::new("10.42.0.0/22", 24).unwrap();
        assert_eq!(range.occupy(Network::parse("10.42.2.0/23").unwrap(), "wide"), None);
        let given: Vec<String> = ["a", "b"].iter().map(|node| range.take(node).unwrap().to_string()).collect();
        assert_eq!(given, ["10.42.0.0/24", "10.42.1.0/24"]);
        assert_eq!(range.take("c"), None);
    }

    #[test]
    fn both_families_and_their_bounds() {
        let mut six = Range::new("fd00:42::/48", 64).unwrap();
        assert_eq!(six.take("a").unwrap().to_string(), "fd00:42::/64");
        assert_eq!(six.take("b").unwrap().to_string(), "fd00:42:0:1::/64");
        for (cidr, prefix) in [("10.0.0.0/16", 33), ("10.0.0.0/16", 8), ("fd00::/40", 64), ("nonsense", 24)] {
            assert!(Range::new(cidr, prefix).is_err(), "{cidr} {prefix}");
        }
        assert!(Range::new("10.0.0.0/8", 24).is_ok() && Range::new("0.0.0.0/0", 0).is_ok());
    }
}
