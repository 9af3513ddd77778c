//! Columns of the kinds that make pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Column;
use super::cells::Cell::{Age, At, Flag, Int, Len, Name, Of, Or, Selector, Text};
use super::cells::{holds, joined, or_none, scalar};
use super::{column, wide};
use crate::meta::{at, deletion_timestamp, int, items, text};
use crate::time;

const TEMPLATE: &[&str] = &["spec", "template", "spec", "containers"];
const JOB_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template", "spec", "containers"];

const CONTAINERS: Column = wide("Containers", Of(|o| json!(joined(o, TEMPLATE, "name"))));
const IMAGES: Column = wide("Images", Of(|o| json!(joined(o, TEMPLATE, "image"))));
const SELECTOR: Column = wide("Selector", Selector(&["spec", "selector"]));

fn ready(object: &Value) -> Value {
    json!(format!("{}/{}", int(object, &["status", "readyReplicas"]), int(object, &["spec", "replicas"])))
}

pub(crate) const POD_TEMPLATE: &[Column] = &[
    column("Name", Name),
    column("Containers", Of(|o| json!(joined(o, &["template", "spec", "containers"], "name")))),
    column("Images", Of(|o| json!(joined(o, &["template", "spec", "containers"], "image")))),
    column("Pod Labels", Selector(&["template", "metadata", "labels"])),
];

pub(crate) const DEPLOYMENT: &[Column] = &[
    column("Name", Name),
    column("Ready", Of(ready)),
    column("Up-to-date", Int(&["status", "updatedReplicas"])),
    column("Available", Int(&["status", "availableReplicas"])),
    column("Age", Age),
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(crate) const REPLICA_SET: &[Column] = &[
    column("Name", Name),
    column("Desired", Int(&["spec", "replicas"])),
    column("Current", Int(&["status", "replicas"])),
    column("Ready", Int(&["status", "readyReplicas"])),
    column("Age", Age),
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(crate) const STATEFUL_SET: &[Column] =
    &[column("Name", Name), column("Ready", Of(ready)), column("Age", Age), CONTAINERS, IMAGES];

pub(crate) const DAEMON_SET: &[Column] = &[
    column("Name", Name),
    column("Desired", Int(&["status", "desiredNumberScheduled"])),
    column("Current", Int(&["status", "currentNumberScheduled"])),
    column("Ready", Int(&["status", "numberReady"])),
    column("Up-to-date", Int(&["status", "updatedNumberScheduled"])),
    column("Available", Int(&["status", "numberAvailable"])),
    column("Node Selector", Selector(&["spec", "template", "spec", "nodeSelector"])),
    column("Age", Age),
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(crate) const CONTROLLER_REVISION: &[Column] = &[
    column("Name", Name),
    column("Controller", Of(controller)),
    column("Revision", Int(&["revision"])),
    column("Age", Age),
];

/// `statefulset.apps/web`.
fn controller(object: &Value) -> Value {
    let owners = items(object, &["metadata", "ownerReferences"]);
    let Some(owner) = owners.iter().find(|owner| owner["controller"] == true) else { return json!("<none>") };
    let (group, _) = crate::header::split_api_version(text(owner, &["apiVersion"]));
    let kind = crate::status::qualified(group, text(owner, &["kind"])).to_lowercase();
    json!(format!("{kind}/{}", text(owner, &["name"])))
}

pub(crate) const JOB: &[Column] = &[
    column("Name", Name),
    column("Status", Of(job_status)),
    column("Completions", Of(completions)),
    column("Duration", At(duration)),
    column("Age", Age),
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Value) -> Value {
    let state = if holds(job, "Complete") {
        "Complete"
    } else if holds(job, "Failed") {
        "Failed"
    } else if deletion_timestamp(job).is_some() {
        "Terminating"
    } else if holds(job, "Suspended") {
        "Suspended"
    } else if holds(job, "FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    };
    json!(state)
}

fn completions(job: &Value) -> Value {
    let done = int(job, &["status", "succeeded"]);
    match (at(job, &["spec", "completions"]).and_then(Value::as_i64), int(job, &["spec", "parallelism"])) {
        (Some(wanted), _) => json!(format!("{done}/{wanted}")),
        (None, parallelism) if parallelism > 1 => json!(format!("{done}/1 of {parallelism}")),
        (None, _) => json!(format!("{done}/1")),
    }
}

fn duration(job: &Value, now: Timestamp) -> Value {
    let at = |field: &str| time::parse(text(job, &["status", field])).ok();
    let Some(begin) = at("startTime") else { return json!("") };
    json!(time::human_duration(time::seconds_between(begin, at("completionTime").unwrap_or(now))))
}

pub(crate) const CRON_JOB: &[Column] = &[
    column("Name", Name),
    column("Schedule", Text(&["spec", "schedule"])),
    column("Timezone", Or(&["spec", "timeZone"], "<none>")),
    column("Suspend", Flag(&["spec", "suspend"], false)),
    column("Active", Len(&["status", "active"])),
    column("Last Schedule", At(last_schedule)),
    column("Age", Age),
    wide("Containers", Of(|o| json!(joined(o, JOB_TEMPLATE, "name")))),
    wide("Images", Of(|o| json!(joined(o, JOB_TEMPLATE, "image")))),
    wide("Selector", Selector(&["spec", "jobTemplate", "spec", "selector"])),
];

fn last_schedule(job: &Value, now: Timestamp) -> Value {
    match text(job, &["status", "lastScheduleTime"]) {
        "" => or_none(""),
        _ => super::cells::age(job, &["status", "lastScheduleTime"], now),
    }
}

pub(crate) const DISRUPTION_BUDGET: &[Column] = &[
    column("Name", Name),
    column("Min Available", Of(|o| json!(scalar(at(o, &["spec", "minAvailable"]), "N/A")))),
    column("Max Unavailable", Of(|o| json!(scalar(at(o, &["spec", "maxUnavailable"]), "N/A")))),
    column("Allowed Disruptions", Int(&["status", "disruptionsAllowed"])),
    column("Age", Age),
];
