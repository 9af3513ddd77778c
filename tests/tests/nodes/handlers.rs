//! Pods run by our own runtime, by runc and by crun behave alike.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run};
use serde_json::{Value, json};

use dhow_e2e::pods::{SOON, event, exec, merge, nothing, own, pod, running, until};

const SETTINGS: &str = "runtimeHandlers:\n  runc: {path: /usr/sbin/runc}\n  crun: {path: /usr/bin/crun}\n  \
                        gone: {path: /no/such/runtime}\n";
/// Name of the class, and the file by which its program knows a container; none for our own runtime.
const HANDLERS: [(&str, Option<&str>); 3] = [("default", None), ("runc", Some("state.json")), ("crun", Some("status"))];

pub fn test() -> Result<()> {
    let host = Host::new()?;
    crate::start(&host, SETTINGS, &[])?;
    for name in ["runc", "crun", "gone", "absent"] {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": name, "overhead": {"podFixed": {"memory": "8Mi"}}});
        host.apply(&class.to_string())?;
    }
    for (name, _) in HANDLERS {
        begin(&host, name)?;
    }
    let mut standings = Vec::new();
    for (name, file) in HANDLERS {
        standings.push(lives(&host, name, file).with_context(|| format!("with {name}"))?);
    }
    ensure!(standings.windows(2).all(|pair| pair[0] == pair[1]), "processes stand differently: {standings:#?}");
    says_what_it_cannot(&host)?;
    outlives_the_daemon(&host)?;
    host.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

fn class(name: &str, more: Value) -> Value {
    let mut spec = if name == "default" { nothing() } else { json!({"runtimeClassName": name}) };
    merge(&mut spec, more);
    spec
}

/// Makes a handler's pods, all at once.
fn begin(host: &Host, name: &str) -> Result<()> {
    let script = "trap 'echo ending; exit 0' TERM; echo to out; echo to err >&2; while :; do sleep 0.1; done";
    let limits = json!({"resources": {"limits": {"memory": "32Mi", "cpu": "500m"}}, "stdin": true});
    pod(host, &format!("{name}-stays"), script, limits, class(name, nothing()))?;
    let never = || class(name, json!({"restartPolicy": "Never"}));
    pod(host, &format!("{name}-fails"), "echo first; exit 5", nothing(), never())?;
    let little = json!({"resources": {"limits": {"memory": "16Mi"}}});
    pod(host, &format!("{name}-hog"), "tail /dev/zero", little, never())?;
    pod(host, &format!("{name}-none"), "", json!({"command": ["/no/such/program"]}), never())?;
    let shared = class(name, json!({"shareProcessNamespace": true}));
    pod(host, &format!("{name}-shares"), "exec sleep 4711", nothing(), shared)
}

/// Looks at a handler's pods; returns how its processes stand to the kernel.
fn lives(host: &Host, name: &str, file: Option<&str>) -> Result<String> {
    let stays = format!("{name}-stays");
    let seen = running(host, &stays)?;
    knows(host, own(&seen), file)?;
    let class = host.get(&["get", "pod", &stays])?;
    ensure!((class["spec"]["overhead"]["memory"] == "8Mi") == file.is_some(), "{:#}", class["spec"]);
    eventually(SOON, || {
        let logs = host.kubectl(&["logs", &stays])?;
        ensure!(logs.contains("to out\n") && logs.contains("to err\n"), "{logs:?}");
        Ok(())
    })?;
    ensure!(exec(host, &stays, "hostname")?.trim() == stays, "the host name");
    let mut piped = host.command("sh");
    piped.args(["-c", &format!("printf 'through and back' | kubectl exec -i {stays} -- cat")]);
    let output = piped.output()?;
    ensure!(output.stdout == b"through and back", "{output:?}");
    let failed = host.command("kubectl").args(["exec", &stays, "--", "sh", "-c", "exit 7"]).output()?;
    ensure!(failed.status.code() == Some(7), "{failed:?}");
    let missing = host.kubectl(&["exec", &stays, "--", "/no/such/program"]).unwrap_err().to_string();
    ensure!(missing.contains("/no/such/program"), "{missing}");
    let in_terminal = format!("kubectl exec -it {stays} -- sh -c 'test -t 0 && test -t 1 && echo a terminal'");
    let mut script = host.command("script");
    let output = script.args(["-qec", &in_terminal, "/dev/null"]).stdin(Stdio::null()).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("a terminal"), "{output:?}");
    let limit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    ensure!(exec(host, &stays, limit)?.trim() == "33554432", "{}", exec(host, &stays, limit)?);
    let standing = exec(
        host,
        &stays,
        "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid)' /proc/self/status; \
        cat /proc/1/comm /proc/self/oom_score_adj; touch /sys/x 2>&1; cat /proc/kcore | wc -c",
    )?;

    let seen = until(host, &format!("{name}-fails"), |s| s["phase"] == "Failed")?;
    let end = &own(&seen)["state"]["terminated"];
    ensure!(end["exitCode"] == 5 && end["reason"] == "Error", "{end}");
    let seen = until(host, &format!("{name}-hog"), |s| s["phase"] == "Failed")?;
    let end = &own(&seen)["state"]["terminated"];
    ensure!(end["exitCode"] == 137 && end["reason"] == "OOMKilled", "{end}");
    let none = format!("{name}-none");
    let seen = until(host, &none, |s| s["phase"] == "Failed")?;
    let end = &own(&seen)["state"]["terminated"];
    ensure!(end["exitCode"] == 128 && end["reason"] == "StartError", "{end}");
    ensure!(end["message"].as_str().unwrap_or_default().to_lowercase().contains("no such file or directory"), "{end}");
    event(host, &none, "Failed", "/no/such/program")?;
    let shares = format!("{name}-shares");
    running(host, &shares)?;
    let processes = exec(host, &shares, "ps")?;
    ensure!(processes.contains("sleep 4711") && !processes.contains(" 1 root      0:00 sleep"), "{processes}");
    Ok(standing)
}

