//! Defaults of the kinds that make pods.

use super::pod::template;
use super::rows::{self, fill_map};
use super::table::fill;
use crate::meta::{child_mut, default_to, each_mut};
use serde_json::{Map, Value, json};

pub(crate) fn deployment(object: &mut Value) {
    let spec = child_mut(object, "spec");
    default_to(spec, "replicas", 1);
    default_to(spec, "revisionHistoryLimit", 10);
    default_to(spec, "progressDeadlineSeconds", 600);
    let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
    rolling(strategy, json!({"maxUnavailable": "25%", "maxSurge": "25%"}));
    template(spec);
}

/// Fills `type: RollingUpdate` and its parameters.
fn rolling(strategy: &mut Value, parameters: Value) {
    if !strategy.is_object() {
        *strategy = json!({});
    }
    if strategy["type"].as_str().is_none_or(str::is_empty) {
        strategy["type"] = json!("RollingUpdate");
    }
    if strategy["type"] == "RollingUpdate"
        && let Value::Object(parameters) = parameters
    {
        let rolling = child_mut(strategy, "rollingUpdate");
        for (key, value) in parameters {
            default_to(rolling, &key, value);
        }
    }
}

pub(crate) fn replica_set(object: &mut Value) {
    fill(object, rows::REPLICAS);
    let spec = child_mut(object, "spec");
    default_to(spec, "replicas", 1);
    template(spec);
}

pub(crate) fn replication_controller(object: &mut Value) {
    fill(object, rows::REPLICAS);
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let spec = child_mut(object, "spec");
    default_to(spec, "replicas", 1);
    if labels.is_object() {
        default_to(spec, "selector", labels);
    }
    template(spec);
}

pub(crate) fn stateful_set(object: &mut Value) {
    fill(object, rows::STATEFUL_SET);
    let spec = child_mut(object, "spec");
    default_to(spec, "replicas", 1);
    default_to(spec, "revisionHistoryLimit", 10);
    default_to(spec, "podManagementPolicy", "OrderedReady");
    let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
    rolling(strategy, json!({"partition": 0}));
    let retention = spec.entry("persistentVolumeClaimRetentionPolicy").or_insert_with(|| json!({}));
    if let Some(retention) = retention.as_object_mut() {
        default_to(retention, "whenDeleted", "Retain");
        default_to(retention, "whenScaled", "Retain");
    }
    for claim in each_mut(spec, "volumeClaimTemplates") {
        default_to(claim, "apiVersion", "v1");
        default_to(claim, "kind", "PersistentVolumeClaim");
        let mut value = Value::Object(std::mem::take(claim));
        super::storage::claim(&mut value);
        if let Value::Object(map) = value {
            *claim = map;
        }
    }
    template(spec);
}

pub(crate) fn daemon_set(object: &mut Value) {
    fill(object, rows::DAEMON_SET);
    let spec = child_mut(object, "spec");
    default_to(spec, "revisionHistoryLimit", 10);
    let strategy = spec.entry("updateStrategy").or_insert_with(|| json!({}));
    rolling(strategy, json!({"maxUnavailable": 1, "maxSurge": 0}));
    template(spec);
}

pub(crate) fn job(object: &mut Value) {
    job_spec(child_mut(object, "spec"));
}

fn job_spec(spec: &mut Map<String, Value>) {
    let absent = |spec: &Map<String, Value>, key: &str| spec.get(key).is_none_or(Value::is_null);
    if absent(spec, "completions") && absent(spec, "parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    default_to(spec, "parallelism", 1);
    if absent(spec, "backoffLimitPerIndex") {
        default_to(spec, "backoffLimit", 6);
    } else {
        default_to(spec, "backoffLimit", i32::MAX);
    }
    default_to(spec, "completionMode", "NonIndexed");
    default_to(spec, "suspend", false);
    let policy = if absent(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    default_to(spec, "podReplacementPolicy", policy);
    default_to(spec, "manualSelector", false);
    fill_map(spec, rows::FAILURE_POLICY);
    template(spec);
}

pub(crate) fn cron_job(object: &mut Value) {
    let spec = child_mut(object, "spec");
    default_to(spec, "concurrencyPolicy", "Allow");
    default_to(spec, "suspend", false);
    default_to(spec, "successfulJobsHistoryLimit", 3);
    default_to(spec, "failedJobsHistoryLimit", 1);
    // The job inside is defaulted when the Job is created; upstream defaults only its pod template here.
    if let Some(job) = spec.get_mut("jobTemplate").and_then(|j| j.get_mut("spec")).and_then(Value::as_object_mut) {
        fill_map(job, rows::FAILURE_POLICY);
        template(job);
    }
}

/// The target of v1 has its default in the conversion, which knows whether other metrics wait in the annotations.
pub(crate) fn autoscaler_v1(object: &mut Value) {
    fill(object, rows::AUTOSCALER_V1);
}

pub(crate) fn autoscaler(object: &mut Value) {
    fill(object, rows::AUTOSCALER);
    let spec = child_mut(object, "spec");
    default_to(spec, "minReplicas", 1);
    let no_metrics = spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if no_metrics {
        spec.insert(
            "metrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) else { return };
    for (key, policies, window) in [
        (
            "scaleUp",
            json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            Some(0),
        ),
        ("scaleDown", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]), None),
    ] {
        let Some(rules) = behavior.entry(key).or_insert_with(|| json!({})).as_object_mut() else { continue };
        if let Some(window) = window {
            default_to(rules, "stabilizationWindowSeconds", window);
        }
        default_to(rules, "selectPolicy", "Max");
        default_to(rules, "policies", policies);
    }
}
