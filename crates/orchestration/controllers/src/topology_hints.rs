//! Which zone's clients each endpoint is for, where a Service asks for `service.kubernetes.io/topology-mode: Auto`: every zone
//! gets endpoints in proportion to the processors of its nodes, its own ones first. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForZone};

const MODE: &str = "service.kubernetes.io/topology-mode";
/// Its name before it had other values.
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Nodes that run no ordinary pods say nothing about where clients are.
const NOT_COUNTED: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share an endpoint may have to do.
const OVERLOAD: f64 = 0.2;

/// Each zone's part of all processors.
pub type Shares = BTreeMap<String, f64>;

/// Whether the Service asks for it. The older annotation decides where both are there.
pub fn is_asked(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let mode = annotations.and_then(|all| all.get(OLD_MODE).or_else(|| all.get(MODE)));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

/// What of a node matters here: its zone and its processors, if it counts.
pub fn weight(node: &Node) -> Option<(Option<&str>, f64)> {
    let labels = node.metadata.labels.as_ref();
    if labels.is_some_and(|labels| NOT_COUNTED.iter().any(|label| labels.contains_key(*label))) {
        return None;
    }
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready")?;
    if ready.status != "True" {
        return None;
    }
    let zone = labels.and_then(|labels| labels.get(ZONE)).map(String::as_str).filter(|zone| !zone.is_empty());
    let processors = status.allocatable.as_ref().and_then(|all| all.get("cpu"));
    let processors = processors.and_then(|text| text.0.parse::<Quantity>().ok()).map(|quantity| quantity.approximate());
    Some((zone, processors.unwrap_or(0.0)))
}

/// `None` as long as any node that counts has no zone or no processors, and where there are fewer than two zones.
pub fn shares(nodes: &[Arc<Node>]) -> Option<Shares> {
    let mut of_zones: BTreeMap<String, f64> = BTreeMap::new();
    for (zone, processors) in nodes.iter().filter_map(|node| weight(node)) {
        let zone = zone.filter(|_| processors > 0.0)?;
        *of_zones.entry(zone.to_owned()).or_default() += processors;
    }
    let all: f64 = of_zones.values().sum();
    let share = |(zone, processors): (String, f64)| (zone, processors / all);
    (of_zones.len() >= 2).then(|| of_zones.into_iter().map(share).collect())
}

/// Gives every ready endpoint of one address family its zone, or takes all hints away and says why. `held` is what the
/// endpoints had so far: where one has to serve another zone, it goes on serving the same.
pub fn assign(
    endpoints: &mut [&mut Endpoint],
    shares: Option<&Shares>,
    held: impl Fn(&Endpoint) -> Option<String>,
) -> Result<(), String> {
    for endpoint in endpoints.iter_mut() {
        endpoint.hints = None;
    }
    let mut ready: Vec<&mut &mut Endpoint> = endpoints.iter_mut().filter(|endpoint| is_ready(endpoint)).collect();
    let desired = desired(ready.len(), shares)?;
    let mut zones: Vec<String> = Vec::new();
    for endpoint in &ready {
        let zone = endpoint.zone.clone().filter(|zone| !zone.is_empty());
        zones.push(zone.ok_or("One or more endpoints do not have a zone specified")?);
    }
    let mut have: BTreeMap<&str, usize> = BTreeMap::new();
    for zone in &zones {
        *have.entry(zone).or_default() += 1;
    }
    let (mut giving, mut receiving) = balance(&desired, &have);
    let mut wanted = zones.clone();
    // Who serves another zone already comes first, then whoever is first.
    for kept in [true, false] {
        for (index, endpoint) in ready.iter().enumerate() {
            let own = &zones[index];
            if wanted[index] != *own || giving.get(own).copied().unwrap_or(0) == 0 {
                continue;
            }
            let to = match kept {
                true => held(endpoint).filter(|zone| receiving.get(zone).is_some_and(|count| *count > 0)),
                false => receiving.iter().find(|(_, count)| **count > 0).map(|(zone, _)| zone.clone()),
            };
            if let Some(to) = to {
                *giving.entry(own.clone()).or_default() -= 1;
                *receiving.entry(to.clone()).or_default() -= 1;
                wanted[index] = to;
            }
        }
    }
    for (endpoint, name) in ready.iter_mut().zip(wanted) {
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None });
    }
    Ok(())
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

