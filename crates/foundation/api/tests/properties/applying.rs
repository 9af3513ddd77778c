//! Server-side apply of anything to anything.

use dhow_api::apply::{Writer, apply, update};
use dhow_api::bounds::measure;
use dhow_api::registry::{Kind, builtin};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::generate::{any_json, any_object, any_pod, without_nulls};

fn pods() -> &'static Kind {
    builtin().get("", "v1", "pods").unwrap()
}

fn writer<'a>(manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { kind: pods(), api_version: "v1", manager, subresource: "", now, reset: &[] }
}

fn pod(mut part: Value) -> Value {
    part["apiVersion"] = json!("v1");
    part["kind"] = json!("Pod");
    part["metadata"]["name"] = json!("p");
    part
}

proptest! {
    #![proptest_config(crate::generate::cases())]

    #[test]
    fn applying_twice_is_applying_once(live in any_pod(), config in any_pod(), later in any_pod()) {
        let mut live = pod(live);
        update(&writer("u", "1"), None, &mut live);
        let config = pod(config);
        let once = apply(&writer("a", "2"), Some(&live), &config, true).unwrap();
        prop_assert_eq!(&apply(&writer("a", "3"), Some(&once), &config, false).unwrap(), &once);
        // Somebody else's apply of the same is no conflict and moves no value.
        let shared = apply(&writer("b", "4"), Some(&once), &config, false).unwrap();
        prop_assert_eq!(&shared["spec"], &once["spec"]);
        // What nobody wants any more is gone, what the updater made stays.
        let left = apply(&writer("a", "5"), Some(&once), &pod(later.clone()), true).unwrap();
        let names = |pod: &Value| -> Vec<Value> {
            pod["spec"]["containers"].as_array().into_iter().flatten().map(|one| one["name"].clone()).collect()
        };
        for name in names(&left) {
            prop_assert!(names(&live).contains(&name) || names(&later).contains(&name), "{name} in {left}");
        }
    }

    /// A conflict is told before anything is taken, and with force there is none.
    #[test]
    fn conflicts_are_those_who_differ(live in any_pod(), config in any_pod()) {
        let (live, config) = (pod(live), pod(config));
        let first = apply(&writer("a", "1"), None, &live, false).unwrap();
        let forced = apply(&writer("b", "2"), Some(&first), &config, true).unwrap();
        match apply(&writer("b", "2"), Some(&first), &config, false) {
            Ok(object) => prop_assert_eq!(object, forced),
            Err(status) => {
                prop_assert_eq!((status.code, status.reason.as_ref()), (409, "Conflict"));
                prop_assert!(status.message.contains("\"a\""), "{}", status.message);
            }
        }
    }

    #[test]
    fn noise_is_an_error_or_settles(live in any_object(), config in any_object(), managed in any_json(), inner in any_json()) {
        let mut live = pod(without_nulls(live));
        live["spec"] = without_nulls(inner.clone());
        live["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsV1": managed}]);
        let mut config = pod(without_nulls(config));
        config["spec"] = without_nulls(inner);
        if let Ok(once) = apply(&writer("a", "1"), Some(&live), &config, true) {
            prop_assert!(measure(&once).bytes <= 20 * (measure(&live).bytes + measure(&config).bytes) + 1000);
            prop_assert_eq!(&apply(&writer("a", "2"), Some(&once), &config, false).unwrap(), &once);
        }
        let mut updated = live.clone();
        update(&writer("u", "1"), Some(&live), &mut updated);
    }
}
