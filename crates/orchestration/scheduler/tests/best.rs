//! Random clusters against an oracle that knows all rules and all scores, and works everything out again for every node:
//! each placement is on a node that will do and is among the best, each refusal is true.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dhow_scheduler::{Engine, Outcome, PodKey};
use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Debug, Clone)]
struct PlainNode {
    cpu: i64,
    memory: i64,
    pods: i64,
    zone: Option<u8>,
    /// 0 none, 1 `NoSchedule`, 2 `PreferNoSchedule`.
    taint: u8,
    image: bool,
}

#[derive(Debug, Clone)]
struct PlainTerm {
    /// `None` for required.
    weight: Option<i64>,
    near: bool,
    zone: bool,
    app: u8,
    /// 0 the pod's own namespace, 1 all, 2 those of team b.
    place: u8,
    same_version: bool,
}

#[derive(Debug, Clone)]
struct PlainSpread {
    zone: bool,
    skew: i64,
    hard: bool,
    domains: Option<i64>,
    app: u8,
    honor_taints: bool,
    ignore_affinity: bool,
}

#[derive(Debug, Clone)]
struct PlainPod {
    namespace: u8,
    app: u8,
    version: u8,
    cpu: i64,
    memory: i64,
    tolerates: bool,
    zone: Option<u8>,
    likes: Option<(i64, u8)>,
    terms: Vec<PlainTerm>,
    spreads: Vec<PlainSpread>,
    image: bool,
    leaves: bool,
    /// A node that changes before this pod comes.
    change: Option<(usize, PlainNode)>,
}

fn plain_node() -> impl Strategy<Value = PlainNode> {
    let taint = prop_oneof![6 => Just(0_u8), 1 => Just(1), 2 => Just(2)];
    (2..10i64, 2..10i64, 1..8i64, prop::option::weighted(0.9, 0..3u8), taint, any::<bool>()).prop_map(
        |(cpu, memory, pods, zone, taint, image)| PlainNode { cpu: cpu * 500, memory, pods, zone, taint, image },
    )
}

fn term() -> impl Strategy<Value = PlainTerm> {
    let weight = prop::option::weighted(0.6, 1..100i64);
    (weight, any::<bool>(), any::<bool>(), 0..3u8, 0..3u8, prop::bool::weighted(0.2)).prop_map(
        |(weight, near, zone, app, place, same_version)| PlainTerm { weight, near, zone, app, place, same_version },
    )
}

fn spread() -> impl Strategy<Value = PlainSpread> {
    let domains = prop::option::weighted(0.2, 1..4i64);
    (any::<bool>(), 1..3i64, any::<bool>(), domains, 0..3u8, any::<bool>(), prop::bool::weighted(0.3)).prop_map(
        |(zone, skew, hard, domains, app, honor_taints, ignore_affinity)| PlainSpread {
            zone,
            skew,
            hard,
            domains: domains.filter(|_| hard),
            app,
            honor_taints,
            ignore_affinity,
        },
    )
}

fn plain_pod() -> impl Strategy<Value = PlainPod> {
    let who = (0..2u8, 0..3u8, 0..2u8);
    let wants = (0..8i64, 0..4i64, any::<bool>(), prop::option::weighted(0.1, 0..3u8));
    let likes = prop::option::weighted(0.3, (1..100i64, 0..3u8));
    let terms = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(term(), 1..3)];
    let spreads = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(spread(), 1..3)];
    let change = prop::option::weighted(0.1, (0..9usize, plain_node()));
    (who, wants, likes, terms, spreads, any::<bool>(), prop::bool::weighted(0.3), change).prop_map(
        |((namespace, app, version), (cpu, memory, tolerates, zone), likes, terms, spreads, image, leaves, change)| {
            let mut seen = BTreeSet::new();
            // The API refuses two constraints of one topology and kind.
            let spreads = spreads.into_iter().filter(|s| seen.insert((s.zone, s.hard))).collect();
            PlainPod {
                namespace,
                app,
                version,
                cpu: cpu * 125,
                memory,
                tolerates,
                zone,
                likes,
                terms,
                spreads,
                image,
                leaves,
                change,
            }
        },
    )
}

