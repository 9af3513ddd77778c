//! The node as a whole: static pods, numbers, and a restart of the machine.

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually};
use serde_json::json;

use dhow_e2e::pods::{IMAGE, SOON, exec, nothing, own, pod, running, until};

pub fn runs_static_pods(host: &Host) -> Result<()> {
    let file = host.data_dir().join("static-pods/own.yaml");
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: own}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: a, image: '{IMAGE}', imagePullPolicy: IfNotPresent, command: [sleep, '1000']}}\n"
    );
    std::fs::write(&file, manifest)?;
    let seen = running(host, "own-e2e")?;
    let id = own(&seen)["containerID"].clone();
    // Whoever deletes the mirror deletes a picture. Not waited for by kubectl, which may look between the deletion and the
    // next mirror's coming and then waits for that one's end.
    let uid = host.get(&["get", "pod", "own-e2e"])?["metadata"]["uid"].clone();
    host.kubectl(&["delete", "pod", "own-e2e", "--wait=false"])?;
    eventually(SOON, || {
        let now = host.get(&["get", "pod", "own-e2e"])?;
        ensure!(now["metadata"]["uid"] != uid, "the same mirror is still there");
        Ok(())
    })?;
    let seen = running(host, "own-e2e")?;
    ensure!(own(&seen)["containerID"] == id && own(&seen)["restartCount"] == 0, "{seen:#}");
    std::fs::remove_file(&file)?;
    eventually(SOON, || {
        let gone = host.kubectl(&["get", "pod", "own-e2e"]).is_err();
        ensure!(gone, "the mirror is still there");
        Ok(())
    })
}

