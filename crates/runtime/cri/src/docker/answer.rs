//! What Docker answers, in the words of the trait. Pure.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::request::{CONTAINER, Remembered, SANDBOX, SANDBOX_ID};
use crate::Error;
use crate::runtime::{ContainerState, ContainerStats, ContainerStatus, SandboxConfig, SandboxState};

/// What a sandbox' label remembers; `labels` are those of a listed or an inspected container.
pub fn sandbox_config(id: &str, labels: &Value) -> Result<SandboxConfig, Error> {
    read(id, labels, SANDBOX)
}

fn read<T: serde::de::DeserializeOwned>(id: &str, labels: &Value, label: &str) -> Result<T, Error> {
    let text = labels[label].as_str().unwrap_or_default();
    serde_json::from_str(text).map_err(|error| Error::internal(format!("read label {label} of container {id}"), error))
}

/// The state of a sandbox by its container's.
pub fn sandbox_state(state: &str) -> SandboxState {
    if state == "running" { SandboxState::Ready } else { SandboxState::NotReady }
}

pub fn container_state(state: &str) -> ContainerState {
    match state {
        "created" => ContainerState::Created,
        "running" | "paused" | "restarting" => ContainerState::Running,
        "exited" | "dead" | "removing" => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
}

/// A container's status from what `inspect` says.
pub fn container(inspected: &Value) -> Result<ContainerStatus, Error> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let id = text(&inspected["Id"]);
    let labels = &inspected["Config"]["Labels"];
    let remembered: Remembered = read(&id, labels, CONTAINER)?;
    let state = &inspected["State"];
    let created_at = time(&inspected["Created"]).unwrap_or(SystemTime::UNIX_EPOCH);
    let message = text(&state["Error"]);
    let mut status = ContainerStatus {
        id,
        sandbox_id: text(&labels[SANDBOX_ID]),
        name: remembered.name,
        attempt: remembered.attempt,
        state: container_state(state["Status"].as_str().unwrap_or_default()),
        created_at,
        started_at: time(&state["StartedAt"]),
        finished_at: None,
        exit_code: 0,
        reason: String::new(),
        message,
        image: remembered.image,
        image_ref: text(&inspected["Image"]),
        labels: remembered.labels,
        annotations: remembered.annotations,
        log_path: remembered.log_path,
        user: None,
    };
    match status.state {
        // One that could not be started stays "created" with Docker, and has the error.
        ContainerState::Created if !status.message.is_empty() => {
            status.state = ContainerState::Exited;
            status.finished_at = Some(created_at);
            status.exit_code = 128;
            status.reason = "ContainerCannotRun".to_owned();
        }
        ContainerState::Exited => {
            status.finished_at = time(&state["FinishedAt"]);
            // Docker notes a start after it happened, so that a short life may have ended before.
            status.started_at =
                status.started_at.map(|started| status.finished_at.map_or(started, |end| end.min(started)));
            status.exit_code = state["ExitCode"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(255);
            status.reason = match (state["OOMKilled"] == true, status.exit_code) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            }
            .to_owned();
        }
        _ => {}
    }
    Ok(status)
}

/// Times are RFC 3339; year 1 is "never".
pub fn time(text: &Value) -> Option<SystemTime> {
    let timestamp: jiff::Timestamp = text.as_str()?.parse().ok()?;
    let nanos = u64::try_from(timestamp.as_nanosecond()).ok().filter(|nanos| *nanos > 0)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
}

pub fn stats(id: &str, stats: &Value) -> ContainerStats {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let memory = &stats["memory_stats"];
    let usage = number(&memory["usage"]);
    // The names of cgroup v1 and v2.
    let inactive = memory["stats"]["total_inactive_file"].as_u64().or(memory["stats"]["inactive_file"].as_u64());
    ContainerStats {
        id: id.to_owned(),
        cpu_usage_core_nanos: number(&stats["cpu_stats"]["cpu_usage"]["total_usage"]),
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(inactive.unwrap_or_default()),
        pids: number(&stats["pids_stats"]["current"]),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn inspected(state: Value) -> Value {
        let remembered = json!({"name": "c", "attempt": 1, "image": "i", "labels": {}, "annotations": {},
            "log_path": "/l", "stdin": false, "tty": false});
        json!({"Id": "1", "Created": "2026-01-01T00:00:00.5Z", "Image": "sha256:1", "State": state,
            "Config": {"Labels": {CONTAINER: remembered.to_string(), SANDBOX_ID: "s"}}})
    }

    #[test]
    fn states_become_reasons() {
        let of = |state: Value| {
            let status = container(&inspected(state)).unwrap();
            (status.state, status.exit_code, status.reason)
        };
        let never = "0001-01-01T00:00:00Z";
        let failed = json!({"Status": "created", "Error": "no such program", "ExitCode": 127, "StartedAt": never});
        assert_eq!(of(failed), (ContainerState::Exited, 128, "ContainerCannotRun".into()));
        let oom = json!({"Status": "exited", "OOMKilled": true, "ExitCode": 137});
        assert_eq!(of(oom), (ContainerState::Exited, 137, "OOMKilled".into()));
        assert_eq!(of(json!({"Status": "exited", "ExitCode": 0})).2, "Completed");
        assert_eq!(of(json!({"Status": "created", "StartedAt": never})), (ContainerState::Created, 0, String::new()));
        assert_eq!(time(&json!(never)), None);
    }
}
