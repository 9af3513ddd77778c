//! `dhow down --purge` while the container runtime of somebody else does not answer: killed, or hanging.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, containerd_config, eventually, run};

const MINUTE: Duration = Duration::from_secs(60);

/// A containerd in the host's network, with the same folders each time it is started.
fn containerd(host: &Host, folder: &Path) -> Result<Child> {
    let at = |name: &str| folder.join(name).display().to_string();
    std::fs::write(folder.join("config.toml"), containerd_config(folder))?;
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = host.command("containerd");
    command.args(["--config", &at("config.toml")]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn()?;
    eventually(MINUTE, || UnixStream::connect(folder.join("c.sock")).context("containerd is not there"))?;
    Ok(child)
}

fn signal(pid: u32, name: &str) -> Result<()> {
    ensure!(Command::new("kill").args([name, &pid.to_string()]).status()?.success(), "cannot signal {pid}");
    Ok(())
}

/// Removes what containerd itself still has, as its owner would, and ends it.
fn clear(folder: &Path, mut daemon: Child) -> Result<()> {
    let ctr = |args: &[&str]| {
        let socket = folder.join("c.sock").display().to_string();
        run(Command::new("ctr").args(["--address", &socket, "--namespace", "k8s.io"]).args(args))
    };
    for container in ctr(&["containers", "list", "--quiet"])?.lines() {
        let _ = ctr(&["tasks", "delete", "--force", container]);
        ctr(&["containers", "delete", container])?;
    }
    daemon.kill()?;
    daemon.wait()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(folder) {
            run(Command::new("umount").args(["-l", point]))?;
        }
    }
    Ok(())
}

fn purges(hangs: bool) -> Result<()> {
    let host = Host::new()?;
    let folder = tempfile::Builder::new().prefix("dhow-rt").tempdir_in("/var/tmp")?;
    let mut daemon = containerd(&host, folder.path())?;
    let runtime = format!("containerd://{}", folder.path().join("c.sock").display());
    host.dhow(&["up", "--runtime", &runtime])?;
    host.import(&["busybox"])?;
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stays"}, "spec": {"containers": [
        {"name": "a", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "471199"]}]}}"#;
    host.apply(pod)?;
    host.kubectl(&["wait", "--for=condition=Ready", "pod/stays", "--timeout=60s"])?;
    let conflist = folder.path().join("net.d/00-dhow.conflist");
    ensure!(conflist.exists(), "no CNI configuration");
    signal(daemon.id(), if hangs { "-STOP" } else { "-KILL" })?;
    let down = host.dhow_command(&["down", "--purge"]).output()?;
    let said = String::from_utf8_lossy(&down.stderr);
    ensure!(down.status.code() == Some(7), "{:?}: {said}", down.status);
    ensure!(said.contains(&runtime) && said.contains("could not be reached") && said.contains("crictl"), "{said}");
    ensure!(said.contains("not answered for") == hangs, "{said}");
    host.ensure_purged()?;
    ensure!(!conflist.exists(), "the CNI configuration is left");
    let processes = run(Command::new("ps").args(["-eo", "args"]))?;
    ensure!(!processes.lines().any(|line| line.contains("471199")), "the pod still runs: {processes}");
    // Once more is fine, and finds nothing.
    host.dhow(&["down", "--purge"])?;
    if hangs {
        signal(daemon.id(), "-CONT")?;
    } else {
        daemon.wait()?;
        daemon = containerd(&host, folder.path())?;
    }
    clear(folder.path(), daemon)
}

/// One test, because a host's names are the process'.
#[test]
fn purging_needs_no_runtime() {
    purges(false).context("killed").unwrap();
    purges(true).context("hanging").unwrap();
}
