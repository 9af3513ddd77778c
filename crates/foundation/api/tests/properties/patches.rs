//! JSON Patch, merge patch and strategic merge patch.

use dhow_api::bounds::{MAX_DEPTH, measure};
use dhow_api::patch;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::generate::{any_json, any_object, any_pod, object_of, without_nulls};

const POD: &str = "io.k8s.api.core.v1.Pod";

/// The merge patch that makes `new` of `old` (RFC 7386); `new` has no nulls.
fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(before) if before.is_object() => drop(patch.insert(key.clone(), difference(before, value))),
            _ => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

/// An operation on one of few places.
fn any_operation() -> impl Strategy<Value = Value> {
    let path = || prop_oneof![4 => "(/[a-d]){0,3}", 1 => "(/[a-d0-2\\-]){0,4}", 1 => "\\PC{0,6}"];
    let name = proptest::sample::select(vec!["add", "remove", "replace", "move", "copy", "test", "jump"]);
    (name, path(), path(), any_json())
        .prop_map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
}

/// Something like a strategic merge patch, with directives wherever they may or may not be.
fn any_strategic() -> impl Strategy<Value = Value> {
    let keys = "(name|image|value|containerPort|metadata|spec|containers|env|ports|volumes|labels|finalizers|l1|\
                \\$patch|\\$retainKeys|\\$setElementOrder/(containers|env|finalizers)|\
                \\$deleteFromPrimitiveList/finalizers)";
    let words = proptest::sample::select(vec!["delete", "merge", "replace", "c0", "c1", "e1", "x", "name"]);
    let leaf = prop_oneof![Just(Value::Null), words.prop_map(Value::from), (0..82i64).prop_map(Value::from)];
    let tree = leaf.prop_recursive(6, 64, 4, move |inner| {
        prop_oneof![vec(inner.clone(), 0..4).prop_map(Value::from), object_of(keys, inner)]
    });
    object_of(keys, tree)
}

/// Whether everything that `part` says is so in `whole`; items of lists are found by their names.
fn says(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|found| says(found, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|item| whole.iter().any(|found| says(found, item)))
        }
        _ => whole == part,
    }
}

fn keys_of<'a>(pod: &'a Value, list: &str, key: &str) -> Vec<&'a Value> {
    pod["spec"][list].as_array().into_iter().flatten().map(|item| &item[key]).collect()
}

fn are_unique(keys: &[&Value]) -> bool {
    keys.iter().enumerate().all(|(at, key)| !keys[..at].contains(key))
}

