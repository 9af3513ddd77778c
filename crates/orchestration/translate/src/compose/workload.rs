//! A leader's workload: which kind, how many, how it changes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::files::Store;
use super::pod::{self, Pod};
use super::project::{Project, Service};
use super::put;
use crate::error::Result;
use crate::view::View;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
}

pub fn translate(project: &Project<'_>, leader: &Service<'_>, store: &mut Store) -> Result<Value> {
    let mut pod = pod::of(project, leader, store)?;
    let replicas = replicas(leader)?;
    let update = leader.deploy("update_config");
    let order = update.as_ref().and_then(|view| view.get("order")).map(|view| view.text()).transpose()?;
    let mode = leader.deploy("mode");
    let kind = match mode.as_ref().map(|view| view.text()).transpose()? {
        Some("global") => Kind::DaemonSet,
        Some("replicated-job") => Kind::Job,
        Some("global-job") => {
            if let Some(view) = &mode {
                view.warn("a job runs so often as `replicas` says, not once on each node");
            }
            Kind::Job
        }
        None | Some("replicated") if leader.awaited => Kind::Job,
        None | Some("replicated") if pod.writes_claim && order != Some("start-first") => Kind::StatefulSet,
        None | Some("replicated") => Kind::Deployment,
        Some(other) => {
            let known = "replicated, global, replicated-job or global-job";
            return Err(leader.view.invalid(format!("deploy.mode {other:?} is unknown: {known}")));
        }
    };
    for member in project.members(&leader.name) {
        if member.name != leader.name {
            belongs_to_leader(leader, member);
        }
    }
    if kind == Kind::DaemonSet {
        if let Some(view) = leader.deploy("replicas").or_else(|| leader.get("scale")) {
            view.warn("a global service has one pod on each node");
        }
        if pod.writes_claim {
            leader.view.notes.add(crate::Warning {
                place: leader.view.node.place.clone(),
                path: leader.view.path.clone(),
                message:
                    "all nodes' pods share its volumes: that takes a storage class whose volumes several nodes mount"
                        .into(),
            });
        }
    }
    let mut annotations = BTreeMap::new();
    let mut spec = Map::new();
    let hosts_ports = takes_host_ports(&pod);
    match kind {
        Kind::Job => job(leader, replicas, &mut pod, &mut spec)?,
        _ => {
            restarts(leader)?;
            if kind != Kind::DaemonSet {
                spec.insert("replicas".into(), json!(replicas));
            }
            spec.insert("selector".into(), json!({"matchLabels": project.selector(&leader.dns)}));
            changes(kind, update.as_ref(), order, hosts_ports, &mut spec, &mut annotations)?;
        }
    }
    if let Some(rollback) = leader.deploy("rollback_config") {
        rollback.warn("a roll-back goes the way of an update: update_config holds for both");
    }
    if kind == Kind::StatefulSet {
        spec.insert("serviceName".into(), json!(leader.dns));
        spec.insert("podManagementPolicy".into(), json!("Parallel"));
    }
    let mut metadata = project.metadata(&leader.dns, Some(&leader.dns));
    if let Some(view) = leader.deploy("labels") {
        let mut labels = metadata["labels"].as_object().cloned().unwrap_or_default();
        for (name, value, at) in view.pairs()? {
            pod::label(&at, &name, &value.unwrap_or_default(), &mut labels, &mut annotations);
        }
        metadata.insert("labels".into(), Value::Object(labels));
    }
    put(&mut metadata, "annotations", json!(annotations));
    let stops = pod.containers.iter().any(|container| !container["lifecycle"]["stopSignal"].is_null());
    if stops {
        pod.spec.insert("os".into(), json!({"name": "linux"}));
    }
    spec.insert("template".into(), pod.template());
    let api_version = if kind == Kind::Job { "batch/v1" } else { "apps/v1" };
    Ok(json!({"apiVersion": api_version, "kind": format!("{kind:?}"), "metadata": metadata, "spec": spec}))
}

fn replicas(service: &Service<'_>) -> Result<i64> {
    let scale = service.get("scale");
    let replicas = service.deploy("replicas");
    let chosen = replicas.or(scale);
    match chosen {
        Some(view) => match view.int()? {
            count if count < 0 => Err(view.invalid("cannot be negative")),
            count => Ok(count),
        },
        None => Ok(1),
    }
}

/// What a pod has once is its leader's.
fn belongs_to_leader(leader: &Service<'_>, member: &Service<'_>) {
    let why = format!("is taken from {}, whose pod it shares", leader.name);
    for key in ["scale", "restart"] {
        if let Some(view) = member.get(key) {
            view.warn(why.clone());
        }
    }
    for key in [
        "mode",
        "replicas",
        "labels",
        "update_config",
        "rollback_config",
        "placement",
        "restart_policy",
        "endpoint_mode",
    ] {
        if let Some(view) = member.deploy(key) {
            view.warn(why.clone());
        }
    }
}

fn takes_host_ports(pod: &Pod) -> bool {
    let of = |container: &Value| {
        container["ports"].as_array().is_some_and(|all| all.iter().any(|port| !port["hostPort"].is_null()))
    };
    pod.spec.get("hostNetwork") == Some(&json!(true)) || pod.containers.iter().any(of)
}

