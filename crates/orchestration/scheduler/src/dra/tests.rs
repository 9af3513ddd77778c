//! The search against an oracle that tries every assignment and judges it as a whole; and what it says in single cases.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult, ResourceClaim};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::allocate::allocate;
use super::known::Devices;

const DRIVER: &str = "x.io";

fn node(name: &str) -> Node {
    let zone = format!("zone-of-{name}");
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": zone}}})).unwrap()
}

fn class(known: &mut Devices, name: &str, spec: Value) {
    let class = json!({"metadata": {"name": name}, "spec": spec});
    known.set_class(name, Some(Arc::new(serde_json::from_value(class).unwrap())));
}

fn slice(known: &mut Devices, name: &str, spec: Value) {
    let mut all = json!({"driver": DRIVER, "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let slice = json!({"metadata": {"name": name}, "spec": all});
    known.set_slice(name, Some(Arc::new(serde_json::from_value(slice).unwrap())));
}

fn claim(name: &str, devices: Value) -> ResourceClaim {
    let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"devices": devices}});
    serde_json::from_value(claim).unwrap()
}

fn request(more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "any", "allocationMode": "ExactCount", "count": 1});
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"requests": [{"name": "r", "exactly": exactly}]})
}

fn known() -> Devices {
    let mut known = Devices::default();
    class(&mut known, "any", json!({"selectors": [{"cel": {"expression": "device.driver == 'x.io'"}}]}));
    known
}

fn results(of: &AllocationResult) -> &[DeviceRequestAllocationResult] {
    of.devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or_default()
}

fn names(given: &Result<Option<Vec<AllocationResult>>, String>) -> Vec<&str> {
    let all = given.as_ref().unwrap().iter().flatten();
    all.flat_map(|one| results(one).iter().map(|result| result.device.as_str())).collect()
}

fn use_of(known: &mut Devices, name: &str, result: Value) {
    let status = json!({"allocation": {"devices": {"results": [result]}}});
    let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {}, "status": status});
    known.set_claim(&("default".into(), name.into()), Some(Arc::new(serde_json::from_value(claim).unwrap())));
}

#[test]
fn rules_taint_devices_as_drivers_do() {
    let mut known = known();
    slice(&mut known, "p", json!({"nodeName": "n", "devices": [{"name": "a"}, {"name": "b"}]}));
    let rule = |selector: Value, effect: &str| {
        let taint = json!({"key": "k", "value": "v", "effect": effect});
        let rule = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": selector, "taint": taint}});
        Some(Arc::new(serde_json::from_value(rule).unwrap()))
    };
    let one = claim("c", request(json!({})));
    known.set_taint_rule("r", rule(json!({"driver": DRIVER, "device": "a"}), "NoSchedule"));
    assert_eq!(names(&allocate(&known, &node("n"), &[&one])), ["b"]);
    let tolerant = claim("c", request(json!({"tolerations": [{"key": "k", "operator": "Equal", "value": "v"}]})));
    assert_eq!(names(&allocate(&known, &node("n"), &[&tolerant])), ["a"]);
    known.set_taint_rule("r", rule(json!({}), "NoExecute"));
    assert_eq!(allocate(&known, &node("n"), &[&one]).unwrap(), None);
    known.set_taint_rule("r", rule(json!({}), "None"));
    assert_eq!(names(&allocate(&known, &node("n"), &[&one])), ["a"]);
    known.set_taint_rule("r", None);
    assert_eq!(names(&allocate(&known, &node("n"), &[&one])), ["a"]);
}

#[test]
fn what_has_to_be_done_to_a_device_comes_along() {
    let mut known = known();
    let device = json!({"name": "d", "bindsToNode": true, "bindingConditions": ["Wired"], "bindingFailureConditions": ["Broken"]});
    slice(&mut known, "p", json!({"allNodes": true, "devices": [device]}));
    let given = allocate(&known, &node("n"), &[&claim("c", request(json!({})))]).unwrap().unwrap();
    assert!(super::is_conditional(&given[0]) && given[0].node_selector.is_some(), "{given:?}");
    assert_eq!(results(&given[0])[0].binding_failure_conditions.as_deref(), Some(&["Broken".to_owned()][..]));
}

