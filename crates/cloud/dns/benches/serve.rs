//! A server over a cluster of many services, for `bench/dns.sh`: serves on the address given until it is killed. In place
//! of the number of services a kubeconfig may follow: then it serves that cluster, with zones of users.
//! Cargo calls it without an address when it runs tests; then it does nothing.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use dhow_client::{Body, Client, Error, Transport, full};
use dhow_dns::{DnsConfig, Server, ZonesConfig};
use http::{Request, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Api {
    services: usize,
}

impl Api {
    fn items(&self, plural: &str) -> Vec<Value> {
        let service = |index: usize| {
            let ip = format!("10.43.{}.{}", index / 250, index % 250 + 1);
            json!({"metadata": {"namespace": "default", "name": format!("service-{index}"), "resourceVersion": "1"},
                "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "http", "port": 80}]}})
        };
        match plural {
            "services" => (0..self.services).map(service).collect(),
            "namespaces" => vec![json!({"metadata": {"name": "default", "resourceVersion": "1"}})],
            _ => Vec::new(),
        }
    }
}

#[async_trait::async_trait]
impl Transport for Api {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            return std::future::pending().await;
        }
        let items = self.items(request.uri().path().rsplit('/').next().unwrap_or_default());
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
        Ok(Response::new(full(list.to_string().into())))
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let Some(address) = args.next() else { return };
    let second = args.next().unwrap_or_else(|| "1000".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, zones) = match second.parse() {
            Ok(services) => (Client::new(Arc::new(Api { services })), None),
            Err(_) => {
                rustls::crypto::ring::default_provider().install_default().unwrap();
                let zones = ZonesConfig { namespace: "dhow-dns".into(), server: "ns.dns.cluster.local".into() };
                (Client::from_kubeconfig(second.as_ref(), None).unwrap(), Some(zones))
            }
        };
        let config = DnsConfig { zones, ..DnsConfig::default() };
        let server = Server::bind(&[address.parse().unwrap()], config).await.unwrap();
        server.run(client, CancellationToken::new()).await;
    });
}
