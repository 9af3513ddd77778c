//! Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs and CronJobs.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Errors, FieldError, metadata, pod};
use crate::meta::{at, object, text};
use crate::selectors::LabelSelector;

pub fn deployment(value: &Value, errors: &mut Errors) {
    replicas(value, errors);
    selected_template(value, errors);
    errors.one_of(value, "spec.strategy.type", &["spec", "strategy", "type"], &["Recreate", "RollingUpdate"]);
    let zero = |name: &str| {
        at(value, &["spec", "strategy", "rollingUpdate", name])
            .is_some_and(|value| value.as_i64() == Some(0) || value.as_str() == Some("0%"))
    };
    if zero("maxSurge") && zero("maxUnavailable") {
        let field = "spec.strategy.rollingUpdate.maxUnavailable";
        errors.push(FieldError::invalid(field, "0", "may not be 0 when `maxSurge` is 0"));
    }
}

pub fn replica_set(value: &Value, errors: &mut Errors) {
    replicas(value, errors);
    selected_template(value, errors);
}

pub fn stateful_set(value: &Value, errors: &mut Errors) {
    replicas(value, errors);
    selected_template(value, errors);
    let policies = ["OrderedReady", "Parallel"];
    errors.one_of(value, "spec.podManagementPolicy", &["spec", "podManagementPolicy"], &policies);
}

pub fn daemon_set(value: &Value, errors: &mut Errors) {
    selected_template(value, errors);
}

pub fn job(value: &Value, errors: &mut Errors) {
    for field in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds"] {
        not_negative(value, &["spec", field], &format!("spec.{field}"), errors);
    }
    template(&value["spec"]["template"], "spec.template", errors);
    let policy = text(value, &["spec", "template", "spec", "restartPolicy"]);
    if policy != "OnFailure" && policy != "Never" {
        let field = "spec.template.spec.restartPolicy";
        errors.push(FieldError::not_supported(field, policy, &["OnFailure", "Never"]));
    }
}

pub fn cron_job(value: &Value, errors: &mut Errors) {
    if text(value, &["spec", "schedule"]).is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    errors.one_of(value, "spec.concurrencyPolicy", &["spec", "concurrencyPolicy"], &policies);
    template(&value["spec"]["jobTemplate"]["spec"]["template"], "spec.jobTemplate.spec.template", errors);
}

pub fn selector_immutable(new: &Value, old: &Value, errors: &mut Errors) {
    errors.immutable(new, old, "spec.selector", &["spec", "selector"]);
}

pub fn stateful_set_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"] {
        errors.immutable(new, old, &format!("spec.{field}"), &["spec", field]);
    }
}

pub fn job_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["selector", "completionMode"] {
        errors.immutable(new, old, &format!("spec.{field}"), &["spec", field]);
    }
    // A suspended job that has not begun may still change what it will run.
    if old["spec"]["suspend"] != true {
        errors.immutable(new, old, "spec.template", &["spec", "template"]);
    }
}

fn replicas(value: &Value, errors: &mut Errors) {
    not_negative(value, &["spec", "replicas"], "spec.replicas", errors);
    not_negative(value, &["spec", "minReadySeconds"], "spec.minReadySeconds", errors);
}

fn not_negative(value: &Value, path: &[&str], field: &str, errors: &mut Errors) {
    if let Some(number) = at(value, path).and_then(Value::as_i64).filter(|number| *number < 0) {
        errors.push(FieldError::invalid(field, &number.to_string(), "must be greater than or equal to 0"));
    }
}

fn selected_template(value: &Value, errors: &mut Errors) {
    let selector = at(value, &["spec", "selector"]);
    match (selector, LabelSelector::from_object(selector)) {
        (None, _) => errors.push(FieldError::required("spec.selector", "")),
        (Some(_), Err(error)) => errors.push(FieldError::invalid("spec.selector", "", &error.to_string())),
        (Some(_), Ok(selector)) if selector.is_everything() => {
            errors.push(FieldError::invalid("spec.selector", "{}", "empty selector is invalid for this kind"));
        }
        (Some(_), Ok(selector)) => {
            let labels: BTreeMap<String, String> = object(value, &["spec", "template", "metadata", "labels"])
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect();
            if !selector.matches(&labels) {
                let shown = serde_json::to_string(&labels).unwrap_or_default();
                let why = "`selector` does not match template `labels`";
                errors.push(FieldError::invalid("spec.template.metadata.labels", &shown, why));
            }
        }
    }
    template(&value["spec"]["template"], "spec.template", errors);
    let policy = text(value, &["spec", "template", "spec", "restartPolicy"]);
    if !policy.is_empty() && policy != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
}

fn template(template: &Value, path: &str, errors: &mut Errors) {
    metadata::labels(at(template, &["metadata", "labels"]), &format!("{path}.labels"), errors);
    pod::spec(&template["spec"], &format!("{path}.spec"), errors);
}
