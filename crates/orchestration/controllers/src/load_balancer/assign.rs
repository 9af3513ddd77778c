//! Which addresses a Service of type LoadBalancer gets, from all such Services, pools and nodes. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dhow_client::Key;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::pool::Pool;

/// Services that name this class, or none, are ours.
const CLASS: &str = "dhow.io/load-balancer";
/// Addresses that a Service wants, by commas. The second is what MetalLB's users write.
const WANTED: [&str; 2] = ["dhow.io/load-balancer-ips", "metallb.io/loadBalancerIPs"];
const WANTED_POOL: [&str; 2] = ["dhow.io/load-balancer-pool", "metallb.io/address-pool"];
/// Services with the same text may share an address, port by port.
const SHARING: [&str; 2] = ["dhow.io/allow-shared-ip", "metallb.io/allow-shared-ip"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Another controller's.
    NotOurs,
    /// In the order of the Service's families.
    Addresses(Vec<IpAddr>),
    /// None for now, and why.
    Refused(String),
}

/// What there is to give.
pub enum Supply<'a> {
    Pools(&'a [Pool]),
    /// The addresses of nodes; ports that the nodes need themselves.
    Nodes {
        addresses: &'a [IpAddr],
        reserved: &'a BTreeSet<u16>,
    },
}

/// Whether the Service's balancer is ours to make.
pub fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.load_balancer_class.as_deref().is_none_or(|class| class == CLASS)
    })
}

/// The balancer's addresses, as its status has them.
pub fn held(service: &Service) -> Vec<IpAddr> {
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// `others` are the other Services with what they hold.
pub fn assign(service: &Service, others: &[(Key, &Service, Vec<IpAddr>)], supply: &Supply<'_>) -> Decision {
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else { return Decision::NotOurs };
    let result = match supply {
        Supply::Pools(pools) => from_pools(service, spec, others, pools),
        Supply::Nodes { addresses, reserved } => of_nodes(spec, others, addresses, reserved),
    };
    result.map_or_else(Decision::Refused, Decision::Addresses)
}

fn ports(spec: &ServiceSpec) -> BTreeSet<(&str, i32)> {
    let ports = spec.ports.iter().flatten();
    ports.map(|port| (port.protocol.as_deref().unwrap_or("TCP"), port.port)).collect()
}

fn families(spec: &ServiceSpec) -> Vec<bool> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() { vec![false] } else { families.iter().map(|family| family == "IPv6").collect() }
}

fn annotation<'a>(service: &'a Service, names: [&str; 2]) -> Option<&'a str> {
    let annotations = service.metadata.annotations.as_ref()?;
    names.iter().find_map(|name| annotations.get(*name)).map(String::as_str).filter(|text| !text.is_empty())
}

fn from_pools(
    service: &Service,
    spec: &ServiceSpec,
    others: &[(Key, &Service, Vec<IpAddr>)],
    pools: &[Pool],
) -> Result<Vec<IpAddr>, String> {
    let wanted = wanted(service, spec)?;
    let pool_name = annotation(service, WANTED_POOL);
    if let Some(name) = pool_name.filter(|name| pools.iter().all(|pool| pool.name != **name)) {
        return Err(format!("there is no pool {name:?}"));
    }
    let admitted = |pool: &&Pool| pool_name.is_none_or(|name| pool.name == name);
    let present = held(service);
    let mut given = Vec::new();
    let mut full = Vec::new();
    for ipv6 in families(spec) {
        if let Some(address) = wanted.iter().find(|address| address.is_ipv6() == ipv6) {
            if !pools.iter().filter(admitted).any(|pool| pool.contains(*address)) {
                return Err(format!("{address} is in no pool that this service may use"));
            }
            if let Some(why) = obstacle(service, spec, *address, others) {
                return Err(format!("{address} {why}"));
            }
            given.push(*address);
            continue;
        }
        if !wanted.is_empty() {
            continue;
        }
        let open = |pool: &&Pool| admitted(pool) && (pool.auto_assign || pool_name.is_some());
        let free = |address: &IpAddr| obstacle(service, spec, *address, others).is_none();
        let kept = present.iter().copied().find(|address| {
            address.is_ipv6() == ipv6 && pools.iter().filter(admitted).any(|pool| pool.contains(*address))
        });
        let fresh = || pools.iter().filter(open).flat_map(|pool| pool.addresses(ipv6)).find(free);
        match kept.filter(free).or_else(fresh) {
            Some(address) => given.push(address),
            None => full.push(if ipv6 { "IPv6" } else { "IPv4" }),
        }
    }
    let required = spec.ip_family_policy.as_deref() == Some("RequireDualStack");
    if given.is_empty() || required && !full.is_empty() {
        return Err(format!("no pool has a free {} address", full.join(" or ")));
    }
    Ok(given)
}

