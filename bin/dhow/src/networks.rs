//! The cluster's networks, as flags say or as this cloud has had them so far.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use dhow_apiserver::NETWORKS;
use dhow_client::Client;
use dhow_controllers::ClusterRange;
use dhow_net::{Cidr, Family, Networks};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::place::{CLUSTER_CIDR, SERVICE_CIDR};

/// Where a cluster's networks are published.
const NAMESPACE: &str = "kube-public";
const PODS: &str = "podCIDRs";
const SERVICES: &str = "serviceCIDRs";

/// Networks of pods and of services, one of each for each address family, the primary family's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetworks {
    pub pods: Vec<Cidr>,
    pub services: Vec<Cidr>,
}

impl ClusterNetworks {
    /// What is asked for, else what is recorded in the data folder, else the defaults. A cloud may gain or lose its second
    /// family; its first one stays, because everything in it has addresses there.
    pub fn resolve(data_dir: &Path, pods: &[Cidr], services: &[Cidr]) -> Result<Self> {
        let recorded = Self::recorded(data_dir)?;
        if pods.is_empty() && services.is_empty() {
            return match recorded {
                Some(recorded) => Ok(recorded),
                None => Self::of(vec![default(CLUSTER_CIDR)?], vec![default(SERVICE_CIDR)?]),
            };
        }
        let or_default = |asked: &[Cidr], text| match asked {
            [] => Ok(vec![default(text)?]),
            asked => Ok::<_, anyhow::Error>(asked.to_vec()),
        };
        let asked = Self::of(or_default(pods, CLUSTER_CIDR)?, or_default(services, SERVICE_CIDR)?)?;
        if let Some(recorded) = recorded.filter(|recorded| recorded.primary() != asked.primary()) {
            bail!(
                "this cloud has its pods in {} and its services in {}; that stays (--pod-cidr and --service-cidr may add \
                 networks of the other family), or remove the cloud with `dhow down --purge` first",
                recorded.pods[0],
                recorded.services[0]
            );
        }
        Ok(asked)
    }

    fn of(pods: Vec<Cidr>, services: Vec<Cidr>) -> Result<Self> {
        let families = |cidrs: &[Cidr]| cidrs.iter().map(|cidr| cidr.family()).collect::<Vec<_>>();
        let (of_pods, of_services) = (families(&pods), families(&services));
        ensure!(
            of_pods == of_services && (of_pods.len() == 1 || (of_pods.len() == 2 && of_pods[0] != of_pods[1])),
            "--pod-cidr and --service-cidr each take one network, or one of IPv4 and one of IPv6, in the same order"
        );
        for (pods, services) in pods.iter().zip(&services) {
            let longest = if pods.is_ipv6() { 112 } else { 28 };
            ensure!(services.prefix() <= longest, "service network {services} is longer than /{longest}");
        }
        Ok(Self { pods, services })
    }

    fn primary(&self) -> (Cidr, Cidr) {
        (self.pods[0], self.services[0])
    }