/// How many endpoints each zone should have, unless there are too few for that.
fn desired(endpoints: usize, shares: Option<&Shares>) -> Result<BTreeMap<String, f64>, String> {
    let shares =
        shares.ok_or("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes")?;
    let counts = || format!("({endpoints} endpoints, {} zones)", shares.len());
    if shares.len() > endpoints {
        return Err(format!("Insufficient number of endpoints {}", counts()));
    }
    let mut desired = BTreeMap::new();
    let mut least = 0.0;
    for (zone, share) in shares {
        let exact = share * float(endpoints);
        let minimum = (exact / (1.0 + OVERLOAD)).ceil();
        least += minimum;
        desired.insert(zone.clone(), exact.max(minimum));
    }
    if least > float(endpoints) {
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold {}",
            counts()
        ));
    }
    Ok(desired)
}

/// How many endpoints each zone gives away and gets. What is left over is under half an endpoint on one side, or under a
/// whole one on both.
fn balance(
    desired: &BTreeMap<String, f64>,
    have: &BTreeMap<&str, usize>,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let excess = |zone: &String| float(have.get(zone.as_str()).copied().unwrap_or(0)) - desired[zone];
    let mut over: BTreeMap<&String, f64> = desired.keys().map(|zone| (zone, excess(zone))).collect();
    let (mut giving, mut receiving) = (BTreeMap::new(), BTreeMap::new());
    let order = |one: &(&String, f64), other: &(&String, f64)| one.1.partial_cmp(&other.1).unwrap_or(Ordering::Equal);
    loop {
        let all = || over.iter().map(|(zone, excess)| (*zone, *excess));
        let (Some((from, much)), Some((to, little))) = (all().max_by(order), all().min_by(order)) else { break };
        let needed = -little;
        if much < 0.5 || needed < 0.5 || (much < 1.0 && needed < 1.0) {
            break;
        }
        *giving.entry(from.clone()).or_default() += 1;
        *receiving.entry(to.clone()).or_default() += 1;
        over.insert(from, much - 1.0);
        over.insert(to, little + 1.0);
    }
    (giving, receiving)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(zone: Option<&str>, cpu: &str, labels: Value, ready: &str) -> Arc<Node> {
        let mut labels = labels;
        if let Some(zone) = zone {
            labels[ZONE] = json!(zone);
        }
        let status = json!({"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"labels": labels}, "status": status})).unwrap())
    }

    fn endpoint(number: usize, zone: &str) -> Endpoint {
        serde_json::from_value(json!({
            "addresses": [format!("10.42.0.{number}")], "conditions": {"ready": true}, "zone": zone
        }))
        .unwrap()
    }

    fn hint(endpoint: &Endpoint) -> Option<String> {
        Some(endpoint.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone())
    }

    fn hinted(all: &[Endpoint], shares: &Shares, held: &[Endpoint]) -> Result<Vec<Endpoint>, String> {
        let mut all = all.to_vec();
        let before = |one: &Endpoint| held.iter().find(|old| old.addresses == one.addresses).and_then(hint);
        assign(&mut all.iter_mut().collect::<Vec<_>>(), Some(shares), before).map(|()| all)
    }

    fn counts(all: &[Endpoint]) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for zone in all.iter().filter_map(hint) {
            *counts.entry(zone).or_default() += 1;
        }
        counts
    }

    #[test]
    fn zones_have_shares_of_the_processors() {
        let (a, b) = (node(Some("a"), "3", json!({}), "True"), node(Some("b"), "1000m", json!({}), "True"));
        let server = node(None, "64", json!({"node-role.kubernetes.io/control-plane": ""}), "True");
        let away = node(None, "64", json!({}), "Unknown");
        let all = shares(&[a.clone(), b.clone(), server, away]).unwrap();
        assert_eq!(all, Shares::from([("a".to_owned(), 0.75), ("b".to_owned(), 0.25)]));
        for spoils in [node(None, "1", json!({}), "True"), node(Some("c"), "0", json!({}), "True")] {
            assert_eq!(shares(&[a.clone(), b.clone(), spoils]), None);
        }
        assert_eq!(shares(&[a]), None, "one zone");
    }

    #[test]
    fn each_zone_has_its_own_and_its_share() {
        let even = Shares::from([("a".to_owned(), 0.5), ("b".to_owned(), 0.5)]);
        let all: Vec<Endpoint> = (0..6).map(|n| endpoint(n, if n < 3 { "a" } else { "b" })).collect();
        let own = hinted(&all, &even, &[]).unwrap();
        assert!(own.iter().all(|one| hint(one) == one.zone), "{own:?}");
        // All pods in one zone: half of them serve the other.
        let crowd: Vec<Endpoint> = (0..6).map(|n| endpoint(n, "a")).collect();
        let shared = hinted(&crowd, &even, &[]).unwrap();
        assert_eq!(counts(&shared), BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 3)]));
        // One more changes nobody else's.
        let more: Vec<Endpoint> = (0..7).rev().map(|n| endpoint(n, "a")).collect();
        let after = hinted(&more, &even, &shared).unwrap();
        for old in &shared {
            let new = after.iter().find(|one| one.addresses == old.addresses).unwrap();
            assert_eq!(hint(new), hint(old));
        }
    }

    #[test]
    fn too_few_or_unknown_ones_have_no_hints() {
        let even = Shares::from([("a".to_owned(), 0.5), ("b".to_owned(), 0.5)]);
        let few = hinted(&[endpoint(1, "a")], &even, &[]).unwrap_err();
        assert_eq!(few, "Insufficient number of endpoints (1 endpoints, 2 zones)");
        let three: Vec<Endpoint> = (0..3).map(|n| endpoint(n, "a")).collect();
        let overload = hinted(&three, &even, &[]).unwrap_err();
        assert!(overload.contains("without exceeding overload threshold (3 endpoints, 2 zones)"), "{overload}");
        let mut unknown: Vec<Endpoint> = (0..4).map(|n| endpoint(n, "a")).collect();
        unknown[2].zone = None;
        assert!(hinted(&unknown, &even, &[]).unwrap_err().contains("do not have a zone"));
        // What is not ready serves nobody, and counts for nothing.
        unknown[2].conditions.as_mut().unwrap().ready = Some(false);
        unknown.push(endpoint(9, "b"));
        let given = hinted(&unknown, &even, &[]).unwrap();
        assert_eq!((hint(&given[2]), counts(&given).values().sum::<usize>()), (None, 4));
        let mut all: Vec<Endpoint> = (0..4).map(|n| endpoint(n, "a")).collect();
        all[0].hints = given[0].hints.clone();
        let refused = assign(&mut all.iter_mut().collect::<Vec<_>>(), None, |_| None).unwrap_err();
        assert!(refused.starts_with("Insufficient Node information") && all[0].hints.is_none(), "{refused}");
    }

    proptest::proptest! {
        /// Whatever the zones are: every endpoint is for somebody, and no zone has much less than its share.
        #[test]
        fn no_zone_is_overloaded(
            processors in proptest::collection::vec(1_u32..64, 2..6),
            zones in proptest::collection::vec(0_usize..6, 0..60),
        ) {
            let total: u32 = processors.iter().sum();
            let shares: Shares = processors
                .iter()
                .enumerate()
                .map(|(zone, count)| (zone.to_string(), f64::from(*count) / f64::from(total)))
                .collect();
            let all: Vec<Endpoint> =
                zones.iter().enumerate().map(|(n, zone)| endpoint(n, &(zone % processors.len()).to_string())).collect();
            if let Ok(given) = hinted(&all, &shares, &[]) {
                let counts = counts(&given);
                for (zone, share) in &shares {
                    let least = (share * float(all.len()) / (1.0 + OVERLOAD)).floor();
                    let have = counts.get(zone).copied().unwrap_or(0);
                    proptest::prop_assert!(float(have) + 1.0 >= least, "{zone}: {have} of {counts:?}, {shares:?}");
                }
                proptest::prop_assert_eq!(counts.values().sum::<usize>(), all.len());
            }
        }
    }
}
