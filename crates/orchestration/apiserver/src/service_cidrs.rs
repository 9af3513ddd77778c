//! Where Services have their addresses from, beyond what the server was started with: ServiceCIDRs that are ready. And
//! addresses that IPAddress objects keep for something else than a Service.

use std::net::IpAddr;
use std::sync::Arc;

use dhow_api::registry::{self, Kind};
use dhow_api::{Status, meta};
use dhow_client::Client;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::allocate::ServiceRange;
use crate::bootstrap::{create, failed, send};
use crate::cache::Cache;

pub const GROUP: &str = "networking.k8s.io";
/// The ServiceCIDR of what servers are started with.
const DEFAULT: &str = "kubernetes";
const COLLECTION: &str = "/apis/networking.k8s.io/v1/servicecidrs";
/// Who keeps an IPAddress; ours follow from the Services, which are looked at anyway.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

fn kind(plural: &str) -> Result<&'static Kind, Status> {
    registry::builtin().get(GROUP, "v1", plural).ok_or_else(Status::no_such_resource)
}

/// The revision of the last change of what this module reads.
pub fn changed(cache: &Cache) -> u64 {
    let of = |plural| kind(plural).map_or(0, |kind| cache.changed(kind));
    of("servicecidrs").max(of("ipaddresses"))
}

/// The ranges that are open: the `configured` ones, unless their ServiceCIDR is going or not ready, then all others.
pub fn open(cache: &Arc<Cache>, configured: &[ServiceRange]) -> Result<Vec<ServiceRange>, Status> {
    let mut objects = Vec::new();
    for object in cache.objects(kind("servicecidrs")?)?.values() {
        objects.push(object.value()?);
    }
    Ok(ranges(&objects, configured))
}

fn ranges(objects: &[Value], configured: &[ServiceRange]) -> Vec<ServiceRange> {
    let closed = |object: &&Value| meta::name(object) == DEFAULT && ready(object) == Some(false);
    let mut open: Vec<ServiceRange> = match objects.iter().find(closed) {
        Some(_) => Vec::new(),
        None => configured.to_vec(),
    };
    for object in objects.iter().filter(|object| ready(object) == Some(true)) {
        let cidrs = meta::items(object, &["spec", "cidrs"]).iter().filter_map(Value::as_str);
        for range in cidrs.filter_map(ServiceRange::parse) {
            if !open.contains(&range) {
                open.push(range);
            }
        }
    }
    open
}

