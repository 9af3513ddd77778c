//! `Zone` and `Record`, group `dns.dhow.io/v1alpha1`, as users write them. Their schemas are `crds.yaml`.

use dhow_client::kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde::{Deserialize, Serialize};

/// The definitions that the API serves the kinds by.
pub const DEFINITIONS: &str = include_str!("crds.yaml");

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Zone {
    pub metadata: ObjectMeta,
    pub spec: ZoneSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ZoneStatus>,
}
kind!(Zone, "dns.dhow.io", "v1alpha1", "dns.dhow.io/v1alpha1", "Zone", "zones", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ZoneSpec {
    pub origin: String,
    pub ttl: Option<u32>,
    pub negative_ttl: Option<u32>,
    pub name_servers: Vec<String>,
    pub mailbox: Option<String>,
    /// Namespaces whose Records count; `*` is all.
    pub record_namespaces: Vec<String>,
    pub dnssec: Dnssec,
    pub transfer: Transfer,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dnssec {
    pub enabled: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Transfer {
    /// Secrets with the keys of secondaries.
    pub key_secrets: Vec<String>,
    /// Whom to tell of changes.
    pub notify: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ZoneStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<u32>,
    /// Of what the serial stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u32>,
    /// What the parent zone has to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ds: Option<String>,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub metadata: ObjectMeta,
    pub spec: RecordSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RecordStatus>,
}
kind!(Record, "dns.dhow.io", "v1alpha1", "dns.dhow.io/v1alpha1", "Record", "records", NamespaceResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordSpec {
    /// The Zone object's name.
    pub zone: String,
    /// Below the zone's origin; `@` is the origin itself.
    pub name: String,
    pub r#type: String,
    pub ttl: Option<u32>,
    pub values: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordStatus {
    pub conditions: Vec<Condition>,
}
