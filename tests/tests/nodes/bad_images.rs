//! Images that cannot be had or run: each says so by the words that people and tools look for, and leaves nothing.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run, workspace};
use serde_json::json;

use dhow_e2e::pods::{SOON, event, nothing, own, pod, running, until};

const PORT: u16 = 5005;

/// Tag of the image, and what is said of it.
const CASES: [(&str, &str); 6] = [
    ("hangs", "sent nothing for 2 s while fetching sha256:"),
    ("breaks", "cannot reach the registry"),
    ("wrong", "unexpected commit digest sha256:"),
    ("short", "failed to extract layer sha256:"),
    ("media", "is of media type application/vnd.example.layer.v1.squashfs, which is not supported"),
    ("none", "not found"),
];

pub fn test() -> Result<()> {
    let host = Host::new()?;
    let registry = format!("{HOST_IP}:{PORT}");
    let settings = format!("registries: {{hosts: {{'{registry}': {{plainHttp: true}}}}, stallTimeoutSeconds: 2}}\n");
    let script = workspace().join("tests/tests/nodes/registry.py").display().to_string();
    let mut serving = host.spawn("python3", &[&script, HOST_IP, &PORT.to_string()])?;
    let tested = crate::start(&host, &settings, &[]).and_then(|()| told(&host, &registry));
    serving.kill()?;
    serving.wait()?;
    tested?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

fn entries(host: &Host) -> Result<BTreeSet<String>> {
    let found = run(Command::new("find").arg(host.data_dir().join("images")))?;
    Ok(found.lines().map(str::to_owned).collect())
}

fn told(host: &Host, registry: &str) -> Result<()> {
    let name = |tag: &str| format!("{registry}/team/app:{tag}");
    // The registry as such is well, and what it says is believed.
    eventually(SOON, || host.dhow(&["image", "pull", &name("good")]))?;
    let before = entries(host)?;
    for (tag, _) in CASES {
        pod(host, tag, "sleep 1000", json!({"image": name(tag)}), nothing())?;
    }
    pod(host, "bystander", "sleep 1000", json!({"image": name("good")}), nothing())?;
    running(host, "bystander")?;
    for (tag, words) in CASES {
        refused(host, tag, &name(tag), words).with_context(|| format!("the image that {tag}"))?;
    }
    let table = host.kubectl(&["get", "pods"])?;
    ensure!(table.contains("ImagePullBackOff") || table.contains("ErrImagePull"), "{table}");
    cannot_run(host, &name("binary"))?;
    host.kubectl(&["delete", "pods", "--all", "--now", "--timeout=30s"])?;
    host.dhow(&["image", "remove", &name("binary")])?;
    // Only what may be gone on with is kept, and that for whoever wants no room of it.
    let now = entries(host)?;
    let kept: Vec<&String> = now.difference(&before).filter(|path| !path.contains("/ingest/")).collect();
    ensure!(kept.len() <= 4, "kept: {kept:?}");
    host.dhow(&["image", "prune"])?;
    eventually(SOON, || {
        let now = entries(host)?;
        ensure!(now == before, "left: {:?}", now.difference(&before));
        Ok(())
    })
}

fn refused(host: &Host, pod: &str, image: &str, words: &str) -> Result<()> {
    let waiting = |reason: &'static str| {
        until(host, pod, move |s| own(s)["state"]["waiting"]["reason"] == reason)
            .map(|seen| own(&seen)["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned())
    };
    let message = waiting("ImagePullBackOff")?;
    ensure!(message.starts_with(&format!("Back-off pulling image \"{image}\": ErrImagePull: ")), "{message}");
    ensure!(message.contains(words), "{message}");
    event(host, pod, "Pulling", &format!("Pulling image \"{image}\""))?;
    event(host, pod, "Failed", &format!("Failed to pull image \"{image}\": "))?;
    event(host, pod, "Failed", words)?;
    event(host, pod, "Failed", "Error: ErrImagePull")?;
    event(host, pod, "BackOff", &format!("Back-off pulling image \"{image}\""))?;
    event(host, pod, "Failed", "Error: ImagePullBackOff")
}

/// An image that is well, but for its program.
fn cannot_run(host: &Host, image: &str) -> Result<()> {
    let container = json!({"name": "a", "image": image});
    let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 1});
    let made = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "binary"}, "spec": spec});
    host.apply(&made.to_string())?;
    let seen = until(host, "binary", |s| own(s)["lastState"]["terminated"].is_object())?;
    let end = &own(&seen)["lastState"]["terminated"];
    ensure!(end["reason"] == "StartError" && end["exitCode"] == 128, "{end}");
    ensure!(end["message"].as_str().is_some_and(|text| text.contains("no such file or directory")), "{end}");
    event(host, "binary", "Pulled", &format!("Successfully pulled image \"{image}\""))?;
    event(host, "binary", "Created", "Container created: a")?;
    event(host, "binary", "Failed", "no such file or directory")?;
    until(host, "binary", |s| {
        let reason = own(s)["state"]["waiting"]["reason"].as_str().unwrap_or_default();
        matches!(reason, "RunContainerError" | "CrashLoopBackOff")
    })?;
    event(host, "binary", "BackOff", "Back-off restarting failed container a in pod binary_default(")
}
