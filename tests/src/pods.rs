//! Making pods, and waiting for what they become.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Host, eventually};

pub const SOON: Duration = Duration::from_secs(60);
pub const IMAGE: &str = "docker.io/library/busybox:latest";

/// Makes a pod of one container `a` that runs this shell script, with more of the spec and the container given.
pub fn pod(host: &Host, name: &str, script: &str, container: Value, spec: Value) -> Result<()> {
    let mut own =
        json!({"name": "a", "image": IMAGE, "command": ["sh", "-c", script], "imagePullPolicy": "IfNotPresent"});
    merge(&mut own, container);
    let mut whole = json!({"containers": [own], "terminationGracePeriodSeconds": 1});
    merge(&mut whole, spec);
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": whole});
    host.apply(&pod.to_string()).map(drop)
}

pub fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

pub fn nothing() -> Value {
    json!({})
}

pub fn status(host: &Host, name: &str) -> Result<Value> {
    Ok(host.get(&["get", "pod", name])?["status"].take())
}

pub fn own(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

/// Waits until the pod's status is as wanted.
pub fn until(host: &Host, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(SOON, || {
        let status = status(host, name)?;
        ensure!(wanted(&status), "{name}: {status:#}");
        Ok(status)
    })
}

pub fn running(host: &Host, name: &str) -> Result<Value> {
    until(host, name, |s| s["phase"] == "Running" && own(s)["ready"] == true)
}

pub fn exec(host: &Host, pod: &str, script: &str) -> Result<String> {
    host.kubectl(&["exec", pod, "-c", "a", "--", "sh", "-c", script])
}

pub fn condition<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|c| c["type"] == name).unwrap_or(&Value::Null)
}

/// Waits for an event of this reason that contains the text.
pub fn event(host: &Host, pod: &str, reason: &str, text: &str) -> Result<()> {
    eventually(SOON, || {
        let field = format!("involvedObject.name={pod},reason={reason}");
        let events = host.get(&["get", "events", "--field-selector", &field])?;
        let all: Vec<&str> =
            events["items"].as_array().context("no events")?.iter().filter_map(|e| e["message"].as_str()).collect();
        ensure!(all.iter().any(|message| message.contains(text)), "{pod}: no event {reason} with {text:?}: {all:?}");
        Ok(())
    })
}

pub fn delete(host: &Host, pod: &str) -> Result<()> {
    host.kubectl(&["delete", "pod", pod, "--now", "--timeout=60s"]).map(drop)
}