pub fn tells_numbers(host: &Host) -> Result<()> {
    pod(host, "busy", "while :; do :; done", json!({"resources": {"limits": {"cpu": "200m"}}}), nothing())?;
    running(host, "busy")?;
    let nodes = eventually(SOON, || host.kubectl(&["top", "nodes", "--no-headers"]))?;
    ensure!(nodes.starts_with("e2e ") && nodes.contains("Mi"), "{nodes}");
    let cpu = eventually(SOON, || {
        let pods = host.kubectl(&["top", "pods", "--containers", "--no-headers"])?;
        let line = pods.lines().find(|line| line.starts_with("busy")).context("no line of the pod")?;
        let cpu = line.split_whitespace().nth(2).and_then(|cpu| cpu.strip_suffix('m')).context("no processors")?;
        cpu.parse::<u32>().context("read processors")
    })?;
    ensure!((20..=400).contains(&cpu), "{cpu} thousandths of a processor");
    let one = host.kubectl(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/e2e"])?;
    ensure!(one.contains("\"NodeMetrics\"") && one.contains("\"memory\":"), "{one}");
    let denied = host.kubectl(&["top", "pods", "--as=system:serviceaccount:default:default"]).unwrap_err().to_string();
    ensure!(denied.contains("orbidden"), "{denied}");
    for (path, expected) in [
        ("stats/summary", "\"nodeName\":\"e2e\""),
        ("stats/summary", "\"maxpid\":"),
        ("metrics", "kubelet_running_pods"),
        ("metrics/resource", "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"busy\"}"),
        ("metrics/cadvisor", "container_memory_working_set_bytes{container=\"a\""),
        ("metrics/probes", "prober_probe_total{"),
        ("configz", "\"maxPods\":110"),
        ("healthz", "ok"),
    ] {
        let text = host.kubectl(&["get", "--raw", &format!("/api/v1/nodes/e2e/proxy/{path}")])?;
        ensure!(text.contains(expected), "{path} lacks {expected:?}: {text}");
    }
    let node = eventually(SOON, || {
        let node = host.get(&["get", "node", "e2e"])?;
        let names = node["status"]["images"][0]["names"].to_string();
        ensure!(names.contains("busybox"), "{names}");
        Ok(node)
    })?;
    let (have, usable) = (&node["status"]["capacity"]["memory"], &node["status"]["allocatable"]["memory"]);
    ensure!(have != usable && usable.is_string(), "{node:#}");
    Ok(())
}

pub fn tells_what_pods_take_of_the_disk(host: &Host) -> Result<()> {
    let script = "dd if=/dev/zero of=/layer bs=1M count=3; dd if=/dev/zero of=/e/f bs=1M count=2; echo said; \
        touch /written; sleep 1000";
    let mounts = json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}, {"name": "m", "mountPath": "/m"}]});
    let volumes = json!({"volumes": [{"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]});
    pod(host, "writer", script, mounts, volumes)?;
    running(host, "writer")?;
    // What was seen is told of for a minute: nobody may look before it is there.
    eventually(SOON, || exec(host, "writer", "ls /written"))?;
    let (node, pod) = eventually(SOON, || {
        let text = host.kubectl(&["get", "--raw", "/api/v1/nodes/e2e/proxy/stats/summary"])?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        let pods = all["pods"].as_array().context("no pods")?;
        let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "writer").context("no pod")?;
        ensure!(pod["ephemeral-storage"].is_object(), "{pod:#}");
        Ok((all["node"].clone(), pod.clone()))
    })?;
    let own = &pod["containers"][0];
    let volume = |name: &str| pod["volume"].as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
    let (on_disk, in_memory) = (volume("e").context("no volume")?, volume("m").context("no volume in memory")?);
    for (what, used, least, most) in [
        ("layer", &own["rootfs"], 3 << 20, 4 << 20),
        ("logs", &own["logs"], 4, 1 << 20),
        ("volume", on_disk, 2 << 20, 3 << 20),
        ("volume in memory", in_memory, 0, 4096),
        ("all", &pod["ephemeral-storage"], 5 << 20, 7 << 20),
    ] {
        let bytes = used["usedBytes"].as_u64().with_context(|| format!("{what}: {pod:#}"))?;
        ensure!((least..=most).contains(&bytes), "{what}: {bytes} bytes: {pod:#}");
        ensure!(used["capacityBytes"].as_u64() > Some(0) && used["time"].is_string(), "{what}: {used:#}");
    }
    for place in [&node["fs"], &node["runtime"]["imageFs"], &node["runtime"]["containerFs"]] {
        ensure!(place["usedBytes"].as_u64() > Some(0) && place["inodesUsed"].as_u64() > Some(0), "{node:#}");
    }
    ensure!(node["fs"]["capacityBytes"] == pod["ephemeral-storage"]["capacityBytes"], "{node:#}");
    let systems = node["systemContainers"].as_array().context("no system containers")?;
    let names: Vec<_> = systems.iter().filter_map(|one| one["name"].as_str()).collect();
    ensure!(names == ["kubelet", "runtime", "pods"], "{systems:#?}");
    for one in systems {
        // Shims that have only waited so far have used less than the clock can tell.
        let (memory, time) = (&one["memory"]["workingSetBytes"], &one["cpu"]["usageCoreNanoSeconds"]);
        let at_work = time.as_u64() > Some(0) || one["name"] == "runtime" && time.is_u64();
        ensure!(memory.as_u64() > Some(0) && at_work && one["startTime"].is_string(), "{one:#}");
    }
    ensure!(node["network"]["interfaces"].as_array().is_some_and(|links| !links.is_empty()), "{node:#}");
    let link = &pod["network"];
    // Its neighbours were asked for by the link's own address, at least.
    ensure!(link["name"] == "eth0" && link["txBytes"].as_u64() > Some(0), "{link:#}");
    Ok(())
}

/// What a restart of the machine leaves: neither daemon nor shims nor what was mounted.
pub fn comes_back_after_a_restart(host: &Host) -> Result<()> {
    let spec = json!({"volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]});
    let mounts = json!({"volumeMounts": [{"name": "m", "mountPath": "/m"}, {"name": "d", "mountPath": "/d"}]});
    pod(host, "lasting", "echo run >> /m/log; echo run >> /d/log; sleep 1000", mounts, spec)?;
    pod(host, "once", "sleep 1000", nothing(), json!({"restartPolicy": "Never"}))?;
    running(host, "lasting")?;
    running(host, "once")?;
    let mine = host.folder().to_string_lossy().into_owned();
    let uid = host.get(&["get", "pod", "lasting"])?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    dhow_e2e::run(std::process::Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&mine) {
            let _ = dhow_e2e::run(std::process::Command::new("kill").arg("-9").arg(entry.file_name()));
        }
    }
    let memory = host.data_dir().join(format!("node/pods/{uid}/volumes/m"));
    dhow_e2e::run(std::process::Command::new("umount").args(["--lazy", memory.to_str().context("path")?]))?;
    host.dhow(&["up"])?;
    until(host, "lasting", |s| own(s)["restartCount"] == 1 && own(s)["ready"] == true)?;
    let logs = exec(host, "lasting", "cat /m/log; echo; cat /d/log")?;
    ensure!(logs == "run\n\nrun\nrun\n", "memory is empty again and the disk is as it was: {logs:?}");
    until(host, "once", |s| s["phase"] == "Failed")?;
    Ok(())
}