#[test]
fn pools_count_when_all_of_their_newest_generation_is_there() {
    let mut known = known();
    let one = claim("c", request(json!({})));
    let part = |generation: i64, count: i64, device: &str| {
        json!({"nodeName": "n", "devices": [{"name": device}],
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": count}})
    };
    slice(&mut known, "a", part(1, 1, "old"));
    assert_eq!(names(&allocate(&known, &node("n"), &[&one])), ["old"]);
    slice(&mut known, "b", part(2, 2, "new-1"));
    assert_eq!(allocate(&known, &node("n"), &[&one]).unwrap(), None, "half of a pool");
    let all = claim("c", request(json!({"allocationMode": "All", "count": null})));
    let why = allocate(&known, &node("n"), &[&all]).unwrap_err();
    assert!(why.contains("asks for all devices, but resource pool x.io/p is currently being updated"), "{why}");
    slice(&mut known, "c", part(2, 2, "new-2"));
    assert_eq!(names(&allocate(&known, &node("n"), &[&one])), ["new-1"]);
    assert_eq!(names(&allocate(&known, &node("n"), &[&all])), ["new-1", "new-2"]);
    slice(&mut known, "c", part(2, 2, "new-1"));
    let why = allocate(&known, &node("n"), &[&all]).unwrap_err();
    assert!(why.contains("currently invalid"), "{why}");
}

#[test]
fn devices_are_where_their_slices_say() {
    let mut known = known();
    let one = claim("c", request(json!({})));
    slice(
        &mut known,
        "zone",
        json!({"devices": [{"name": "z"}], "nodeSelector": {"nodeSelectorTerms":
        [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["zone-of-n"]}]}]}}),
    );
    let given = allocate(&known, &node("n"), &[&one]).unwrap().unwrap();
    let term = &given[0].node_selector.as_ref().unwrap().node_selector_terms[0];
    assert_eq!(term.match_expressions.as_ref().unwrap()[0].key, "zone");
    assert_eq!(allocate(&known, &node("m"), &[&one]).unwrap(), None);
    slice(&mut known, "all", json!({"allNodes": true, "devices": [{"name": "a"}]}));
    let given = allocate(&known, &node("m"), &[&one]).unwrap().unwrap();
    assert_eq!((results(&given[0])[0].device.as_str(), &given[0].node_selector), ("a", &None));
    slice(
        &mut known,
        "each",
        json!({"perDeviceNodeSelection": true,
        "devices": [{"name": "of-n", "nodeName": "n"}, {"name": "of-m", "nodeName": "m"}]}),
    );
    let two = claim("c", request(json!({"count": 2})));
    let given = allocate(&known, &node("m"), &[&two]);
    assert_eq!(names(&given), ["a", "of-m"]);
    let selector = given.unwrap().unwrap().remove(0).node_selector.unwrap();
    assert_eq!(selector.node_selector_terms[0].match_fields.as_ref().unwrap()[0].values, Some(vec!["m".to_owned()]));
}

