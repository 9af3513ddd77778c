//! What pods may ask of each other and of where they are spread, one policy at a time.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_scheduler::{Engine, Outcome, PodKey, Profile, profiles};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

fn key(name: &str) -> PodKey {
    ("default".to_owned(), name.to_owned())
}

fn engine(nodes: &[(&str, Value, Value)]) -> Engine {
    with_profiles(vec![Profile::default()], nodes)
}

fn with_profiles(profiles: Vec<Profile>, nodes: &[(&str, Value, Value)]) -> Engine {
    let engine = Engine::with_profiles(profiles);
    for (name, labels, spec) in nodes {
        let mut labels = labels.clone();
        labels["kubernetes.io/hostname"] = json!(name);
        let size = json!({"cpu": "4", "memory": "8Gi", "pods": "110", "example.com/gpu": "8"});
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": size}});
        let node: Node = serde_json::from_value(node).unwrap();
        engine.node_changed(Arc::new(node));
    }
    engine
}

fn pod(name: &str, labels: Value, spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": spec}))
        .unwrap()
}

fn see(engine: &Engine, pod: &Pod, node: &str) {
    let mut there = pod.clone();
    there.spec.as_mut().unwrap().node_name = Some(node.to_owned());
    engine.pod_changed(key(there.metadata.name.as_deref().unwrap()), &Arc::new(there));
}

fn decide(engine: &Engine, pod: &Pod) -> Result<String, String> {
    match engine.decide(&key(pod.metadata.name.as_deref().unwrap()), pod) {
        Outcome::Bind { node } => Ok(node),
        Outcome::Wait(why) => Err(why.plain()),
        other => panic!("{other:?}"),
    }
}

fn spread(key: &str, more: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    for (name, value) in more.as_object().unwrap() {
        constraint[name] = value.clone();
    }
    json!({"topologySpreadConstraints": [constraint]})
}

const HOST: &str = "kubernetes.io/hostname";

#[test]
fn spread_counts_only_pods_of_the_same_labels() {
    let engine = engine(&[("n1", json!({}), json!({})), ("n2", json!({}), json!({}))]);
    // Of version 1 there are two more on n1: a further one has to go to n2, one of version 2 may go anywhere.
    let web = |name: &str, version: &str, keys: Value| {
        pod(name, json!({"app": "web", "version": version}), spread(HOST, json!({"matchLabelKeys": keys})))
    };
    see(&engine, &web("a", "1", json!([])), "n1");
    let with = |name: &str, version: &str| {
        let mut spec = spread(HOST, json!({"matchLabelKeys": ["version"]}));
        spec["nodeSelector"] = json!({HOST: "n1"});
        spec["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
        pod(name, json!({"app": "web", "version": version}), spec)
    };
    assert_eq!(decide(&engine, &with("b", "2")), Ok("n1".into()));
    let refused = decide(&engine, &with("c", "1")).unwrap_err();
    assert!(refused.contains("1 node(s) didn't match pod topology spread constraints"), "{refused}");
    assert_eq!(decide(&engine, &web("d", "1", json!(["version"]))), Ok("n2".into()));
}

#[test]
fn too_few_domains_count_as_empty_ones() {
    let engine = engine(&[("n1", json!({"zone": "a"}), json!({})), ("n2", json!({"zone": "b"}), json!({}))]);
    let web = |name: &str, more: Value| pod(name, json!({"app": "web"}), spread("zone", more));
    see(&engine, &web("a", json!({})), "n1");
    see(&engine, &web("b", json!({})), "n2");
    assert!(decide(&engine, &web("c", json!({"minDomains": 3}))).is_err(), "a third zone would have none");
    assert!(decide(&engine, &web("d", json!({"minDomains": 2}))).is_ok());
}

#[test]
fn nodes_that_a_pod_cannot_use_count_as_their_policies_say() {
    let tainted = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
    let nodes = [
        ("n1", json!({"pool": "x"}), json!({})),
        ("n2", json!({"pool": "x"}), tainted),
        ("n3", json!({"pool": "y"}), json!({})),
    ];
    let engine = engine(&nodes);
    let web = |name: &str, more: Value| {
        let mut spec = spread(HOST, more);
        spec["nodeSelector"] = json!({"pool": "x"});
        pod(name, json!({"app": "web"}), spec)
    };
    see(&engine, &web("a", json!({})), "n1");
    // n2 is empty and counts, though its taint is not tolerated.
    assert!(decide(&engine, &web("b", json!({}))).is_err());
    assert!(decide(&engine, &web("b2", json!({"nodeTaintsPolicy": "Ignore"}))).is_err());
    assert_eq!(decide(&engine, &web("c", json!({"nodeTaintsPolicy": "Honor"}))), Ok("n1".into()));
    // n3 is empty and not in its pool: it only counts if that is ignored.
    let ignoring = json!({"nodeTaintsPolicy": "Honor", "nodeAffinityPolicy": "Ignore"});
    assert!(decide(&engine, &web("d", ignoring)).is_err());
}

#[test]
fn terms_find_pods_of_other_values_by_mismatched_keys() {
    let engine = engine(&[("n1", json!({}), json!({})), ("n2", json!({}), json!({}))]);
    let term = json!({"topologyKey": HOST, "labelSelector": {"matchExpressions": [{"key": "tenant", "operator": "Exists"}]},
        "mismatchLabelKeys": ["tenant"]});
    let alone = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
    let of = |name: &str, tenant: &str| pod(name, json!({"tenant": tenant}), alone.clone());
    see(&engine, &of("a1", "a"), "n1");
    assert_eq!(decide(&engine, &of("b1", "b")), Ok("n2".into()), "not beside another tenant");
    let mut beside = of("a2", "a");
    beside.spec.as_mut().unwrap().node_selector = Some([(HOST.to_owned(), "n1".to_owned())].into());
    assert_eq!(decide(&engine, &beside), Ok("n1".into()), "beside its own");
    let mut wrong = of("a3", "a");
    wrong.spec.as_mut().unwrap().node_selector = Some([(HOST.to_owned(), "n2".to_owned())].into());
    assert!(decide(&engine, &wrong).unwrap_err().contains("didn't match pod anti-affinity rules"));
}

#[test]
fn gates_hold_a_pod_back() {
    let engine = engine(&[("n1", json!({}), json!({}))]);
    let gated = pod("p", json!({}), json!({"schedulingGates": [{"name": "wait"}]}));
    engine.pod_changed(key("p"), &Arc::new(gated.clone()));
    assert!(engine.next().is_none());
    assert_eq!(engine.decide(&key("p"), &gated), Outcome::Ignore);
    engine.pod_changed(key("p"), &Arc::new(pod("p", json!({}), json!({}))));
    let decided = engine.next().unwrap();
    assert_eq!(decided[0].2, Outcome::Bind { node: "n1".into() });
}

#[test]
fn extended_resources_are_counted() {
    let engine = engine(&[("n1", json!({}), json!({}))]);
    let wants = |name: &str, count: &str| {
        let resources = json!({"requests": {"example.com/gpu": count}, "limits": {"example.com/gpu": count}});
        pod(name, json!({}), json!({"containers": [{"name": "c", "resources": resources}]}))
    };
    assert_eq!(decide(&engine, &wants("a", "5")), Ok("n1".into()));
    let refused = decide(&engine, &wants("b", "4")).unwrap_err();
    assert_eq!(refused, "0/1 nodes are available: 1 Insufficient example.com/gpu.");
    assert_eq!(decide(&engine, &wants("c", "3")), Ok("n1".into()));
}

fn configured(config: Value) -> Vec<Profile> {
    profiles(&json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"pluginConfig": [config]}]}))
    .unwrap()
}

