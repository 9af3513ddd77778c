//! A view of a few objects without sockets or a watch, for tests and benches of the answering alone.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::RwLock;
use serde_json::Value;

use crate::DnsConfig;
use crate::answer::View;
use crate::cookies::Cookies;
use crate::forward::Forwarder;
use crate::names::Names;
use crate::objects::{EndpointSlice, Service};
use crate::zones::Zones;

/// Services, each with its slices, in namespaces that exist. Panics on what is none.
#[allow(clippy::unwrap_used)]
pub fn view(domain: &str, services: &[(Value, Vec<Value>)]) -> View {
    let mut names = Names::new(domain, 5).unwrap();
    for (service, slices) in services {
        let service: Service = serde_json::from_value(service.clone()).unwrap();
        let slice = |slice: &Value| Arc::new(serde_json::from_value::<EndpointSlice>(slice.clone()).unwrap());
        let slices: Vec<Arc<EndpointSlice>> = slices.iter().map(slice).collect();
        let (namespace, name) = (service.metadata.namespace.clone().unwrap(), service.metadata.name.clone().unwrap());
        names.set_namespace(&namespace, true);
        names.set_service(&namespace, &name, Some(&service), &slices);
    }
    View {
        names: RwLock::new(names),
        zones: Zones::default(),
        forwarder: Forwarder::new(&DnsConfig::default(), &[]).unwrap(),
        search: None,
        cookies: Cookies::new().unwrap(),
        limiter: None,
        rotation: AtomicUsize::new(0),
        loop_seen: tokio::sync::Notify::new(),
    }
}
