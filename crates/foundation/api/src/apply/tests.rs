//! Scenarios of several writers on one object.
#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::json;

fn deployments() -> &'static Kind {
    crate::registry::builtin().get("apps", "v1", "deployments").unwrap()
}

fn writer(manager: &'static str, now: &'static str) -> Writer<'static> {
    Writer { kind: deployments(), api_version: "apps/v1", manager, subresource: "", now, reset: &["status"] }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "n"}, "spec": spec})
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image})
}

fn with(containers: Vec<Value>) -> Value {
    config(json!({"template": {"spec": {"containers": containers}}}))
}

fn fields(object: &Value, manager: &str) -> Value {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.into_iter().find(|entry| entry["manager"] == manager).map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn applying_creates_and_owns() {
    let object = apply(&writer("a", "1"), None, &with(vec![container("c", "x")]), false).unwrap();
    assert_eq!(
        fields(&object, "a"),
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}})
    );
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!((&entry["operation"], &entry["time"]), (&json!("Apply"), &json!("1")));
    // The same again changes nothing, not even the time.
    let again = apply(&writer("a", "2"), Some(&object), &with(vec![container("c", "x")]), false).unwrap();
    assert_eq!(again, object);
}

#[test]
fn what_is_applied_no_more_goes() {
    let first =
        config(json!({"replicas": 3, "paused": true, "template": {"spec": {"nodeSelector": {"a": "b", "c": "d"},
        "containers": [container("c", "x"), container("d", "y")]}}}));
    let mut object = apply(&writer("a", "1"), None, &first, false).unwrap();
    // A default that nobody owns.
    object["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
    let second = config(
        json!({"replicas": 3, "template": {"spec": {"nodeSelector": {"a": "b"}, "containers": [container("c", "x")]}}}),
    );
    let object = apply(&writer("a", "2"), Some(&object), &second, false).unwrap();
    assert_eq!(
        object["spec"],
        json!({"replicas": 3, "template": {"spec": {"nodeSelector": {"a": "b"},
            "containers": [{"name": "c", "image": "x", "imagePullPolicy": "Always"}]}}})
    );
}

#[test]
fn what_others_own_is_a_conflict_unless_forced() {
    let object = apply(&writer("a", "1"), None, &config(json!({"replicas": 1, "paused": true})), false).unwrap();
    let refused = apply(&writer("b", "2"), Some(&object), &config(json!({"replicas": 2})), false).unwrap_err();
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    assert_eq!(refused.code, 409);
    let forced = apply(&writer("b", "2"), Some(&object), &config(json!({"replicas": 2})), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(fields(&forced, "a"), json!({"f:spec": {"f:paused": {}}}));
    // The same value is no conflict: both own it, and it stays when one lets go.
    let shared = apply(&writer("a", "3"), Some(&forced), &config(json!({"replicas": 2})), false).unwrap();
    assert_eq!(shared["spec"], json!({"replicas": 2}));
    let left = apply(&writer("b", "4"), Some(&shared), &config(json!({})), false).unwrap();
    assert_eq!(left["spec"], json!({"replicas": 2}));
    assert_eq!(fields(&left, "b"), json!({"f:spec": {}}));
}

#[test]
fn an_update_takes_fields_and_an_apply_conflicts_with_it() {
    let object = apply(&writer("a", "1"), None, &config(json!({"replicas": 1})), false).unwrap();
    let mut scaled = object.clone();
    scaled["spec"]["replicas"] = json!(5);
    update(&writer("scaler", "2"), Some(&object), &mut scaled);
    assert_eq!(fields(&scaled, "a"), Value::Null);
    let refused = apply(&writer("a", "3"), Some(&scaled), &config(json!({"replicas": 1})), false).unwrap_err();
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas");
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let object = apply(&writer("a", "1"), None, &with(vec![container("c", "x"), container("d", "y")]), false).unwrap();
    let refused = apply(&writer("b", "2"), Some(&object), &with(vec![container("c", "z"), container("d", "z")]), false)
        .unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.template.spec.containers[name=\"c\"].image\n\
         - .spec.template.spec.containers[name=\"d\"].image"
    );
}

#[test]
fn lists_merge_by_their_type() {
    let a = config(json!({"template": {"metadata": {"finalizers": ["x"]}, "spec": {"containers": [
        {"name": "c", "ports": [{"containerPort": 80}], "args": ["1"]}]}}}));
    let b = config(json!({"template": {"metadata": {"finalizers": ["y"]}, "spec": {"containers": [
        {"name": "sidecar"}, {"name": "c", "ports": [{"containerPort": 80, "protocol": "UDP"}]}]}}}));
    let object = apply(&writer("a", "1"), None, &a, false).unwrap();
    let object = apply(&writer("b", "2"), Some(&object), &b, false).unwrap();
    let template = &object["spec"]["template"];
    assert_eq!(template["metadata"]["finalizers"], json!(["x", "y"]));
    assert_eq!(
        template["spec"]["containers"],
        json!([{"name": "sidecar"}, {"name": "c", "args": ["1"],
            "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]}])
    );
    // An atomic list is owned as a whole.
    let other = config(json!({"template": {"spec": {"containers": [{"name": "c", "args": ["2"]}]}}}));
    let refused = apply(&writer("b", "3"), Some(&object), &other, false).unwrap_err();
    assert!(refused.message.ends_with(".spec.template.spec.containers[name=\"c\"].args"), "{}", refused.message);
    // Leaving an item that only this manager owns removes it.
    let only = config(json!({"template": {"spec": {"containers": [{"name": "c"}]}}}));
    let object = apply(&writer("b", "4"), Some(&object), &only, false).unwrap();
    assert_eq!(object["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
}

#[test]
fn bad_configurations_are_named() {
    let typo = apply(&writer("a", "1"), None, &config(json!({"replica": 1})), false).unwrap_err();
    assert_eq!(
        typo.message,
        "failed to create typed patch object (n/a; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema"
    );
    let twice =
        apply(&writer("a", "1"), None, &with(vec![container("c", "x"), container("c", "y")]), false).unwrap_err();
    assert!(twice.message.contains("duplicate entries for key"), "{}", twice.message);
    let nameless = apply(&writer("a", "1"), None, &with(vec![json!({"image": "x"})]), false).unwrap_err();
    assert!(nameless.message.contains("omits key field \"name\""), "{}", nameless.message);
}

#[test]
fn objects_without_managers_are_adopted_and_can_be_reset() {
    let live = config(json!({"replicas": 1, "paused": true}));
    let refused = apply(&writer("a", "1"), Some(&live), &config(json!({"replicas": 2})), false).unwrap_err();
    assert!(refused.message.contains("\"before-first-apply\" using apps/v1"), "{}", refused.message);
    let object = apply(&writer("a", "1"), Some(&live), &config(json!({"replicas": 1})), false).unwrap();
    assert_eq!(object["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    let mut reset = object.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update(&writer("u", "2"), Some(&object), &mut reset);
    assert_eq!(reset["metadata"].get("managedFields"), None);
    // An empty list is what clients send that do not know managed fields.
    let mut kept = object.clone();
    kept["metadata"]["managedFields"] = json!([]);
    update(&writer("u", "2"), Some(&object), &mut kept);
    assert_eq!(kept["metadata"]["managedFields"], object["metadata"]["managedFields"]);
}

#[test]
fn client_side_apply_hands_over_to_kubectl() {
    let mut live = config(json!({"replicas": 1}));
    let text = config(json!({"replicas": 1})).to_string();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: text});
    update(&writer("kubectl-client-side-apply", "1"), None, &mut live);
    assert_eq!(fields(&live, "kubectl-client-side-apply")["f:spec"], json!({"f:replicas": {}}));
    let object = apply(&writer("kubectl", "2"), Some(&live), &config(json!({"replicas": 2})), false).unwrap();
    assert_eq!(object["spec"]["replicas"], 2);
    assert!(object["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap().contains("\"replicas\":2"));
    // Somebody else's change is still a conflict.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(7);
    update(&writer("scaler", "2"), Some(&live), &mut scaled);
    assert!(apply(&writer("kubectl", "3"), Some(&scaled), &config(json!({"replicas": 2})), false).is_err());
}

#[test]
fn many_updaters_become_ancient() {
    let mut object = config(json!({"replicas": 0}));
    update(&writer("m0", "00"), None, &mut object);
    const NAMES: [&str; 12] = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "ma", "mb", "mc"];
    for name in NAMES {
        let mut next = object.clone();
        next["metadata"]["annotations"][name] = json!("x");
        update(&writer(name, name), Some(&object), &mut next);
        object = next;
    }
    let list = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(list.len(), 10);
    assert!(list.iter().any(|entry| entry["manager"] == "ancient-changes"));
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// Some configuration of a deployment's pods.
    fn any_config() -> impl Strategy<Value = Value> {
        let container = (0..3u8, proptest::option::of(0..3u8), proptest::collection::btree_map(0..3u8, 0..2u8, 0..3));
        let containers = proptest::collection::btree_map(0..3u8, container, 0..3);
        let labels = proptest::collection::btree_map(0..4u8, 0..3u8, 0..4);
        // Nothing empty: an empty map is owned itself, which is another story.
        (proptest::option::of(0..3u8), containers, labels).prop_map(|(replicas, containers, labels)| {
            let mut spec = json!({"paused": true});
            if let Some(replicas) = replicas {
                spec["replicas"] = json!(replicas);
            }
            for (key, value) in labels {
                spec["template"]["metadata"]["labels"][format!("l{key}")] = json!(value.to_string());
            }
            let mut all = Vec::new();
            for (name, (image, port, env)) in containers {
                let mut one = json!({"name": format!("c{name}"), "image": format!("i{image}")});
                if let Some(port) = port {
                    one["ports"] = json!([{"containerPort": 80 + u32::from(port), "protocol": "TCP"}]);
                }
                if !env.is_empty() {
                    let named = |(k, v): (&u8, &u8)| json!({"name": format!("e{k}"), "value": v.to_string()});
                    one["env"] = env.iter().map(named).collect();
                }
                all.push(one);
            }
            if !all.is_empty() {
                spec["template"]["spec"]["containers"] = all.into();
            }
            config(spec)
        })
    }

    fn set_of(value: &Value) -> Set {
        tree::fields_of(&without_managers(value), Shape::of_kind(deployments())).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_applied_is_there_and_owned(first in any_config(), second in any_config(), third in any_config()) {
            let object = apply(&writer("a", "1"), None, &first, false).unwrap();
            let object = apply(&writer("b", "2"), Some(&object), &second, true).unwrap();
            let object = apply(&writer("a", "3"), Some(&object), &third, true).unwrap();
            let there = set_of(&object);
            // Everything the last writer wants is in the object, and owned.
            let wanted = set_of(&third).difference(&STRIPPED_SET);
            prop_assert!(wanted.difference(&there).is_empty(), "{:?}", wanted.difference(&there).paths());
            prop_assert_eq!(Set::from_fields(&fields(&object, "a")).unwrap_or_default(), wanted);
            // Applying it once more changes nothing.
            prop_assert_eq!(&apply(&writer("a", "4"), Some(&object), &third, false).unwrap(), &object);
            // Nothing is left that nobody owns.
            let owned = Managers::decode(&object["metadata"]["managedFields"]).unwrap().all();
            let orphans = there.difference(&owned).difference(&STRIPPED_SET);
            prop_assert!(orphans.paths().iter().all(|path| !path.contains(".image")), "{:?}", orphans.paths());
        }

        #[test]
        fn a_lone_applier_gets_exactly_its_configuration(first in any_config(), second in any_config()) {
            let object = apply(&writer("a", "1"), None, &first, false).unwrap();
            let object = apply(&writer("a", "2"), Some(&object), &second, false).unwrap();
            let left = set_of(&object).difference(&set_of(&second));
            prop_assert!(left.is_empty(), "{:?}", left.paths());
        }
    }
}