fn wanted(service: &Service, spec: &ServiceSpec) -> Result<Vec<IpAddr>, String> {
    let text = annotation(service, WANTED).or(spec.load_balancer_ip.as_deref()).unwrap_or_default();
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    let addresses: Result<Vec<IpAddr>, String> =
        texts.map(|text| text.parse().map_err(|_| format!("{text:?} is no address"))).collect();
    let (addresses, families) = (addresses?, families(spec));
    match addresses.iter().find(|address| !families.contains(&address.is_ipv6())) {
        Some(address) => Err(format!("{address} is of a family that the service does not have")),
        None => Ok(addresses),
    }
}

/// Why the Service cannot have the address.
fn obstacle(
    service: &Service,
    spec: &ServiceSpec,
    address: IpAddr,
    others: &[(Key, &Service, Vec<IpAddr>)],
) -> Option<String> {
    let holders = others.iter().filter(|(_, _, held)| held.contains(&address));
    for (key, other, _) in holders {
        let key_of = |service| annotation(service, SHARING);
        if key_of(service).is_none() || key_of(service) != key_of(other) {
            return Some(format!("is that of service {key}"));
        }
        let Some(theirs) = &other.spec else { continue };
        if let Some((protocol, port)) = ports(spec).intersection(&ports(theirs)).next() {
            return Some(format!("has port {port}/{protocol} for service {key} already"));
        }
        // Local traffic goes to one node, by the pods of one of them.
        let local = |spec: &ServiceSpec| spec.external_traffic_policy.as_deref() == Some("Local");
        if (local(spec) || local(theirs)) && spec.selector != theirs.selector {
            return Some(format!("cannot be shared with service {key} while one of them keeps its traffic local"));
        }
    }
    None
}

