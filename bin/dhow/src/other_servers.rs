//! A node that joined learns of all servers of its cluster, so that it goes on when the one that it joined by is away.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use dhow_client::{Client, Informer, ListParams};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::join::Join;
use crate::place::Place;

/// Follows the endpoints of `default/kubernetes` until `shutdown`.
pub async fn follow(client: Client, place: Place, join: Join, shutdown: CancellationToken) -> Result<()> {
    let of_api = ListParams {
        label_selector: Some("kubernetes.io/service-name=kubernetes".to_owned()),
        ..ListParams::default()
    };
    let slices = Informer::<EndpointSlice>::start(client, of_api, Some("default"), shutdown.clone());
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    slices.on_change(move |_| wake.notify_one());
    let mut known = Vec::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = changed.notified() => {}
        }
        let now = addresses(&slices.list());
        if now != known {
            match join.learn(&place, &now) {
                Ok(()) => tracing::info!(servers = now.join(" "), "the cluster's servers"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "keep the list of servers"),
            }
            known = now;
        }
    }
}

/// Where the API is served.
fn addresses(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let mut all: BTreeSet<SocketAddr> = BTreeSet::new();
    for slice in slices {
        let ports = || slice.ports.iter().flatten();
        let https = ports().find(|port| port.name.as_deref() == Some("https")).or_else(|| ports().next());
        let Some(port) = https.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        let ready = slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
        let found = ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse::<IpAddr>().ok());
        all.extend(found.map(|address| SocketAddr::new(address, port)));
    }
    all.into_iter().map(|address| format!("https://{address}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn servers_are_the_endpoints_of_the_api() {
        let slice = |family: &str, addresses: &[&str]| -> Arc<EndpointSlice> {
            let endpoints: Vec<_> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
            let object = json!({
                "addressType": family, "endpoints": endpoints, "ports": [{"name": "https", "port": 6443}]
            });
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let slices = [slice("IPv4", &["192.0.2.2", "192.0.2.1"]), slice("IPv6", &["2001:db8::1"])];
        let expected = ["https://192.0.2.1:6443", "https://192.0.2.2:6443", "https://[2001:db8::1]:6443"];
        assert_eq!(addresses(&slices), expected);
        assert!(addresses(&[slice("IPv4", &[])]).is_empty());
    }
}
