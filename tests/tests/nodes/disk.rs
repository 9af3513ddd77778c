//! Small file systems in the place of the node's folders, filled up and freed again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run, workspace};
use serde_json::{Value, json};

use dhow_e2e::pods::{IMAGE, SOON, condition, event, exec, merge, nothing, own, pod, running, status, until};

/// Threads that the machine may have more than it has now before that is too many; a pod makes half as many again.
const THREADS: u64 = 1000;

/// Processes are what the whole machine has, so that what is too many depends on how many there are.
fn settings() -> Result<String> {
    let most = |name: &str| -> Result<u64> {
        Ok(std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))?.trim().parse()?)
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let threads = load.split(['/', ' ']).nth(4).context("no threads")?.parse::<u64>()?;
    let least = most("pid_max")?.min(most("threads-max")?).saturating_sub(threads + THREADS);
    Ok(format!(
        "node:\n  evictionHard: {{nodefs.available: 25%, pid.available: '{least}'}}\n  \
         evictionPressureTransitionPeriod: 1s\n"
    ))
}

/// Folders of the data folder, and how large they are here.
const FOLDERS: [(&str, &str); 3] = [("node", "32m"), ("runtime", "24m"), ("images", "40m")];

pub fn test() -> Result<()> {
    let host = Host::new()?;
    for (folder, size) in FOLDERS {
        let folder = host.data_dir().join(folder);
        std::fs::create_dir_all(&folder)?;
        let options = format!("size={size},mode=755");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder))?;
    }
    crate::start(&host, &settings()?, &[])?;
    pod(&host, "bystander", "while :; do date; sleep 0.2; done", nothing(), nothing())?;
    running(&host, "bystander")?;
    fills_a_volume(&host)?;
    fills_a_writable_layer(&host)?;
    writes_beyond_its_limit(&host)?;
    fills_the_images(&host)?;
    forks_too_often(&host)?;
    let seen = running(&host, "bystander")?;
    ensure!(own(&seen)["restartCount"] == 0, "{seen:#}");
    host.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

fn pressure(host: &Host, name: &str, wanted: &str) -> Result<()> {
    eventually(SOON, || {
        let node = host.get(&["get", "node", "e2e"])?;
        let seen = condition(&node["status"], name);
        ensure!(seen["status"] == wanted, "{seen}");
        Ok(())
    })
}

/// A volume takes the node's disk: its pod goes, no new one comes meanwhile, and all is well after.
fn fills_a_volume(host: &Host) -> Result<()> {
    let volume = json!({"volumes": [{"name": "e", "emptyDir": {}}], "restartPolicy": "Never"});
    let mounts = json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]});
    // It also takes the last byte, so that logs cannot grow.
    pod(host, "greedy", "dd if=/dev/zero of=/e/f bs=1M; while :; do echo more; sleep 0.1; done", mounts, volume)?;
    pressure(host, "DiskPressure", "True")?;
    pod(host, "meanwhile", "sleep 1000", nothing(), json!({"nodeName": "e2e"}))?;
    let seen = until(host, "greedy", |s| s["phase"] == "Failed")?;
    ensure!(seen["reason"] == "Evicted", "{seen:#}");
    let message = seen["message"].as_str().unwrap_or_default();
    ensure!(
        message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 8Mi, "),
        "{message}"
    );
    ensure!(message.contains("Container a was using "), "{message}");
    event(host, "greedy", "Evicted", "The node was low on resource: ephemeral-storage.")?;
    event(host, "e2e", "EvictionThresholdMet", "Attempting to reclaim ephemeral-storage")?;
    let refused = status(host, "meanwhile")?;
    ensure!(refused["reason"] == "Evicted" || refused["phase"] != "Failed", "{refused:#}");
    host.kubectl(&["delete", "pod", "greedy", "meanwhile", "--timeout=30s"])?;
    pressure(host, "DiskPressure", "False")?;
    pod(host, "after", "sleep 1000", nothing(), nothing())?;
    running(host, "after").map(drop)
}

/// Takes all that is left of a file system while it lives.
struct Filler(std::path::PathBuf);

