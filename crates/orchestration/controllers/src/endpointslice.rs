//! Keeps EndpointSlices of the pods that a Service selects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dhow_client::{
    Client, DeleteParams, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile,
    controller_reference, is_controlled_by, reference,
};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::common::{Labels, in_ending_namespace, is_finished, is_ready, node_name};
use crate::topology_hints::{self, Shares};

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice, at most.
const FULL: usize = 100;

#[derive(Debug, PartialEq)]
pub enum Action {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

pub type Ports = Vec<EndpointPort>;

const ZONE: &str = "topology.kubernetes.io/zone";

/// The zone of each node that is in one.
pub type Zones = BTreeMap<String, String>;

/// The endpoints of one address family that have the same ports.
type Group = (String, Ports, Vec<Endpoint>);

/// The endpoints that a service should have.
fn endpoints_of(service: &Service, pods: &[Arc<Pod>], zones: &Zones) -> Vec<Group> {
    let mut wanted: Vec<Group> = Vec::new();
    for family in families(service) {
        for pod in pods {
            let Some((ports, endpoint)) = endpoint(service, pod, &family, zones) else { continue };
            match wanted.iter_mut().find(|(kind, known, _)| *kind == family && *known == ports) {
                Some((_, _, endpoints)) => endpoints.push(endpoint),
                None => wanted.push((family.clone(), ports, vec![endpoint])),
            }
        }
        // A service without endpoints still has a slice, so that consumers know it.
        if !wanted.iter().any(|(kind, ..)| *kind == family) {
            wanted.push((family, Vec::new(), Vec::new()));
        }
    }
    wanted
}

/// What became of the hints that a service asks for, in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hinted {
    family: String,
    outcome: Result<(), String>,
}

/// Shares the endpoints out among the zones.
fn hint(wanted: &mut [Group], slices: &[Arc<EndpointSlice>], shares: Option<&Shares>) -> Vec<Hinted> {
    let held: BTreeMap<String, String> = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|old| Some((identity(old), old.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone())))
        .collect();
    let families: BTreeSet<String> = wanted.iter().map(|(family, ..)| family.clone()).collect();
    let mut all = Vec::new();
    for family in families {
        let of_family = wanted.iter_mut().filter(|(kind, ..)| *kind == family);
        let mut endpoints: Vec<&mut Endpoint> = of_family.flat_map(|(.., endpoints)| endpoints).collect();
        endpoints.sort_by_key(|endpoint| identity(endpoint));
        let outcome = topology_hints::assign(&mut endpoints, shares, |one| held.get(&identity(one)).cloned());
        all.push(Hinted { family, outcome });
    }
    all
}

/// What leads from the present slices to the `wanted` endpoints. Touches as few slices as it can.
fn pack(service: &Service, wanted: Vec<Group>, slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    let labels = labels(service);
    let mut actions = Vec::new();
    let mut left: Vec<&Arc<EndpointSlice>> = slices.iter().collect();
    for (family, ports, endpoints) in wanted {
        let fitting = |slice: &EndpointSlice| {
            slice.address_type == family && slice.ports.as_deref().unwrap_or_default() == ports.as_slice()
        };
        let mut missing: BTreeMap<String, Endpoint> =
            endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
        // First what is in place stays in place.
        let mut kept = Vec::new();
        left.retain(|slice| {
            if !fitting(slice) {
                return true;
            }
            let stay: Vec<_> = slice.endpoints.iter().filter_map(|old| missing.remove(&identity(old))).collect();
            kept.push((*slice, stay));
            false
        });
        // New endpoints go to slices that change anyway, then to others with room, then to new ones.
        kept.sort_by_key(|(slice, stay)| *stay == slice.endpoints);
        let mut fresh = missing.into_values();
        let mut live = 0;
        for (slice, mut stay) in kept {
            stay.extend(fresh.by_ref().take(FULL.saturating_sub(stay.len())));
            if stay.is_empty() && (live > 0 || fresh.len() > 0 || !ports.is_empty()) {
                actions.push(Action::Delete(slice.clone()));
                continue;
            }
            live += 1;
            let labelled = labels
                .iter()
                .all(|label| slice.metadata.labels.as_ref().is_some_and(|all| all.get(label.0) == Some(label.1)));
            if stay != slice.endpoints || !labelled {
                let mut changed = EndpointSlice::clone(slice);
                changed.endpoints = stay;
                changed.metadata.labels.get_or_insert_default().extend(labels.clone());
                actions.push(Action::Update(Box::new(changed)));
            }
        }
        loop {
            let part: Vec<_> = fresh.by_ref().take(FULL).collect();
            if part.is_empty() && live > 0 {
                break;
            }
            live += 1;
            actions.push(Action::Create(Box::new(slice(service, &labels, &family, &ports, part))));
        }
    }
    actions.extend(left.into_iter().map(|slice| Action::Delete(slice.clone())));
    actions
}

