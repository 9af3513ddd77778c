//! Keeps the Endpoints of Services, for clients that know no EndpointSlices.

use std::sync::Arc;

use dhow_client::{Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::{Labels, delete, in_ending_namespace};
use crate::endpointslice::{Ports, Zones, endpoint, families, follow_backends, selected};

const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER: (&str, &str) = ("endpoints.kubernetes.io/over-capacity", "truncated");
/// Addresses in all, at most; ready ones first.
const MOST: usize = 1000;

/// The Endpoints of a service with a selector. They know one address family.
fn endpoints(service: &Service, pods: &[Arc<Pod>], known: Option<&Endpoints>) -> Endpoints {
    let family = families(service).into_iter().next().unwrap_or_else(|| "IPv4".into());
    let early = service.spec.as_ref().is_some_and(|spec| spec.publish_not_ready_addresses == Some(true));
    let mut found: Vec<(bool, Ports, EndpointAddress)> = pods
        .iter()
        .filter(|pod| early || pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| {
            let (ports, one) = endpoint(service, pod, &family, &Zones::new())?;
            let ready = one.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
            let address = EndpointAddress {
                ip: one.addresses.first()?.clone(),
                hostname: one.hostname,
                node_name: one.node_name,
                target_ref: one.target_ref,
            };
            Some((ready, ports, address))
        })
        .collect();
    found.sort_by(|a, b| (!a.0, &a.2.ip).cmp(&(!b.0, &b.2.ip)));
    let over = found.len() > MOST;
    found.truncate(MOST);
    let mut subsets: Vec<(Ports, EndpointSubset)> = Vec::new();
    for (ready, ports, address) in found {
        let place = subsets.iter().position(|(known, _)| *known == ports).unwrap_or_else(|| {
            subsets.push((ports.clone(), subset(&ports)));
            subsets.len() - 1
        });
        let subset = &mut subsets[place].1;
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut metadata = known.map(|known| known.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    metadata.labels = Some(labels);
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    annotations.remove(OVER.0);
    if over {
        annotations.insert(OVER.0.into(), OVER.1.into());
    }
    metadata.annotations = Some(annotations).filter(|all| !all.is_empty());
    let subsets: Vec<_> = subsets.into_iter().map(|(_, subset)| subset).collect();
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

fn subset(ports: &Ports) -> EndpointSubset {
    let ports: Vec<_> = ports
        .iter()
        .map(|port| EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: port.port.unwrap_or_default(),
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    EndpointSubset { ports: (!ports.is_empty()).then_some(ports), ..EndpointSubset::default() }
}

fn managed(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().and_then(|labels: &Labels| labels.get(MANAGED_BY.0)).is_some()
}

pub struct EndpointsOfServices {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

impl EndpointsOfServices {
    pub fn new(
        client: Client,
        services: Informer<Service>,
        pods: Informer<Pod>,
        endpoints: Informer<Endpoints>,
        queue: &Queue,
    ) -> Arc<Self> {
        follow_backends(&services, &pods, queue);
        let to = queue.clone();
        endpoints.on_change(move |change| {
            if managed(change.object()) {
                to.add(Key::of(&change.object().metadata));
            }
        });
        Arc::new(Self { client, services, pods, endpoints })
    }
}

#[async_trait::async_trait]
impl Reconcile for EndpointsOfServices {
    fn name(&self) -> &'static str {
        "endpoints"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let known = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            if let Some(left) = known.filter(|known| managed(known) && known.metadata.deletion_timestamp.is_none()) {
                delete(&self.client, &*left, DeleteParams::default()).await?;
            }
            return Ok(Outcome::Done);
        };
        let without = service.spec.as_ref().is_none_or(|spec| spec.selector.as_ref().is_none_or(Labels::is_empty));
        if without || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let mut pods = self.pods.by_index("namespace", key.namespace().unwrap_or_default());
        pods.retain(|pod| selected(&service, pod.metadata.labels.as_ref()));
        let wanted = endpoints(&service, &pods, known.as_deref());
        let done = match known {
            Some(known) if *known == wanted => return Ok(Outcome::Done),
            Some(_) => self.client.update(&wanted).await,
            None => self.client.create(&wanted).await,
        };
        match done {
            Err(error) if in_ending_namespace(&self.client, &error, key.namespace()).await => {}
            other => drop(other?),
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_grouped_by_ports_and_readiness() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "a", "labels": {"x": "y"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "None", "ports": [{"port": 80, "targetPort": "http"}]}
        }))
        .unwrap();
        let pod = |ip: &str, port: i32, ready: bool, going: bool| -> Arc<Pod> {
            let state = if ready { "True" } else { "False" };
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": ip, "deletionTimestamp": going.then_some("2026-01-01T00:00:00Z")},
                    "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                    "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": state}]}
                }))
                .unwrap(),
            )
        };
        let pods = [
            pod("10.0.0.2", 80, true, false),
            pod("10.0.0.1", 80, true, false),
            pod("10.0.0.3", 80, false, false),
            pod("10.0.0.4", 8080, true, false),
            pod("10.0.0.5", 80, true, true),
        ];
        let made = endpoints(&service, &pods, None);
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter().flatten().map(|address| address.ip.clone()).collect()
        };
        let subsets = made.subsets.as_ref().unwrap();
        assert_eq!(ips(&subsets[0].addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(
            (ips(&subsets[1].addresses), subsets[1].ports.as_ref().unwrap()[0].port),
            (vec!["10.0.0.4".into()], 8080)
        );
        assert!(made.metadata.labels.as_ref().unwrap().contains_key(HEADLESS) && managed(&made));
        assert_eq!(endpoints(&service, &pods, Some(&made)), made, "what is right stays");
    }
}
