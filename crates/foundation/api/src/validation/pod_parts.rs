//! Parts of a pod's specification: where it may run, what it mounts, how it is probed.

use serde_json::Value;

use super::common::{ip, node_selector, node_selector_term, selector};
use super::field::Field;
use super::{Errors, metadata};
use crate::meta::at;
use crate::names;

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

pub(super) fn tolerations(list: &Field, errors: &mut Errors) {
    for toleration in list.items() {
        let (key, operator, value) = (toleration.at("key"), toleration.at("operator"), toleration.at("value"));
        let effect = toleration.at("effect");
        if !key.text().is_empty() {
            errors.name(&key, names::qualified_name);
        } else if !operator.is("Exists") {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.bad(&operator, why);
        }
        if toleration.at("tolerationSeconds").present() && !effect.is("NoExecute") {
            errors.bad(&effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.text() {
            "" | "Equal" => {
                for problem in names::label_value(value.text()) {
                    errors.complaints(&operator.path, value.text(), vec![problem]);
                }
            }
            "Exists" if !value.text().is_empty() => {
                errors.bad_value(&operator.path, value.value, "value must be empty when `operator` is 'Exists'");
            }
            _ => errors.known(&operator, &["Equal", "Exists"]),
        }
        if !effect.text().is_empty() {
            errors.known(&effect, EFFECTS);
        }
    }
}

pub(super) fn affinity(affinity: &Field, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = affinity.at("nodeAffinity");
    node_selector(&node.at(REQUIRED), errors);
    for term in node.at(PREFERRED).items() {
        weight(&term, errors);
        node_selector_term(&term.at("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.at(kind);
        pods.at(REQUIRED).items().for_each(|term| pod_term(&term, errors));
        for term in pods.at(PREFERRED).items() {
            weight(&term, errors);
            pod_term(&term.at("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Field, errors: &mut Errors) {
    let weight = term.at("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        errors.bad(&weight, "must be in the range 1-100");
    }
}

fn pod_term(term: &Field, errors: &mut Errors) {
    selector(&term.at("labelSelector"), errors);
    selector(&term.at("namespaceSelector"), errors);
    for namespace in term.at("namespaces").items() {
        errors.name(&namespace, names::dns1123_label);
    }
    let key = term.at("topologyKey");
    match key.text() {
        "" => errors.missing(&key, "can not be empty"),
        _ => errors.name(&key, names::qualified_name),
    }
}

pub(super) fn spread(constraints: &Field, errors: &mut Errors) {
    let mut seen = Vec::new();
    for constraint in constraints.items() {
        let (key, policy) = (constraint.at("topologyKey"), constraint.at("whenUnsatisfiable"));
        if constraint.at("maxSkew").int().unwrap_or(0) <= 0 {
            errors.bad(&constraint.at("maxSkew"), "must be greater than zero");
        }
        match key.text() {
            "" => errors.missing(&key, "can not be empty"),
            _ => errors.name(&key, names::qualified_name),
        }
        errors.need_known(&policy, &["DoNotSchedule", "ScheduleAnyway"]);
        let domains = constraint.at("minDomains");
        if domains.int().is_some_and(|number| number <= 0) {
            errors.bad(&domains, "must be greater than zero");
        }
        if domains.present() && !policy.is("DoNotSchedule") {
            let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", policy.text());
            errors.bad(&domains, &why);
        }
        for name in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.known(&constraint.at(name), &["Honor", "Ignore"]);
        }
        selector(&constraint.at("labelSelector"), errors);
        let pair = (key.text(), policy.text());
        if seen.contains(&pair) {
            let shown = Value::from(format!("{{{}, {}}}", pair.0, pair.1));
            errors.twice(&Field {
                value: &shown,
                path: format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path),
            });
        }
        seen.push(pair);
    }
}

/// What a probe or a hook does; exactly one thing.
pub(super) fn handler(handler: &Field, kinds: &[&str], errors: &mut Errors) {
    let given: Vec<&&str> = kinds.iter().filter(|kind| handler.at(kind).present()).collect();
    match given.as_slice() {
        [] => errors.missing(handler, "must specify a handler type"),
        [_] => {}
        [_, more @ ..] => {
            for kind in more {
                errors.deny(&handler.at(kind), "may not specify more than 1 handler type");
            }
        }
    }
    let exec = handler.at("exec");
    if exec.present() && exec.at("command").len() == 0 {
        errors.missing(&exec.at("command"), "");
    }
    for kind in ["httpGet", "tcpSocket", "grpc"].into_iter().filter(|kind| handler.at(kind).present()) {
        let one = handler.at(kind);
        if kind == "httpGet" {
            errors.need(&one.at("path"));
            errors.known(&one.at("scheme"), &["HTTP", "HTTPS"]);
            for header in one.at("httpHeaders").items() {
                errors.need(&header.at("name"));
            }
        }
        port(&one.at("port"), errors);
    }
}

fn port(port: &Field, errors: &mut Errors) {
    match port.value {
        Value::String(name) => errors.complaints(&port.path, name, names::port_name(name)),
        other => {
            for problem in names::port_number(other.as_i64().unwrap_or(0)) {
                errors.bad(port, &problem);
            }
        }
    }
}

pub(super) fn probe(probe: &Field, single: bool, errors: &mut Errors) {
    if !probe.present() {
        return;
    }
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.not_negative(&probe.at(name));
    }
    let grace = probe.at("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|seconds| seconds <= 0) {
        errors.bad(&grace, "must be greater than 0");
    }
    let successes = probe.at("successThreshold");
    if single && successes.int().is_some_and(|number| number != 1) {
        errors.bad(&successes, "must be 1");
    }
}

/// Sources of volumes in pods beyond those of persistent volumes.
const POD_SOURCES: [&str; 31] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "local",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

pub(super) fn volume(volume: &Field, errors: &mut Errors) {
    let given: Vec<&str> = POD_SOURCES.into_iter().filter(|name| volume.at(name).present()).collect();
    let Some((name, more)) = given.split_first() else {
        return errors.missing(volume, "must specify a volume type");
    };
    for other in more {
        errors.deny(&volume.at(other), "may not specify more than 1 volume type");
    }
    let source = volume.at(name);
    match *name {
        "secret" => {
            errors.need(&source.at("secretName"));
        }
        "configMap" => {
            errors.need(&source.at("name"));
        }
        "persistentVolumeClaim" => {
            errors.need(&source.at("claimName"));
        }
        "ephemeral" => match source.at("volumeClaimTemplate").present() {
            true => super::storage::claim_spec(&source.at("volumeClaimTemplate").at("spec"), errors),
            false => errors.missing(&source.at("volumeClaimTemplate"), ""),
        },
        "csi" => {
            errors.need(&source.at("driver"));
        }
        "downwardAPI" => source.at("items").items().for_each(|item| downward(&item, errors)),
        "projected" => source.at("sources").items().for_each(|one| projection(&one, errors)),
        "emptyDir" => super::common::amount(&source.at("sizeLimit"), errors),
        other => super::storage::source(other, &source, errors),
    }
    mode(&source.at("defaultMode"), errors);
    source.at("items").items().for_each(|item| key_path(&item, *name != "downwardAPI", errors));
}

fn projection(source: &Field, errors: &mut Errors) {
    const KINDS: [&str; 6] =
        ["clusterTrustBundle", "configMap", "downwardAPI", "podCertificate", "secret", "serviceAccountToken"];
    let given: Vec<&str> = KINDS.into_iter().filter(|kind| source.at(kind).present()).collect();
    for other in given.iter().skip(1) {
        errors.deny(&source.at(other), "may not specify more than 1 volume type");
    }
    for kind in given {
        let one = source.at(kind);
        match kind {
            "secret" | "configMap" => {
                errors.need(&one.at("name"));
                one.at("items").items().for_each(|item| key_path(&item, true, errors));
            }
            "downwardAPI" => one.at("items").items().for_each(|item| downward(&item, errors)),
            "serviceAccountToken" => {
                let seconds = one.at("expirationSeconds");
                match seconds.int() {
                    Some(number) if number < 600 => {
                        errors.bad(&seconds, "may not specify a duration less than 10 minutes");
                    }
                    Some(number) if number > 1 << 32 => {
                        errors.bad(&seconds, "may not specify a duration larger than 2^32 seconds");
                    }
                    _ => {}
                }
                relative(&one.at("path"), errors);
            }
            "clusterTrustBundle" => super::certificates::bundle_projection(&one, errors),
            "podCertificate" => super::pod_certificates::projection(&one, errors),
            _ => {}
        }
    }
}

fn key_path(item: &Field, keyed: bool, errors: &mut Errors) {
    if keyed {
        errors.need(&item.at("key"));
    }
    relative(&item.at("path"), errors);
    mode(&item.at("mode"), errors);
}

/// A path below the volume.
pub(super) fn relative(path: &Field, errors: &mut Errors) {
    if !errors.need(path) {
        return;
    }
    if path.text().starts_with('/') {
        errors.bad(path, "must be a relative path");
    }
    if path.text().split('/').any(|part| part == "..") {
        errors.bad(path, "must not contain '..'");
    }
}

fn mode(mode: &Field, errors: &mut Errors) {
    if mode.int().is_some_and(|bits| !(0..=0o777).contains(&bits)) {
        errors.bad(mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn downward(item: &Field, errors: &mut Errors) {
    let (field, resource) = (item.at("fieldRef"), item.at("resourceFieldRef"));
    match (field.present(), resource.present()) {
        (true, true) => errors.bad(item, "fieldRef and resourceFieldRef can not be specified simultaneously"),
        (false, false) => errors.missing(item, "one of fieldRef and resourceFieldRef is required"),
        (true, false) => field_ref(&field, &VOLUME_FIELDS, errors),
        (false, true) => {
            errors.need(&resource.at("containerName"));
            errors.need(&resource.at("resource"));
        }
    }
}

const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn field_ref(field: &Field, supported: &[&str], errors: &mut Errors) {
    let path = field.at("fieldPath");
    let subscripted = ["metadata.annotations['", "metadata.labels['"].iter().any(|head| path.text().starts_with(head));
    if errors.need(&path) && !(subscripted && path.text().ends_with("']")) {
        errors.known(&path, supported);
    }
}

pub(super) fn env(variable: &Field, errors: &mut Errors) {
    let name = variable.at("name");
    match name.text() {
        "" => errors.missing(&name, ""),
        text => errors.complaints(&name.path, text, names::env_var_name(text)),
    }
    let source = variable.at("valueFrom");
    if !source.present() {
        return;
    }
    const KINDS: [&str; 5] = ["configMapKeyRef", "fieldRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"];
    let blank = |why: &str, errors: &mut Errors| errors.complaints(&source.path, "", vec![why.to_owned()]);
    match KINDS.iter().filter(|kind| source.at(kind).present()).count() {
        0 => blank(
            "must specify one of: `configMapKeyRef`, `fieldRef`, `fileKeyRef`, `resourceFieldRef` or `secretKeyRef`",
            errors,
        ),
        1 => {}
        _ => blank("may not have more than one field specified at a time", errors),
    }
    if !variable.at("value").text().is_empty() {
        blank("may not be specified when `value` is not empty", errors);
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        let reference = source.at(kind);
        if reference.present() {
            errors.need(&reference.at("name"));
            errors.need_name(&reference.at("key"), names::config_key);
        }
    }
    if source.at("fieldRef").present() {
        field_ref(&source.at("fieldRef"), &ENV_FIELDS, errors);
    }
    if source.at("resourceFieldRef").present() {
        errors.need(&source.at("resourceFieldRef").at("resource"));
    }
}

/// Identities that a kernel knows.
pub(super) fn identities(context: &Field, errors: &mut Errors) {
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        let id = context.at(name);
        if id.int().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
            errors.bad(&id, "must be between 0 and 2147483647, inclusive");
        }
    }
    let profile = context.at("seccompProfile");
    if profile.present() {
        let kind = profile.at("type");
        errors.need_known(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
        let local = profile.at("localhostProfile");
        match (kind.is("Localhost"), local.present()) {
            (true, false) => errors.missing(&local, "must be set when seccomp type is Localhost"),
            (false, true) => errors.bad(&local, "can only be set when seccomp type is Localhost"),
            (true, true) => relative(&local, errors),
            (false, false) => {}
        }
    }
}

pub(super) fn dns(spec: &Field, errors: &mut Errors) {
    let (policy, config) = (spec.at("dnsPolicy"), spec.at("dnsConfig"));
    errors.known(&policy, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    if policy.is("None") && !config.present() {
        errors.missing(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
    } else if policy.is("None") && config.at("nameservers").len() == 0 {
        errors.missing(&config.at("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    let servers = config.at("nameservers");
    if servers.len() > 3 {
        errors.bad(&servers, "must not have more than 3 nameservers");
    }
    servers.items().for_each(|server| ip(&server, errors));
    let searches = config.at("searches");
    if searches.len() > 32 {
        errors.bad(&searches, "must not have more than 32 search paths");
    }
    for option in config.at("options").items() {
        if option.at("name").text().is_empty() {
            errors.missing(&option.at("name"), "");
        }
    }
    for alias in spec.at("hostAliases").items() {
        ip(&alias.at("ip"), errors);
        for host in alias.at("hostnames").items() {
            errors.name(&host, names::dns1123_subdomain);
        }
    }
}

pub(super) fn labels(spec: &Field, name: &str, errors: &mut Errors) {
    let labels = spec.at(name);
    metadata::labels(at(spec.value, &[name]), &labels.path, errors);
}