/// `None` until somebody has said so.
fn ready(object: &Value) -> Option<bool> {
    if meta::at(object, &["metadata", "deletionTimestamp"]).is_some() {
        return Some(false);
    }
    let conditions = meta::items(object, &["status", "conditions"]);
    match meta::text(conditions.iter().find(|one| one["type"] == "Ready")?, &["status"]) {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Namespace and name of a Service.
pub type ServiceName = (String, String);

/// The Service that an IPAddress is of.
pub fn parent(address: &Value) -> Option<ServiceName> {
    let parent = meta::at(address, &["spec", "parentRef"])?;
    let of_service = meta::text(parent, &["group"]).is_empty() && meta::text(parent, &["resource"]) == "services";
    of_service.then(|| (meta::text(parent, &["namespace"]).to_owned(), meta::text(parent, &["name"]).to_owned()))
}

/// Whether it is the cluster's own record of what a Service has.
pub fn is_record(address: &Value) -> bool {
    meta::at(address, &["metadata", "labels", MANAGED_BY]).is_some_and(|by| by == ALLOCATOR)
}

/// Addresses that people keep for something else than `service`.
pub fn kept(cache: &Arc<Cache>, service: &ServiceName) -> Result<Vec<IpAddr>, Status> {
    let mut kept = Vec::new();
    for address in cache.objects(kind("ipaddresses")?)?.values() {
        if address.header.labels.get(MANAGED_BY) == Some(ALLOCATOR) {
            continue;
        }
        let Ok(ip) = address.header.name.parse() else { continue };
        if parent(&address.value()?).as_ref() != Some(service) {
            kept.push(ip);
        }
    }
    Ok(kept)
}

/// The ServiceCIDR `kubernetes`: made unless it is there, ready unless somebody has said something else of it.
pub async fn ensure_default(client: &Client, configured: &[ServiceRange]) -> Result<(), Status> {
    let cidrs: Vec<String> = configured.iter().map(ToString::to_string).collect();
    create(client, COLLECTION, json!({"metadata": {"name": DEFAULT}, "spec": {"cidrs": cidrs}})).await?;
    let path = format!("{COLLECTION}/{DEFAULT}");
    let (code, answer) = send(client, Method::GET, &path, "", &Value::Null).await?;
    if code >= 300 {
        return Err(failed(&answer));
    }
    let held: Value = serde_json::from_slice(&answer).map_err(|error| Status::internal(error.to_string()))?;
    let held_cidrs = meta::items(&held, &["spec", "cidrs"]);
    let merge = "application/merge-patch+json";
    if held_cidrs.len() == 1 && cidrs.len() == 2 && held_cidrs[0] == cidrs[0].as_str() {
        // The cluster has gained its second family.
        let (code, answer) = send(client, Method::PATCH, &path, merge, &json!({"spec": {"cidrs": cidrs}})).await?;
        if code >= 300 {
            return Err(failed(&answer));
        }
    } else if held_cidrs != cidrs {
        tracing::warn!(
            held = %json!(held_cidrs),
            configured = cidrs.join(","),
            "the ServiceCIDR `kubernetes` is not what this server was started with; delete it, or change --service-cidr"
        );
        return Ok(());
    }
    if ready(&held).is_some() {
        return Ok(());
    }
    let condition = json!({
        "type": "Ready",
        "status": "True",
        "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let status = json!({"status": {"conditions": [condition]}});
    let (code, answer) = send(client, Method::PATCH, &format!("{path}/status"), merge, &status).await?;
    if code < 300 { Ok(()) } else { Err(failed(&answer)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cidr(name: &str, cidrs: &[&str], ready: Option<&str>, going: bool) -> Value {
        let conditions: Vec<Value> = ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
        let mut object =
            json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}, "status": {"conditions": conditions}});
        if going {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        object
    }

    #[test]
    fn ranges_are_open_while_they_are_ready() {
        let configured = [ServiceRange::parse("10.43.0.0/16").unwrap()];
        let texts =
            |objects: &[Value]| ranges(objects, &configured).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&[]), ["10.43.0.0/16"], "before anything is there");
        let default = cidr("kubernetes", &["10.43.0.0/16"], Some("True"), false);
        let more = cidr("more", &["10.50.0.0/24", "fd50::/112"], Some("True"), false);
        assert_eq!(texts(&[default.clone(), more.clone()]), ["10.43.0.0/16", "10.50.0.0/24", "fd50::/112"]);
        let unready = cidr("more", &["10.50.0.0/24"], None, false);
        assert_eq!(texts(&[default.clone(), unready]), ["10.43.0.0/16"]);
        let going = cidr("more", &["10.50.0.0/24"], Some("True"), true);
        assert_eq!(texts(&[default, going]), ["10.43.0.0/16"]);
        let closed = cidr("kubernetes", &["10.43.0.0/16"], Some("False"), false);
        assert_eq!(texts(&[closed, more]), ["10.50.0.0/24", "fd50::/112"]);
    }

    #[test]
    fn the_service_of_an_address() {
        let of = |parent: Value| super::parent(&json!({"spec": {"parentRef": parent}}));
        let service = json!({"group": "", "resource": "services", "namespace": "a", "name": "s"});
        assert_eq!(of(service), Some(("a".to_owned(), "s".to_owned())));
        assert_eq!(of(json!({"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "g"})), None);
        assert!(is_record(&json!({"metadata": {"labels": {MANAGED_BY: ALLOCATOR}}})) && !is_record(&json!({})));
    }
}
