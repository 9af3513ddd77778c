//! A shutdown of the machine, as logind announces it, and as systemd carries it out.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dhow_e2e::{Host, eventually, run, workspace};
use serde_json::{Value, json};

use dhow_e2e::pods::{SOON, condition, event, nothing, pod, running, until};

const SETTINGS: &str = "node: {shutdownGracePeriod: 20s, shutdownGracePeriodCriticalPods: 8s}\n";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// A bus of the test's own, with somebody on it who plays logind.
struct Bus {
    daemon: Child,
    logind: Child,
    tells: ChildStdin,
    heard: Receiver<String>,
}

impl Bus {
    fn start(host: &Host, address: &str) -> Result<Self> {
        let mut daemon = host.command("dbus-daemon");
        daemon.args(["--session", "--nofork", "--nopidfile", "--address", address]);
        let daemon = daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start the bus")?;
        let socket = host.folder().join("bus");
        eventually(SOON, || {
            ensure!(socket.exists(), "no bus yet");
            Ok(())
        })?;
        let mut logind = host.command("/usr/bin/python3");
        logind.arg(workspace().join("tests/tests/nodes/logind.py")).arg(address);
        let mut logind = logind.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start logind")?;
        let tells = logind.stdin.take().context("no input")?;
        let output = BufReader::new(logind.stdout.take().context("no output")?);
        let (sender, heard) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let bus = Self { daemon, logind, tells, heard };
        bus.hears("ready")?;
        Ok(bus)
    }

    fn tell(&mut self, word: &str) -> Result<()> {
        writeln!(self.tells, "{word}").context("tell logind")
    }

    /// Waits for these words of logind's.
    fn hears(&self, words: &str) -> Result<()> {
        let line = self.heard.recv_timeout(SOON).with_context(|| format!("logind does not say {words:?}"))?;
        if line == words { Ok(()) } else { bail!("logind says {line:?}, not {words:?}") }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for child in [&mut self.logind, &mut self.daemon] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn test() -> Result<()> {
    let host = Host::new()?;
    let address = format!("unix:path={}", host.folder().join("bus").display());
    let mut bus = Bus::start(&host, &address)?;
    crate::start(&host, SETTINGS, &[("DBUS_SYSTEM_BUS_ADDRESS", &address)])?;
    bus.hears("inhibited shutdown delay")?;
    begins(&host, &mut bus)?;
    is_called_off(&host, &mut bus)?;
    ends_with_systemd(&host, &mut bus, &address)?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

fn ready(host: &Host) -> Result<Value> {
    let node = host.get(&["get", "node", "e2e"])?;
    Ok(condition(&node["status"], "Ready").clone())
}

/// Makes a pod that takes a second to end, and notes when it is told to and when it has.
fn makes(host: &Host, name: &str, spec: Value) -> Result<()> {
    let folder = host.folder().join("notes");
    std::fs::create_dir_all(&folder)?;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let script = format!(
        "trap 'echo {name} is told >> /v/log; sleep 1; echo {name} ends >> /v/log; exit 0' TERM; \
         while :; do sleep 0.1; done"
    );
    let volumes = json!([{"name": "v", "hostPath": {"path": folder}}]);
    let mut whole = json!({"terminationGracePeriodSeconds": 600, "volumes": volumes});
    dhow_e2e::pods::merge(&mut whole, spec);
    pod(host, name, &script, mounts, whole)?;
    running(host, name).map(drop)
}

fn begins(host: &Host, bus: &mut Bus) -> Result<()> {
    makes(host, "usual", nothing())?;
    makes(host, "vital", json!({"priorityClassName": "system-node-critical"}))?;
    pod(
        host,
        "stubborn",
        "trap '' TERM; while :; do sleep 0.1; done",
        nothing(),
        json!({"priorityClassName": "system-node-critical", "terminationGracePeriodSeconds": 600}),
    )?;
    running(host, "stubborn")?;
    let begun = Instant::now();
    bus.tell("shutdown")?;
    until(host, "vital", |s| s["phase"] == "Failed")?;
    // Nobody gets more than its group has.
    bus.hears("released")?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(20), "{took:?}");
    let log = std::fs::read_to_string(host.folder().join("notes/log"))?;
    ensure!(log == "usual is told\nusual ends\nvital is told\nvital ends\n", "{log}");
    for name in ["usual", "vital", "stubborn"] {
        let seen = until(host, name, |s| s["phase"] == "Failed")?;
        ensure!(seen["reason"] == "Terminated" && seen["message"] == MESSAGE, "{seen:#}");
        let target = condition(&seen, "DisruptionTarget");
        ensure!(target["status"] == "True" && target["reason"] == "TerminationByKubelet", "{seen:#}");
    }
    eventually(SOON, || {
        let ready = ready(host)?;
        ensure!(ready["status"] == "False" && ready["message"] == "node is shutting down", "{ready}");
        ensure!(ready["reason"] == "KubeletNotReady", "{ready}");
        Ok(())
    })?;
    event(host, "e2e", "NodeShutdown", "Shutdown manager detected shutdown event")?;
    pod(host, "late", "sleep 1000", nothing(), json!({"nodeName": "e2e"}))?;
    let seen = until(host, "late", |s| s["phase"] == "Failed")?;
    ensure!(seen["reason"] == "NodeShutdown", "{seen:#}");
    ensure!(seen["message"] == "Pod was rejected as the node is shutting down.", "{seen:#}");
    Ok(())
}

fn is_called_off(host: &Host, bus: &mut Bus) -> Result<()> {
    bus.tell("cancel")?;
    bus.hears("inhibited shutdown delay")?;
    eventually(SOON, || {
        let ready = ready(host)?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })?;
    makes(host, "again", nothing())
}

/// The daemon is told to end because the machine stops, and not because somebody exchanges it.
fn ends_with_systemd(host: &Host, bus: &mut Bus, address: &str) -> Result<()> {
    let end = |signal: &str| -> Result<()> {
        let pid = host.daemon_pid()?;
        run(Command::new("kill").args([signal, &pid.to_string()]))?;
        eventually(SOON, || {
            ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the daemon is still there");
            Ok(())
        })
    };
    let start = || {
        let settings = host.folder().join("config.yaml");
        run(host.dhow_command(&["up"]).env("DHOW_CONFIG", settings).env("DBUS_SYSTEM_BUS_ADDRESS", address))
    };
    end("-TERM")?;
    bus.hears("released")?;
    start()?;
    bus.hears("inhibited shutdown delay")?;
    let seen = running(host, "again")?;
    ensure!(dhow_e2e::pods::own(&seen)["restartCount"] == 0, "{seen:#}");
    bus.tell("stopping")?;
    end("-TERM")?;
    bus.hears("released")?;
    let log = std::fs::read_to_string(host.folder().join("notes/log"))?;
    ensure!(log.ends_with("again is told\nagain ends\n"), "{log}");
    bus.tell("running")?;
    start()?;
    bus.hears("inhibited shutdown delay")?;
    let seen = until(host, "again", |s| s["phase"] == "Failed")?;
    ensure!(seen["reason"] == "Terminated" && seen["message"] == MESSAGE, "{seen:#}");
    Ok(())
}
