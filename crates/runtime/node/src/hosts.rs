//! A pod's names: its `/etc/hosts`, its hostname and its domain.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Characters of a hostname that the kernel takes.
const MAX_HOSTNAME: usize = 64;
const MAX_LABEL: usize = 63;

/// The hostname of a pod's containers; the node's own on the host's network. The error is for the pod's events.
pub fn hostname(pod: &Pod, spec: &PodSpec, node: &str, domain: &str) -> Result<String, String> {
    if let Some(own) = &spec.hostname_override {
        return Ok(own.clone());
    }
    if spec.host_network == Some(true) {
        return Ok(node.to_owned());
    }
    let short = short_name(pod, spec);
    if spec.set_hostname_as_fqdn == Some(true)
        && let Some(full) = full_name(pod, spec, domain)
    {
        return match full.len() {
            0..=MAX_HOSTNAME => Ok(full),
            _ => Err(format!(
                "Failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({MAX_HOSTNAME} \
                 characters is the max, {} characters requested)",
                full.len()
            )),
        };
    }
    Ok(short)
}

fn short_name(pod: &Pod, spec: &PodSpec) -> String {
    let name = spec.hostname.as_deref().filter(|name| !name.is_empty()).or(pod.metadata.name.as_deref());
    let name: String = name.unwrap_or_default().chars().take(MAX_LABEL).collect();
    name.trim_end_matches(['-', '.']).to_owned()
}

fn full_name(pod: &Pod, spec: &PodSpec, domain: &str) -> Option<String> {
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{}.{subdomain}.{ns}.svc.{domain}", short_name(pod, spec)))
}

/// The hosts file that the node keeps for a pod: the host's own lines on the host's network, then the pod's aliases.
pub fn file(pod: &Pod, spec: &PodSpec, ips: &[IpAddr], domain: &str) -> String {
    let mut text = String::new();
    if spec.host_network == Some(true) {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n");
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n");
        text.push_str("fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let name = spec.hostname_override.clone().unwrap_or_else(|| short_name(pod, spec));
        let full = full_name(pod, spec, domain).filter(|_| spec.hostname_override.is_none());
        for ip in ips {
            match &full {
                Some(full) => text.push_str(&format!("{ip}\t{full}\t{name}\n")),
                None => text.push_str(&format!("{ip}\t{name}\n")),
            }
        }
    }
    if spec.host_aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in spec.host_aliases.iter().flatten() {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn names_follow_hostname_subdomain_and_their_switches() {
        for (spec, expected) in [
            (serde_json::json!({}), "web-0"),
            (serde_json::json!({"hostname": "db", "subdomain": "s"}), "db"),
            (serde_json::json!({"subdomain": "s", "setHostnameAsFQDN": true}), "web-0.s.shop.svc.cluster.local"),
            (serde_json::json!({"setHostnameAsFQDN": true}), "web-0"),
            (serde_json::json!({"hostNetwork": true}), "node"),
            (serde_json::json!({"hostnameOverride": "own.example"}), "own.example"),
        ] {
            let mut spec = spec;
            spec["containers"] = serde_json::json!([]);
            let pod = pod(spec);
            let got = hostname(&pod, pod.spec.as_ref().unwrap(), "node", "cluster.local");
            assert_eq!(got.as_deref(), Ok(expected));
        }
        let long = pod(serde_json::json!({"containers": [], "subdomain": "s".repeat(60), "setHostnameAsFQDN": true}));
        assert!(hostname(&long, long.spec.as_ref().unwrap(), "n", "cluster.local").unwrap_err().contains("too long"));
    }

    #[test]
    fn the_hosts_file_has_the_pod_and_its_aliases() {
        let pod = pod(serde_json::json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a.example", "b.example"]}]}));
        let text = file(&pod, pod.spec.as_ref().unwrap(), &["10.42.0.5".parse().unwrap()], "cluster.local");
        assert!(text.contains("\n10.42.0.5\tweb-0.s.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("192.0.2.7\ta.example\tb.example\n"), "{text}");
    }
}