#[test]
fn classes_and_claims_configure_what_was_chosen() {
    let mut known = known();
    let opaque = |word: &str| json!({"opaque": {"driver": DRIVER, "parameters": {"word": word}}});
    class(&mut known, "big", json!({"selectors": [{"cel": {"expression": "device.attributes['x.io'].size > 5"}}]}));
    class(&mut known, "small", json!({"config": [opaque("of-class")]}));
    slice(&mut known, "p", json!({"nodeName": "n", "devices": [{"name": "d", "attributes": {"size": {"int": 1}}}]}));
    let mut config = vec![opaque("for-all"), opaque("for-big"), opaque("for-small")];
    config[1]["requests"] = json!(["r/big"]);
    config[2]["requests"] = json!(["r/small"]);
    let sub = |name: &str| json!({"name": name, "deviceClassName": name, "allocationMode": "ExactCount", "count": 1});
    let first = claim(
        "c",
        json!({"requests": [{"name": "r", "firstAvailable": [sub("big"), sub("small")]}], "config": config}),
    );
    let given = allocate(&known, &node("n"), &[&first]).unwrap().unwrap();
    assert_eq!(results(&given[0])[0].request, "r/small");
    let config = given[0].devices.as_ref().unwrap().config.as_ref().unwrap();
    let said: Vec<(&str, &str)> = config
        .iter()
        .map(|one| (one.source.as_str(), one.opaque.as_ref().unwrap().parameters.0["word"].as_str().unwrap()))
        .collect();
    assert_eq!(said, [("FromClass", "of-class"), ("FromClaim", "for-all"), ("FromClaim", "for-small")]);
}

#[test]
fn what_is_wrong_is_said() {
    let mut known = known();
    slice(&mut known, "p", json!({"nodeName": "n", "devices": [{"name": "d"}]}));
    let cel = |text: &str| json!({"selectors": [{"cel": {"expression": text}}]});
    let why = |claim: &ResourceClaim| allocate(&known, &node("n"), &[claim]).unwrap_err();
    let lacks = why(&claim("c", request(cel("device.attributes['x.io'].size > 5"))));
    assert!(lacks.starts_with("claim default/c: selector #0: CEL runtime error: no such key: size"), "{lacks}");
    let unknown = why(&claim("c", request(json!({"deviceClassName": "none"}))));
    assert_eq!(unknown, "request r: device class none does not exist");
    let many = why(&claim("c", request(json!({"count": 33}))));
    assert_eq!(many, "claim default/c: number of requested devices 33 exceeds the claim limit of 32");
}

#[test]
fn equal_devices_do_not_multiply_the_work() {
    let mut known = known();
    let device = |index: usize| json!({"name": format!("d{index}"), "attributes": {"kind": {"string": "same"}}});
    slice(&mut known, "p", json!({"nodeName": "n", "devices": (0..60).map(device).collect::<Vec<_>>()}));
    let requests: Vec<Value> = (0..8)
        .map(|index| {
            json!({"name": format!("r{index}"), "exactly":
            {"deviceClassName": "any", "allocationMode": "ExactCount", "count": 4}})
        })
        .collect();
    let possible = claim("c", json!({"requests": requests}));
    assert_eq!(names(&allocate(&known, &node("n"), &[&possible])).len(), 32);
    let distinct = json!([{"distinctAttribute": "x.io/kind"}]);
    let impossible = claim("c", json!({"requests": requests, "constraints": distinct}));
    assert_eq!(allocate(&known, &node("n"), &[&impossible]), Ok(None));
}

#[test]
fn what_is_used_is_given_back_with_its_claim() {
    let mut known = known();
    slice(&mut known, "p", json!({"nodeName": "n", "devices": [{"name": "d"}]}));
    let one = claim("c", request(json!({})));
    let key = ("default".to_owned(), "c".to_owned());
    known.set_claim(&key, Some(Arc::new(one.clone())));
    let given = Arc::new(allocate(&known, &node("n"), &[&one]).unwrap().unwrap().remove(0));
    known.take(&key, given);
    let other = claim("o", request(json!({})));
    assert_eq!(allocate(&known, &node("n"), &[&other]), Ok(None));
    let admin = claim("o", request(json!({"adminAccess": true})));
    assert_eq!(names(&allocate(&known, &node("n"), &[&admin])), ["d"]);
    known.give_back(&key);
    assert_eq!(names(&allocate(&known, &node("n"), &[&other])), ["d"]);
    use_of(&mut known, "x", json!({"request": "r", "driver": DRIVER, "pool": "p", "device": "d"}));
    assert_eq!(allocate(&known, &node("n"), &[&other]), Ok(None));
    known.set_claim(&("default".into(), "x".into()), None);
    assert_eq!(names(&allocate(&known, &node("n"), &[&other])), ["d"]);
}