/// Every node answers on its own address, so a port is one Service's.
fn of_nodes(
    spec: &ServiceSpec,
    others: &[(Key, &Service, Vec<IpAddr>)],
    addresses: &[IpAddr],
    reserved: &BTreeSet<u16>,
) -> Result<Vec<IpAddr>, String> {
    let families = families(spec);
    let given: Vec<IpAddr> = addresses.iter().copied().filter(|a| families.contains(&a.is_ipv6())).collect();
    if let Some((protocol, port)) = ports(spec)
        .iter()
        .find(|(protocol, port)| *protocol == "TCP" && u16::try_from(*port).is_ok_and(|port| reserved.contains(&port)))
    {
        return Err(format!("the nodes need port {port}/{protocol} of their addresses themselves"));
    }
    let here = |held: &[IpAddr]| held.iter().any(|address| given.contains(address));
    for (key, other, _) in others.iter().filter(|(_, _, held)| here(held)) {
        let Some(theirs) = &other.spec else { continue };
        if let Some((protocol, port)) = ports(spec).intersection(&ports(theirs)).next() {
            return Err(format!("port {port}/{protocol} of the nodes' addresses is that of service {key}"));
        }
    }
    if given.is_empty() {
        return Err("no node that is ready has an address for it".to_owned());
    }
    Ok(given)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::pool::{LoadBalancerConfig, PoolConfig};
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value, annotations: Value, ingress: &[&str]) -> Service {
        let mut whole = json!({"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let ingress: Vec<Value> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({
            "metadata": {"namespace": "a", "name": "web", "annotations": annotations}, "spec": whole,
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        serde_json::from_value(object).unwrap()
    }

    fn pools() -> Vec<Pool> {
        let pool = |name: &str, addresses: &[&str], auto_assign| PoolConfig {
            name: name.to_owned(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            auto_assign,
        };
        let pools = vec![
            pool("public", &["192.0.2.10-192.0.2.11", "2001:db8::10"], true),
            pool("office", &["198.51.100.7"], false),
        ];
        LoadBalancerConfig { pools }.pools().unwrap()
    }

    /// Addresses, or why not.
    fn given(service: &Service, others: &[&Service]) -> String {
        let others: Vec<_> = others.iter().map(|other| (Key::new(Some("a"), "other"), *other, held(other))).collect();
        match assign(service, &others, &Supply::Pools(&pools())) {
            Decision::Addresses(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            Decision::Refused(why) => why,
            Decision::NotOurs => "not ours".to_owned(),
        }
    }

    #[test]
    fn addresses_come_from_pools_and_stay() {
        let none = json!({});
        let web = service(none.clone(), none.clone(), &[]);
        assert_eq!(given(&web, &[]), "192.0.2.10");
        let other = service(none.clone(), none.clone(), &["192.0.2.10"]);
        assert_eq!(given(&web, &[&other]), "192.0.2.11");
        let third = service(none.clone(), none.clone(), &["192.0.2.11"]);
        assert_eq!(given(&web, &[&other, &third]), "no pool has a free IPv4 address", "office is for who asks");
        assert_eq!(given(&service(none.clone(), none.clone(), &["192.0.2.11"]), &[]), "192.0.2.11", "kept");
        assert_eq!(given(&service(none.clone(), none.clone(), &["203.0.113.1"]), &[]), "192.0.2.10", "of no pool");
        let dual = json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"});
        assert_eq!(given(&service(dual.clone(), none.clone(), &[]), &[]), "2001:db8::10,192.0.2.10");
        let six = service(none.clone(), none.clone(), &["2001:db8::10"]);
        assert!(given(&service(dual, none.clone(), &[]), &[&six]).contains("free IPv6"));
        let prefer = json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"});
        assert_eq!(given(&service(prefer, none.clone(), &[]), &[&six]), "192.0.2.10", "one is better than none");
        assert_eq!(given(&service(json!({"loadBalancerClass": "example.com/lb"}), none.clone(), &[]), &[]), "not ours");
        assert_eq!(given(&service(json!({"loadBalancerClass": CLASS}), none, &[]), &[]), "192.0.2.10");
    }

    #[test]
    fn services_ask_for_addresses_and_pools() {
        let none = json!({});
        let by_field = json!({"loadBalancerIP": "192.0.2.11"});
        assert_eq!(given(&service(by_field.clone(), none.clone(), &["192.0.2.10"]), &[]), "192.0.2.11");
        let other = service(none.clone(), none.clone(), &["192.0.2.11"]);
        assert_eq!(given(&service(by_field, none.clone(), &[]), &[&other]), "192.0.2.11 is that of service a/other");
        let by_annotation = json!({"metallb.io/loadBalancerIPs": "198.51.100.7"});
        assert_eq!(given(&service(none.clone(), by_annotation, &[]), &[]), "198.51.100.7");
        let by_pool = json!({"dhow.io/load-balancer-pool": "office"});
        assert_eq!(given(&service(none.clone(), by_pool, &["192.0.2.10"]), &[]), "198.51.100.7");
        for (annotations, why) in [
            (json!({"dhow.io/load-balancer-pool": "none"}), "there is no pool"),
            (json!({"dhow.io/load-balancer-ips": "203.0.113.1"}), "in no pool"),
            (json!({"dhow.io/load-balancer-ips": "2001:db8::10"}), "of a family"),
            (json!({"dhow.io/load-balancer-ips": "web"}), "no address"),
        ] {
            assert!(given(&service(none.clone(), annotations.clone(), &[]), &[]).contains(why), "{annotations}");
        }
    }

    #[test]
    fn an_address_is_shared_port_by_port() {
        let key = json!({"metallb.io/allow-shared-ip": "one", "dhow.io/load-balancer-ips": "192.0.2.10"});
        let other = service(json!({}), json!({"dhow.io/allow-shared-ip": "one"}), &["192.0.2.10"]);
        let on = |port: u16, policy: &str| json!({"ports": [{"port": port, "protocol": "TCP"}], "externalTrafficPolicy": policy, "selector": {"a": policy}});
        assert_eq!(given(&service(on(81, "Cluster"), key.clone(), &[]), &[&other]), "192.0.2.10");
        assert!(given(&service(on(80, "Cluster"), key.clone(), &[]), &[&other]).contains("has port 80/TCP"));
        assert!(given(&service(on(81, "Local"), key, &[]), &[&other]).contains("local"));
        let stranger = json!({"dhow.io/allow-shared-ip": "two", "dhow.io/load-balancer-ips": "192.0.2.10"});
        assert!(given(&service(on(81, "Cluster"), stranger, &[]), &[&other]).contains("is that of"));
    }

    #[test]
    fn without_pools_the_nodes_answer() {
        let addresses: Vec<IpAddr> = vec![[192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap()];
        let reserved = BTreeSet::from([6443]);
        let of = |service: &Service, others: &[&Service]| {
            let others: Vec<_> = others.iter().map(|other| (Key::new(None, "other"), *other, held(other))).collect();
            assign(service, &others, &Supply::Nodes { addresses: &addresses, reserved: &reserved })
        };
        let web = service(json!({}), json!({}), &[]);
        assert_eq!(of(&web, &[]), Decision::Addresses(vec![addresses[0]]));
        let other = service(json!({}), json!({}), &["192.0.2.1"]);
        assert!(matches!(of(&web, &[&other]), Decision::Refused(why) if why.contains("80/TCP")));
        let api = service(json!({"ports": [{"port": 6443}]}), json!({}), &[]);
        assert!(matches!(of(&api, &[]), Decision::Refused(why) if why.contains("themselves")));
    }
}
