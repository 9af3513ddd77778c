//! Pods: the status a person reads is the first reason that keeps it from running.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::Cell::{Age, At, Name, Of, Or};
use super::{Column, column, wide};
use crate::meta::{at, deletion_timestamp, int, items, text};
use crate::time;

pub(crate) const COLUMNS: &[Column] = &[
    column("Name", Name),
    column("Ready", Of(ready)),
    column("Status", Of(|pod| json!(status(pod)))),
    column("Restarts", At(restarts)),
    column("Age", Age),
    wide("IP", Or(&["status", "podIP"], "<none>")),
    wide("Node", Or(&["spec", "nodeName"], "<none>")),
    wide("Nominated Node", Or(&["status", "nominatedNodeName"], "<none>")),
    wide("Readiness Gates", Of(gates)),
];

/// Init containers with `restartPolicy: Always` run beside the others and count with them.
fn is_sidecar(pod: &Value, name: &str) -> bool {
    items(pod, &["spec", "initContainers"])
        .iter()
        .any(|container| container["name"] == name && container["restartPolicy"] == "Always")
}

fn beside(pod: &Value) -> impl Iterator<Item = &Value> {
    let sidecars = items(pod, &["status", "initContainerStatuses"])
        .iter()
        .filter(|status| is_sidecar(pod, text(status, &["name"])));
    sidecars.chain(items(pod, &["status", "containerStatuses"]))
}

fn ready(pod: &Value) -> Value {
    let sidecars =
        items(pod, &["spec", "initContainers"]).iter().filter(|container| container["restartPolicy"] == "Always");
    let total = items(pod, &["spec", "containers"]).len() + sidecars.count();
    let ready = beside(pod).filter(|status| status["ready"] == true).count();
    json!(format!("{ready}/{total}"))
}

fn restarts(pod: &Value, now: Timestamp) -> Value {
    let count: i64 = beside(pod).map(|status| int(status, &["restartCount"])).sum();
    let last = beside(pod)
        .filter_map(|status| time::parse(text(status, &["lastState", "terminated", "finishedAt"])).ok())
        .max();
    match last {
        Some(last) if count > 0 => {
            json!(format!("{count} ({} ago)", time::human_duration(time::seconds_between(last, now))))
        }
        _ => json!(count.to_string()),
    }
}

fn gates(pod: &Value) -> Value {
    let gates = items(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return json!("<none>");
    }
    let conditions = items(pod, &["status", "conditions"]);
    let open = gates.iter().filter(|gate| {
        conditions.iter().any(|condition| condition["type"] == gate["conditionType"] && condition["status"] == "True")
    });
    json!(format!("{}/{}", open.count(), gates.len()))
}

/// The text of the STATUS column.
fn status(pod: &Value) -> String {
    let phase = text(pod, &["status", "phase"]);
    let mut reason = match text(pod, &["status", "reason"]) {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let gated = items(pod, &["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".into();
    }
    let initialising = initialising(pod);
    if let Some(text) = &initialising {
        reason.clone_from(text);
    }
    if initialising.is_none() || initialised(pod) {
        reason = running(pod, reason);
    }
    if deletion_timestamp(pod).is_some() {
        reason = if text(pod, &["status", "reason"]) == "NodeLost" {
            "Unknown".into()
        } else if phase == "Succeeded" || phase == "Failed" {
            reason
        } else {
            "Terminating".into()
        };
    }
    reason
}

fn initialised(pod: &Value) -> bool {
    items(pod, &["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "Initialized" && condition["status"] == "True")
}

/// What the first unfinished init container is at.
fn initialising(pod: &Value) -> Option<String> {
    let total = items(pod, &["spec", "initContainers"]).len();
    for (index, container) in items(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        let sidecar = is_sidecar(pod, text(container, &["name"]));
        if at(container, &["state", "terminated"]).is_some()
            && int(container, &["state", "terminated", "exitCode"]) == 0
            || sidecar && container["started"] == true
        {
            continue;
        }
        if at(container, &["state", "terminated"]).is_some() {
            return Some(match ended(container) {
                Some(reason) => format!("Init:{reason}"),
                None => "Init:Error".into(),
            });
        }
        return Some(match text(container, &["state", "waiting", "reason"]) {
            "" | "PodInitializing" => format!("Init:{index}/{total}"),
            reason => format!("Init:{reason}"),
        });
    }
    None
}

/// Why a container ended: its reason, else its signal or exit code.
fn ended(container: &Value) -> Option<String> {
    at(container, &["state", "terminated"])?;
    Some(match text(container, &["state", "terminated", "reason"]) {
        "" => match int(container, &["state", "terminated", "signal"]) {
            0 => format!("ExitCode:{}", int(container, &["state", "terminated", "exitCode"])),
            signal => format!("Signal:{signal}"),
        },
        reason => reason.to_owned(),
    })
}

fn running(pod: &Value, mut reason: String) -> String {
    let mut running = false;
    for container in items(pod, &["status", "containerStatuses"]).iter().rev() {
        let waiting = text(container, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            reason = waiting.to_owned();
        } else if let Some(end) = ended(container) {
            reason = end;
        } else if container["ready"] == true && at(container, &["state", "running"]).is_some() {
            running = true;
        }
    }
    if reason == "Completed" && running {
        let ready = items(pod, &["status", "conditions"])
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        return if ready { "Running".into() } else { "NotReady".into() };
    }
    reason
}