impl Filler {
    fn new(folder: &Path) -> Result<Self> {
        let file = folder.join("filler");
        // It ends when the disk is full.
        let _ = Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", file.display())).arg("bs=64k").output()?;
        Ok(Self(file))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn entries(folder: &Path) -> Result<BTreeSet<String>> {
    Ok(run(Command::new("find").arg(folder))?.lines().map(str::to_owned).collect())
}

fn fills_a_writable_layer(host: &Host) -> Result<()> {
    let runtime = host.data_dir().join("runtime");
    let failed = exec(host, "after", "dd if=/dev/zero of=/big bs=1M 2>&1; true")?;
    ensure!(failed.contains("No space left on device"), "{failed}");
    ensure!(exec(host, "after", "rm /big; echo well")? == "well\n", "the container is not well");
    // Sandboxes that wait ready made need no room; the pod's container does.
    let filler = Filler::new(&runtime)?;
    for number in 0..4 {
        pod(host, &format!("cramped-{number}"), "sleep 1000", nothing(), nothing())?;
    }
    eventually(SOON, || {
        let events = host.get(&["get", "events"])?;
        let told = events["items"].as_array().context("no events")?.iter().any(|event| {
            let text = event["message"].as_str().unwrap_or_default();
            let about = event["involvedObject"]["name"].as_str().unwrap_or_default();
            about.starts_with("cramped") && event["type"] == "Warning" && text.contains("No space left on device")
        });
        ensure!(told, "nobody tells of the full disk: {:#}", events["items"]);
        Ok(())
    })?;
    drop(filler);
    for number in 0..4 {
        running(host, &format!("cramped-{number}"))?;
    }
    // What failed has left nothing: each of the pods that run has one sandbox of one container.
    let sandboxes = runtime.join("sandboxes");
    let whole =
        run(Command::new("find").arg(&sandboxes).args(["-mindepth", "2", "-maxdepth", "2", "-name", "meta.json"]))?;
    let pods = host.get(&["get", "pods", "-A"])?["items"].as_array().context("no pods")?.len();
    ensure!(whole.lines().count() == pods, "{pods} pods have these sandboxes: {whole}");
    let containers = run(Command::new("find").arg(&sandboxes).args(["-path", "*/containers/*/state.json"]))?;
    ensure!(containers.lines().count() == pods, "{pods} pods have these containers: {containers}");
    Ok(())
}

/// What a container writes to its own file system is its pod's usage, too.
fn writes_beyond_its_limit(host: &Host) -> Result<()> {
    let limited = || json!({"resources": {"limits": {"ephemeral-storage": "4Mi"}}});
    let script = "dd if=/dev/zero of=/big bs=1M count=6; sleep 1000";
    pod(host, "over", script, limited(), nothing())?;
    let beside = json!({"name": "b", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]});
    let mut of_two =
        json!({"name": "a", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
    merge(&mut of_two, limited());
    pod(host, "over-of-two", "", nothing(), json!({"containers": [of_two, beside]}))?;
    for (name, message) in [
        ("over", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
        ("over-of-two", "Container a exceeded its local ephemeral storage limit \"4Mi\". "),
    ] {
        let seen = until(host, name, |s| s["phase"] == "Failed")?;
        ensure!(seen["reason"] == "Evicted" && seen["message"] == message, "{seen:#}");
        event(host, name, "Evicted", message.trim())?;
    }
    host.kubectl(&["delete", "pod", "over", "over-of-two", "--timeout=30s"]).map(drop)
}

fn fills_the_images(host: &Host) -> Result<()> {
    let images = host.data_dir().join("images");
    let before = entries(&images)?;
    let nginx = workspace().join("target/images/nginx.tar").display().to_string();
    let refused = host.dhow(&["image", "import", &nginx]).unwrap_err().to_string();
    ensure!(refused.contains("No space left on device"), "{refused}");
    let now = entries(&images)?;
    ensure!(now == before, "left: {:?}", now.difference(&before));
    let listed: Value = serde_json::from_str(&host.dhow(&["image", "list", "-o", "json"])?)?;
    ensure!(!listed.to_string().contains("nginx"), "{listed}");
    host.import(&["busybox"])
}

/// A pod takes too many of the machine's processes: it goes, and not one that has few.
fn forks_too_often(host: &Host) -> Result<()> {
    let forks = THREADS + THREADS / 2;
    let script = format!("mkfifo /p; for i in $(seq {forks}); do ( read x < /p ) & done; wait");
    pod(host, "forks", &script, nothing(), json!({"restartPolicy": "Never"}))?;
    pressure(host, "PIDPressure", "True")?;
    eventually(SOON, || {
        let taints = host.get(&["get", "node", "e2e"])?["spec"]["taints"].to_string();
        ensure!(taints.contains("node.kubernetes.io/pid-pressure"), "{taints}");
        Ok(())
    })?;
    let seen = until(host, "forks", |s| s["phase"] == "Failed")?;
    let message = seen["message"].as_str().unwrap_or_default();
    ensure!(seen["reason"] == "Evicted", "{seen:#}");
    ensure!(message.starts_with("The node was low on resource: pids. Threshold quantity: "), "{message}");
    ensure!(!message.contains("Container a"), "{message}");
    event(host, "e2e", "NodeHasInsufficientPID", "Node e2e status is now: NodeHasInsufficientPID")?;
    event(host, "e2e", "EvictionThresholdMet", "Attempting to reclaim pids")?;
    pressure(host, "PIDPressure", "False")?;
    pod(host, "calm", "sleep 1000", nothing(), nothing())?;
    running(host, "calm").map(drop)
}
