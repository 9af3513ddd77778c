//! What the server is told once, at start.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The cluster's zone, e.g. `cluster.local`.
    pub domain: String,
    /// Who answers for other names, tried in order.
    pub upstreams: Vec<SocketAddr>,
    /// Of answers from the cluster's zone, positive and negative, in seconds.
    pub ttl: u32,
    /// How long one upstream may take.
    pub upstream_timeout: Duration,
    /// Most answers kept from upstreams.
    pub cache_entries: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            upstreams: Vec::new(),
            ttl: 5,
            upstream_timeout: Duration::from_secs(2),
            cache_entries: 10_000,
        }
    }
}

/// The resolvers of a `resolv.conf`, without `own` addresses: asking ourselves would never end.
pub fn host_upstreams(resolv_conf: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    match std::fs::read_to_string(resolv_conf) {
        Ok(text) => parse_resolv_conf(&text, own),
        Err(error) => {
            tracing::warn!(path = %resolv_conf.display(), %error, "cannot read the host's resolvers");
            Vec::new()
        }
    }
}

fn parse_resolv_conf(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.split(['#', ';']).next()?.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        // An interface after % is of no use to us: such an address is link-local.
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nameservers_and_leaves_ourselves_out() {
        let text = "# made by hand\nsearch example.org\nnameserver 192.0.2.1 ; first\nnameserver\t2001:db8::1\n\
                    nameserver 10.42.0.1\nnameservers 192.0.2.9\nnameserver nonsense\n";
        let own = [IpAddr::from([10, 42, 0, 1])];
        let found: Vec<String> = parse_resolv_conf(text, &own).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }
}