/// The word for when to restart, and how often; from `deploy.restart_policy` or `restart`.
fn restart<'a>(service: &Service<'a>) -> Result<(Option<View<'a>>, String, Option<i64>)> {
    if let Some(policy) = service.deploy("restart_policy") {
        for (key, why) in [
            ("delay", "the time between restarts grows by itself"),
            ("window", "a container is taken to run once it is ready"),
        ] {
            if let Some(view) = policy.get(key) {
                view.warn(why);
            }
        }
        let condition = policy.get("condition");
        let text = condition.as_ref().map(|view| view.text()).transpose()?.unwrap_or("any").to_owned();
        let most = policy.get("max_attempts").map(|view| view.int()).transpose()?;
        if let Some(view) = service.get("restart") {
            view.warn("deploy.restart_policy wins");
        }
        return Ok((condition.or(Some(policy)), text, most));
    }
    let Some(view) = service.get("restart") else { return Ok((None, String::new(), None)) };
    let text = view.text()?;
    let (word, most) = text.split_once(':').map_or((text, None), |(word, most)| (word, Some(most)));
    let most = most
        .map(|text| text.parse::<i64>().map_err(|_| view.invalid("the number of attempts is no number")))
        .transpose()?;
    if !["no", "false", "always", "on-failure", "unless-stopped"].contains(&word) {
        return Err(view.invalid(format!("unknown word {word:?}: no, always, on-failure or unless-stopped")));
    }
    let word = word.to_owned();
    Ok((Some(view), word, most))
}

/// Pods of a service are always restarted.
fn restarts(service: &Service<'_>) -> Result<()> {
    let (view, word, most) = restart(service)?;
    let Some(view) = view else { return Ok(()) };
    match word.as_str() {
        "no" | "none" | "false" | "on-failure" => {
            view.warn("a service's containers are always restarted; deploy.mode: replicated-job is for one that ends");
        }
        _ => {}
    }
    if most.is_some() {
        let at = service.deploy("restart_policy").and_then(|policy| policy.get("max_attempts")).unwrap_or(view);
        at.warn("there is no last attempt: restarts go on, further and further apart");
    }
    Ok(())
}

fn job(service: &Service<'_>, replicas: i64, pod: &mut Pod, spec: &mut Map<String, Value>) -> Result<()> {
    let (view, word, most) = restart(service)?;
    let again = !matches!(word.as_str(), "" | "no" | "none" | "false");
    if let Some(view) = view.filter(|_| matches!(word.as_str(), "any" | "always" | "unless-stopped")) {
        view.warn("a job that ended well is not run again");
    }
    spec.insert("backoffLimit".into(), json!(if again { most.unwrap_or(6) } else { 0 }));
    if replicas != 1 {
        spec.insert("completions".into(), json!(replicas));
        spec.insert("parallelism".into(), json!(replicas));
    }
    pod.spec.insert("restartPolicy".into(), json!(if again { "OnFailure" } else { "Never" }));
    for key in ["update_config"] {
        if let Some(view) = service.deploy(key) {
            view.warn("a job is not updated: it runs again when it changes");
        }
    }
    // A job's containers are not asked whether they take traffic; Kubernetes allows it, and nothing would look.
    Ok(())
}

fn changes(
    kind: Kind,
    update: Option<&View<'_>>,
    order: Option<&str>,
    hosts_ports: bool,
    spec: &mut Map<String, Value>,
    annotations: &mut BTreeMap<String, String>,
) -> Result<()> {
    let Some(update) = update else {
        if hosts_ports && kind == Kind::Deployment {
            // The new pod gets the port once the old one is gone.
            spec.insert(
                "strategy".into(),
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            );
        }
        return Ok(());
    };
    let parallelism = update.get("parallelism");
    let at_once = parallelism.as_ref().map(|view| view.int()).transpose()?.unwrap_or(1);
    let number = if at_once == 0 { json!("100%") } else { json!(at_once) };
    let start_first = order == Some("start-first");
    let rolling = if start_first {
        json!({"maxSurge": number, "maxUnavailable": 0})
    } else {
        json!({"maxSurge": 0, "maxUnavailable": number})
    };
    match kind {
        Kind::Deployment => {
            spec.insert("strategy".into(), json!({"type": "RollingUpdate", "rollingUpdate": rolling}));
        }
        Kind::DaemonSet => {
            spec.insert("updateStrategy".into(), json!({"type": "RollingUpdate", "rollingUpdate": rolling}));
        }
        _ => {
            if let Some(view) = parallelism.filter(|_| at_once != 1) {
                view.warn("pods that write to a volume are changed one after the other");
            }
        }
    }
    let mut wait = 0;
    for key in ["delay", "monitor"] {
        if let Some(view) = update.get(key) {
            wait = wait.max(view.seconds(0)?);
        }
    }
    if wait > 0 {
        spec.insert("minReadySeconds".into(), json!(wait));
    }
    if let Some(view) = update.get("failure_action") {
        match view.text()? {
            "rollback" => {
                annotations.insert("dhow.io/auto-rollback".into(), "true".into());
            }
            "pause" => {}
            "continue" => view.warn("a roll-out stops at a pod that does not get ready"),
            other => return Err(view.invalid(format!("unknown action {other:?}: pause, continue or rollback"))),
        }
    }
    if let Some(view) = update.get("max_failure_ratio")
        && view.float()? > 0.0
    {
        view.warn("one pod that does not get ready is a failure");
    }
    Ok(())
}