fn slice(service: &Service, labels: &Labels, family: &str, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: (!ports.is_empty()).then(|| ports.clone()),
        endpoints,
    }
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    labels
}

pub fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".into()] } else { families }
}

fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
    format!("{target} {}", endpoint.addresses.join(","))
}

/// For whom the service proxy keeps the pod: the clients on its node or in its zone, where the service prefers that.
fn preferred(spec: &ServiceSpec, node: Option<&str>, zone: Option<&String>) -> Option<EndpointHints> {
    let for_zones = || zone.map(|name| vec![ForZone { name: name.clone() }]);
    match spec.traffic_distribution.as_deref()? {
        "PreferSameNode" => {
            let for_nodes = Some(vec![ForNode { name: node?.to_owned() }]);
            Some(EndpointHints { for_nodes, for_zones: for_zones() })
        }
        "PreferSameZone" | "PreferClose" => Some(EndpointHints { for_zones: Some(for_zones()?), for_nodes: None }),
        _ => None,
    }
}

/// A pod as an endpoint of a service, in one address family, and the ports it has there.
pub fn endpoint(service: &Service, pod: &Pod, family: &str, zones: &Zones) -> Option<(Ports, Endpoint)> {
    let spec = service.spec.as_ref()?;
    if is_finished(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let address =
        listed.chain(status.pod_ip.as_deref()).find(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6"))?;
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let always = spec.publish_not_ready_addresses == Some(true);
    let hostname = pod.spec.as_ref().and_then(|own| {
        own.hostname.clone().filter(|_| own.subdomain.is_some() && own.subdomain == service.metadata.name)
    });
    let node = node_name(pod);
    let zone = node.and_then(|node| zones.get(node));
    let endpoint = Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(always || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        hints: preferred(spec, node, zone),
        node_name: node.map(str::to_owned),
        zone: zone.cloned(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    };
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target(port, pod)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    Some((ports.collect(), endpoint))
}

/// The pod's port behind a service port; none if the pod has no port of that name.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let ports = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            ports
                .flat_map(|container| container.ports.iter().flatten())
                .find(|one| one.name.as_ref() == Some(name) && one.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|one| one.container_port)
        }
    }
}

pub fn selected(service: &Service, labels: Option<&Labels>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|all| !all.is_empty());
    selector.is_some_and(|all| all.iter().all(|(key, value)| labels.and_then(|own| own.get(key)) == Some(value)))
}

/// Queues a service when it changes, or when a pod does that it selects or did select.
pub fn follow_backends(services: &Informer<Service>, pods: &Informer<Pod>, queue: &Queue) {
    let to = queue.clone();
    services.on_change(move |change| to.add(Key::of(&change.object().metadata)));
    let (to, all) = (queue.clone(), services.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let before = if let dhow_client::Change::Updated { old, .. } = change { Some(old) } else { None };
        for service in all.by_index("namespace", pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if selected(&service, pod.metadata.labels.as_ref())
                || before.is_some_and(|old| selected(&service, old.metadata.labels.as_ref()))
            {
                to.add(Key::of(&service.metadata));
            }
        }
    });
}

pub struct EndpointSlices {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    events: EventRecorder,
    /// Services whose endpoints are shared out among the zones.
    shared: parking_lot::Mutex<BTreeSet<Key>>,
}

fn zone_of(node: &Node) -> Option<&String> {
    node.metadata.labels.as_ref()?.get(ZONE).filter(|zone| !zone.is_empty())
}

