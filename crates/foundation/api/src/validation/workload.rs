//! Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers, revisions and disruption budgets.

use std::collections::BTreeMap;

use serde_json::Value;

use super::common::{at_most_all, int_or_percent, selector};
use super::field::Field;
use super::{Errors, metadata, pod};
use crate::meta::at;
use crate::selectors::LabelSelector;

pub fn deployment(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    numbers(&spec, &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], errors);
    selected_template(&spec, "deployment", errors);
    always_restarts(&spec, "ReplicaSet", errors);
    let strategy = spec.at("strategy");
    errors.need_known(&strategy.at("type"), &["Recreate", "RollingUpdate"]);
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "Recreate" if rolling.present() => {
            errors.deny(&rolling, "may not be specified when strategy `type` is 'Recreate'");
        }
        "RollingUpdate" => {
            let (down, up) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            if int_or_percent(&down, errors) == 0 && int_or_percent(&up, errors) == 0 {
                errors.bad(&down, "may not be 0 when `maxSurge` is 0");
            }
            at_most_all(&down, errors);
        }
        _ => {}
    }
    let deadline = spec.at("progressDeadlineSeconds");
    if deadline.int().is_some_and(|deadline| deadline <= spec.at("minReadySeconds").int().unwrap_or(0)) {
        errors.bad(&deadline, "must be greater than minReadySeconds");
    }
}

pub fn replica_set(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    numbers(&spec, &["replicas", "minReadySeconds"], errors);
    selected_template(&spec, "replica set", errors);
    always_restarts(&spec, "ReplicaSet", errors);
}

pub fn replication_controller(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    numbers(&spec, &["replicas", "minReadySeconds"], errors);
    let (selector, template_field) = (spec.at("selector"), spec.at("template"));
    if selector.len() == 0 {
        errors.missing(&selector, "");
    }
    if !template_field.present() {
        return errors.missing(&template_field, "");
    }
    let labels = template_field.at("metadata").at("labels");
    let matches = LabelSelector::from_map(Some(selector.value)).matches(&label_map(labels.value));
    if selector.len() > 0 && !matches {
        errors.bad(&labels, "`selector` does not match template `labels`");
    }
    template(&template_field, errors);
    always_restarts(&spec, "ReplicationController", errors);
}

pub fn stateful_set(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let policy = spec.at("podManagementPolicy");
    if errors.need(&policy) && !["OrderedReady", "Parallel"].contains(&policy.text()) {
        errors.bad(&policy, "must be 'OrderedReady' or 'Parallel'");
    }
    let strategy = spec.at("updateStrategy");
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "" => errors.missing(&strategy, ""),
        "OnDelete" if rolling.present() => errors.bad(&rolling, "only allowed for updateStrategy 'RollingUpdate'"),
        "OnDelete" => {}
        "RollingUpdate" => {
            errors.not_negative(&rolling.at("partition"));
            let down = rolling.at("maxUnavailable");
            if down.present() && int_or_percent(&down, errors) == 0 {
                errors.bad(&down, "cannot be 0");
            }
            at_most_all(&down, errors);
        }
        _ => errors.bad(&strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
    for field in ["whenDeleted", "whenScaled"] {
        errors.known(&spec.at("persistentVolumeClaimRetentionPolicy").at(field), &["Retain", "Delete"]);
    }
    numbers(&spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], errors);
    errors.not_negative(&spec.at("ordinals").at("start"));
    selected_template(&spec, "statefulset", errors);
    always_restarts(&spec, "StatefulSet", errors);
}

pub fn daemon_set(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    selected_template(&spec, "daemonset", errors);
    always_restarts(&spec, "DaemonSet", errors);
    numbers(&spec, &["minReadySeconds", "revisionHistoryLimit"], errors);
    let strategy = spec.at("updateStrategy");
    errors.known(&strategy.at("type"), &["RollingUpdate", "OnDelete"]);
    if !strategy.at("type").is("RollingUpdate") {
        return;
    }
    let rolling = strategy.at("rollingUpdate");
    let (down, up) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
    let numbers = (int_or_percent(&down, errors), int_or_percent(&up, errors));
    at_most_all(&down, errors);
    at_most_all(&up, errors);
    match numbers {
        (0, 0) => errors.missing(&down, "cannot be 0 when maxSurge is 0"),
        (down, surge) if down != 0 && surge != 0 => {
            errors.bad(&up, "may not be set when maxUnavailable is non-zero");
        }
        _ => {}
    }
}

