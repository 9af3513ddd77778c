//! Autoscalers of both versions.

use serde_json::Value;

use super::Errors;
use super::common::{positive, reference, selector};
use super::field::Field;

/// Longest window and period of scaling, in seconds.
const WINDOW: i64 = 3600;
const PERIOD: i64 = 1800;

const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn bounds(spec: &Field, lowest: i64, errors: &mut Errors) {
    let (least, most) = (spec.at("minReplicas"), spec.at("maxReplicas"));
    if least.int().is_some_and(|number| number < lowest) {
        errors.bad(&least, &format!("must be greater than or equal to {lowest}"));
    }
    if most.int().unwrap_or(0) < 1 {
        errors.bad(&most, "must be greater than 0");
    }
    if let (Some(low), Some(high)) = (least.int(), most.int())
        && high < low
    {
        errors.bad(&most, "must be greater than or equal to `minReplicas`");
    }
    reference(&spec.at("scaleTargetRef"), errors);
}

pub fn v1(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    bounds(&spec, 1, errors);
    let percent = spec.at("targetCPUUtilizationPercentage");
    if percent.int().is_some_and(|number| number < 1) {
        errors.bad(&percent, "must be greater than 0");
    }
}

pub fn v2(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    // Only what is told of something else than the pods can bring them back from none.
    let wakes = spec.at("metrics").items().any(|metric| ["Object", "External"].contains(&metric.at("type").text()));
    bounds(&spec, i64::from(!wakes), errors);
    for metric in spec.at("metrics").items() {
        self::metric(&metric, errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        rules(&spec.at("behavior").at(direction), errors);
    }
}

fn rules(rules: &Field, errors: &mut Errors) {
    if !rules.present() {
        return;
    }
    let window = rules.at("stabilizationWindowSeconds");
    match window.int() {
        Some(seconds) if seconds < 0 => errors.bad(&window, "must be greater than or equal to zero"),
        Some(seconds) if seconds > WINDOW => {
            errors.bad(&window, &format!("must be less than or equal to {WINDOW}"));
        }
        _ => {}
    }
    errors.known(&rules.at("selectPolicy"), &["Disabled", "Max", "Min"]);
    let policies = rules.at("policies");
    if policies.len() == 0 {
        errors.missing(&policies, "must specify at least one Policy");
    }
    for policy in policies.items() {
        errors.need_known(&policy.at("type"), &["Percent", "Pods"]);
        for name in ["value", "periodSeconds"] {
            if policy.at(name).int().unwrap_or(0) <= 0 {
                errors.bad(&policy.at(name), "must be greater than zero");
            }
        }
        if policy.at("periodSeconds").int().is_some_and(|seconds| seconds > PERIOD) {
            errors.bad(&policy.at("periodSeconds"), &format!("must be less than or equal to {PERIOD}"));
        }
    }
}

fn metric(metric: &Field, errors: &mut Errors) {
    let kind = metric.at("type");
    if kind.text().is_empty() {
        return errors.missing(&kind, "must specify a metric source type");
    }
    errors.known(&kind, &SOURCES.map(|(name, _)| name));
    let expected = SOURCES.iter().find(|(name, _)| *name == kind.text()).map_or("", |(_, field)| field);
    for (_, name) in SOURCES {
        let source = metric.at(name);
        match (name == expected, source.present()) {
            (true, true) => self::source(name, &source, errors),
            (true, false) => errors.missing(&source, "must populate information for the given metric source"),
            (false, true) => errors.deny(&source, "must populate the given metric source only"),
            (false, false) => {}
        }
    }
}

fn source(name: &str, source: &Field, errors: &mut Errors) {
    let target = source.at("target");
    errors.need_known(&target.at("type"), &["AverageValue", "Utilization", "Value"]);
    let (value, average, percent) = (target.at("value"), target.at("averageValue"), target.at("averageUtilization"));
    positive(&value, errors);
    positive(&average, errors);
    if percent.int().is_some_and(|number| number < 1) {
        errors.bad(&percent, "must be greater than 0");
    }
    if matches!(name, "pods" | "object" | "external") {
        let identifier = source.at("metric");
        errors.need_name(&identifier.at("name"), crate::names::path_segment);
        selector(&identifier.at("selector"), errors);
    }
    match name {
        "resource" | "containerResource" => {
            if errors.need(&source.at("name")) && name == "containerResource" {
                errors.need(&source.at("container"));
            }
            match (percent.present(), average.present()) {
                (false, false) => {
                    let why = "must set either a target raw value or a target utilization";
                    errors.missing(&percent, why);
                }
                (true, true) => {
                    let why = "may not set both a target raw value and a target utilization";
                    errors.deny(&average, why);
                }
                _ => {}
            }
        }
        "pods" if !average.present() => errors.missing(&average, "must specify a positive target averageValue"),
        "object" => {
            reference(&source.at("describedObject"), errors);
            if !value.present() && !average.present() {
                errors.missing(&average, "must set either a target value or averageValue");
            }
        }
        "external" => match (value.present(), average.present()) {
            (false, false) => {
                errors.missing(&average, "must set either a target value for metric or a per-pod target");
            }
            (true, true) => {
                errors.deny(&value, "may not set both a target value for metric and a per-pod target");
            }
            _ => {}
        },
        _ => {}
    }
}
