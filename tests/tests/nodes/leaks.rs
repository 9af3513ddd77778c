//! Many pods come and go; what the machine and the daemon have of them is counted before and after.
//!
//! `DHOW_LEAK_PODS` says how many; a thousand takes some minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually};
use serde_json::json;

use dhow_e2e::pods::{IMAGE, nothing, pod, running, until};

/// What there is of this cloud, by kind.
fn traces(host: &Host) -> Result<BTreeMap<&'static str, usize>> {
    let mine = host.folder().to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts")?.lines().filter(|line| line.contains(&mine)).count();
    let (mut processes, mut networks) = (0, BTreeSet::new());
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&mine) {
            processes += 1;
            networks.extend(std::fs::read_link(entry.path().join("ns/net")).ok());
        }
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", host.daemon_pid()?))?.count();
    let lines = |command: &mut std::process::Command| Ok::<_, anyhow::Error>(dhow_e2e::run(command)?.lines().count());
    // The store has its own rhythm of files.
    let mut on_disk = std::process::Command::new("find");
    on_disk.arg(host.data_dir()).arg(host.run_dir());
    on_disk.args(["-ignore_readdir_race", "-path", "*/data/store", "-prune", "-o", "-type", "f", "-print"]);
    Ok([
        ("mounts", mounts),
        ("processes", processes),
        ("network namespaces", networks.len()),
        ("network interfaces", lines(host.command("ip").args(["-br", "link"]))?),
        ("lines of nftables", lines(host.command("nft").args(["list", "ruleset"]))?),
        ("open files of the daemon", files),
        ("files on disk", lines(&mut on_disk)?),
    ]
    .into())
}

/// What may be more for a while: sandboxes made ahead of time, connections, files that a log has yet to give back.
fn slack(kind: &str) -> usize {
    match kind {
        "mounts" => 0,
        "open files of the daemon" | "files on disk" | "lines of nftables" => 16,
        _ => 4,
    }
}

/// Control groups of these pods.
fn groups(uids: &[String]) -> Result<Vec<String>> {
    let mut find = std::process::Command::new("find");
    let all = dhow_e2e::run(find.args(["/sys/fs/cgroup", "-ignore_readdir_race", "-name", "pod*"]))?;
    Ok(all.lines().filter(|line| uids.iter().any(|uid| line.contains(uid))).map(str::to_owned).collect())
}

/// Every other batch of pods is run by another program than our own runtime.
const SETTINGS: &str = "runtimeHandlers: {runc: {path: /usr/sbin/runc}}\n";

pub fn test() -> Result<()> {
    let host = Host::new()?;
    crate::start(&host, SETTINGS, &[])?;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "runc"},
        "handler": "runc"});
    host.apply(&class.to_string())?;
    // What is made once stays: the first pods are not counted.
    pod(&host, "first", "sleep 1000", nothing(), nothing())?;
    running(&host, "first")?;
    leaves_nothing_behind(&host)?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

fn leaves_nothing_behind(host: &Host) -> Result<()> {
    let count: u32 = std::env::var("DHOW_LEAK_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    host.kubectl(&["delete", "pods", "--all", "--now", "--timeout=60s"])?;
    let before = traces(host)?;
    let limit = Duration::from_secs(60 + u64::from(count) * 4);
    let mut template = json!({"restartPolicy": "Never",
        "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}],
        "containers": [{"name": "a", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["true"],
            "volumeMounts": [{"name": "m", "mountPath": "/m"}, {"name": "m", "mountPath": "/part", "subPath": "a/b"}]}]});
    // Pods that never come to run take nothing either.
    pod(host, "no-binary", "", json!({"command": ["/absent"]}), json!({"restartPolicy": "Never"}))?;
    pod(host, "no-image", "", json!({"image": "127.0.0.1:1/absent"}), nothing())?;
    let wait = format!("--timeout={}s", limit.as_secs());
    // In batches, or the pods that are over would fill the node.
    let begun = std::time::Instant::now();
    let batch = (count / 10).clamp(20, 100);
    let mut uids = Vec::new();
    for (number, done) in (0..count).step_by(batch as usize).enumerate() {
        if number % 2 == 1 {
            template["runtimeClassName"] = json!("runc");
        } else {
            template.as_object_mut().context("template")?.remove("runtimeClassName");
        }
        let name = format!("many-{number}");
        let completions = batch.min(count - done);
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"completions": completions, "parallelism": 20, "template": {"spec": template}}});
        host.apply(&job.to_string())?;
        host.kubectl(&["wait", "--for=condition=complete", &format!("job/{name}"), &wait])?;
        // What is over keeps its records only, once the last of it is taken down.
        eventually(Duration::from_secs(30), || {
            let meanwhile = traces(host)?["mounts"];
            ensure!(meanwhile <= before["mounts"] + 4, "mounts of pods that are over: {before:?} and then {meanwhile}");
            Ok(())
        })?;
        let pods = host.get(&["get", "pods"])?;
        let list = pods["items"].as_array().context("no pods")?;
        uids.extend(list.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)));
        host.kubectl(&["delete", "job", &name, "--cascade=foreground", &wait])?;
    }
    eprintln!("{count} pods ran in {} s", begun.elapsed().as_secs());
    until(host, "no-binary", |s| s["phase"] == "Failed")?;
    ensure!(uids.len() >= count as usize, "{} pods", uids.len());
    host.kubectl(&["delete", "pods", "--all", "--now", &wait])?;
    eventually(limit, || {
        let after = traces(host)?;
        for (kind, number) in &after {
            ensure!(*number <= before[kind] + slack(kind), "{kind}: {before:?} became {after:?}");
        }
        let left = groups(&uids)?;
        ensure!(left.is_empty(), "control groups left: {left:?}");
        eprintln!("before: {before:?}\n after: {after:?}");
        Ok(())
    })
}