#[test]
fn requested_to_capacity_follows_its_shape() {
    // Best at half: n1 would be at 3/4, n2 at 1/2, n3 at 1/4.
    let shape =
        json!([{"utilization": 0, "score": 0}, {"utilization": 50, "score": 10}, {"utilization": 100, "score": 0}]);
    let fit = json!({"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "RequestedToCapacityRatio",
        "resources": [{"name": "example.com/gpu", "weight": 5}], "requestedToCapacityRatio": {"shape": shape}}}});
    let nodes = ["n1", "n2", "n3"].map(|name| (name, json!({}), json!({})));
    let engine = with_profiles(configured(fit), &nodes);
    let wants = |name: &str, count: &str| {
        let resources = json!({"requests": {"example.com/gpu": count, "cpu": "0", "memory": "0"}});
        pod(name, json!({}), json!({"containers": [{"name": "c", "resources": resources}]}))
    };
    see(&engine, &wants("a", "4"), "n1");
    see(&engine, &wants("b", "2"), "n2");
    assert_eq!(decide(&engine, &wants("c", "2")), Ok("n2".into()));
}

#[test]
fn preferred_terms_of_others_are_ignored_where_configured() {
    let nodes = || ["n1", "n2"].map(|name| (name, json!({}), json!({})));
    let affinity = |ignore: bool| {
        configured(json!({"name": "InterPodAffinity", "args": {"ignorePreferredTermsOfExistingPods": ignore}}))
    };
    let term = json!({"topologyKey": HOST, "labelSelector": {"matchLabels": {"app": "web"}}});
    let likes = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 100, "podAffinityTerm": term}]}}});
    for (ignore, node) in [(false, "n2"), (true, "n1")] {
        let engine = with_profiles(affinity(ignore), &nodes());
        see(&engine, &pod("fan", json!({"app": "fan"}), likes.clone()), "n2");
        assert_eq!(decide(&engine, &pod("web", json!({"app": "web"}), json!({}))), Ok(node.into()), "{ignore}");
    }
}
