//! The `kube-system/kube-dns` Service and its endpoints, the node's bridge gateway in each family.

use std::net::IpAddr;

use anyhow::{Context, Result};
use dhow_client::{Client, Object};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

/// Makes the cluster's DNS reachable under its Service address.
pub async fn ensure(client: &Client, service_ip: IpAddr, gateways: &[IpAddr], node: &str) -> Result<()> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "DhowDNS"});
    ensure_object::<Service>(
        client,
        json!({
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {"clusterIP": service_ip, "ipFamilyPolicy": "PreferDualStack", "ports": ports()},
        }),
    )
    .await
    .context("publish the DNS service")?;
    for gateway in gateways {
        let (family, suffix) = match gateway {
            IpAddr::V4(_) => ("IPv4", ""),
            IpAddr::V6(_) => ("IPv6", "-ipv6"),
        };
        let managed_by = "dns.dhow.io";
        ensure_object::<EndpointSlice>(
            client,
            json!({
                "metadata": {
                    "name": format!("{NAME}-{node}{suffix}"),
                    "namespace": NAMESPACE,
                    "labels": {
                        "kubernetes.io/service-name": NAME, "endpointslice.kubernetes.io/managed-by": managed_by,
                    },
                },
                "addressType": family,
                "endpoints": [{"addresses": [gateway], "conditions": {"ready": true}, "nodeName": node}],
                "ports": ports(),
            }),
        )
        .await
        .context("publish the DNS endpoint")?;
    }
    Ok(())
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
