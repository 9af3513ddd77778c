//! The name resolution of a pod: the cluster's, the node's own, or what its spec says.

use dhow_cri::runtime::DnsConfig;
use k8s_openapi::api::core::v1::PodSpec;

use crate::NodeConfig;

/// Where the node's resolver is configured. The second is for when the first names a stub on loopback, which no pod
/// can reach.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

fn parse(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next();
        let rest = words.map(str::to_owned);
        match first {
            Some("nameserver") => out.servers.extend(rest.take(1)),
            // The last such line counts.
            Some("search" | "domain") => out.searches = rest.filter(|s| s != ".").collect(),
            Some("options") => out.options = rest.collect(),
            _ => {}
        }
    }
    out
}

fn of_node() -> DnsConfig {
    let read = |path: &str| parse(&std::fs::read_to_string(path).unwrap_or_default());
    let first = read(FILES[0]);
    let is_stub = |server: &String| server.starts_with("127.") || server == "::1";
    if !first.servers.is_empty() && first.servers.iter().all(is_stub) {
        let second = read(FILES[1]);
        if !second.servers.is_empty() {
            return second;
        }
    }
    first
}

pub fn of_pod(config: &NodeConfig, ns: &str, spec: &PodSpec) -> Option<DnsConfig> {
    let domain = &config.cluster_domain;
    Some(decide(spec, ns, &config.cluster_dns, domain, of_node))
}

fn decide(spec: &PodSpec, ns: &str, server: &str, domain: &str, node: impl FnOnce() -> DnsConfig) -> DnsConfig {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let on_host = spec.host_network == Some(true) && policy == "ClusterFirst";
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        "Default" => node(),
        _ if on_host => node(),
        _ => {
            let own = [format!("{ns}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            DnsConfig {
                servers: vec![server.to_owned()],
                searches: own.into_iter().chain(node().searches).collect(),
                options: vec!["ndots:5".into()],
            }
        }
    };
    if let Some(more) = &spec.dns_config {
        dns.servers.extend(more.nameservers.iter().flatten().cloned());
        dns.searches.extend(more.searches.iter().flatten().cloned());
        for option in more.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(&name));
            dns.options.push(option.value.as_ref().map_or(name.clone(), |v| format!("{name}:{v}")));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    dns.servers.retain(|server| seen.insert(server.clone()));
    dns.searches.retain(|search| seen.insert(search.clone()));
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    dns
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(spec: serde_json::Value) -> DnsConfig {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let node = || parse("# ours\nnameserver 192.0.2.53\nsearch corp.example .\noptions edns0\n");
        decide(&spec, "shop", "10.43.0.10", "cluster.local", node)
    }

    #[test]
    fn the_policy_decides_whose_servers_are_asked() {
        let dns = of(serde_json::json!({}));
        assert_eq!(dns.servers, ["10.43.0.10"]);
        assert_eq!(dns.searches, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]);
        for spec in [serde_json::json!({"dnsPolicy": "Default"}), serde_json::json!({"hostNetwork": true})] {
            let dns = of(spec);
            assert_eq!((dns.servers, dns.searches), (vec!["192.0.2.53".into()], vec!["corp.example".to_owned()]));
        }
        let spec = serde_json::json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert_eq!(of(spec).servers, ["10.43.0.10"]);
    }

    #[test]
    fn the_pod_s_own_settings_are_added_and_replace_options() {
        let dns = of(serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"],
            "searches": ["a.example", "a.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}));
        assert_eq!((dns.servers, dns.searches), (vec!["192.0.2.1".to_owned()], vec!["a.example".to_owned()]));
        assert_eq!(dns.options, ["ndots:2", "edns0"]);
        let spec = serde_json::json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        assert_eq!(of(spec).options, ["ndots:1"]);
    }
}