const HOST: &str = "kubernetes.io/hostname";
const IMAGE_SIZE: i64 = 800 << 20;

fn key_name(zone: bool) -> &'static str {
    if zone { "zone" } else { HOST }
}

fn real_node(i: usize, n: &PlainNode) -> Arc<Node> {
    let taints = match n.taint {
        0 => json!([]),
        1 => json!([{"key": "t", "effect": "NoSchedule"}]),
        _ => json!([{"key": "t", "effect": "PreferNoSchedule"}]),
    };
    let mut labels = json!({HOST: format!("n{i}")});
    if let Some(zone) = n.zone {
        labels["zone"] = json!(zone.to_string());
    }
    let images = if n.image { json!([{"names": ["img:1"], "sizeBytes": IMAGE_SIZE}]) } else { json!([]) };
    let node = json!({
        "metadata": {"name": format!("n{i}"), "labels": labels},
        "spec": {"taints": taints},
        "status": {"images": images, "allocatable": {
            "cpu": format!("{}m", n.cpu), "memory": format!("{}Gi", n.memory), "pods": n.pods.to_string(),
        }},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn real_pod(i: usize, p: &PlainPod) -> Pod {
    let requests = json!({"cpu": format!("{}m", p.cpu), "memory": format!("{}Gi", p.memory)});
    let image = if p.image { "img:1" } else { "other" };
    let mut spec = json!({"containers": [{"name": "c", "image": image, "resources": {"requests": requests}}]});
    let mut affinity = json!({});
    if let Some(zone) = p.zone {
        spec["nodeSelector"] = json!({"zone": zone.to_string()});
    }
    if let Some((weight, zone)) = p.likes {
        let like = json!([{"key": "zone", "operator": "In", "values": [zone.to_string()]}]);
        affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] =
            json!([{"weight": weight, "preference": {"matchExpressions": like}}]);
    }
    for term in &p.terms {
        let kind = if term.near { "podAffinity" } else { "podAntiAffinity" };
        let mut real = json!({"topologyKey": key_name(term.zone),
            "labelSelector": {"matchLabels": {"app": term.app.to_string()}}});
        match term.place {
            1 => real["namespaceSelector"] = json!({}),
            2 => real["namespaceSelector"] = json!({"matchLabels": {"team": "1"}}),
            _ => {}
        }
        if term.same_version {
            real["matchLabelKeys"] = json!(["version"]);
        }
        let (list, real) = match term.weight {
            Some(weight) => {
                ("preferredDuringSchedulingIgnoredDuringExecution", json!({"weight": weight, "podAffinityTerm": real}))
            }
            None => ("requiredDuringSchedulingIgnoredDuringExecution", real),
        };
        if affinity[kind][list].is_null() {
            affinity[kind][list] = json!([]);
        }
        affinity[kind][list].as_array_mut().unwrap().push(real);
    }
    if affinity != json!({}) {
        spec["affinity"] = affinity;
    }
    let constraints: Vec<Value> = p
        .spreads
        .iter()
        .map(|s| {
            json!({"topologyKey": key_name(s.zone), "maxSkew": s.skew, "minDomains": s.domains,
                "whenUnsatisfiable": if s.hard { "DoNotSchedule" } else { "ScheduleAnyway" },
                "nodeTaintsPolicy": if s.honor_taints { "Honor" } else { "Ignore" },
                "nodeAffinityPolicy": if s.ignore_affinity { "Ignore" } else { "Honor" },
                "labelSelector": {"matchLabels": {"app": s.app.to_string()}}})
        })
        .collect();
    if !constraints.is_empty() {
        spec["topologySpreadConstraints"] = json!(constraints);
    }
    if p.tolerates {
        spec["tolerations"] = json!([{"key": "t", "operator": "Exists"}]);
    }
    let labels = json!({"app": p.app.to_string(), "version": p.version.to_string()});
    let metadata = json!({"name": format!("p{i}"), "namespace": format!("ns{}", p.namespace), "labels": labels});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

struct Oracle {
    nodes: BTreeMap<usize, PlainNode>,
    placed: BTreeMap<usize, (usize, PlainPod)>,
}

fn about(term: &PlainTerm, home: &PlainPod, other: &PlainPod) -> bool {
    let here = match term.place {
        0 => home.namespace == other.namespace,
        1 => true,
        _ => other.namespace == 1,
    };
    here && term.app == other.app && (!term.same_version || home.version == other.version)
}

impl Oracle {
    fn domain(&self, node: usize, zone: bool) -> Option<usize> {
        let there = self.nodes.get(&node)?;
        if zone { there.zone.map(usize::from) } else { Some(node) }
    }

    fn on(&self, node: usize) -> Vec<&PlainPod> {
        self.placed.values().filter(|(at, _)| *at == node).map(|(_, pod)| pod).collect()
    }

    fn selected(&self, node: usize, pod: &PlainPod) -> bool {
        pod.zone.is_none_or(|zone| self.nodes[&node].zone == Some(zone))
    }

    fn tolerated(&self, node: usize, pod: &PlainPod) -> bool {
        self.nodes[&node].taint != 1 || pod.tolerates
    }

    /// Placed pods with the domain they are in; none on nodes that are gone.
    fn in_domain(&self, zone: bool, domain: usize) -> impl Iterator<Item = &PlainPod> {
        let there = self.placed.values().filter(move |(at, _)| self.domain(*at, zone) == Some(domain));
        there.map(|(_, pod)| pod)
    }

    fn counted(&self, pod: &PlainPod, s: &PlainSpread) -> BTreeMap<usize, i64> {
        let mut counts = BTreeMap::new();
        for node in self.nodes.keys().copied() {
            let of_kind = pod.spreads.iter().filter(|other| other.hard == s.hard);
            let labelled = of_kind.clone().all(|other| self.domain(node, other.zone).is_some());
            let suits = s.ignore_affinity || self.selected(node, pod);
            let welcome = !s.honor_taints || self.tolerated(node, pod);
            if !labelled || !suits || !welcome {
                continue;
            }
            let matching = self.on(node).iter().filter(|p| p.namespace == pod.namespace && p.app == s.app).count();
            *counts.entry(self.domain(node, s.zone).unwrap()).or_default() += matching as i64;
        }
        counts
    }

    fn fits(&self, node: usize, pod: &PlainPod) -> bool {
        let (there, on) = (&self.nodes[&node], self.on(node));
        let sum = |f: fn(&PlainPod) -> i64| on.iter().map(|p| f(p)).sum::<i64>();
        let room = (on.len() as i64) < there.pods
            && (pod.cpu == 0 || sum(|p| p.cpu) + pod.cpu <= there.cpu)
            && (pod.memory == 0 || sum(|p| p.memory) + pod.memory <= there.memory);
        let even = pod.spreads.iter().filter(|s| s.hard).all(|s| {
            let counts = self.counted(pod, s);
            let Some(domain) = self.domain(node, s.zone) else { return false };
            let enough = counts.len() as i64 >= s.domains.unwrap_or(1);
            let least = if enough { counts.values().copied().min().unwrap_or(0) } else { 0 };
            let own = i64::from(s.app == pod.app);
            counts.get(&domain).copied().unwrap_or(0) + own - least <= s.skew
        });
        let required: Vec<&PlainTerm> = pod.terms.iter().filter(|t| t.weight.is_none()).collect();
        let near: Vec<&&PlainTerm> = required.iter().filter(|t| t.near).collect();
        let all = |other: &PlainPod| near.iter().all(|t| about(t, pod, other));
        let found =
            |t: &PlainTerm| self.domain(node, t.zone).is_some_and(|domain| self.in_domain(t.zone, domain).any(&all));
        let anyone =
            self.placed.values().any(|(at, p)| all(p) && near.iter().any(|t| self.domain(*at, t.zone).is_some()));
        let first = !anyone && all(pod);
        let together =
            near.iter().all(|t| self.domain(node, t.zone).is_some()) && (first || near.iter().all(|t| found(t)));
        let apart = required.iter().filter(|t| !t.near).all(|t| {
            let Some(domain) = self.domain(node, t.zone) else { return true };
            !self.in_domain(t.zone, domain).any(|other| about(t, pod, other))
        });
        let welcome = self.placed.values().all(|(at, other)| {
            other.terms.iter().filter(|t| !t.near && t.weight.is_none() && about(t, other, pod)).all(|t| {
                let domain = self.domain(*at, t.zone);
                domain.is_none() || domain != self.domain(node, t.zone)
            })
        });
        self.tolerated(node, pod) && self.selected(node, pod) && room && even && together && apart && welcome
    }

    fn scores(&self, feasible: &[usize], pod: &PlainPod) -> BTreeMap<usize, i64> {
        let disliked = |n: &usize| i64::from(self.nodes[n].taint == 2 && !pod.tolerates);
        let liked = |n: &usize| pod.likes.filter(|(_, z)| self.nodes[n].zone == Some(*z)).map_or(0, |(w, _)| w);
        let most_disliked = feasible.iter().map(disliked).max().unwrap_or(0);
        let most_liked = feasible.iter().map(liked).max().unwrap_or(0);
        let company: BTreeMap<usize, i64> = feasible.iter().map(|n| (*n, self.company(*n, pod))).collect();
        let (low, high) = (company.values().min().copied().unwrap_or(0), company.values().max().copied().unwrap_or(0));
        let crowd = self.crowds(feasible, pod);
        let known: Vec<i64> = crowd.values().flatten().copied().collect();
        let (least, most) = (known.iter().min().copied().unwrap_or(0), known.iter().max().copied().unwrap_or(0));
        let soft = pod.spreads.iter().any(|s| !s.hard);
        let score = |n: &usize| {
            let taints = if most_disliked > 0 { 100 - 100 * disliked(n) / most_disliked } else { 100 };
            let affinity = if most_liked > 0 { 100 * liked(n) / most_liked } else { 0 };
            let near = match high - low {
                0 => 0,
                span => (100.0 * ((company[n] - low) as f64 / span as f64)) as i64,
            };
            let even = match crowd[n] {
                Some(_) if soft && most == 0 => 100,
                Some(crowd) if soft => 100 * (most + least - crowd) / most,
                _ => 0,
            };
            3 * taints + 2 * affinity + 2 * near + 2 * even + self.own(*n, pod)
        };
        feasible.iter().map(|n| (*n, score(n))).collect()
    }

    fn company(&self, node: usize, pod: &PlainPod) -> i64 {
        let mut sum = 0;
        let sign = |t: &PlainTerm| if t.near { 1 } else { -1 };
        for (at, other) in self.placed.values() {
            let same = |t: &PlainTerm| {
                let domain = self.domain(node, t.zone);
                domain.is_some() && domain == self.domain(*at, t.zone)
            };
            for t in pod.terms.iter().filter(|t| same(t) && about(t, pod, other)) {
                sum += t.weight.map_or(0, |weight| sign(t) * weight);
            }
            for t in other.terms.iter().filter(|t| same(t) && about(t, other, pod)) {
                sum += match t.weight {
                    Some(weight) => sign(t) * weight,
                    None => i64::from(t.near),
                };
            }
        }
        sum
    }

    fn crowds(&self, feasible: &[usize], pod: &PlainPod) -> BTreeMap<usize, Option<i64>> {
        let soft: Vec<&PlainSpread> = pod.spreads.iter().filter(|s| !s.hard).collect();
        let ignored = |n: &usize| soft.iter().any(|s| self.domain(*n, s.zone).is_none());
        let looked_at: Vec<usize> = feasible.iter().filter(|n| !ignored(n)).copied().collect();
        let crowd = |n: &usize| {
            let parts = soft.iter().map(|s| {
                let domains: BTreeSet<usize> = looked_at.iter().filter_map(|n| self.domain(*n, s.zone)).collect();
                let count = if s.zone {
                    self.counted(pod, s).get(&self.domain(*n, true).unwrap()).copied().unwrap_or(0)
                } else {
                    let on = self.on(*n);
                    on.iter().filter(|p| p.namespace == pod.namespace && p.app == s.app).count() as i64
                };
                count as f64 * ((domains.len() + 2) as f64).ln() + (s.skew - 1) as f64
            });
            parts.sum::<f64>().round() as i64
        };
        feasible.iter().map(|n| (*n, (!ignored(n)).then(|| crowd(n)))).collect()
    }

    /// What depends on the node alone.
    fn own(&self, node: usize, pod: &PlainPod) -> i64 {
        let (there, on) = (&self.nodes[&node], self.on(node));
        // All requests are given, if with nothing, so no defaults take their place.
        let cpu: i64 = on.iter().map(|p| p.cpu).sum::<i64>() + pod.cpu;
        let memory: i64 = on.iter().map(|p| p.memory).sum::<i64>() + pod.memory;
        let free = |used: i64, has: i64| if used > has { 0 } else { (has - used) * 100 / has };
        let (bytes, has) = (memory << 30, there.memory << 30);
        let fit = (free(cpu, there.cpu) + ((i128::from(has - bytes.min(has)) * 100 / i128::from(has)) as i64)) / 2;
        let share = |used: i64, has: i64| (used as f64 / has as f64).min(1.0);
        let apart = ((share(cpu, there.cpu) - share(bytes, has)) / 2.0).abs();
        let balance = if pod.cpu == 0 && pod.memory == 0 { 0 } else { ((1.0 - apart) * 100.0) as i64 };
        let spread = self.nodes.values().filter(|n| n.image).count() as f64 / self.nodes.len() as f64;
        let size = if pod.image && there.image { (IMAGE_SIZE as f64 * spread) as i64 } else { 0 };
        let (small, large) = (23_i64 << 20, 1000_i64 << 20);
        fit + balance + 100 * (size.clamp(small, large) - small) / (large - small)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_placement_is_possible_and_best(
        nodes in prop::collection::vec(plain_node(), 0..9),
        pods in prop::collection::vec(plain_pod(), 1..30),
    ) {
        let engine = Engine::new("default-scheduler");
        for namespace in 0..2 {
            let labels = [("team".to_owned(), namespace.to_string())].into();
            engine.namespace_changed(&format!("ns{namespace}"), Some(labels));
        }
        let mut oracle = Oracle { nodes: BTreeMap::new(), placed: BTreeMap::new() };
        for (i, node) in nodes.iter().enumerate() {
            engine.node_changed(real_node(i, node));
            oracle.nodes.insert(i, node.clone());
        }
        for (i, pod) in pods.iter().enumerate() {
            if let Some((at, node)) = pod.change.clone() {
                match oracle.nodes.remove(&at) {
                    // Gone with some luck, otherwise another.
                    Some(_) if node.pods == 1 => engine.node_removed(&format!("n{at}")),
                    _ => {
                        engine.node_changed(real_node(at, &node));
                        oracle.nodes.insert(at, node);
                    }
                }
            }
            let key: PodKey = (format!("ns{}", pod.namespace), format!("p{i}"));
            let feasible: Vec<usize> = oracle.nodes.keys().copied().filter(|n| oracle.fits(*n, pod)).collect();
            let scores = oracle.scores(&feasible, pod);
            let best = scores.values().copied().max().unwrap_or(0);
            match engine.decide(&key, &real_pod(i, pod)) {
                Outcome::Bind { node } => {
                    let node: usize = node[1..].parse().unwrap();
                    prop_assert!(feasible.contains(&node), "pod {i} on {node}, feasible {feasible:?}");
                    // How far from the best: not at all.
                    prop_assert_eq!(best - scores[&node], 0, "pod {} on {}: {:?}", i, node, scores);
                    oracle.placed.insert(i, (node, pod.clone()));
                }
                Outcome::Wait(why) => {
                    prop_assert!(feasible.is_empty(), "pod {i}: {why}, but {feasible:?} would do");
                    prop_assert_eq!(why.nodes, oracle.nodes.len());
                    if why.nodes > 0 {
                        prop_assert!(why.advice.is_some());
                    }
                }
                other => prop_assert!(false, "{other:?}"),
            }
            if pod.leaves {
                engine.pod_removed(&key);
                oracle.placed.remove(&i);
            }
        }
    }
}
