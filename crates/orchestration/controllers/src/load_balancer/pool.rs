//! Pools of addresses for load balancers, as the configuration names them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses that Services of type LoadBalancer get. Without a pool they get those of the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancerConfig {
    pub pools: Vec<PoolConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolConfig {
    pub name: String,
    /// Networks (`198.51.100.0/28`), ranges (`198.51.100.40-198.51.100.50`) and single addresses.
    pub addresses: Vec<String>,
    /// Whether Services get its addresses without asking for them.
    #[serde(default = "yes")]
    pub auto_assign: bool,
}

fn yes() -> bool {
    true
}

/// First and last address, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range(IpAddr, IpAddr);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    pub auto_assign: bool,
    ranges: Vec<Range>,
}

impl LoadBalancerConfig {
    /// The pools, or what is wrong with them in words for who wrote them.
    pub fn pools(&self) -> Result<Vec<Pool>, String> {
        let mut pools: Vec<Pool> = Vec::new();
        for config in &self.pools {
            if config.name.is_empty() || pools.iter().any(|pool| pool.name == config.name) {
                return Err(format!("every load balancer pool needs a name of its own, not {:?}", config.name));
            }
            let ranges: Vec<Range> = config
                .addresses
                .iter()
                .map(|text| {
                    Range::parse(text).ok_or_else(|| format!("pool {}: {text:?} are no addresses", config.name))
                })
                .collect::<Result<_, _>>()?;
            if ranges.is_empty() {
                return Err(format!("pool {} has no addresses", config.name));
            }
            let taken = |one: &Range| pools.iter().find(|pool| pool.ranges.iter().any(|other| one.overlaps(*other)));
            if let Some(other) = ranges.iter().find_map(taken) {
                return Err(format!("pools {} and {} have addresses in common", other.name, config.name));
            }
            pools.push(Pool { name: config.name.clone(), auto_assign: config.auto_assign, ranges });
        }
        Ok(pools)
    }
}

impl Pool {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Its addresses of a family, lowest first.
    pub fn addresses(&self, ipv6: bool) -> impl Iterator<Item = IpAddr> + '_ {
        self.ranges.iter().filter(move |range| range.0.is_ipv6() == ipv6).flat_map(|range| range.addresses())
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some((address, prefix)) = text.split_once('/') {
            let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
            let host = if address.is_ipv4() { 32 } else { 128u32 }.checked_sub(prefix)?;
            let hosts = u128::MAX.checked_shr(128 - host).unwrap_or(0);
            let first = bits(address) & !hosts;
            return Some(Self(address_of(address.is_ipv6(), first), address_of(address.is_ipv6(), first | hosts)));
        }
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (first.trim().parse().ok()?, last.trim().parse().ok()?),
            None => (text.parse::<IpAddr>().ok()?, text.parse().ok()?),
        };
        (first.is_ipv6() == IpAddr::is_ipv6(&last) && first <= last).then_some(Self(first, last))
    }

    fn contains(self, address: IpAddr) -> bool {
        address.is_ipv6() == self.0.is_ipv6() && self.0 <= address && address <= self.1
    }

    fn overlaps(self, other: Self) -> bool {
        self.contains(other.0) || other.contains(self.0)
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (bits(self.0)..=bits(self.1)).map(move |bits| address_of(self.0.is_ipv6(), bits))
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address_of(ipv6: bool, bits: u128) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if !ipv6 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(pools: &[(&str, &[&str])]) -> LoadBalancerConfig {
        let pool = |(name, addresses): &(&str, &[&str])| PoolConfig {
            name: (*name).to_owned(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            auto_assign: true,
        };
        LoadBalancerConfig { pools: pools.iter().map(pool).collect() }
    }

    #[test]
    fn networks_ranges_and_single_addresses() {
        let pools = config(&[("a", &["192.0.2.8/30", "192.0.2.20 - 192.0.2.21", "2001:db8::5"])]).pools().unwrap();
        let four: Vec<String> = pools[0].addresses(false).map(|address| address.to_string()).collect();
        assert_eq!(four, ["192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.11", "192.0.2.20", "192.0.2.21"]);
        assert_eq!(pools[0].addresses(true).count(), 1);
        assert!(pools[0].contains([192, 0, 2, 21].into()) && !pools[0].contains([192, 0, 2, 22].into()));
        let all = config(&[("all", &["::/0"])]).pools().unwrap();
        assert_eq!(all[0].addresses(true).next().unwrap().to_string(), "::");
    }

    #[test]
    fn nonsense_is_refused() {
        for pools in [
            &[("a", &["192.0.2.9-192.0.2.8"][..])][..],
            &[("a", &["192.0.2.9-2001:db8::1"])],
            &[("a", &["192.0.2.0/33"])],
            &[("a", &["web"])],
            &[("a", &[])],
            &[("", &["192.0.2.1"])],
            &[("a", &["192.0.2.1"]), ("a", &["192.0.2.2"])],
            &[("a", &["192.0.2.0/24"]), ("b", &["192.0.2.7"])],
        ] {
            assert!(config(pools).pools().is_err(), "{pools:?}");
        }
    }
}
