//! What would have to change for a pending pod, in one sentence that a person understands.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::counts::Slot;
use crate::reasons::Refusal;
use crate::shape::Shape;
use crate::snapshot::Snapshot;
use crate::{dra, volumes};

/// Ways out that are named at most; the most common obstacles first.
const WAYS: usize = 3;

pub(crate) fn advice(
    snapshot: &Snapshot,
    shape: &Shape,
    pod: &Pod,
    refused: &[(Slot, Vec<Refusal>)],
) -> Option<String> {
    // Nodes with the same obstacles share a way out.
    let mut groups: BTreeMap<Vec<Refusal>, Vec<Slot>> = BTreeMap::new();
    for (slot, refusals) in refused.iter().filter(|(_, refusals)| !refusals.is_empty()) {
        let alike = refusals.iter().map(|refusal| match refusal {
            Refusal::Insufficient { resource, .. } => Refusal::Insufficient { resource: resource.clone(), ever: true },
            other => other.clone(),
        });
        groups.entry(alike.collect()).or_default().push(*slot);
    }
    let mut groups: Vec<(Vec<Refusal>, Vec<Slot>)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, slots)| std::cmp::Reverse(slots.len()));
    let ways: Vec<String> = groups
        .iter()
        .take(WAYS)
        .map(|(refusals, slots)| {
            let ways: Vec<String> = refusals.iter().map(|r| way(snapshot, shape, pod, r, slots)).collect();
            ways.join(" and ")
        })
        .collect();
    (!ways.is_empty()).then(|| format!("It can run once {}.", ways.join("; or once ")))
}

fn name(snapshot: &Snapshot, slot: Slot) -> &str {
    &snapshot.row(slot).name
}

fn way(snapshot: &Snapshot, shape: &Shape, pod: &Pod, refusal: &Refusal, slots: &[Slot]) -> String {
    let first = slots.first().map_or("", |slot| name(snapshot, *slot));
    let keys = |hard: bool| -> String {
        let spread = shape.spread.iter().filter(|spread| spread.hard == hard);
        let keys: Vec<&str> = spread.map(|spread| spread.key.as_str()).collect();
        keys.join(", ")
    };
    match refusal {
        Refusal::Insufficient { resource, .. } => {
            let want = shape.request.amounts.get(resource);
            let free = |slot: &Slot| {
                let row = snapshot.row(*slot);
                row.capacity.amounts.get(resource).saturating_sub(row.used.get(resource)).max(0)
            };
            let best = slots.iter().max_by_key(|slot| free(slot));
            let most = best.map_or(0, free);
            let best = best.map_or("", |slot| name(snapshot, *slot));
            format!(
                "a node has {} of {resource} free (the most is {} on {best}), or it requests less",
                amount(resource, want),
                amount(resource, most)
            )
        }
        Refusal::TooManyPods => {
            format!("a node has room for one more pod ({first} runs the {} it may)", {
                slots.first().map_or(0, |slot| snapshot.row(*slot).capacity.pods)
            })
        }
        Refusal::Cordoned => format!("a node is uncordoned (kubectl uncordon {first})"),
        Refusal::NodeName => format!("there is a node named {}", shape.spec.node_name.as_deref().unwrap_or_default()),
        Refusal::Taint { key, value } => {
            let taint = if value.is_empty() { key.clone() } else { format!("{key}={value}") };
            format!("it tolerates the taint {taint} or {first} is without it")
        }
        Refusal::NodeAffinity => match asked_labels(pod) {
            Some(labels) => format!("a node has the labels it asks for ({labels})"),
            None => "a node matches its node affinity".to_owned(),
        },
        Refusal::AddedAffinity => "a node matches the affinity that the scheduler's configuration adds".to_owned(),
        Refusal::Ports => {
            let ports: Vec<String> =
                shape.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
            format!("host port {} is free on a node", ports.join(", "))
        }
        Refusal::SpreadLabel => format!("nodes have the labels its spread constraints name ({})", keys(true)),
        Refusal::Spread => {
            format!("a domain of {} with fewer of its siblings has room for it, or its maxSkew is larger", keys(true))
        }
        Refusal::Affinity => format!("a pod its affinity asks for runs in the same {}", terms(&shape.affinity)),
        Refusal::AntiAffinity => {
            format!("some {} is without the pods its anti-affinity avoids", terms(&shape.anti))
        }
        Refusal::KeptAway => "a node is without pods whose anti-affinity keeps it away".to_owned(),
        Refusal::Volume(text) => volume(text),
        Refusal::Extender { reason, .. } => format!("an extender no longer refuses its nodes ({reason})"),
        Refusal::Devices(text) => devices(pod, text),
    }
}

fn devices(pod: &Pod, text: &str) -> String {
    let claims: Vec<String> = dra::keys(pod).into_iter().map(|(_, name)| name).collect();
    let claims = claims.join(", ");
    match text {
        dra::ELSEWHERE => format!("the node that has the devices of its claim ({claims}) takes it"),
        _ => format!("a node has enough free devices for its claim ({claims}), or the claim asks for less"),
    }
}

fn volume(text: &str) -> String {
    let way = match text {
        volumes::OTHER_NODE => "a node that its volume can be used on takes pods",
        volumes::NONE_TO_BIND => "there is a volume on a node, or a provisioner that can make one there, for its claim",
        volumes::SOURCE_ELSEWHERE => "the node that holds what its claim is to be filled from takes pods",
        volumes::NO_SPACE => "a node has more room for volumes, or its claim asks for less",
        volumes::NO_VOLUME => "the volume that its claim is bound to exists",
        volumes::USED_ALONE => "the pod that uses its ReadWriteOncePod claim ends",
        volumes::TOO_MANY => "a node can attach one more volume",
        volumes::OTHER_ZONE => "a node in its volume's zone takes pods",
        volumes::DISK_IN_USE => "no pod on a node uses its disk",
        _ => "its volumes can be had on a node",
    };
    way.to_owned()
}

fn terms(terms: &[crate::shape::Term]) -> String {
    let keys: Vec<&str> = terms.iter().map(|term| term.key.as_str()).collect();
    keys.join(" and ")
}

/// What `nodeSelector` asks for, and the expressions of a single required term.
fn asked_labels(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let mut asked: Vec<String> =
        spec.node_selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    if let Some([term]) = required.map(|required| required.node_selector_terms.as_slice()) {
        let fields = term.match_fields.iter().flatten();
        for one in term.match_expressions.iter().flatten().chain(fields) {
            let values = one.values.clone().unwrap_or_default();
            asked.push(match (one.operator.as_str(), values.as_slice()) {
                ("In", [value]) => format!("{}={value}", one.key),
                ("Exists" | "DoesNotExist", _) => format!("{} {}", one.key, one.operator),
                (operator, values) => format!("{} {operator} {}", one.key, values.join("|")),
            });
        }
    }
    (!asked.is_empty()).then(|| asked.join(", "))
}

/// As people write it.
fn amount(resource: &str, amount: i64) -> String {
    match resource {
        "cpu" if amount % 1000 == 0 => (amount / 1000).to_string(),
        "cpu" => format!("{amount}m"),
        "memory" | "ephemeral-storage" => bytes(amount),
        name if name.starts_with("hugepages-") => bytes(amount),
        _ => amount.to_string(),
    }
}

fn bytes(amount: i64) -> String {
    for (unit, suffix) in [(1_i64 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")] {
        if amount >= unit {
            let tenths = (amount as f64 / unit as f64 * 10.0).floor() / 10.0;
            return format!("{tenths}{suffix}");
        }
    }
    amount.to_string()
}