/// Whether the container is known to the program that is to run it, by its own records.
fn knows(host: &Host, status: &Value, file: Option<&str>) -> Result<()> {
    let id = status["containerID"].as_str().and_then(|id| id.strip_prefix("dhow://")).context("no id")?;
    let root = host.data_dir().join("runtime/sandboxes").display().to_string();
    let found = run(Command::new("find").args([&root, "-path", &format!("*/{id}/runtime/{id}/*"), "-type", "f"]))?;
    match file {
        Some(file) => ensure!(found.lines().any(|line| line.ends_with(&format!("/{file}"))), "no {file}: {found}"),
        None => ensure!(found.is_empty(), "records of another runtime: {found}"),
    }
    Ok(())
}

fn says_what_it_cannot(host: &Host) -> Result<()> {
    pod(host, "unknown", "sleep 1000", nothing(), class("absent", nothing()))?;
    pod(host, "lost", "sleep 1000", nothing(), class("gone", nothing()))?;
    pod(host, "own-ids", "sleep 1000", nothing(), class("runc", json!({"hostUsers": false})))?;
    let text = "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"absent\" is configured";
    event(host, "unknown", "FailedCreatePodSandBox", text)?;
    event(host, "lost", "FailedCreatePodSandBox", "/no/such/runtime")?;
    event(host, "own-ids", "FailedCreatePodSandBox", "does not support user namespaces")?;
    let refused = pod(host, "no-class", "sleep 1", nothing(), class("never-made", nothing())).unwrap_err().to_string();
    ensure!(refused.contains("never-made") && refused.contains("not found"), "{refused}");
    Ok(())
}

fn outlives_the_daemon(host: &Host) -> Result<()> {
    let before: Vec<Value> = HANDLERS
        .iter()
        .map(|(name, _)| Ok(own(&running(host, &format!("{name}-stays"))?)["containerID"].clone()))
        .collect::<Result<_>>()?;
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    let settings = host.folder().join("config.yaml");
    run(host.dhow_command(&["up"]).env("DHOW_CONFIG", settings))?;
    for ((name, _), id) in HANDLERS.iter().zip(before) {
        let name = format!("{name}-stays");
        let seen = running(host, &name)?;
        ensure!(own(&seen)["containerID"] == id && own(&seen)["restartCount"] == 0, "{name}: {seen:#}");
        ensure!(exec(host, &name, "echo there")? == "there\n", "{name}");
    }
    Ok(())
}
