//! PodSecurity: the levels of the Pod Security Standards, as a namespace's labels ask for them.

mod baseline;
mod checks;
mod level;
mod restricted;

use dhow_api::registry::Subresource;
use dhow_api::validation::FieldError;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::{Attributes, Operation, cached, stored_in};
use crate::ApiServer;
use level::{Level, Mark, Policy};

/// Pods looked at when a namespace's level is raised.
const LOOKED_AT: usize = 3000;

pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    if !matches!(attributes.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    match (attributes.kind.group, attributes.kind.kind) {
        ("", "Namespace") if attributes.subresource.is_none() => namespace(server, attributes),
        ("", "Pod") => pod(server, attributes),
        _ if attributes.subresource.is_none() => template(server, attributes),
        _ => Ok(()),
    }
}

fn policy_of(server: &ApiServer, attributes: &Attributes<'_>) -> Policy {
    let namespace = attributes.namespace.and_then(|name| cached(server, "", "namespaces", None, name));
    namespace.map_or_else(Policy::default, |namespace| Policy::of(&namespace.header.labels).0)
}

fn pod(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    match (attributes.subresource, attributes.operation, attributes.old) {
        (None, Operation::Create, _) | (Some(Subresource::EphemeralContainers | Subresource::Resize), ..) => {}
        (None, Operation::Update, Some(old)) if is_significant(&attributes.object, old) => {}
        _ => return Ok(()),
    }
    let policy = policy_of(server, attributes);
    attributes.record("pod-security.kubernetes.io/enforce-policy", &policy.enforce.to_string());
    if let Some(violations) = violations(&policy.enforce, &attributes.object) {
        return Err(attributes.forbidden(&format!("violates PodSecurity \"{}\": {violations}", policy.enforce)));
    }
    // Whoever was refused needs no warning.
    warn(attributes, &policy, &attributes.object);
    Ok(())
}

/// Images, tolerations and deadlines may change without anyone looking again.
fn is_significant(new: &Value, old: &Value) -> bool {
    let seen = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            for field in ["tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
                map.remove(field);
            }
            for list in ["containers", "initContainers"] {
                meta::each_mut(map, list).for_each(|container| drop(container.remove("image")));
            }
        }
        let annotations = meta::object(pod, &["metadata", "annotations"]).into_iter().flatten();
        let profiles: Vec<(String, Value)> = annotations
            .filter(|(key, _)| key.contains("apparmor.security") || key.contains("seccomp.security"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        (spec, profiles)
    };
    seen(new) != seen(old)
}

/// A workload is only warned about; its pods are what is refused.
fn template(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let path: &[&str] = match (attributes.kind.group, attributes.kind.kind) {
        ("", "PodTemplate") => &["template"],
        ("", "ReplicationController") | ("apps", _) | ("batch", "Job") => &["spec", "template"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => return Ok(()),
    };
    if let Some(template) = meta::at(&attributes.object, path) {
        warn(attributes, &policy_of(server, attributes), template);
    }
    Ok(())
}

fn warn(attributes: &Attributes<'_>, policy: &Policy, pod: &Value) {
    if let Some(violations) = violations(&policy.warn, pod) {
        attributes.warnings.add(format!("would violate PodSecurity \"{}\": {violations}", policy.warn));
    }
    if let Some(violations) = violations(&policy.audit, pod) {
        let what = format!("would violate PodSecurity \"{}\": {violations}", policy.audit);
        attributes.record("pod-security.kubernetes.io/audit-violations", &what);
    }
}

/// All that is wrong with a pod, in upstream's words.
fn violations(mark: &Mark, pod: &Value) -> Option<String> {
    let found = found(mark, pod);
    let texts: Vec<String> = found.into_iter().map(|violation| violation.text()).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn found(mark: &Mark, pod: &Value) -> Vec<checks::Violation> {
    let pod = checks::Pod::new(pod, mark.minor);
    match mark.level {
        Level::Privileged => Vec::new(),
        Level::Baseline => baseline::check(&pod, false),
        Level::Restricted => {
            let mut found = baseline::check(&pod, true);
            found.extend(restricted::check(&pod));
            found
        }
    }
}

/// The labels have to make sense; raising the level warns of pods that are there already.
fn namespace(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let (new, errors) = Policy::of_value(&attributes.object);
    let before = attributes.old.map(Policy::of_value);
    if !errors.is_empty() && before.as_ref().is_none_or(|(_, old)| *old != errors) {
        let errors: Vec<FieldError> = errors
            .iter()
            .map(|(label, value, why)| FieldError::invalid(&format!("metadata.labels[{label}]"), value, why))
            .collect();
        return Err(Status::invalid("", "Namespace", attributes.name, &errors));
    }
    let Some((old, _)) = before else { return Ok(()) };
    let relaxed = new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level;
    if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
        return Ok(());
    }
    warn_of_pods(server, attributes, &new.enforce)
}

fn warn_of_pods(server: &ApiServer, attributes: &Attributes<'_>, mark: &Mark) -> Result<(), Status> {
    // By what is wrong with them: the first pod and how many there are.
    let mut groups: Vec<(String, String, usize)> = Vec::new();
    for pod in stored_in(server, "", "pods", attributes.name).into_iter().take(LOOKED_AT) {
        let reasons: Vec<String> = found(mark, &pod.value()?).into_iter().map(|violation| violation.reason).collect();
        let reasons = reasons.join(", ");
        if reasons.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(known, ..)| *known == reasons) {
            Some((_, _, count)) => *count += 1,
            None => groups.push((reasons, pod.header.name.clone(), 1)),
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    attributes.warnings.add(format!(
        "existing pods in namespace {:?} violate the new PodSecurity enforce level \"{mark}\"",
        attributes.name
    ));
    for (reasons, pod, count) in groups {
        let others = match count {
            1 => String::new(),
            2 => " (and 1 other pod)".into(),
            many => format!(" (and {} other pods)", many - 1),
        };
        attributes.warnings.add(format!("{pod}{others}: {reasons}"));
    }
    Ok(())
}
