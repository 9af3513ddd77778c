//! The cluster's objects, with only what names are made of: the rest is not even kept in memory.

use std::borrow::Cow;

use dhow_client::kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize};

/// What of an object's metadata matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    labels: Option<Labels>,
}

#[derive(Deserialize)]
struct Labels {
    #[serde(rename = "kubernetes.io/service-name")]
    service: Option<String>,
}

pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

fn lean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let meta = Meta::deserialize(deserializer)?;
    let service = meta.labels.and_then(|labels| labels.service);
    Ok(ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        resource_version: meta.resource_version,
        labels: service.map(|service| [(SERVICE_NAME_LABEL.to_owned(), service)].into()),
        ..ObjectMeta::default()
    })
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
}
kind!(Namespace, "", "v1", "v1", "Namespace", "namespaces", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
    pub spec: ServiceSpec,
}
kind!(Service, "", "v1", "v1", "Service", "services", NamespaceResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    pub r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    pub external_name: Option<String>,
    pub publish_not_ready_addresses: Option<bool>,
    pub ports: Option<Vec<Port>>,
}

/// A port of a service or of a slice.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    pub name: Option<String>,
    pub port: Option<i32>,
    pub protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
    pub address_type: String,
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
}
kind!(
    EndpointSlice,
    "discovery.k8s.io",
    "v1",
    "discovery.k8s.io/v1",
    "EndpointSlice",
    "endpointslices",
    NamespaceResourceScope
);

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub hostname: Option<String>,
    pub conditions: Option<Conditions>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    pub ready: Option<bool>,
}

impl EndpointSlice {
    /// Namespace and name of its service.
    pub fn service(&self) -> Option<(&str, &str)> {
        let name = self.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
        Some((self.metadata.namespace.as_deref().unwrap_or_default(), name))
    }
}

/// A pod: whose questions come from which address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "lean")]
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    pub status: PodStatus,
}
kind!(Pod, "", "v1", "v1", "Pod", "pods", NamespaceResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub host_network: Option<bool>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

impl Pod {
    /// Its addresses, if they are its own and it still runs.
    pub fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> + '_ {
        let ended = matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let own = self.spec.host_network != Some(true) && !ended;
        let ips = self.status.pod_ips.iter().flatten().filter(move |_| own);
        ips.filter_map(|ip| ip.ip.parse().ok())
    }
}

/// `spec.nodeName=…`, for the pods that ask this server.
pub fn on_node(node: &str) -> Cow<'static, str> {
    Cow::Owned(format!("spec.nodeName={node}"))
}
