//! A process that does not end although it is killed, as one that waits for a dead disk: played by v1's freezer.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run};

use dhow_e2e::pods::{event, nothing, own, pod, running};

pub fn test() -> Result<()> {
    if !Path::new("/sys/fs/cgroup/freezer/tasks").exists() {
        // v2's freezer lets what is frozen be killed: then there is nothing to play this with.
        eprintln!("skipped: this machine has no freezer of cgroup v1");
        return Ok(());
    }
    let host = Host::new()?;
    crate::start(&host, "{}\n", &[])?;
    pod(&host, "stuck", "while :; do sleep 0.1; done", nothing(), nothing())?;
    let seen = running(&host, "stuck")?;
    let group = Frozen::new(&group_of(own(&seen)["containerID"].as_str().unwrap_or_default())?)?;
    host.kubectl(&["delete", "pod", "stuck", "--wait=false"])?;
    event(&host, "stuck", "Killing", "Stopping container a")?;
    // The rest of the node does not wait for it.
    pod(&host, "other", "sleep 1000", nothing(), nothing())?;
    running(&host, "other")?;
    host.kubectl(&["delete", "pod", "other", "--timeout=30s"])?;
    let text = "error killing pod: failed to \"KillContainer\" for \"a\" with KillContainerError:";
    eventually(std::time::Duration::from_secs(60), || event(&host, "stuck", "FailedKillPod", text))?;
    // As long as it runs, the API does not say that it is gone.
    let pod = host.get(&["get", "pod", "stuck"])?;
    ensure!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod:#}");
    ensure!(own(&pod["status"])["state"]["running"].is_object(), "{pod:#}");
    drop(group);
    host.kubectl(&["wait", "--for=delete", "pod/stuck", "--timeout=60s"])?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

fn group_of(id: &str) -> Result<PathBuf> {
    let id = id.strip_prefix("dhow://").context("no id")?;
    let found = run(Command::new("find").args(["/sys/fs/cgroup/freezer", "-type", "d", "-name", id]))?;
    found.lines().next().map(PathBuf::from).context("no control group")
}

/// A control group whose processes stand still until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(group: &Path) -> Result<Self> {
        let state = group.join("freezer.state");
        std::fs::write(&state, "FROZEN")?;
        let this = Self(state);
        eventually(std::time::Duration::from_secs(10), || {
            let now = std::fs::read_to_string(&this.0)?;
            ensure!(now.trim() == "FROZEN", "{now}");
            Ok(())
        })?;
        Ok(this)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.0, "THAWED");
    }
}
