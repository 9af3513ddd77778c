//! Which pods get other requests than they have, and how.

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::kind::{Amounts, ContainerRecommendation, Spec};

/// A pod within its bounds is changed only after so long, in seconds, and only by so much.
const LIVED: i64 = 12 * 3600;
const MUCH: f64 = 0.1;

fn amount(text: &str) -> Option<f64> {
    text.parse::<Quantity>().ok().map(|quantity| quantity.approximate())
}

fn asked(container: &Container, resource: &str) -> Option<f64> {
    amount(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0)
}

fn limit(container: &Container, resource: &str) -> Option<f64> {
    amount(&container.resources.as_ref()?.limits.as_ref()?.get(resource)?.0)
}

/// Whether a container's requests lie where they should not.
fn is_off(container: &Container, recommended: &ContainerRecommendation, lived: i64, is_new: bool) -> bool {
    recommended.target.iter().any(|(resource, target)| {
        let (Some(target), now) = (amount(target), asked(container, resource).unwrap_or(0.0)) else { return false };
        let bound = |all: &Amounts| all.get(resource).and_then(|text| amount(text));
        let outside = bound(&recommended.lower_bound).is_some_and(|lower| now < lower)
            || bound(&recommended.upper_bound).is_some_and(|upper| now > upper);
        let differs = (now - target).abs() > MUCH * now.max(f64::MIN_POSITIVE);
        outside || differs && (is_new || lived >= LIVED)
    })
}

/// The change of a pod's requests and limits, as a patch of its `resize`; `None` where nothing is to change. A pod that
/// is new changes also for less.
pub fn patch(
    spec: &Spec,
    pod: &Pod,
    recommendations: &[ContainerRecommendation],
    is_new: bool,
    now: Timestamp,
) -> Option<Value> {
    let begun = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let lived = begun.map_or(0, |begun| now.as_second() - begun.0.as_second());
    let find = |name: &str| recommendations.iter().find(|one| one.container_name == name);
    let containers = &pod.spec.as_ref()?.containers;
    let mut pairs = containers.iter().filter_map(|container| Some((container, find(&container.name)?)));
    if !pairs.clone().any(|(container, recommended)| is_off(container, recommended, lived, is_new)) {
        return None;
    }
    // A pod that asks for nothing cannot begin to: its class of service would change.
    let classless = containers
        .iter()
        .all(|one| one.resources.as_ref().is_none_or(|own| own.requests.is_none() && own.limits.is_none()));
    if classless {
        return None;
    }
    let changes: Vec<Value> =
        pairs.by_ref().map(|(container, recommended)| change(spec, container, recommended)).collect();
    Some(json!({"spec": {"containers": changes}}))
}

fn change(spec: &Spec, container: &Container, recommended: &ContainerRecommendation) -> Value {
    let policy = spec.policy(&container.name);
    let both = policy.and_then(|policy| policy.controlled_values.as_deref()) != Some("RequestsOnly");
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (resource, target) in &recommended.target {
        let Some(wanted) = amount(target) else { continue };
        let limit = limit(container, resource);
        // A limit alone is a request too.
        let before = asked(container, resource).or(limit);
        match (limit, before) {
            (Some(limit), Some(before)) if both && before > 0.0 => {
                // In the proportion that they had.
                limits.insert(resource.clone(), json!(quantity(resource, wanted * (limit / before))));
                requests.insert(resource.clone(), json!(target));
            }
            (Some(limit), _) if wanted > limit => {
                requests.insert(resource.clone(), json!(quantity(resource, limit)));
            }
            _ => {
                requests.insert(resource.clone(), json!(target));
            }
        }
    }
    let mut resources = json!({"requests": requests});
    if !limits.is_empty() {
        resources["limits"] = limits.into();
    }
    json!({"name": container.name, "resources": resources})
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn quantity(resource: &str, value: f64) -> String {
    match resource {
        "cpu" => Quantity::from_millis((value * 1000.0 - 1e-6).ceil() as i64).to_string(),
        _ => Quantity::from_units((value - 1e-6).ceil() as i64).to_string(),
    }
}

/// Whether the node said that a resize of the pod cannot be.
pub fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| {
        one.type_ == "PodResizePending" && one.status == "True" && one.reason.as_deref() == Some("Infeasible")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(requests: Value, limits: Value) -> Pod {
        let container = json!({"name": "c", "resources": {"requests": requests, "limits": limits}});
        let status = json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(json!({"spec": {"containers": [container]}, "status": status})).unwrap()
    }

    fn recommended() -> Vec<ContainerRecommendation> {
        let all = json!([{"containerName": "c", "target": {"cpu": "200m"}, "lowerBound": {"cpu": "100m"}, "upperBound": {"cpu": "400m"}}]);
        serde_json::from_value(all).unwrap()
    }

    fn spec(values: &str) -> Spec {
        let policies = json!([{"containerName": "*", "controlledValues": values}]);
        let target = json!({"kind": "Deployment", "name": "d"});
        serde_json::from_value(json!({"targetRef": target, "resourcePolicy": {"containerPolicies": policies}})).unwrap()
    }

    fn patched(requests: Value, limits: Value, is_new: bool, hours: u64) -> Option<Value> {
        let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + std::time::Duration::from_secs(hours * 3600);
        let spec = spec("RequestsAndLimits");
        let patch = patch(&spec, &pod(requests, limits), &recommended(), is_new, now);
        patch.map(|patch| patch["spec"]["containers"][0]["resources"].clone())
    }

    #[test]
    fn only_what_is_out_of_bounds_is_changed_at_once() {
        assert_eq!(patched(json!({"cpu": "50m"}), json!({}), false, 1), Some(json!({"requests": {"cpu": "200m"}})));
        assert_eq!(patched(json!({"cpu": "150m"}), json!({}), false, 1), None);
        assert!(patched(json!({"cpu": "150m"}), json!({}), false, 13).is_some(), "after half a day");
        assert!(patched(json!({"cpu": "150m"}), json!({}), true, 0).is_some(), "a new pod");
        assert_eq!(patched(json!({"cpu": "195m"}), json!({}), true, 13), None);
        assert_eq!(patched(Value::Null, Value::Null, false, 1), None, "its class would change");
    }

    #[test]
    fn limits_follow_in_proportion() {
        let both = patched(json!({"cpu": "50m"}), json!({"cpu": "100m"}), false, 1);
        assert_eq!(both, Some(json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "400m"}})));
        let spec = spec("RequestsOnly");
        let pod = pod(json!({"cpu": "50m"}), json!({"cpu": "100m"}));
        let patch = patch(&spec, &pod, &recommended(), false, "2026-01-01T01:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(patch["spec"]["containers"][0]["resources"], json!({"requests": {"cpu": "100m"}}));
    }
}