    /// What this cloud, or the one that this machine joined, has had so far.
    pub fn recorded(data_dir: &Path) -> Result<Option<Self>> {
        let path = record(data_dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let mut lines = text.lines();
        let mut read = || Self::of(list(lines.next())?, list(lines.next())?);
        read().with_context(|| format!("read {}", path.display())).map(Some)
    }

    /// What the cloud starts with from now on.
    pub fn record(&self, data_dir: &Path) -> Result<()> {
        let path = record(data_dir);
        let text = format!("{}\n{}\n", join(&self.pods), join(&self.services));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// What tells machines that join.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NETWORKS, "namespace": NAMESPACE},
            "data": {PODS: join(&self.pods), SERVICES: join(&self.services)},
        })
    }

    /// What the cluster told; `None` if its servers are of a version that does not.
    pub async fn published(client: &Client) -> Result<Option<Self>> {
        let map = match client.get::<ConfigMap>(Some(NAMESPACE), NETWORKS).await {
            Ok(map) => map,
            // Of a role that is not there yet, nothing is allowed.
            Err(error) if error.is_not_found() || error.is_forbidden() => return Ok(None),
            Err(error) => return Err(error).context("ask for the cluster's networks"),
        };
        let told = |key: &str| list(map.data.as_ref().and_then(|data| data.get(key)).map(String::as_str));
        let read = || Self::of(told(PODS)?, told(SERVICES)?);
        read().with_context(|| format!("read ConfigMap {NAMESPACE}/{NETWORKS}")).map(Some)
    }

    /// The networks of a node that has these for its pods.
    pub fn of_node(&self, given: &[Cidr]) -> Result<Vec<Networks>> {
        let mut networks = Vec::new();
        for (index, (cluster, services)) in self.pods.iter().zip(&self.services).enumerate() {
            match given.iter().find(|pods| cluster.contains(pods.network())) {
                Some(pods) => networks.push(Networks { pods: *pods, cluster: *cluster, services: *services }),
                None if index == 0 => bail!("this node has no network in {cluster}, that of the cluster's pods"),
                // The cluster has gained a family that the node's record is older than.
                None => {}
            }
        }
        Ok(networks)
    }

    /// Where network state is looked for that no node's network is known of: one node's part, the first.
    pub fn first(&self) -> Vec<Cidr> {
        self.pods.iter().map(|cluster| cluster.first_of(node_prefix(*cluster)).unwrap_or(*cluster)).collect()
    }

    /// What nodes get their parts of.
    pub fn ranges(&self) -> Vec<ClusterRange> {
        let range = |cluster: &Cidr| ClusterRange { cidr: cluster.to_string(), node_prefix: node_prefix(*cluster) };
        self.pods.iter().map(range).collect()
    }

    /// The `default/kubernetes` Service.
    pub fn api_service_ip(&self) -> IpAddr {
        self.service_ip(1)
    }

    /// The `kube-system/kube-dns` Service.
    pub fn dns_service_ip(&self) -> IpAddr {
        self.service_ip(10)
    }

    fn service_ip(&self, index: u64) -> IpAddr {
        let services = self.services[0];
        services.nth(index).unwrap_or(services.network())
    }

    /// The flags that resolve to these networks again.
    pub fn as_args(&self) -> [(&'static str, String); 2] {
        [("--pod-cidr", join(&self.pods)), ("--service-cidr", join(&self.services))]
    }
}

/// How long the prefix of one node's part is.
fn node_prefix(cluster: Cidr) -> u8 {
    match cluster.family() {
        Family::V4 => cluster.prefix().max(24),
        Family::V6 => cluster.prefix().max(64),
    }
}

fn default(text: &str) -> Result<Cidr> {
    text.parse().with_context(|| format!("network {text}"))
}

/// A list as it is recorded and published.
fn list(text: Option<&str>) -> Result<Vec<Cidr>> {
    text.unwrap_or_default().split(',').map(|cidr| Ok(cidr.trim().parse()?)).collect()
}

fn record(data_dir: &Path) -> PathBuf {
    data_dir.join("networks")
}

fn join(cidrs: &[Cidr]) -> String {
    cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn networks_by_flags_record_and_default() {
        let folder = tempfile::tempdir().unwrap();
        let resolve =
            |pods: &[&str], services: &[&str]| ClusterNetworks::resolve(folder.path(), &cidrs(pods), &cidrs(services));
        let single = resolve(&[], &[]).unwrap();
        assert_eq!(single.as_args().map(|(_, text)| text), [CLUSTER_CIDR, SERVICE_CIDR]);
        assert_eq!(single.dns_service_ip().to_string(), "10.43.0.10");
        single.record(folder.path()).unwrap();
        let dual = resolve(&["10.42.0.0/16", "fd42::/56"], &["10.43.0.0/16", "fd43::/112"]).unwrap();
        assert_eq!(dual.of_node(&dual.first()).unwrap()[1].pods.to_string(), "fd42::/64");
        dual.record(folder.path()).unwrap();
        assert_eq!(resolve(&[], &[]).unwrap(), dual, "as it was the last time");
        resolve(&["10.42.0.0/16"], &["10.43.0.0/16"]).unwrap();
        let error = resolve(&["fd42::/56"], &["fd43::/112"]).unwrap_err().to_string();
        assert!(error.contains("that stays"), "{error}");
    }

    #[test]
    fn families_have_to_match() {
        let folder = tempfile::tempdir().unwrap();
        for (pods, services) in [
            (vec!["fd42::/56"], vec![]),
            (vec!["10.42.0.0/16", "10.44.0.0/16"], vec!["10.43.0.0/16", "10.45.0.0/16"]),
            (vec!["fd42::/56", "10.42.0.0/16"], vec!["10.43.0.0/16", "fd43::/112"]),
            (vec!["10.42.0.0/16"], vec!["10.43.0.0/30"]),
        ] {
            assert!(ClusterNetworks::resolve(folder.path(), &cidrs(&pods), &cidrs(&services)).is_err(), "{pods:?}");
        }
        let six = ClusterNetworks::resolve(folder.path(), &cidrs(&["fd42::/56"]), &cidrs(&["fd43::/112"])).unwrap();
        assert_eq!(six.api_service_ip().to_string(), "fd43::1");
    }
}
