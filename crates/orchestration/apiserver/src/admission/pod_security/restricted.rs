//! The restricted level: what is good practice becomes a must.

use std::collections::BTreeSet;

use dhow_api::meta;
use serde_json::{Value, json};

use super::baseline;
use super::checks::{Pod, Violation, containers, others, plural, quoted, setters};

pub fn check(pod: &Pod<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    if !pod.is_windows() {
        found.extend(escalation(pod));
        found.extend(capabilities(pod));
    }
    found.extend(volumes(pod));
    found.extend(non_root(pod));
    found.extend(user(pod));
    if !pod.is_windows() {
        found.extend(seccomp(pod));
    }
    found
}

fn escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 8 {
        return None;
    }
    let names = pod.those(|context| context["allowPrivilegeEscalation"] != false);
    (!names.is_empty()).then(|| {
        let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
        Violation::new("allowPrivilegeEscalation != false", detail)
    })
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 22 {
        return None;
    }
    let keeps = pod.those(|context| !meta::items(context, &["capabilities", "drop"]).contains(&json!("ALL")));
    let mut forbidden = BTreeSet::new();
    let mut adding = Vec::new();
    for container in pod.containers() {
        if others(&container["securityContext"]["capabilities"]["add"], &["NET_BIND_SERVICE"], &mut forbidden) {
            adding.push(container["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeps)));
    }
    if !adding.is_empty() {
        let who = containers(&adding);
        details.push(format!("{who} must not include {} in securityContext.capabilities.add", quoted(forbidden)));
    }
    (!details.is_empty()).then(|| Violation::new("unrestricted capabilities", details.join("; ")))
}

fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in meta::items(pod.spec, &["volumes"]) {
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key)
            .collect();
        if sources.is_empty() || sources.iter().any(|source| ALLOWED.contains(&source.as_str())) {
            continue;
        }
        names.push(volume["name"].as_str().unwrap_or_default());
        kinds.extend(sources.into_iter().map(String::as_str));
    }
    (!names.is_empty()).then(|| {
        let title = plural("volume", "volumes", names.len());
        let uses = plural("uses", "use", names.len());
        let kind = plural("type", "types", kinds.len());
        let detail = format!("{title} {} {uses} restricted volume {kind} {}", quoted(&names), quoted(kinds));
        Violation::new("restricted volume types", detail)
    })
}

fn non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let says = |context: &Value| context["runAsNonRoot"].as_bool();
    let who = setters(says(pod.context) == Some(false), &pod.those(|context| says(context) == Some(false)));
    if !who.is_empty() {
        return Some(Violation::new(REASON, format!("{who} must not set securityContext.runAsNonRoot=false")));
    }
    let names = pod.those(|context| says(context).is_none());
    if says(pod.context) == Some(true) || names.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&names));
    Some(Violation::new(REASON, detail))
}

fn user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 23 {
        return None;
    }
    let root = |context: &Value| context["runAsUser"] == 0;
    let who = setters(root(pod.context), &pod.those(root));
    (!who.is_empty()).then(|| Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0")))
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 19 {
        return None;
    }
    if let Some(bad) = baseline::seccomp(pod) {
        return Some(bad);
    }
    let names = pod.those(|context| !context["seccompProfile"].is_object());
    if pod.context["seccompProfile"].is_object() || names.is_empty() {
        return None;
    }
    let who = containers(&names);
    let detail =
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"");
    Some(Violation::new("seccompProfile", detail))
}