#[derive(Debug, Clone)]
struct PlainDevice {
    pool: usize,
    kind: i64,
    tainted: bool,
    used: bool,
    /// Of its pool's counter.
    takes: i64,
    /// What of it is left for claims that share it.
    shared: Option<i64>,
}

#[derive(Debug, Clone)]
struct PlainAsk {
    count: usize,
    all: bool,
    kind: Option<i64>,
    tolerates: bool,
    admin: bool,
    part: i64,
}

#[derive(Debug, Clone)]
struct PlainClaim {
    requests: Vec<Vec<PlainAsk>>,
    /// All devices are of one kind, or each of another.
    same: Option<bool>,
}

const TOTAL: i64 = 3;

fn devices() -> impl Strategy<Value = Vec<PlainDevice>> {
    let shared = prop::option::weighted(0.25, 0..=TOTAL);
    let one = (0..2_usize, 0..3_i64, prop::bool::weighted(0.2), prop::bool::weighted(0.2), 0..3_i64, shared);
    let one = one.prop_map(|(pool, kind, tainted, used, takes, shared)| {
        let used = if shared.is_some() { false } else { used };
        PlainDevice { pool, kind, tainted, used, takes, shared }
    });
    prop::collection::vec(one, 1..5)
}

fn ask() -> impl Strategy<Value = PlainAsk> {
    let kind = prop::option::weighted(0.6, 0..3_i64);
    let bools = (prop::bool::weighted(0.15), any::<bool>(), prop::bool::weighted(0.15));
    (1..3_usize, kind, bools, 1..=TOTAL).prop_map(|(count, kind, (all, tolerates, admin), part)| PlainAsk {
        count,
        all,
        kind,
        tolerates,
        admin,
        part,
    })
}

fn claims() -> impl Strategy<Value = Vec<PlainClaim>> {
    let ways = prop_oneof![3 => prop::collection::vec(ask(), 1), 1 => prop::collection::vec(ask(), 2)];
    let one = (prop::collection::vec(ways, 1..3), prop::option::weighted(0.4, any::<bool>()));
    prop::collection::vec(one.prop_map(|(requests, same)| PlainClaim { requests, same }), 1..3)
}

/// A device of a request: the claim, the ask and the device.
type Slot<'a> = (usize, &'a PlainAsk, usize);

fn is_kind(ask: &PlainAsk, device: &PlainDevice) -> bool {
    ask.kind.is_none_or(|kind| kind == device.kind)
}