impl EndpointSlices {
    pub fn new(
        client: Client,
        services: Informer<Service>,
        pods: Informer<Pod>,
        nodes: Informer<Node>,
        slices: Informer<EndpointSlice>,
        queue: &Queue,
    ) -> Arc<Self> {
        follow_backends(&services, &pods, queue);
        let (to, all) = (queue.clone(), services.clone());
        nodes.on_change(move |change| {
            let before = match change {
                dhow_client::Change::Updated { old, .. } => Some(old),
                _ => None,
            };
            let now = change.object();
            // A node's last words concern no endpoint: its pods go, too. But the others' shares grow.
            let moved = before.and_then(|old| zone_of(old)) != zone_of(now);
            let is_gone = matches!(change, dhow_client::Change::Deleted(_));
            if moved || is_gone || before.and_then(|old| topology_hints::weight(old)) != topology_hints::weight(now) {
                let all = all.list();
                let concerned = all.iter().filter(|service| moved || topology_hints::is_asked(service));
                concerned.for_each(|service| to.add(Key::of(&service.metadata)));
            }
        });
        let to = queue.clone();
        slices.on_change(move |change| {
            let metadata = &change.object().metadata;
            if let Some(service) = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE)) {
                to.add(Key::new(metadata.namespace.as_deref(), service));
            }
        });
        let events = EventRecorder::new(client.clone(), "endpoint-slice-controller");
        Arc::new(Self { client, services, pods, nodes, slices, events, shared: parking_lot::Mutex::default() })
    }

    /// Tells people whether their service has what it asks for.
    fn tell(&self, service: &Service, key: &Key, hinted: &[Hinted]) {
        let event = |kind, reason: &str, message: &str, family: &str| {
            self.events.event(reference(service), kind, reason, &format!("{message}, addressType: {family}"));
        };
        let mut shared = self.shared.lock();
        if hinted.is_empty() {
            if shared.remove(key) {
                for family in families(service) {
                    let message = "Topology Aware Hints has been disabled";
                    event(EventType::Warning, "TopologyAwareHintsDisabled", message, &family);
                }
            }
            return;
        }
        let before = shared.contains(key);
        for one in hinted {
            match &one.outcome {
                Err(why) => {
                    shared.remove(key);
                    event(EventType::Warning, "TopologyAwareHintsDisabled", why, &one.family);
                }
                Ok(()) => {
                    shared.insert(key.clone());
                    if !before {
                        let message = "Topology Aware Hints has been enabled";
                        event(EventType::Normal, "TopologyAwareHintsEnabled", message, &one.family);
                    }
                }
            }
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        // Without its service, a slice is the garbage collector's.
        let Some(service) = self.services.get(key) else {
            self.shared.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let without = service.spec.as_ref().is_none_or(|spec| spec.selector.as_ref().is_none_or(Labels::is_empty));
        if without || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let namespace = key.namespace().unwrap_or_default();
        let mut pods = self.pods.by_index("namespace", namespace);
        pods.retain(|pod| selected(&service, pod.metadata.labels.as_ref()));
        let mut slices = self.slices.by_index("namespace", namespace);
        slices.retain(|slice| {
            let managed = slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
            managed.is_some_and(|by| by == MANAGER) && is_controlled_by(&slice.metadata, &*service)
        });
        let nodes = self.nodes.list();
        let zoned = nodes.iter().filter_map(|node| Some((node.metadata.name.clone()?, zone_of(node)?.clone())));
        let zones: Zones = zoned.collect();
        let mut wanted = endpoints_of(&service, &pods, &zones);
        let hinted = match topology_hints::is_asked(&service) {
            true => hint(&mut wanted, &slices, topology_hints::shares(&nodes).as_ref()),
            false => Vec::new(),
        };
        self.tell(&service, key, &hinted);
        for action in pack(&service, wanted, &slices) {
            match action {
                Action::Create(slice) => match self.client.create(&*slice).await {
                    Err(error) if in_ending_namespace(&self.client, &error, Some(namespace)).await => {}
                    other => drop(other?),
                },
                Action::Update(slice) => drop(self.client.update(&*slice).await?),
                Action::Delete(slice) => {
                    let name = slice.metadata.name.as_deref().unwrap_or_default();
                    let done =
                        self.client.delete::<EndpointSlice>(Some(namespace), name, &DeleteParams::default()).await;
                    match done {
                        Err(error) if error.is_not_found() => {}
                        other => other?,
                    }
                }
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>], zones: &Zones) -> Vec<Action> {
        pack(service, endpoints_of(service, pods, zones), slices)
    }

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}
        }))
        .unwrap()
    }

    fn pod(number: usize, port: i32, ready: bool, deleted: bool) -> Arc<Pod> {
        let gone = deleted.then_some("2026-01-01T00:00:00Z");
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": format!("p{number}"), "namespace": "a", "uid": format!("u{number}"), "deletionTimestamp": gone},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", number / 200, number % 200),
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}
        })).unwrap())
    }

    fn applied(actions: Vec<Action>) -> Vec<Arc<EndpointSlice>> {
        let made = actions.into_iter().enumerate().map(|(index, action)| match action {
            Action::Create(mut slice) => {
                slice.metadata.name = Some(format!("web-{index}"));
                Arc::new(*slice)
            }
            other => panic!("{other:?}"),
        });
        made.collect()
    }

    #[test]
    fn a_slice_holds_a_hundred_and_one_change_touches_one_slice() {
        let mut pods: Vec<_> = (0..250).map(|number| pod(number, 8080, true, false)).collect();
        let slices = applied(plan(&service(), &pods, &[], &Zones::new()));
        assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(plan(&service(), &pods, &slices, &Zones::new()), []);
        pods[3] = pod(3, 8080, false, false);
        pods.push(pod(250, 8080, true, false));
        let actions = plan(&service(), &pods, &slices, &Zones::new());
        assert_eq!(actions.len(), 2, "the slice that changes is full, so the new endpoint takes another");
    }

    #[test]
    fn conditions_and_named_ports_are_the_pods_own() {
        let pods = [pod(1, 8080, true, true), pod(2, 9090, false, false)];
        let slices = applied(plan(&service(), &pods, &[], &Zones::new()));
        assert_eq!(slices.len(), 2, "one slice for each set of ports");
        let conditions = slices[0].endpoints[0].conditions.clone().unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(false), Some(true), Some(true))
        );
        let mut open = service();
        open.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        let slices = applied(plan(&open, &pods, &[], &Zones::new()));
        assert!(slices.iter().all(|slice| slice.endpoints[0].conditions.as_ref().unwrap().ready == Some(true)));
    }

    #[test]
    fn endpoints_are_kept_for_their_node_where_the_service_prefers_that() {
        let pods = [pod(1, 8080, true, false)];
        let slices = applied(plan(&service(), &pods, &[], &Zones::new()));
        assert_eq!(slices[0].endpoints[0].hints, None);
        let mut near = service();
        near.spec.as_mut().unwrap().traffic_distribution = Some("PreferSameNode".to_owned());
        let actions = plan(&near, &pods, &slices, &Zones::new());
        let [Action::Update(slice)] = actions.as_slice() else { panic!("not updated") };
        let hints = slice.endpoints[0].hints.clone().unwrap();
        assert_eq!((hints.for_nodes.unwrap()[0].name.as_str(), hints.for_zones), ("n", None));
    }

    #[test]
    fn endpoints_are_kept_for_their_zone_where_the_service_prefers_that() {
        let pods = [pod(1, 8080, true, false)];
        let zones = Zones::from([("n".to_owned(), "east".to_owned())]);
        let plain = applied(plan(&service(), &pods, &[], &zones));
        assert_eq!((plain[0].endpoints[0].zone.as_deref(), &plain[0].endpoints[0].hints), (Some("east"), &None));
        for (distribution, for_nodes) in [("PreferClose", 0), ("PreferSameZone", 0), ("PreferSameNode", 1)] {
            let mut near = service();
            near.spec.as_mut().unwrap().traffic_distribution = Some(distribution.to_owned());
            let slices = applied(plan(&near, &pods, &[], &zones));
            let hints = slices[0].endpoints[0].hints.clone().unwrap();
            assert_eq!(hints.for_zones.unwrap()[0].name, "east", "{distribution}");
            assert_eq!(hints.for_nodes.map_or(0, |nodes| nodes.len()), for_nodes, "{distribution}");
            // Nobody knows its zone: no hint is better than a wrong one.
            let slices = applied(plan(&near, &pods, &[], &Zones::new()));
            assert_eq!(slices[0].endpoints[0].hints.is_some(), for_nodes == 1, "{distribution}");
        }
    }

    #[test]
    fn a_service_without_pods_keeps_one_empty_slice() {
        let slices = applied(plan(&service(), &[], &[], &Zones::new()));
        assert_eq!(slices.len(), 1);
        assert_eq!(plan(&service(), &[], &slices, &Zones::new()), []);
    }
}
