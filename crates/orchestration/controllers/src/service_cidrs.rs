//! ServiceCIDRs: ready once they are protected, and gone only when no Service would be left with an address of no range. And
//! an IPAddress for each address that a Service has.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Change, Client, DeleteParams, Error, Informer, Key, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::common::Finalizer;

const FINALIZER: Finalizer = Finalizer("networking.k8s.io/service-cidr-finalizer");
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Every server has learnt by then that no more addresses come from a range that goes.
const GRACE: Duration = Duration::from_secs(10);
const BY_ADDRESS: &str = "cluster-ip";

/// A network: its address in 128 bits, left-aligned, and its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    bits: u128,
    prefix: u32,
    v4: bool,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        Some(Self { prefix: prefix.parse().ok()?, ..Self::of(address.parse().ok()?) })
    }

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { bits: u128::from(address.to_bits()) << 96, prefix: 32, v4: true },
            IpAddr::V6(address) => Self { bits: address.to_bits(), prefix: 128, v4: false },
        }
    }

    fn contains(self, other: Self) -> bool {
        let shift = 128 - self.prefix.min(128);
        let top = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
        self.v4 == other.v4 && self.prefix <= other.prefix && top(self.bits) == top(other.bits)
    }
}

fn ranges(cidr: &ServiceCIDR) -> Vec<Range> {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|text| Range::parse(text)).collect()
}

/// An address of a Service that only this ServiceCIDR has room for; others that go as well are no room.
fn orphan(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> Option<String> {
    let staying = |other: &&Arc<ServiceCIDR>| {
        other.metadata.name != cidr.metadata.name && other.metadata.deletion_timestamp.is_none()
    };
    let others: Vec<Range> = all.iter().filter(staying).flat_map(|other| ranges(other)).collect();
    let own = ranges(cidr);
    let has = |ranges: &[Range], address: Range| ranges.iter().any(|range| range.contains(address));
    let ours =
        addresses.iter().filter(|address| is_record(address)).filter_map(|address| address.metadata.name.clone());
    ours.filter_map(|name| Some((Range::of(name.parse().ok()?), name)))
        .find(|(address, _)| has(&own, *address) && !has(&others, *address))
        .map(|(_, name)| name)
}

fn is_record(address: &IPAddress) -> bool {
    let labels = address.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == ALLOCATOR)
}

pub struct ServiceCidrs {
    client: Client,
    cidrs: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

impl ServiceCidrs {
    pub fn new(
        client: Client,
        cidrs: Informer<ServiceCIDR>,
        addresses: Informer<IPAddress>,
        queue: &Queue,
    ) -> Arc<Self> {
        // Whatever changes, those that wait to go may go now.
        let wake = |all: &Informer<ServiceCIDR>, to: &Queue| {
            let going = all.list().into_iter().filter(|cidr| cidr.metadata.deletion_timestamp.is_some());
            going.for_each(|cidr| to.add(Key::of(&cidr.metadata)));
        };
        let (to, all) = (queue.clone(), cidrs.clone());
        cidrs.on_change(move |change| {
            to.add(Key::of(&change.object().metadata));
            wake(&all, &to);
        });
        let (to, all) = (queue.clone(), cidrs.clone());
        addresses.on_change(move |change| {
            if matches!(change, Change::Deleted(_)) {
                wake(&all, &to);
            }
        });
        Arc::new(Self { client, cidrs, addresses })
    }

