//! What DNS needs to know of the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// A view of the cluster's objects, answered from memory.
pub trait Cluster: Send + Sync + 'static {
    fn namespace_exists(&self, name: &str) -> bool;
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of a service, of all address families.
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// The service with this cluster address.
    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>>;
    /// Slices that hold an endpoint with this address.
    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
}
