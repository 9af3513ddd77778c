//! `healthcheck` as probes.

use serde_json::{Map, Value, json};

use super::project::Service;
use crate::error::Result;
use crate::view::View;

/// Docker's standards.
const INTERVAL: u64 = 30;
const TIMEOUT: u64 = 30;
const RETRIES: i64 = 3;
const START_INTERVAL: u64 = 5;

pub fn translate(service: &Service<'_>, container: &mut Map<String, Value>) -> Result<()> {
    let Some(check) = service.get("healthcheck") else { return Ok(()) };
    let disabled = check.get("disable").map(|view| view.bool()).transpose()?.unwrap_or(false);
    let test = check.get("test");
    let command = match &test {
        Some(test) if !disabled => command(test)?,
        _ => None,
    };
    let Some(command) = command else {
        for key in ["interval", "timeout", "retries", "start_period", "start_interval"] {
            if let Some(view) = check.get(key) {
                view.warn(if disabled || test.is_some() {
                    "there is no check to time"
                } else {
                    "checks that an image brings are not run: name its command by `test`"
                });
            }
        }
        return Ok(());
    };
    let seconds = |key: &str, standard: u64| -> Result<u64> {
        check.get(key).map(|view| view.seconds(1)).transpose().map(|found| found.unwrap_or(standard))
    };
    let interval = seconds("interval", INTERVAL)?;
    let timeout = seconds("timeout", TIMEOUT)?;
    let retries = check.get("retries").map(|view| view.int()).transpose()?.unwrap_or(RETRIES).max(1);
    let probe = |period: u64, failures: i64| json!({"exec": {"command": command}, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures});
    let start = check.get("start_period").map(|view| view.seconds(0)).transpose()?.unwrap_or(0);
    if start > 0 {
        let every = check
            .get("start_interval")
            .map(|view| view.seconds(1))
            .transpose()?
            .unwrap_or(START_INTERVAL.min(interval));
        let tries = i64::try_from(start.div_ceil(every)).unwrap_or(i64::MAX / 2);
        container.insert("startupProbe".into(), probe(every, tries.saturating_add(retries).min(i64::from(i32::MAX))));
    } else if let Some(view) = check.get("start_interval") {
        view.warn("counts only together with `start_period`");
    }
    container.insert("readinessProbe".into(), probe(interval, retries));
    // Docker alone never restarts what is unhealthy; Swarm does.
    let swarm = service.deploy("restart_policy").and_then(|policy| policy.get("condition"));
    if service.deploy("restart_policy").is_some() && swarm.and_then(|view| view.node.scalar()) != Some("none") {
        container.insert("livenessProbe".into(), probe(interval, retries));
    }
    Ok(())
}

fn command(test: &View<'_>) -> Result<Option<Vec<String>>> {
    if !test.is_list() {
        return Ok(Some(shell(test.text()?)));
    }
    let words = test.words()?;
    let (first, rest) = words.split_first().ok_or_else(|| test.invalid("is empty"))?;
    match (first.as_str(), rest) {
        ("NONE", _) => Ok(None),
        ("CMD", [_, ..]) => Ok(Some(rest.to_vec())),
        ("CMD-SHELL", [line]) => Ok(Some(shell(line))),
        _ => Err(test.invalid("begins with `CMD` and a command, `CMD-SHELL` and a line, or `NONE`")),
    }
}

/// A line for the shell. A probe's words know no variables.
fn shell(line: &str) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()]
}
