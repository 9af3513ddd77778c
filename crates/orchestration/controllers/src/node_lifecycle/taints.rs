//! The taints that a node's conditions ask for: functions of a Node.

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, and the taint while it is true.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

fn status<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let mut conditions = node.status.as_ref()?.conditions.as_ref()?.iter();
    conditions.find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

/// `True`, `False` or `Unknown`; a node that has not said anything is not ready.
pub fn ready(node: &Node) -> &str {
    status(node, "Ready").unwrap_or("False")
}

/// Whether the node ever said how it is.
pub fn has_spoken(node: &Node) -> bool {
    status(node, "Ready").is_some()
}

pub fn held(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The key under which a node that is not ready is tainted.
pub fn silence(ready: &str) -> Option<&'static str> {
    match ready {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    }
}

/// Taints that keep pods from coming; those of others stay.
pub fn keeping_away(node: &Node) -> Vec<Taint> {
    let mut wanted: Vec<&str> = PRESSURES
        .iter()
        .filter(|(condition, _)| status(node, condition) == Some("True"))
        .map(|(_, taint)| *taint)
        .collect();
    wanted.extend(silence(ready(node)));
    wanted.extend((node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)).then_some(UNSCHEDULABLE));
    let ours = |taint: &Taint| {
        taint.effect == "NoSchedule"
            && ([UNREACHABLE, NOT_READY, UNSCHEDULABLE].contains(&taint.key.as_str())
                || PRESSURES.iter().any(|(_, key)| *key == taint.key))
    };
    let mut taints: Vec<Taint> =
        held(node).iter().filter(|taint| !ours(taint) || wanted.contains(&taint.key.as_str())).cloned().collect();
    for key in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule") {
            taints.push(Taint { key: key.into(), effect: "NoSchedule".into(), time_added: None, value: None });
        }
    }
    taints
}

/// Whether a taint drives pods away because of a node's silence.
fn drives_away(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == UNREACHABLE || taint.key == NOT_READY)
}

/// The same taints, with the one that drives pods away under `key`, or none. When it came stays.
pub fn driving_away(taints: &[Taint], key: Option<&str>, now: Timestamp) -> Vec<Taint> {
    let mut kept: Vec<Taint> =
        taints.iter().filter(|taint| !drives_away(taint) || Some(taint.key.as_str()) == key).cloned().collect();
    if let Some(key) = key
        && !kept.iter().any(drives_away)
    {
        kept.push(Taint { key: key.into(), effect: "NoExecute".into(), time_added: Some(Time(now)), value: None });
    }
    kept
}

/// Whether pods are being driven away because of silence, whatever kind of.
pub fn is_driving_away(taints: &[Taint]) -> bool {
    taints.iter().any(drives_away)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn node(conditions: Value, taints: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn conditions_keep_pods_away_and_others_taints_stay() {
        let mine = json!([{"key": "mine", "effect": "NoSchedule"}]);
        let pressed = node(
            json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]),
            mine.clone(),
        );
        assert_eq!(keys(&keeping_away(&pressed)), ["mine:NoSchedule", "node.kubernetes.io/disk-pressure:NoSchedule"]);
        let mut over = node(json!([{"type": "Ready", "status": "True"}]), json!([]));
        over.spec.as_mut().unwrap().taints = Some(keeping_away(&pressed));
        assert_eq!(keys(&keeping_away(&over)), ["mine:NoSchedule"]);
        over.spec.as_mut().unwrap().unschedulable = Some(true);
        assert_eq!(keys(&keeping_away(&over)), ["mine:NoSchedule", "node.kubernetes.io/unschedulable:NoSchedule"]);
        let silent = node(json!([{"type": "Ready", "status": "Unknown"}]), mine);
        assert_eq!(keys(&keeping_away(&silent)), ["mine:NoSchedule", "node.kubernetes.io/unreachable:NoSchedule"]);
        assert_eq!(keys(&keeping_away(&node(json!([]), json!([])))), ["node.kubernetes.io/not-ready:NoSchedule"]);
    }

    #[test]
    fn one_taint_drives_away_and_its_time_stays() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let first = driving_away(&[], Some(UNREACHABLE), start);
        assert_eq!(driving_away(&first, Some(UNREACHABLE), later), first);
        let swapped = driving_away(&first, Some(NOT_READY), later);
        assert_eq!(keys(&swapped), ["node.kubernetes.io/not-ready:NoExecute"]);
        assert_eq!(swapped[0].time_added.as_ref().unwrap().0, later);
        assert!(driving_away(&first, None, later).is_empty());
    }
}
