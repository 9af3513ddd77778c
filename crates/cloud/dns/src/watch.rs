//! The cluster as the informers see it.

use std::net::IpAddr;
use std::sync::Arc;

use dhow_client::{Client, Informer, Key, ListParams};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio_util::sync::CancellationToken;

use crate::Cluster;

const BY_SERVICE: &str = "service";
const BY_ADDRESS: &str = "address";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

pub(crate) struct Watched {
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

impl Watched {
    pub fn start(client: Client, shutdown: &CancellationToken) -> Self {
        let all = ListParams::default;
        let namespaces = Informer::start(client.clone(), all(), None, shutdown.clone());
        let services = Informer::<Service>::start(client.clone(), all(), None, shutdown.clone());
        let slices = Informer::<EndpointSlice>::start(client, all(), None, shutdown.clone());
        services.add_index(BY_ADDRESS, |service: &Service| {
            let Some(spec) = &service.spec else { return Vec::new() };
            let mut ips: Vec<String> = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).cloned().collect();
            ips.retain(|ip| ip.parse::<IpAddr>().is_ok());
            ips.dedup();
            ips
        });
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
            let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            service.map(|service| format!("{namespace}/{service}")).into_iter().collect()
        });
        slices.add_index(BY_ADDRESS, |slice: &EndpointSlice| {
            slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().cloned()).collect()
        });
        Self { namespaces, services, slices }
    }

    pub async fn synced(&self) {
        self.namespaces.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
    }
}

impl Cluster for Watched {
    fn namespace_exists(&self, name: &str) -> bool {
        self.namespaces.get(&Key::new(None, name)).is_some()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&Key::new(Some(namespace), name))
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        self.services.by_index(BY_ADDRESS, &ip.to_string()).into_iter().next()
    }

    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_ADDRESS, &ip.to_string())
    }
}
