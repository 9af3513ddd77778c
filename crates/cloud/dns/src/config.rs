//! What the server is told once, at start.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The cluster's zone, e.g. `cluster.local`.
    pub domain: String,
    /// Who answers for other names, tried in order.
    pub upstreams: Vec<UpstreamAddress>,
    /// Who answers for the names below a zone instead.
    pub stub_domains: Vec<(String, Vec<UpstreamAddress>)>,
    /// Certificates that resolvers reached by TLS may be signed by; the system's if `None`.
    pub tls_ca: Option<PathBuf>,
    /// Of answers from the cluster's zone, positive and negative, in seconds.
    pub ttl: u32,
    /// How long one upstream may take, over two tries.
    pub upstream_timeout: Duration,
    /// Bytes of answers kept from upstreams.
    pub cache_bytes: usize,
    /// The longest that an upstream's answers and its "no such name" are repeated, in seconds.
    pub max_ttl: u32,
    pub max_negative_ttl: u32,
    /// For how long ended answers are given while no upstream answers (RFC 8767).
    pub serve_stale: Duration,
    /// Whether the search path of a pod's `resolv.conf` is walked here, in one question instead of five, and what
    /// follows the cluster's own domains on it.
    pub search: Option<Vec<String>>,
    /// Watch only the pods of this node for that: no other asks here.
    pub node: Option<String>,
    /// Most replies per second to clients of one network by UDP, unless they are pods or have proved their address.
    pub rate_limit: Option<u32>,
    /// Networks, with the lengths of their prefixes, whose clients are not limited: nobody else can use their addresses.
    pub trusted: Vec<(IpAddr, u8)>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub http: Option<SocketAddr>,
    /// Whether zones and records of users are watched and served, and where their keys lie.
    pub zones: Option<ZonesConfig>,
}

/// Zones as objects.
#[derive(Debug, Clone)]
pub struct ZonesConfig {
    /// The namespace of Secrets with zone keys and transfer keys; no other is read.
    pub namespace: String,
    /// Further names of this server, for the NS records of zones that name none.
    pub server: String,
}

/// Where a resolver is, and the name in its certificate if it is reached by TLS only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamAddress {
    pub address: SocketAddr,
    pub tls: Option<String>,
}

impl From<SocketAddr> for UpstreamAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

/// `192.0.2.1`, `[2001:db8::1]:5353`, `tls://192.0.2.1#dns.example.org`.
impl FromStr for UpstreamAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, tls) = match text.strip_prefix("tls://") {
            None => (text, None),
            Some(rest) => match rest.split_once('#') {
                Some((address, name)) if !name.is_empty() => (address, Some(name.to_owned())),
                _ => return Err(format!("{text:?} lacks the name in the certificate: tls://ADDRESS#NAME")),
            },
        };
        let port = if tls.is_some() { 853 } else { 53 };
        let ip = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let address = ip.map(|ip| SocketAddr::new(ip, port)).or_else(|_| text.parse());
        let address = address.map_err(|_| format!("{text:?} is not an address of a resolver"))?;
        Ok(Self { address, tls })
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            upstreams: Vec::new(),
            stub_domains: Vec::new(),
            tls_ca: None,
            ttl: 5,
            upstream_timeout: Duration::from_secs(2),
            cache_bytes: 4 << 20,
            max_ttl: 3600,
            max_negative_ttl: 30,
            serve_stale: Duration::from_secs(3600),
            search: Some(Vec::new()),
            node: None,
            rate_limit: None,
            trusted: Vec::new(),
            http: None,
            zones: None,
        }
    }
}

/// What a `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostResolver {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
}

/// The resolvers of a `resolv.conf`, without `own` addresses: asking ourselves would never end.
pub fn host_resolver(resolv_conf: &Path, own: &[IpAddr]) -> HostResolver {
    match std::fs::read_to_string(resolv_conf) {
        Ok(text) => parse_resolv_conf(&text, own),
        Err(error) => {
            tracing::warn!(path = %resolv_conf.display(), %error, "cannot read the host's resolvers");
            HostResolver::default()
        }
    }
}

fn parse_resolv_conf(text: &str, own: &[IpAddr]) -> HostResolver {
    let mut host = HostResolver::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            // An interface after % is of no use to us: such an address is link-local.
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                let address = address.filter(|address| !own.contains(address));
                host.servers.extend(address.map(|address| SocketAddr::new(address, 53)));
            }
            // The last such line counts.
            Some("search" | "domain") => host.search = words.filter(|word| *word != ".").map(str::to_owned).collect(),
            _ => {}
        }
    }
    host
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_nameservers_and_leaves_ourselves_out() {
        let text = "# made by hand\nsearch example.org .\nnameserver 192.0.2.1 ; first\nnameserver\t2001:db8::1\n\
                    nameserver 10.42.0.1\nnameservers 192.0.2.9\nnameserver nonsense\n";
        let own = [IpAddr::from([10, 42, 0, 1])];
        let found = parse_resolv_conf(text, &own);
        let servers: Vec<String> = found.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(found.search, ["example.org"]);
    }

    #[test]
    fn upstreams_are_written_as_people_do() {
        let parse = |text: &str| text.parse::<UpstreamAddress>();
        assert_eq!(parse("192.0.2.1").unwrap().address, "192.0.2.1:53".parse().unwrap());
        assert_eq!(parse("2001:db8::1").unwrap().address, "[2001:db8::1]:53".parse().unwrap());
        assert_eq!(parse("[2001:db8::1]:5353").unwrap().address, "[2001:db8::1]:5353".parse().unwrap());
        let tls = parse("tls://192.0.2.1#dns.example.org").unwrap();
        assert_eq!((tls.address.port(), tls.tls.as_deref()), (853, Some("dns.example.org")));
        assert!(parse("tls://192.0.2.1").is_err() && parse("dns.example.org").is_err());
    }
}
