//! The `dns` section of the settings: who is asked for names that are not ours, and how long answers are kept.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dhow_dns::{DnsConfig, UpstreamAddress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dns_zones;
use crate::place::{self, Place};

/// CoreDNS' port for metrics.
const HTTP_PORT: u16 = 9153;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DnsSettings {
    /// Resolvers, tried in order; those of the host's `resolv.conf` if empty.
    pub upstreams: Vec<String>,
    /// Resolvers of the names below a domain.
    pub stub_domains: BTreeMap<String, Vec<String>>,
    /// File of certificates that `tls://` resolvers are checked with; the system's if absent.
    pub tls_ca: Option<PathBuf>,
    /// MiB of answers kept.
    pub cache_mebibytes: usize,
    /// Seconds that answers of others are kept at most.
    pub max_ttl: u32,
    /// Seconds that their denials are kept at most.
    pub max_negative_ttl: u32,
    /// Seconds that ended answers are given while no resolver answers.
    pub serve_stale: u64,
    /// Whether the search paths of pods are walked here.
    pub search_path: bool,
    /// Replies per second to clients outside the cluster's pods, by /24 or /56; 0: no limit.
    pub rate_limit: u32,
}

impl Default for DnsSettings {
    fn default() -> Self {
        let config = DnsConfig::default();
        Self {
            upstreams: Vec::new(),
            stub_domains: BTreeMap::new(),
            tls_ca: None,
            cache_mebibytes: config.cache_bytes >> 20,
            max_ttl: config.max_ttl,
            max_negative_ttl: config.max_negative_ttl,
            serve_stale: config.serve_stale.as_secs(),
            search_path: true,
            rate_limit: 2000,
        }
    }
}

impl DnsSettings {
    /// Whether the name server, a process of its own, could start with them: people are told before it does.
    pub fn check(&self) -> Result<()> {
        addresses(&self.upstreams).context("read dns.upstreams")?;
        for (zone, texts) in &self.stub_domains {
            addresses(texts).with_context(|| format!("read dns.stubDomains, {zone}"))?;
        }
        Ok(())
    }

    /// What the name server at these addresses is told. Questions are never sent to `own` addresses.
    pub fn resolve(self, place: &Place, gateways: &[IpAddr], own: &[IpAddr]) -> Result<DnsConfig> {
        let host = dhow_dns::host_resolver(Path::new("/etc/resolv.conf"), own);
        let upstreams = match self.upstreams.is_empty() {
            true => host.servers.into_iter().map(Into::into).collect(),
            false => addresses(&self.upstreams).context("read dns.upstreams")?,
        };
        let stub = |(zone, texts): (&String, &Vec<String>)| Ok((zone.clone(), addresses(texts)?));
        let stub_domains = self.stub_domains.iter().map(stub).collect::<Result<_>>().context("read dns.stubDomains")?;
        Ok(DnsConfig {
            domain: place::CLUSTER_DOMAIN.to_owned(),
            upstreams,
            stub_domains,
            tls_ca: self.tls_ca,
            cache_bytes: self.cache_mebibytes << 20,
            max_ttl: self.max_ttl,
            max_negative_ttl: self.max_negative_ttl,
            serve_stale: Duration::from_secs(self.serve_stale),
            search: self.search_path.then_some(host.search),
            node: Some(place.node_name.clone()),
            rate_limit: Some(self.rate_limit).filter(|limit| *limit > 0),
            trusted: place.networks.pods.iter().map(|pods| (pods.network(), pods.prefix())).collect(),
            http: gateways.first().map(|gateway| SocketAddr::new(*gateway, HTTP_PORT)),
            zones: Some(dns_zones::config()),
            ..DnsConfig::default()
        })
    }
}

fn addresses(texts: &[String]) -> Result<Vec<UpstreamAddress>> {
    texts.iter().map(|text| text.parse().map_err(|error: String| anyhow!(error))).collect()
}