    async fn tell(&self, cidr: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Result<(), Error> {
        let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let held = conditions.clone().find(|one| one.type_ == "Ready");
        if held.is_some_and(|held| held.status == status) {
            return Ok(());
        }
        let mut all: Vec<_> = conditions.filter(|one| one.type_ != "Ready").map(|one| json!(one)).collect();
        all.push(json!({
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }));
        let seen = json!({"uid": cidr.metadata.uid, "resourceVersion": cidr.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": seen, "status": {"conditions": all}}));
        let name = cidr.metadata.name.as_deref().unwrap_or_default();
        match self.client.patch::<ServiceCIDR>(None, name, patch, Some("status")).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

#[async_trait::async_trait]
impl Reconcile for ServiceCidrs {
    fn name(&self) -> &'static str {
        "service-cidrs"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(cidr) = self.cidrs.get(key) else { return Ok(Outcome::Done) };
        let Some(going) = &cidr.metadata.deletion_timestamp else {
            if FINALIZER.is_on(&cidr.metadata) {
                self.tell(&cidr, "True", "", "Kubernetes Service CIDR is ready").await?;
            } else {
                // Its change wakes us again.
                FINALIZER.put(&self.client, &*cidr).await?;
            }
            return Ok(Outcome::Done);
        };
        if !FINALIZER.is_on(&cidr.metadata) {
            return Ok(Outcome::Done);
        }
        if let Some(address) = orphan(&cidr, &self.cidrs.list(), &self.addresses.list()) {
            tracing::debug!(cidr = cidr.metadata.name, address, "a service CIDR is in use");
            let why = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                       ServiceCIDR";
            self.tell(&cidr, "False", "Terminating", why).await?;
            return Ok(Outcome::Done);
        }
        let since = Timestamp::now().duration_since(going.0);
        let left = GRACE.saturating_sub(Duration::try_from(since).unwrap_or_default());
        if !left.is_zero() {
            return Ok(Outcome::RequeueAfter(left));
        }
        FINALIZER.take(&self.client, &*cidr).await?;
        Ok(Outcome::Done)
    }
}

/// Keeps an IPAddress for each address of a Service. The key is the address.
pub struct IpAddresses {
    client: Client,
    services: Informer<Service>,
    addresses: Informer<IPAddress>,
}

fn cluster_ips(service: &Service) -> Vec<String> {
    let listed = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    let parsed = listed.filter_map(|text| text.parse::<IpAddr>().ok());
    parsed.map(|address| address.to_string()).collect()
}

impl IpAddresses {
    pub fn new(
        client: Client,
        services: Informer<Service>,
        addresses: Informer<IPAddress>,
        queue: &Queue,
    ) -> Arc<Self> {
        services.add_index(BY_ADDRESS, cluster_ips);
        let to = queue.clone();
        services.on_change(move |change| {
            let old = match change {
                Change::Updated { old, .. } => cluster_ips(old),
                _ => Vec::new(),
            };
            old.into_iter().chain(cluster_ips(change.object())).for_each(|address| to.add(Key::new(None, &address)));
        });
        let to = queue.clone();
        addresses.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, services, addresses })
    }

    async fn remove(&self, address: &IPAddress) -> Result<(), Error> {
        let params = DeleteParams { uid: address.metadata.uid.clone(), ..DeleteParams::default() };
        let name = address.metadata.name.as_deref().unwrap_or_default();
        match self.client.delete::<IPAddress>(None, name, &params).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

/// What a Service's address is recorded as.
fn record(address: &str, service: &Service) -> IPAddress {
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    let labels = [(FAMILY, family), (MANAGED_BY, ALLOCATOR)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(IPAddressSpec {
            parent_ref: ParentReference {
                group: Some(String::new()),
                resource: "services".to_owned(),
                namespace: service.metadata.namespace.clone(),
                name: service.metadata.name.clone().unwrap_or_default(),
            },
        }),
    }
}

/// Whether it says what it should; what else is on it does not matter.
fn is_right(held: &IPAddress, wanted: &IPAddress) -> bool {
    let parent = |one: &IPAddress| {
        let parent = &one.spec.as_ref()?.parent_ref;
        let group = parent.group.clone().unwrap_or_default();
        Some((group, parent.resource.clone(), parent.namespace.clone(), parent.name.clone()))
    };
    let label = |one: &IPAddress, name: &str| one.metadata.labels.as_ref().and_then(|all| all.get(name).cloned());
    parent(held) == parent(wanted) && [FAMILY, MANAGED_BY].iter().all(|name| label(held, name) == label(wanted, name))
}

#[async_trait::async_trait]
impl Reconcile for IpAddresses {
    fn name(&self) -> &'static str {
        "ip-addresses"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let held = self.addresses.get(key);
        let wanted = self.services.by_index(BY_ADDRESS, &key.name).first().map(|service| record(&key.name, service));
        match (held, wanted) {
            (None, Some(wanted)) => match self.client.create(&wanted).await {
                // Ours from before, which the copy at hand does not have yet.
                Err(Error::Api { code: 409, .. }) => Ok(Outcome::Done),
                other => other.map(|_| Outcome::Done),
            },
            // What it is of cannot be changed; its end wakes us again.
            (Some(held), Some(wanted)) if !is_right(&held, &wanted) => self.remove(&held).await.map(|()| Outcome::Done),
            (Some(held), None) if is_record(&held) => self.remove(&held).await.map(|()| Outcome::Done),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cidr(name: &str, cidrs: &[&str], going: bool) -> Arc<ServiceCIDR> {
        let gone = going.then_some("2026-01-01T00:00:00Z");
        let object = json!({"metadata": {"name": name, "deletionTimestamp": gone}, "spec": {"cidrs": cidrs}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn service(name: &str, ips: &[&str]) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": name}, "spec": {"clusterIPs": ips}}))
            .unwrap()
    }

    #[test]
    fn a_range_goes_once_others_have_room_for_all() {
        let default = cidr("kubernetes", &["10.43.0.0/16", "fd43::/112"], false);
        let (small, going) = (cidr("small", &["10.50.0.0/24"], false), cidr("small", &["10.50.0.0/24"], true));
        let of = |ip: &str| Arc::new(record(ip, &service("s", &[ip])));
        let none = |one: &ServiceCIDR, all: &[Arc<ServiceCIDR>], ips: &[&str]| {
            orphan(one, all, &ips.iter().map(|ip| of(ip)).collect::<Vec<_>>())
        };
        assert_eq!(none(&going, &[default.clone(), going.clone()], &["10.43.0.1", "fd43::1"]), None);
        let stays = none(&going, &[default.clone(), going.clone()], &["10.43.0.1", "10.50.0.7"]);
        assert_eq!(stays.as_deref(), Some("10.50.0.7"));
        // A larger one has room for it; one that goes as well has none.
        let (larger, leaving) = (cidr("larger", &["10.50.0.0/16"], false), cidr("larger", &["10.50.0.0/16"], true));
        assert_eq!(none(&going, &[going.clone(), larger], &["10.50.0.7"]), None);
        assert!(none(&going, &[going.clone(), leaving], &["10.50.0.7"]).is_some());
        // What people keep for something else is not in the way.
        let mut foreign = record("10.50.0.9", &service("s", &[]));
        foreign.metadata.labels = None;
        assert_eq!(orphan(&small, std::slice::from_ref(&small), &[Arc::new(foreign)]), None);
    }

    #[test]
    fn an_address_is_recorded_as_its_services() {
        let web = service("web", &["10.43.0.7", "fd43::7"]);
        assert_eq!(cluster_ips(&web), ["10.43.0.7", "fd43::7"]);
        assert!(cluster_ips(&service("headless", &["None"])).is_empty());
        let wanted = record("fd43::7", &web);
        assert_eq!(wanted.metadata.labels.as_ref().unwrap()[FAMILY], "IPv6");
        assert!(is_right(&wanted, &wanted));
        assert!(!is_right(&wanted, &record("fd43::7", &service("other", &[]))));
        let mut unlabelled = wanted.clone();
        unlabelled.metadata.labels = None;
        assert!(!is_right(&unlabelled, &wanted));
    }
}