pub fn controller_revision(value: &Value, errors: &mut Errors) {
    if value["data"].is_null() {
        errors.missing(&Field::top(value, "data"), "data is mandatory");
    }
    errors.not_negative(&Field::top(value, "revision"));
}

pub fn controller_revision_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.same(&Field::top(new, "data"), &Field::top(old, "data"));
}

pub fn disruption_budget(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let (least, most) = (spec.at("minAvailable"), spec.at("maxUnavailable"));
    if least.present() && most.present() {
        errors.bad(&spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for field in [&least, &most] {
        int_or_percent(field, errors);
        at_most_all(field, errors);
    }
    selector(&spec.at("selector"), errors);
    errors.known(&spec.at("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"]);
}

pub fn selector_immutable(new: &Value, old: &Value, errors: &mut Errors) {
    errors.fixed(new, old, &["selector"]);
}

/// What may change in a StatefulSet.
const STATEFUL_SET_MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub fn stateful_set_update(new: &Value, old: &Value, errors: &mut Errors) {
    let rest = |value: &Value| {
        let mut spec = value["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|name, _| !STATEFUL_SET_MUTABLE.contains(&name.as_str()));
        // The status of a claim template is the server's.
        for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
            claim.as_object_mut().and_then(|claim| claim.remove("status"));
        }
        spec
    };
    if rest(new) != rest(old) {
        errors.deny(
            &Field::spec(new),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

/// Not negative, all of them.
pub(super) fn numbers(spec: &Field, names: &[&str], errors: &mut Errors) {
    for name in names {
        errors.not_negative(&spec.at(name));
    }
}

fn selected_template(spec: &Field, kind: &str, errors: &mut Errors) {
    let field = spec.at("selector");
    if !field.present() {
        errors.missing(&field, "");
    } else {
        selector(&field, errors);
        if field.at("matchLabels").len() + field.at("matchExpressions").len() == 0 {
            errors.bad(&field, &format!("empty selector is invalid for {kind}"));
        } else {
            matches_template(spec, errors);
        }
    }
    // Claim templates bring volumes of their own.
    let claims = crate::meta::items(spec.value, &["volumeClaimTemplates"]);
    let given = claims.iter().map(crate::meta::name).collect();
    let template = spec.at("template");
    template_labels(&template, errors);
    pod::with_volumes(&template.value["spec"], &format!("{}.spec", template.path), given, errors);
}

/// The selector takes the pods that the template makes.
pub(super) fn matches_template(spec: &Field, errors: &mut Errors) {
    let labels = spec.at("template").at("metadata").at("labels");
    let Ok(selector) = LabelSelector::from_object(Some(spec.at("selector").value)) else { return };
    if !selector.matches(&label_map(labels.value)) {
        errors.bad(&labels, "`selector` does not match template `labels`");
    }
}

fn label_map(labels: &Value) -> BTreeMap<String, String> {
    let entries = labels.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn always_restarts(spec: &Field, kind: &str, errors: &mut Errors) {
    let pod = spec.at("template").at("spec");
    errors.known(&pod.at("restartPolicy"), &["Always"]);
    if pod.at("activeDeadlineSeconds").present() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.deny(&pod.at("activeDeadlineSeconds"), &why);
    }
}

fn template_labels(template: &Field, errors: &mut Errors) {
    let labels = at(template.value, &["metadata", "labels"]);
    metadata::labels(labels, &format!("{}.labels", template.path), errors);
}

pub(super) fn template(template: &Field, errors: &mut Errors) {
    template_labels(template, errors);
    pod::spec(&template.value["spec"], &format!("{}.spec", template.path), errors);
}