/// Judges an assignment as a whole.
fn is_right(devices: &[PlainDevice], counters: [i64; 2], claims: &[PlainClaim], slots: &[Slot<'_>]) -> bool {
    let own = |index: usize| slots.iter().filter(move |(_, _, device)| *device == index);
    for (index, device) in devices.iter().enumerate() {
        let takers = own(index).filter(|(_, ask, _)| !ask.admin);
        let right = match device.shared {
            Some(left) => takers.map(|(_, ask, _)| ask.part).sum::<i64>() <= left,
            None => {
                let twice = (0..claims.len()).any(|claim| own(index).filter(|slot| slot.0 == claim).count() > 1);
                !twice && (takers.count() + usize::from(device.used) <= 1 || own(index).all(|(_, ask, _)| ask.admin))
            }
        };
        if !right {
            return false;
        }
    }
    for (pool, left) in counters.iter().enumerate() {
        let new = |(index, device): &(usize, &PlainDevice)| {
            let in_use = device.used || device.shared.is_some_and(|left| left < TOTAL);
            device.pool == pool && !in_use && own(*index).any(|(_, ask, _)| !ask.admin)
        };
        let taken: Vec<i64> = devices.iter().enumerate().filter(new).map(|(_, device)| device.takes).collect();
        let before: i64 = devices
            .iter()
            .filter(|device| device.pool == pool && (device.used || device.shared.is_some_and(|left| left < TOTAL)))
            .map(|device| device.takes)
            .sum();
        // What is in use already is, whatever the counters say.
        if !taken.is_empty() && taken.iter().sum::<i64>() > left - before {
            return false;
        }
    }
    slots.iter().all(|(claim, ask, device)| {
        let device = &devices[*device];
        let others = slots.iter().filter(|(other, _, _)| other == claim).map(|(_, _, other)| devices[*other].kind);
        let kinds: Vec<i64> = others.collect();
        let alike = |kind: i64| kinds.iter().filter(|other| **other == kind).count();
        is_kind(ask, device)
            && (!device.tainted || ask.tolerates)
            && match claims[*claim].same {
                None => true,
                Some(true) => alike(device.kind) == kinds.len(),
                Some(false) => alike(device.kind) == 1,
            }
    })
}

/// The ways, one for each request, of the first right assignment: of two, the first is the one whose first request that is
/// fulfilled otherwise has the earlier way, or the earlier devices.
fn oracle(devices: &[PlainDevice], counters: [i64; 2], claims: &[PlainClaim]) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..devices.len()).collect();
    order.sort_by_key(|index| devices[*index].pool);
    let requests: Vec<(usize, &Vec<PlainAsk>)> = claims
        .iter()
        .enumerate()
        .flat_map(|(index, claim)| claim.requests.iter().map(move |ways| (index, ways)))
        .collect();
    let judge = |slots: &[Slot<'_>]| is_right(devices, counters, claims, slots);
    assign(devices, &order, &requests, &mut Vec::new(), &judge)
}

fn assign<'a>(
    devices: &[PlainDevice],
    order: &[usize],
    requests: &[(usize, &'a Vec<PlainAsk>)],
    slots: &mut Vec<Slot<'a>>,
    judge: &dyn Fn(&[Slot<'_>]) -> bool,
) -> Option<Vec<usize>> {
    let Some(((claim, all), rest)) = requests.split_first() else { return judge(slots).then(Vec::new) };
    all.iter().enumerate().find_map(|(way, ask)| {
        let choices = if ask.all {
            let every: Vec<usize> = order.iter().copied().filter(|index| is_kind(ask, &devices[*index])).collect();
            if every.is_empty() { Vec::new() } else { vec![every] }
        } else {
            // In their order, the last changing fastest.
            (0..ask.count).fold(vec![Vec::new()], |so_far: Vec<Vec<usize>>, _| {
                so_far.iter().flat_map(|some| order.iter().map(|one| [some.as_slice(), &[*one]].concat())).collect()
            })
        };
        choices.into_iter().find_map(|choice| {
            slots.extend(choice.iter().map(|device| (*claim, ask, *device)));
            let found = assign(devices, order, rest, slots, judge);
            slots.truncate(slots.len() - choice.len());
            found.map(|later| [&[way], later.as_slice()].concat())
        })
    })
}

fn cluster(devices: &[PlainDevice], counters: [i64; 2]) -> Devices {
    let mut known = known();
    for (pool, left) in counters.iter().enumerate() {
        let name = format!("p{pool}");
        let own = devices.iter().enumerate().filter(|(_, device)| device.pool == pool);
        let described = own.map(|(index, device)| {
            let mut described = json!({"name": format!("d{index}"), "attributes": {"kind": {"int": device.kind}},
                "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": device.takes.to_string()}}}]});
            if device.tainted {
                described["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
            }
            described["capacity"] = json!({"size": {"value": TOTAL.to_string()}});
            if device.shared.is_some() {
                described["allowMultipleAllocations"] = json!(true);
            }
            described
        });
        let count = json!({"name": name, "generation": 1, "resourceSliceCount": 2});
        slice(&mut known, &name, json!({"nodeName": "n", "pool": count, "devices": described.collect::<Vec<_>>()}));
        let sets = json!([{"name": "s", "counters": {"c": {"value": left.to_string()}}}]);
        slice(&mut known, &format!("{name}-counters"), json!({"nodeName": "n", "pool": count, "sharedCounters": sets}));
    }
    for (index, device) in devices.iter().enumerate() {
        let mut result = json!({"request": "r", "driver": DRIVER, "pool": format!("p{}", device.pool),
            "device": format!("d{index}")});
        match device.shared {
            Some(left) if left < TOTAL => {
                result["shareID"] = json!("7f0d5e0c-0000-4000-8000-000000000000");
                result["consumedCapacity"] = json!({"size": (TOTAL - left).to_string()});
            }
            None if device.used => {}
            _ => continue,
        }
        use_of(&mut known, &format!("u{index}"), result);
    }
    known
}

