//! The plan's decisions, without a kernel.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::proxy::book::Book;

fn service(spec: Value) -> Arc<Service> {
    let object = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn slice(endpoints: Value) -> Arc<EndpointSlice> {
    let object = json!({
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn networks(pods: &str, cluster: &str, services: &str) -> Networks {
    let [pods, cluster, services] = [pods, cluster, services].map(|cidr| cidr.parse().unwrap());
    Networks { pods, cluster, services }
}

fn context() -> PlanContext {
    PlanContext {
        node_name: "here".to_owned(),
        zone: Some("east".to_owned()),
        networks: vec![
            networks("10.42.1.0/24", "10.42.0.0/16", "10.43.0.0/16"),
            networks("fd42:0:0:1::/64", "fd42::/56", "fd43::/112"),
        ],
    }
}

fn web(extra: Value) -> Arc<Service> {
    let mut spec = json!({"clusterIP": "10.43.0.80", "ports": [{"name": "http", "port": 80}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    service(spec)
}

fn picked(tables: &Tables) -> Vec<Vec<String>> {
    tables
        .endpoints
        .values()
        .chain(tables.balanced.values())
        .map(|v| v.iter().map(|e| e.to_string()).collect())
        .collect()
}

#[test]
fn ready_endpoints_win_and_terminating_ones_are_the_fallback() {
    let ending =
        json!({"addresses": ["10.42.1.9"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let dead = json!({"addresses": ["10.42.1.8"], "conditions": {"ready": false, "serving": false}});
    let ready = json!({"addresses": ["10.42.1.7"]});
    let tables = plan(&web(json!({})), &[slice(json!([ending, dead, ready]))], &context());
    assert_eq!(picked(&tables), [["10.42.1.7:8080"]]);
    let tables = plan(&web(json!({})), &[slice(json!([ending, dead]))], &context());
    assert_eq!(picked(&tables), [["10.42.1.9:8080"]]);
    let tables = plan(&web(json!({})), &[slice(json!([dead]))], &context());
    assert!(tables.chains.is_empty());
    assert_eq!(tables.no_endpoints.len(), 1);
}

#[test]
fn headless_and_external_names_have_no_tables() {
    for spec in [json!({"clusterIP": "None"}), json!({"type": "ExternalName", "externalName": "example.org"})] {
        let tables = plan(&web(spec), &[slice(json!([{"addresses": ["10.42.1.7"]}]))], &context());
        // The second one keeps a cluster address on purpose: the type decides.
        assert_eq!(tables, Tables::default());
    }
}

#[test]
fn same_input_same_names_and_one_endpoint_changes_only_its_service() {
    let two = slice(json!([{"addresses": ["10.42.1.7"]}, {"addresses": ["10.42.1.8"]}]));
    let swapped = slice(json!([{"addresses": ["10.42.1.8"]}, {"addresses": ["10.42.1.7"]}]));
    let a = plan(&web(json!({})), &[two], &context());
    assert_eq!(a, plan(&web(json!({})), &[swapped], &context()));
    let b = plan(&web(json!({})), &[slice(json!([{"addresses": ["10.42.1.7"]}]))], &context());
    let key = Key::new(Some("default"), "web");
    let mut book = Book::default();
    book.replace(&key, Some(a));
    let changed = BTreeMap::from([(key.clone(), Some(b))]);
    let touched = book.touched(&changed);
    let before = book.part(&touched);
    book.replace(&key, changed[&key].clone());
    let changes = before.changes_to(&book.part(&touched));
    assert_eq!((changes.add_slots.len(), changes.remove_slots.len()), (0, 1));
    assert_eq!((changes.add_counts.len(), changes.remove_counts.len()), (1, 1));
}

#[test]
fn a_service_with_more_endpoints_than_rules_has_a_chain_of_its_own() {
    let many: Vec<Value> = (1..=17).map(|n| json!({"addresses": [format!("10.42.1.{n}")]})).collect();
    let tables = plan(&web(json!({})), &[slice(json!(many[..16]))], &context());
    assert_eq!((tables.balanced.len(), tables.chains.len()), (1, 0));
    let tables = plan(&web(json!({})), &[slice(json!(many))], &context());
    assert_eq!((tables.balanced.len(), tables.endpoints.len(), tables.chains.len()), (0, 1, 2));
}

#[test]
fn local_policies_use_local_endpoints_and_drop_without() {
    let here = json!({"addresses": ["10.42.1.7"], "nodeName": "here"});
    let there = json!({"addresses": ["10.42.2.7"], "nodeName": "there"});
    let local = json!({"internalTrafficPolicy": "Local"});
    let tables = plan(&web(local.clone()), &[slice(json!([here, there]))], &context());
    assert_eq!(picked(&tables), [["10.42.1.7:8080"]]);
    let tables = plan(&web(local), &[slice(json!([there]))], &context());
    let front = &tables.chains[tables.service_ips.values().next().unwrap()];
    assert_eq!(front.steps.last(), Some(&Step::Drop));

    let external = json!({
        "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    });
    let tables = plan(&web(external), &[slice(json!([here, there]))], &context());
    let front = &tables.chains[&tables.node_ports[&(Family::V4, Protocol::Tcp, 30080)]].steps;
    assert!(matches!(front[0], Step::GotoIfFrom(cidr, _) if cidr == context().networks[0].pods), "{front:?}");
    assert!(!front.contains(&Step::Masquerade), "the client's address is kept: {front:?}");
}

#[test]
fn affinity_has_its_set_and_timeout() {
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let tables = plan(&web(spec), &[slice(json!([{"addresses": ["10.42.1.7"]}]))], &context());
    assert_eq!(tables.clients.values().map(|(_, timeout)| timeout.as_secs()).collect::<Vec<_>>(), [60]);
}

#[test]
fn external_addresses_and_load_balancers_enter_the_external_chain() {
    let mut service = (*web(json!({"externalIPs": ["192.0.2.1"]}))).clone();
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]}});
    service.status = Some(serde_json::from_value(status).unwrap());
    let tables = plan(&Arc::new(service), &[slice(json!([{"addresses": ["10.42.1.7"]}]))], &context());
    let external: Vec<String> = tables
        .service_ips
        .iter()
        .filter(|(_, chain)| chain.starts_with(EXTERNAL))
        .map(|((ip, _, _), _)| ip.to_string())
        .collect();
    assert_eq!(external, ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn a_load_balancer_lets_in_only_its_source_ranges() {
    let spec = json!({"externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8::/32"]});
    let mut service = (*web(spec)).clone();
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}});
    service.status = Some(serde_json::from_value(status).unwrap());
    let tables = plan(&service, &[slice(json!([{"addresses": ["10.42.1.7"]}]))], &context());
    let chain = |ip: [u8; 4]| tables.service_ips[&(IpAddr::from(ip), Protocol::Tcp, 80)].clone();
    let (external, balancer) = (chain([192, 0, 2, 1]), chain([192, 0, 2, 2]));
    let open = Step::GotoIfFrom("198.51.100.0/24".parse().unwrap(), external.clone());
    assert_eq!(tables.chains[&balancer].steps, [open, Step::Drop]);
    assert!(!tables.chains[&external].steps.contains(&Step::Drop));
}

#[test]
fn an_address_claimed_twice_goes_to_the_first_name_that_has_endpoints() {
    let claim = |name: &str, endpoints: Value| {
        let mut service = (*web(json!({"externalIPs": ["192.0.2.1"]}))).clone();
        service.metadata.name = Some(name.to_owned());
        plan(&service, &[slice(endpoints)], &context())
    };
    let some = || json!([{"addresses": ["10.42.1.7"]}]);
    let (a, b) = (Key::new(Some("default"), "a"), Key::new(Some("default"), "b"));
    let external = (IpAddr::from([192, 0, 2, 1]), Protocol::Tcp, 80);
    let mut book = Book::default();
    book.replace(&b, Some(claim("b", some())));
    book.replace(&a, Some(claim("a", json!([]))));
    let chain = |tables: &Tables| tables.service_ips[&external].clone();
    assert_eq!(book.whole().service_ips[&external], chain(&claim("b", some())));
    book.replace(&a, Some(claim("a", some())));
    assert_eq!(book.whole().service_ips[&external], chain(&claim("a", some())));
    book.replace(&a, None);
    assert_eq!(book.whole().service_ips[&external], chain(&claim("b", some())));
    book.replace(&b, Some(claim("b", json!([]))));
    assert!(book.whole().no_endpoints.contains(&external));
}

#[test]
fn hints_keep_endpoints_near_when_all_have_them() {
    let endpoint = |ip: &str, hints: Value| json!({"addresses": [ip], "hints": hints});
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let node = |name: &str, of: &str| json!({"forZones": [{"name": of}], "forNodes": [{"name": name}]});
    let pick = |a: Value, b: Value| {
        let slices = [slice(json!([endpoint("10.42.1.7", a), endpoint("10.42.2.7", b)]))];
        picked(&plan(&web(json!({})), &slices, &context())).concat()
    };
    let (first, both) = (vec!["10.42.1.7:8080"], vec!["10.42.1.7:8080", "10.42.2.7:8080"]);
    assert_eq!(pick(zone("east"), zone("west")), first);
    assert_eq!(pick(zone("east"), json!({})), both, "hints are being changed");
    assert_eq!(pick(zone("west"), zone("west")), both, "none for us");
    assert_eq!(pick(node("here", "east"), node("there", "east")), first);
    assert_eq!(pick(node("other", "east"), node("there", "west")), first, "no node, but the zone");
}

#[test]
fn health_checks_are_for_load_balancers_with_local_traffic() {
    let here = json!({"addresses": ["10.42.1.7"], "nodeName": "here"});
    let ending = json!({"addresses": ["10.42.1.8"], "nodeName": "here", "conditions": {"ready": false}});
    let there = json!({"addresses": ["10.42.2.7"], "nodeName": "there"});
    let check = |policy: &str, endpoints: Value| {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": 30123});
        plan(&web(spec), &[slice(endpoints)], &context()).health
    };
    let answer = |local_endpoints| Some(HealthCheck { port: 30123, local_endpoints });
    assert_eq!(check("Local", json!([here, ending, there])), answer(1));
    assert_eq!(check("Local", json!([there])), answer(0));
    assert_eq!(check("Cluster", json!([here])), None);
}

#[test]
fn each_family_has_its_own_tables() {
    let six = json!({
        "metadata": {"namespace": "default", "name": "web-2", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv6",
        "endpoints": [{"addresses": ["fd42:0:0:1::7"]}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    });
    let slices = [slice(json!([{"addresses": ["10.42.1.7"]}])), Arc::new(serde_json::from_value(six).unwrap())];
    let dual = json!({"clusterIPs": ["10.43.0.80", "fd43::80"]});
    let tables = plan(&web(dual.clone()), &slices, &context());
    assert_eq!(picked(&tables), [["10.42.1.7:8080"], ["[fd42:0:0:1::7]:8080"]]);
    // One address of the service, one family, whatever slices there are.
    assert_eq!(picked(&plan(&web(json!({})), &slices, &context())), [["10.42.1.7:8080"]]);
    // A node port leads to each family's endpoints, and is refused where there are none.
    let mut node_port = dual;
    node_port["type"] = json!("NodePort");
    node_port["ports"] = json!([{"name": "http", "port": 80, "nodePort": 30080}]);
    let tables = plan(&web(node_port.clone()), &slices, &context());
    let [four, six] = Family::BOTH.map(|family| tables.node_ports[&(family, Protocol::Tcp, 30080)].clone());
    assert_ne!(four, six);
    assert_eq!((tables.chains[&four].family, tables.chains[&six].family), (Family::V4, Family::V6));
    let tables = plan(&web(node_port), &slices[..1], &context());
    assert!(tables.node_ports.contains_key(&(Family::V4, Protocol::Tcp, 30080)));
    assert_eq!(tables.no_endpoint_ports, BTreeSet::from([(Family::V6, Protocol::Tcp, 30080)]));
    // Where only one family is used, nothing of the other is planned.
    let single = PlanContext { networks: context().networks[..1].to_vec(), ..context() };
    assert_eq!(picked(&plan(&web(json!({"clusterIPs": ["10.43.0.80", "fd43::80"]})), &slices, &single)).len(), 1);
}
