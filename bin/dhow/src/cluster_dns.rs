//! The `kube-system/kube-dns` Service. Its endpoints, the nodes' own name servers, are kept by a controller.

use std::net::IpAddr;

use anyhow::{Context, Result};
use dhow_client::{Client, Object};
use dhow_controllers::NodeDnsConfig;
use k8s_openapi::api::core::v1::Service;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::place;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

/// How the controllers know the nodes that answer.
pub fn of_nodes() -> NodeDnsConfig {
    NodeDnsConfig { namespace: NAMESPACE.into(), service: NAME.into(), label: place::SERVES_DNS.into() }
}

/// Makes the Service of the cluster's DNS.
pub async fn ensure(client: &Client, service_ip: IpAddr) -> Result<()> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "DhowDNS"});
    ensure_object::<Service>(
        client,
        json!({
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {"clusterIP": service_ip, "ipFamilyPolicy": "PreferDualStack", "ports": ports()},
        }),
    )
    .await
    .context("publish the DNS service")
}

fn ports() -> Value {
    json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}])
}

async fn ensure_object<K: Object + DeserializeOwned>(client: &Client, wanted: Value) -> Result<()> {
    let object: K = serde_json::from_value(wanted).context("build the object")?;
    let metadata = object.metadata();
    // A Service that is there makes its own address a taken one, so creating it again is not "already exists".
    match client.get::<K>(metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default()).await {
        Err(error) if error.is_not_found() => {}
        other => return other.map(drop).map_err(Into::into),
    }
    match client.create(&object).await {
        Err(error) if !error.is_already_exists() => Err(error.into()),
        _ => Ok(()),
    }
}