fn described(index: usize, plain: &PlainClaim) -> ResourceClaim {
    let way = |ask: &PlainAsk| {
        let mut way = json!({"deviceClassName": "any", "capacity": {"requests": {"size": ask.part.to_string()}},
            "allocationMode": if ask.all { "All" } else { "ExactCount" }});
        if !ask.all {
            way["count"] = json!(ask.count);
        }
        if let Some(kind) = ask.kind {
            way["selectors"] = json!([{"cel": {"expression": format!("device.attributes['x.io'].kind == {kind}")}}]);
        }
        if ask.tolerates {
            way["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        }
        way
    };
    let requests = plain.requests.iter().enumerate().map(|(number, ways)| match ways.as_slice() {
        [one] => {
            let mut exactly = way(one);
            exactly["adminAccess"] = json!(one.admin);
            json!({"name": format!("r{number}"), "exactly": exactly})
        }
        many => {
            let subs = many.iter().enumerate().map(|(sub, ask)| {
                let mut one = way(ask);
                one["name"] = json!(format!("s{sub}"));
                one
            });
            json!({"name": format!("r{number}"), "firstAvailable": subs.collect::<Vec<_>>()})
        }
    });
    let mut devices = json!({"requests": requests.collect::<Vec<_>>()});
    if let Some(same) = plain.same {
        devices["constraints"] = json!([{if same { "matchAttribute" } else { "distinctAttribute" }: "x.io/kind"}]);
    }
    claim(&format!("c{index}"), devices)
}

/// The assignment that was found, and the way that each request got.
fn read<'a>(claims: &'a [PlainClaim], given: &[AllocationResult]) -> (Vec<Slot<'a>>, Vec<usize>) {
    let (mut slots, mut ways) = (Vec::new(), BTreeMap::new());
    for (index, allocation) in given.iter().enumerate() {
        for result in results(allocation) {
            let (request, sub) = result.request.split_once("/s").unwrap_or((&result.request, "0"));
            let (request, way) = (request[1..].parse::<usize>().unwrap(), sub.parse::<usize>().unwrap());
            ways.insert((index, request), way);
            slots.push((index, &claims[index].requests[request][way], result.device[1..].parse::<usize>().unwrap()));
        }
    }
    (slots, ways.into_values().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_search_finds_what_there_is_and_nothing_else(
        devices in devices(),
        counters in [0..6_i64, 0..6_i64],
        mut claims in claims(),
    ) {
        // A subrequest cannot ask to look after devices.
        for ways in claims.iter_mut().flat_map(|claim| &mut claim.requests).filter(|ways| ways.len() > 1) {
            ways.iter_mut().for_each(|ask| ask.admin = false);
        }
        let known = cluster(&devices, counters);
        let described: Vec<ResourceClaim> = claims.iter().enumerate().map(|(i, claim)| described(i, claim)).collect();
        let given = allocate(&known, &node("n"), &described.iter().collect::<Vec<_>>()).unwrap();
        let expected = oracle(&devices, counters, &claims);
        match given {
            None => prop_assert_eq!(expected, None),
            Some(given) => {
                let (slots, ways) = read(&claims, &given);
                prop_assert!(is_right(&devices, counters, &claims, &slots), "{:?}", slots);
                prop_assert_eq!(Some(ways), expected);
            }
        }
    }
}
