//! Profiles from upstream's configuration: which rules are on, what they weigh, and what that does to placement.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_scheduler::{Engine, Outcome, Profile, Strategy, profiles};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

fn parse(profiles_: Value) -> Result<Vec<Profile>, String> {
    let version = "kubescheduler.config.k8s.io/v1";
    let document = json!({"apiVersion": version, "kind": "KubeSchedulerConfiguration", "profiles": profiles_});
    profiles(&document).map_err(|error| error.to_string())
}

fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
    let allocatable = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
        "status": {"allocatable": allocatable}});
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, scheduler: &str, node: Option<&str>) -> Arc<Pod> {
    let requests = json!({"cpu": "1", "memory": "1Gi"});
    let pod = json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"schedulerName": scheduler,
        "nodeName": node, "containers": [{"name": "c", "resources": {"requests": requests}}]}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn chosen(engine: &Engine, pod: &Pod) -> String {
    match engine.decide(&("d".into(), pod.metadata.name.clone().unwrap()), pod) {
        Outcome::Bind { node } => node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_profile_decides_for_its_own_pods() {
    let packed = json!({"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}});
    let ratio = json!({"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "RequestedToCapacityRatio",
        "resources": [{"name": "cpu", "weight": 3}],
        "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}}});
    let added = json!({"name": "NodeAffinity", "args": {"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["b"]}]}]}}}});
    let none = json!({"score": {"disabled": [{"name": "*"}]}, "filter": {"disabled": [{"name": "TaintToleration"}]}});
    let all = parse(json!([
        {"schedulerName": "default-scheduler"},
        {"schedulerName": "packer", "pluginConfig": [packed]},
        {"schedulerName": "ratio", "pluginConfig": [ratio]},
        {"schedulerName": "pool-b", "pluginConfig": [added]},
        {"schedulerName": "blind", "plugins": none},
    ]))
    .unwrap();
    assert_eq!(all[2].strategy, Strategy::ByRatio(vec![(0, 0), (100, 100)]));
    assert_eq!((all[4].weights.fit, all[4].filters.taints, all[4].filters.fit), (0, false, true));
    let engine = Engine::with_profiles(all);
    engine.node_changed(node("n0", json!({}), json!([{"key": "t", "effect": "NoSchedule"}])));
    engine.node_changed(node("n1", json!({"pool": "a"}), json!([])));
    engine.node_changed(node("n2", json!({"pool": "b"}), json!([])));
    engine.pod_changed(("d".into(), "there".into()), &pod("there", "default-scheduler", Some("n1")));
    assert_eq!(chosen(&engine, &pod("a", "default-scheduler", None)), "n2");
    assert_eq!(chosen(&engine, &pod("b", "packer", None)), "n1");
    assert_eq!(chosen(&engine, &pod("c", "ratio", None)), "n1");
    assert_eq!(chosen(&engine, &pod("d", "pool-b", None)), "n2");
    assert_eq!(chosen(&engine, &pod("e", "blind", None)), "n0", "taints are not asked");
    assert_eq!(engine.decide(&("d".into(), "f".into()), &pod("f", "nobody", None)), Outcome::Ignore);
}

#[test]
fn weights_and_spread_defaults_are_read() {
    let constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"});
    let spread =
        json!({"name": "PodTopologySpread", "args": {"defaultConstraints": [constraint], "defaultingType": "List"}});
    let plugins = json!({"multiPoint": {"disabled": [{"name": "*"}],
        "enabled": [{"name": "NodeResourcesFit", "weight": 7}, {"name": "ImageLocality"}]}});
    let all = parse(json!([{"plugins": plugins, "pluginConfig": [spread]}])).unwrap();
    assert_eq!((all[0].weights.fit, all[0].weights.images, all[0].weights.taints), (7, 1, 0));
    assert!(all[0].filters.fit && !all[0].filters.ports);
    assert_eq!(all[0].name, "default-scheduler");
    assert_eq!(parse(json!([])).unwrap(), [Profile::default()]);
}

#[test]
fn mistakes_are_told() {
    let fit = |args: Value| json!([{"pluginConfig": [{"name": "NodeResourcesFit", "args": args}]}]);
    for (document, wanted) in [
        (json!([{"plugins": {"score": {"enabled": [{"name": "Mine"}]}}}]), "there is no plugin \"Mine\""),
        (json!([{"schedulerNam": "x"}]), "schedulerNam"),
        (json!([{"schedulerName": "x"}, {"schedulerName": "x"}]), "two profiles are named \"x\""),
        (fit(json!({"scoringStrategy": {"type": "RequestedToCapacityRatio"}})), "its shape is missing"),
        (json!([{"plugins": {"filter": {"disabled": [{"name": "SchedulingGates"}]}}}]), "cannot be disabled"),
    ] {
        let error = parse(document).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    let other = json!({"apiVersion": "v1", "kind": "Config"});
    assert!(profiles(&other).unwrap_err().to_string().contains("is not kubescheduler.config.k8s.io/v1"));
}
