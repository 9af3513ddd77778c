//! Mirrors Endpoints that someone keeps by hand into EndpointSlices, for Services without a selector.

use std::net::IpAddr;
use std::sync::Arc;

use dhow_client::{
    Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile, controller_of, controller_reference,
    is_controlled_by,
};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::{Labels, delete, in_ending_namespace};

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Addresses mirrored of one subset, at most; those of a slice are a tenth of it.
const MOST: usize = 1000;
const FULL: usize = 100;
/// Annotations that are about the Endpoints alone.
const NOT_MIRRORED: [&str; 3] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/over-capacity",
];

fn mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let skip =
        endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|skip| skip == "true");
    let elects = endpoints
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key("control-plane.alpha.kubernetes.io/leader"));
    let by_hand = service.and_then(|service| service.spec.as_ref()).is_some_and(|spec| spec.selector.is_none());
    !skip && !elects && by_hand && endpoints.metadata.deletion_timestamp.is_none()
}

/// The slices that say what the Endpoints say, unnamed.
fn slices(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.into(), endpoints.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<_> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let all: Vec<_> = ready.chain(unready).take(MOST).filter_map(|(one, ready)| endpoint(one, ready)).collect();
        for family in ["IPv4", "IPv6"] {
            let own: Vec<_> = all.iter().filter(|(of, _)| *of == family).map(|(_, one)| one.clone()).collect();
            slices.extend(own.chunks(FULL).map(|part| EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", endpoints.metadata.name.as_deref().unwrap_or_default())),
                    namespace: endpoints.metadata.namespace.clone(),
                    labels: Some(labels.clone()),
                    annotations: Some(annotations.clone()).filter(|all| !all.is_empty()),
                    owner_references: Some(vec![controller_reference(endpoints)]),
                    ..ObjectMeta::default()
                },
                address_type: family.into(),
                ports: (!ports.is_empty()).then(|| ports.clone()),
                endpoints: part.to_vec(),
            }));
        }
    }
    slices
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let family = match address.ip.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let endpoint = Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((family, endpoint))
}

/// Which slices to write and which to remove: those that say the same stay, others of the family are written anew.
fn plan(wanted: Vec<EndpointSlice>, present: &[Arc<EndpointSlice>]) -> (Vec<EndpointSlice>, Vec<Arc<EndpointSlice>>) {
    let labels = |slice: &EndpointSlice| slice.metadata.labels.clone().unwrap_or_default();
    let notes = |slice: &EndpointSlice| slice.metadata.annotations.clone().unwrap_or_default();
    let same = |a: &EndpointSlice, b: &EndpointSlice| {
        a.address_type == b.address_type
            && a.ports == b.ports
            && a.endpoints == b.endpoints
            && labels(a) == labels(b)
            && notes(a) == notes(b)
    };
    let mut left = present.to_vec();
    let mut changed = Vec::new();
    for slice in wanted {
        match left.iter().position(|one| same(one, &slice)) {
            Some(index) => drop(left.remove(index)),
            None => changed.push(slice),
        }
    }
    for slice in &mut changed {
        if let Some(index) = left.iter().position(|one| one.address_type == slice.address_type) {
            let known = left.remove(index);
            slice.metadata.generate_name = None;
            slice.metadata.name = known.metadata.name.clone();
            slice.metadata.resource_version = known.metadata.resource_version.clone();
        }
    }
    (changed, left)
}

pub struct EndpointMirror {
    client: Client,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

impl EndpointMirror {
    pub fn new(
        client: Client,
        endpoints: Informer<Endpoints>,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        endpoints.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        services.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        slices.on_change(move |change| {
            let metadata = &change.object().metadata;
            if let Some(owner) = controller_of(metadata).filter(|owner| owner.kind == "Endpoints") {
                to.add(Key::new(metadata.namespace.as_deref(), &owner.name));
            }
        });
        Arc::new(Self { client, endpoints, services, slices })
    }

    fn present(&self, endpoints: &Endpoints) -> Vec<Arc<EndpointSlice>> {
        let mut present = self.slices.by_index("controller", endpoints.metadata.uid.as_deref().unwrap_or_default());
        present.retain(|slice| {
            let by = slice.metadata.labels.as_ref().and_then(|labels: &Labels| labels.get(MANAGED_BY));
            by.is_some_and(|by| by == MANAGER) && is_controlled_by(&slice.metadata, endpoints)
        });
        present
    }
}

#[async_trait::async_trait]
impl Reconcile for EndpointMirror {
    fn name(&self) -> &'static str {
        "endpointslice-mirroring"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        // Without its Endpoints, a slice is the garbage collector's.
        let Some(endpoints) = self.endpoints.get(key) else { return Ok(Outcome::Done) };
        let service = self.services.get(key);
        let wanted = if mirrored(&endpoints, service.as_deref()) { slices(&endpoints) } else { Vec::new() };
        let (changed, removed) = plan(wanted, &self.present(&endpoints));
        for slice in changed {
            let done = match slice.metadata.name {
                Some(_) => self.client.update(&slice).await,
                None => self.client.create(&slice).await,
            };
            match done {
                Err(error) if in_ending_namespace(&self.client, &error, key.namespace()).await => {}
                other => drop(other?),
            }
        }
        for slice in removed {
            delete(&self.client, &*slice, DeleteParams::default()).await?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "a", "uid": "e",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "subsets": subsets}))
        .unwrap()
    }

    #[test]
    fn subsets_become_slices_by_family() {
        let made = slices(&endpoints(json!([{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}],
            "ports": [{"port": 5432}]
        }])));
        assert_eq!(made.iter().map(|slice| slice.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        let ready: Vec<_> =
            made[0].endpoints.iter().map(|one| one.conditions.as_ref().unwrap().ready.unwrap()).collect();
        assert_eq!(ready, [true, false]);
        assert_eq!(made[0].metadata.annotations, None);
        let (changed, removed) = plan(made.clone(), &[Arc::new(made[0].clone())]);
        assert_eq!((changed.len(), removed.len()), (1, 0), "what says the same stays");
        let other = slices(&endpoints(json!([{"addresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 1}]}])));
        let mut present = made[0].clone();
        present.metadata.name = Some("db-x".into());
        let (changed, removed) = plan(other, &[Arc::new(present), Arc::new(made[1].clone())]);
        assert_eq!(changed[0].metadata.name.as_deref(), Some("db-x"));
        assert_eq!(removed[0].address_type, "IPv6");
    }

    #[test]
    fn only_hand_made_endpoints_of_services_without_a_selector() {
        let service =
            |spec: Value| -> Service { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
        let mut own = endpoints(json!([]));
        assert!(mirrored(&own, Some(&service(json!({})))));
        assert!(!mirrored(&own, Some(&service(json!({"selector": {"app": "x"}})))));
        assert!(!mirrored(&own, None));
        own.metadata.labels = Some(Labels::from([(SKIP.into(), "true".into())]));
        assert!(!mirrored(&own, Some(&service(json!({})))));
    }
}
