//! What goes over the wire. Field names are written as Go writes them, and read whatever their case, as Go reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::{Objection, Room, field};
use crate::PodKey;

/// Objects without what the API itself adds to them in a list.
fn object(kind: &str, value: &impl serde::Serialize) -> Value {
    let mut value = serde_json::to_value(value).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), json!("v1"));
        fields.insert("kind".to_owned(), json!(kind));
    }
    value
}

pub fn question(pod: &Pod, nodes: &[Arc<Node>], by_name: bool) -> Value {
    if by_name {
        let names: Vec<&str> = nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
        return json!({"Pod": object("Pod", pod), "Nodes": null, "NodeNames": names});
    }
    let items: Vec<Value> = nodes.iter().map(|node| object("Node", &**node)).collect();
    json!({"Pod": object("Pod", pod), "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
}

/// The error that an answer brings.
pub fn said(answer: &Value) -> Option<&str> {
    field(answer, "error").as_str().filter(|error| !error.is_empty())
}

type Filtered = (BTreeSet<String>, BTreeMap<String, Objection>);

/// Names of the nodes that are left, and why the others are not.
pub fn filtered(answer: &Value, asked: &[Arc<Node>]) -> Result<Filtered, String> {
    if let Some(error) = said(answer) {
        return Err(error.to_owned());
    }
    let known: BTreeSet<&str> = asked.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
    let names = field(answer, "nodeNames").as_array();
    let nodes = field(field(answer, "nodes"), "items").as_array();
    let good: BTreeSet<String> = match (names, nodes) {
        (Some(names), _) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        (None, Some(nodes)) => {
            nodes.iter().filter_map(|node| node["metadata"]["name"].as_str()).map(str::to_owned).collect()
        }
        (None, None) => BTreeSet::new(),
    };
    if let Some(stranger) = good.iter().find(|name| !known.contains(name.as_str())) {
        return Err(format!("it names node {stranger:?}, about which it was not asked"));
    }
    let mut objections = BTreeMap::new();
    for (name, lasting) in [("failedNodes", false), ("failedAndUnresolvableNodes", true)] {
        for (node, reason) in field(answer, name).as_object().into_iter().flatten() {
            let reason = reason.as_str().filter(|reason| !reason.is_empty()).unwrap_or("refused by an extender");
            objections.insert(node.clone(), Objection { reason: reason.to_owned(), lasting });
        }
    }
    Ok((good, objections))
}

pub fn scores(answer: &Value) -> Result<Vec<(String, i64)>, String> {
    let list = answer.as_array().ok_or("the answer is no list of scores")?;
    let scores = list.iter().filter_map(|one| {
        let (host, score) = (field(one, "host").as_str()?, field(one, "score").as_i64()?);
        Some((host.to_owned(), score))
    });
    Ok(scores.collect())
}

pub fn binding(pod: &Pod, node: &str) -> Value {
    let of = &pod.metadata;
    json!({"PodName": of.name, "PodNamespace": of.namespace, "PodUID": of.uid, "Node": node})
}

pub fn victims(pod: &Pod, rooms: &[Room], by_name: bool, pods: &impl Fn(&PodKey) -> Option<Arc<Pod>>) -> Value {
    let mut by_node = serde_json::Map::new();
    for room in rooms {
        let known = room.victims.iter().filter_map(pods);
        let victims: Vec<Value> = match by_name {
            true => known.map(|pod| json!({"UID": pod.metadata.uid})).collect(),
            false => known.map(|pod| object("Pod", &*pod)).collect(),
        };
        by_node.insert(room.node.clone(), json!({"Pods": victims, "NumPDBViolations": room.violations}));
    }
    let (full, meta) = if by_name { (Value::Null, json!(by_node)) } else { (json!(by_node), Value::Null) };
    json!({"Pod": object("Pod", pod), "NodeNameToVictims": full, "NodeNameToMetaVictims": meta})
}

/// Victims that an extender named on a node.
pub struct Meta {
    pub uids: BTreeSet<String>,
    pub violations: usize,
}

pub fn rooms(answer: &Value) -> Result<BTreeMap<String, Meta>, String> {
    let nodes = field(answer, "nodeNameToMetaVictims");
    if nodes.is_null() {
        return Ok(BTreeMap::new());
    }
    let nodes = nodes.as_object().ok_or("the answer maps no nodes to victims")?;
    let rooms = nodes.iter().map(|(node, victims)| {
        let pods = field(victims, "pods").as_array();
        let uids = pods.into_iter().flatten().filter_map(|pod| field(pod, "uid").as_str()).map(str::to_owned);
        let violations = field(victims, "numPDBViolations").as_u64().and_then(|count| usize::try_from(count).ok());
        (node.clone(), Meta { uids: uids.collect(), violations: violations.unwrap_or(0) })
    });
    Ok(rooms.collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(name: &str) -> Arc<Node> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap())
    }

    #[test]
    fn answers_are_read_whatever_the_case_of_their_fields() {
        let asked = [node("a"), node("b")];
        for answer in [
            json!({"NodeNames": ["a"], "FailedNodes": {"b": "full"}, "Error": ""}),
            json!({"nodenames": ["a"], "failedNodes": {"b": "full"}}),
            json!({"nodes": {"items": [{"metadata": {"name": "a"}}]}, "failednodes": {"b": "full"}}),
        ] {
            let (good, objections) = filtered(&answer, &asked).unwrap();
            assert_eq!(good, BTreeSet::from(["a".to_owned()]), "{answer}");
            assert_eq!(objections["b"], Objection { reason: "full".into(), lasting: false });
        }
        assert!(filtered(&json!({"nodeNames": ["c"]}), &asked).is_err(), "nobody asked about it");
        assert_eq!(filtered(&json!({"Error": "broken"}), &asked).unwrap_err(), "broken");
        assert_eq!(scores(&json!([{"Host": "a", "Score": 7}])).unwrap(), [("a".to_owned(), 7)]);
        assert!(scores(&json!({})).is_err());
        let rooms = rooms(&json!({"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "u"}], "NumPDBViolations": 1}}}));
        let room = &rooms.unwrap()["a"];
        assert_eq!((room.uids.len(), room.violations), (1, 1));
    }
}