proptest! {
    #![proptest_config(crate::generate::cases())]

    #[test]
    fn merge_is_idempotent_and_bounded(object in any_object(), patch in any_object()) {
        let mut once = object.clone();
        patch::merge(&mut once, &patch).unwrap();
        let mut twice = once.clone();
        patch::merge(&mut twice, &patch).unwrap();
        prop_assert_eq!(&twice, &once);
        let (before, patch, after) = (measure(&object), measure(&patch), measure(&once));
        prop_assert!(after.depth <= before.depth.max(patch.depth) && after.bytes <= before.bytes + patch.bytes);
    }

    #[test]
    fn merge_of_a_difference_is_the_other(old in any_object(), new in any_object()) {
        let new = without_nulls(new);
        let mut object = old.clone();
        patch::merge(&mut object, &difference(&old, &new)).unwrap();
        prop_assert_eq!(object, new);
    }

    #[test]
    fn json_patch_of_a_difference_is_the_other(old in any_json(), new in any_json()) {
        let patch = serde_json::to_value(json_patch::diff(&old, &new)).unwrap();
        let mut object = old;
        patch::json(&mut object, &patch).unwrap();
        prop_assert_eq!(object, new);
    }

    #[test]
    fn json_patch_is_all_or_nothing_and_bounded(object in any_object(), patch in vec(any_operation(), 0..24)) {
        let patch = json!(patch);
        let mut result = object.clone();
        match patch::json(&mut result, &patch) {
            Ok(()) => {
                let (before, patch, after) = (measure(&object), measure(&patch), measure(&result));
                prop_assert!(after.depth <= MAX_DEPTH.max(before.depth));
                prop_assert!(after.bytes <= before.bytes + patch.bytes + (3 << 20), "{after:?}");
            }
            Err(_) => prop_assert_eq!(result, object),
        }
    }

    /// Copies of all into a part of it, and moves down: what doubles and what deepens fastest.
    #[test]
    fn json_patch_cannot_explode(places in vec(0..4usize, 1..64), doubling: bool) {
        let mut path = String::new();
        let mut patch = Vec::new();
        for place in places {
            path.push_str(["/a", "/b", "/c", "/d"][place]);
            let op = if doubling { "copy" } else { "add" };
            patch.push(json!({"op": op, "from": "", "path": path, "value": {"a": {}, "b": {}, "c": {}, "d": {}}}));
        }
        let mut object = json!({"a": {}, "b": {}, "c": {}, "d": {}});
        let _ = patch::json(&mut object, &json!(patch));
        let after = measure(&object);
        prop_assert!(after.depth <= MAX_DEPTH && after.bytes <= 4 << 20, "{after:?}");
    }

    #[test]
    fn strategic_merge_is_idempotent_and_says_what_it_was_told(pod in any_pod(), patch in any_pod()) {
        let mut once = pod.clone();
        patch::strategic(&mut once, &patch, POD).unwrap();
        prop_assert!(says(&once, &patch), "{once}");
        let mut twice = once.clone();
        patch::strategic(&mut twice, &patch, POD).unwrap();
        prop_assert_eq!(&twice, &once);
        prop_assert!(are_unique(&keys_of(&once, "containers", "name")) && are_unique(&keys_of(&once, "volumes", "name")));
        prop_assert!(measure(&once).bytes <= measure(&pod).bytes + measure(&patch).bytes);
        // Nobody's item is lost: only a directive removes.
        for name in keys_of(&pod, "containers", "name") {
            prop_assert!(keys_of(&once, "containers", "name").contains(&name));
        }
    }

    #[test]
    fn strategic_merge_with_oneself_changes_nothing(pod in any_pod()) {
        for patch in [&pod, &json!({})] {
            let mut merged = pod.clone();
            patch::strategic(&mut merged, patch, POD).unwrap();
            prop_assert_eq!(&merged, &pod);
        }
    }

    /// The order that a client wants is the order there is, and ordering adds and removes nothing.
    #[test]
    fn strategic_merge_keeps_the_order(pod in any_pod(), patch in any_pod()) {
        let order: Vec<Value> = keys_of(&patch, "containers", "name").iter().map(|name| json!({"name": name})).collect();
        let wanted = keys_of(&patch, "containers", "name");
        let mut ordered = patch.clone();
        ordered["spec"]["$setElementOrder/containers"] = json!(order);
        let (mut with, mut without) = (pod.clone(), pod);
        patch::strategic(&mut with, &ordered, POD).unwrap();
        patch::strategic(&mut without, &patch, POD).unwrap();
        let found: Vec<&Value> =
            keys_of(&with, "containers", "name").into_iter().filter(|name| wanted.contains(name)).collect();
        prop_assert_eq!(found, wanted.clone());
        let sorted = |pod: &Value| {
            let mut all: Vec<String> = pod["spec"]["containers"].as_array().into_iter().flatten().map(Value::to_string).collect();
            all.sort();
            all
        };
        prop_assert_eq!(sorted(&with), sorted(&without));
    }

    #[test]
    fn strategic_noise_is_all_or_nothing(pod in any_pod(), patch in any_strategic()) {
        let mut result = pod.clone();
        match patch::strategic(&mut result, &patch, POD) {
            Ok(()) => {
                prop_assert!(!result.to_string().contains("$patch"), "{result}");
                prop_assert!(measure(&result).bytes <= measure(&pod).bytes + measure(&patch).bytes);
            }
            Err(_) => prop_assert_eq!(result, pod),
        }
    }
}
