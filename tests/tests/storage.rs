//! Persistent volumes through the real kubectl: what is written stays, and goes when it is to.
//!
//! One cloud for all of it; each part works on objects of its own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhow_e2e::pods::{self, SOON, event, exec, merge, running};
use dhow_e2e::{Host, eventually, run, workspace};
use serde_json::{Value, json};

/// A database starts and recovers within it on a busy machine.
const LATER: Duration = Duration::from_secs(120);

type Part = fn(&Host) -> Result<()>;

#[test]
fn volumes_keep_what_is_written() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();
    host.import(&["busybox", "mariadb"]).unwrap();
    let parts: [(&str, Part); 9] = [
        ("classes", has_a_default_class),
        ("database", keeps_the_rows_of_a_database),
        ("expansion", grows),
        ("protection and reclaim", protects_and_wipes),
        ("static volumes", binds_what_is_there),
        ("mounts", mounts_as_pods_ask),
        ("ephemeral volumes", brings_volumes_along),
        ("snapshots and clones", copies_what_is_there),
        ("words", says_what_is_wrong),
    ];
    let mut failures = Vec::new();
    for (name, part) in parts {
        let begun = Instant::now();
        let result = part(&host);
        eprintln!("{name}: {} ms", begun.elapsed().as_millis());
        if let Err(error) = result {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    if !failures.is_empty() {
        eprintln!("{}", host.kubectl(&["get", "pv,pvc,sc,pods,events", "-A"]).unwrap_or_default());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn has_a_default_class(host: &Host) -> Result<()> {
    let table = host.kubectl(&["get", "sc", "--no-headers"])?;
    let expected = ["local", "(default)", "dhow.io/local", "Delete", "WaitForFirstConsumer", "true"];
    ensure!(words(&table).starts_with(&expected), "{table}");
    // A class of attributes stays while a claim names it.
    let attributes = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": "gold"},
        "driverName": "d.example.com", "parameters": {"iops": "100"}});
    host.apply(&attributes.to_string())?;
    claim(host, "golden", json!({"volumeAttributesClassName": "gold"}))?;
    host.kubectl(&["delete", "volumeattributesclass", "gold", "--wait=false"])?;
    let kept = host.get(&["get", "volumeattributesclass", "gold"])?;
    ensure!(kept["metadata"]["finalizers"] == json!(["kubernetes.io/vac-protection"]), "{:#}", kept["metadata"]);
    host.kubectl(&["delete", "pvc", "golden", "--timeout=30s"])?;
    gone(host, "volumeattributesclass", "gold")
}

fn sql(host: &Host, statement: &str) -> Result<String> {
    let script = format!("mariadb --user=root --password=\"$MARIADB_ROOT_PASSWORD\" --batch -N -e '{statement}'");
    host.kubectl(&["exec", "database-0", "--", "sh", "-c", &script])
}

fn ready(host: &Host) -> Result<Value> {
    eventually(LATER, || {
        let pod = host.get(&["get", "pod", "database-0"])?;
        ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "{:#}", pod["status"]);
        Ok(pod)
    })
}

fn row_is_there(host: &Host) -> Result<()> {
    let rows = eventually(SOON, || sql(host, "select word from kept.words"))?;
    ensure!(rows.trim() == "lasting", "{rows:?}");
    Ok(())
}

fn keeps_the_rows_of_a_database(host: &Host) -> Result<()> {
    let manifest = workspace().join("examples/storage/mariadb.yaml");
    host.kubectl(&["apply", "-f", manifest.to_str().context("path")?])?;
    let first = ready(host)?;
    sql(
        host,
        "create database kept; create table kept.words (word text); insert into kept.words values (\"lasting\")",
    )?;
    let claims = host.kubectl(&["get", "pvc", "--no-headers"])?;
    let claim = words(&claims);
    ensure!(claim[..2] == ["data-database-0", "Bound"], "{claims}");
    ensure!(claim[2].starts_with("pvc-") && claim[3..6] == ["1Gi", "RWO", "local"], "{claims}");
    let volumes = host.kubectl(&["get", "pv", "--no-headers"])?;
    let expected = [claim[2], "1Gi", "RWO", "Delete", "Bound", "default/data-database-0", "local"];
    ensure!(words(&volumes).starts_with(&expected), "{volumes}");
    let described = host.kubectl(&["describe", "pv", claim[2]])?;
    ensure!(described.contains("kubernetes.io/hostname in [e2e]") && described.contains("LocalVolume"), "{described}");

    // The pod is deleted.
    host.kubectl(&["delete", "pod", "database-0", "--timeout=60s"])?;
    let second = ready(host)?;
    ensure!(second["metadata"]["uid"] != first["metadata"]["uid"], "the same pod");
    row_is_there(host)?;

    // Its container is killed.
    let uid = second["metadata"]["uid"].as_str().context("no uid")?;
    ensure!(kill(uid, "mariadbd")? > 0, "no process of the database found");
    eventually(LATER, || {
        let pod = host.get(&["get", "pod", "database-0"])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status:#}");
        Ok(())
    })?;
    row_is_there(host)?;

    // The daemon is killed.
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"])?;
    let after = ready(host)?;
    ensure!(after["status"]["containerStatuses"][0]["restartCount"] == 1, "{:#}", after["status"]);
    row_is_there(host)
}

/// Kills the processes of this name in a pod's control groups; says how many.
fn kill(uid: &str, name: &str) -> Result<usize> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name && read("cgroup").contains(uid) {
            run(Command::new("kill").arg("-9").arg(entry.file_name()))?;
            killed += 1;
        }
    }
    Ok(killed)
}

fn grows(host: &Host) -> Result<()> {
    let ask = |size: &str| {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
        host.kubectl(&["patch", "pvc", "data-database-0", "-p", &patch])
    };
    ask("2Gi")?;
    eventually(SOON, || {
        let claim = host.get(&["get", "pvc", "data-database-0"])?;
        let status = &claim["status"];
        ensure!(status["capacity"]["storage"] == "2Gi", "{status:#}");
        ensure!(status["conditions"].as_array().is_none_or(Vec::is_empty), "{status:#}");
        Ok(())
    })?;
    let volumes = host.kubectl(&["get", "pv", "--no-headers"])?;
    ensure!(words(&volumes)[1] == "2Gi", "{volumes}");
    event(host, "data-database-0", "VolumeResizeSuccessful", "")?;
    // More than the node has.
    ask("1Ei")?;
    event(host, "data-database-0", "VolumeResizeFailed", "bytes left for local volumes")?;
    // A wish that was not granted may be taken down to more than was.
    ask("3Gi")?;
    eventually(SOON, || {
        let volumes = host.kubectl(&["get", "pv", "--no-headers"])?;
        ensure!(words(&volumes)[1] == "3Gi", "{volumes}");
        Ok(())
    })?;
    row_is_there(host)
}

fn directory(host: &Host, claim: &str) -> Result<(String, PathBuf)> {
    let claim = host.get(&["get", "pvc", claim])?;
    let volume = claim["spec"]["volumeName"].as_str().context("no volume")?.to_owned();
    let path = host.data_dir().join("node/volumes").join(&volume);
    Ok((volume, path))
}

fn gone(host: &Host, kind: &str, name: &str) -> Result<()> {
    host.kubectl(&["wait", "--for=delete", &format!("{kind}/{name}"), "--timeout=60s"]).map(drop)
}

fn protects_and_wipes(host: &Host) -> Result<()> {
    let (volume, path) = directory(host, "data-database-0")?;
    ensure!(path.join("kept").is_dir(), "the database is not in {}", path.display());
    host.kubectl(&["delete", "pvc", "data-database-0", "--wait=false"])?;
    let claims = host.kubectl(&["get", "pvc", "--no-headers"])?;
    ensure!(words(&claims)[1] == "Terminating", "{claims}");
    row_is_there(host)?;
    host.kubectl(&["scale", "statefulset", "database", "--replicas=0"])?;
    gone(host, "pvc", "data-database-0")?;
    gone(host, "pv", &volume)?;
    ensure!(!path.exists(), "{} is still there", path.display());
    host.kubectl(&["delete", "statefulset", "database"])?;

    // A daemon that was away when the volume was given up makes good for it.
    claim(host, "late", json!({}))?;
    pod(host, "writer", "late", "echo x > /data/x; sleep 1000", json!({}), json!({}))?;
    running(host, "writer")?;
    let (volume, path) = directory(host, "late")?;
    ensure!(path.join("x").is_file(), "nothing in {}", path.display());
    let policy = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}).to_string();
    host.kubectl(&["patch", "pv", &volume, "-p", &policy])?;
    host.kubectl(&["delete", "pod", "writer", "--now", "--timeout=30s"])?;
    host.kubectl(&["delete", "pvc", "late", "--timeout=30s"])?;
    eventually(SOON, || {
        let volumes = host.kubectl(&["get", "pv", &volume, "--no-headers"])?;
        ensure!(words(&volumes)[3..5] == ["Retain", "Released"], "{volumes}");
        Ok(())
    })?;
    ensure!(path.join("x").is_file(), "it was to be kept");
    let policy = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}).to_string();
    host.kubectl(&["patch", "pv", &volume, "-p", &policy])?;
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"])?;
    eventually(SOON, || {
        ensure!(host.kubectl(&["get", "pv", &volume]).is_err() && !path.exists(), "{} is there", path.display());
        Ok(())
    })
}

fn claim(host: &Host, name: &str, more: Value) -> Result<()> {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}});
    merge(&mut spec, more);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
    host.apply(&claim.to_string()).map(drop)
}

fn volume(host: &Host, name: &str, more: Value) -> Result<()> {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Mi"}});
    merge(&mut spec, more);
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec});
    host.apply(&volume.to_string()).map(drop)
}

/// A pod with the claim at `/data`.
fn pod(host: &Host, name: &str, claim: &str, script: &str, container: Value, spec: Value) -> Result<()> {
    let mut own = json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]});
    merge(&mut own, container);
    let mut whole = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]});
    merge(&mut whole, spec);
    pods::pod(host, name, script, own, whole)
}

fn clear(host: &Host) -> Result<()> {
    host.kubectl(&["delete", "pods", "--all", "--now", "--timeout=60s"])?;
    host.kubectl(&["delete", "pvc", "--all", "--timeout=60s"])?;
    host.kubectl(&["delete", "pv", "--all", "--timeout=60s"]).map(drop)
}

fn binds_what_is_there(host: &Host) -> Result<()> {
    let folder = host.folder().join("host");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("greeting"), "from the host\n")?;
    let here = json!({"path": folder});
    volume(host, "large", json!({"capacity": {"storage": "1Gi"}, "hostPath": here}))?;
    volume(host, "fitting", json!({"hostPath": here}))?;
    eventually(SOON, || {
        let volumes = host.kubectl(&["get", "pv", "--no-headers"])?;
        ensure!(volumes.lines().all(|line| words(line)[4] == "Available"), "{volumes}");
        Ok(())
    })?;
    claim(host, "mine", json!({"storageClassName": ""}))?;
    pod(host, "reader", "mine", "sleep 1000", json!({}), json!({}))?;
    running(host, "reader")?;
    let said = exec(host, "reader", "cat /data/greeting")?;
    ensure!(said == "from the host\n", "{said:?}");
    let (volume, _) = directory(host, "mine")?;
    ensure!(volume == "fitting", "the claim got {volume}");
    host.kubectl(&["delete", "pod", "reader", "--now", "--timeout=30s"])?;
    host.kubectl(&["delete", "pvc", "mine", "--timeout=30s"])?;
    eventually(SOON, || {
        let volumes = host.kubectl(&["get", "pv", "fitting", "--no-headers"])?;
        ensure!(words(&volumes)[3..5] == ["Retain", "Released"], "{volumes}");
        Ok(())
    })?;
    clear(host)?;
    ensure!(folder.join("greeting").is_file(), "what an administrator gave is not ours to delete");
    Ok(())
}

fn mounts_as_pods_ask(host: &Host) -> Result<()> {
    claim(host, "shared", json!({}))?;
    let grouped = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4242}});
    pod(host, "grouped", "shared", "mkdir -p /data/sub; echo own > /data/sub/own; sleep 1000", json!({}), grouped)?;
    running(host, "grouped")?;
    let owner = eventually(SOON, || {
        let text = exec(host, "grouped", "stat -c %g /data /data/sub/own")?;
        ensure!(text.lines().count() == 2, "{text}");
        Ok(text)
    })?;
    ensure!(owner == "4242\n4242\n", "{owner:?}");
    let read_only =
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "shared", "readOnly": true}}]});
    let part = json!({"volumeMounts": [{"name": "v", "mountPath": "/data", "subPath": "sub"}]});
    pod(host, "part", "shared", "sleep 1000", part, read_only)?;
    running(host, "part")?;
    ensure!(exec(host, "part", "cat /data/own")? == "own\n", "another part is mounted");
    let refused = exec(host, "part", "echo x > /data/x").unwrap_err().to_string();
    ensure!(refused.contains("Read-only file system"), "{refused}");
    clear(host)
}

fn brings_volumes_along(host: &Host) -> Result<()> {
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}});
    let volumes = json!({"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]});
    pod(host, "brings", "", "echo x > /data/x; sleep 1000", json!({}), volumes)?;
    running(host, "brings")?;
    let claim = host.get(&["get", "pvc", "brings-v"])?;
    ensure!(claim["metadata"]["ownerReferences"][0]["name"] == "brings", "{claim:#}");
    let (volume, path) = directory(host, "brings-v")?;
    ensure!(path.is_dir(), "no directory");
    host.kubectl(&["delete", "pod", "brings", "--now", "--timeout=30s"])?;
    gone(host, "pvc", "brings-v")?;
    gone(host, "pv", &volume)?;
    ensure!(!path.exists(), "{} is still there", path.display());
    Ok(())
}

/// A claim that begins with the files of another, or of a snapshot.
fn filled(host: &Host, name: &str, kind: &str, from: &str, field: &str) -> Result<()> {
    let group = (kind == "VolumeSnapshot").then_some("snapshot.storage.k8s.io");
    claim(host, name, json!({field: {"apiGroup": group, "kind": kind, "name": from}}))
}

fn copies_what_is_there(host: &Host) -> Result<()> {
    let kinds = workspace().join("examples/storage/snapshots.yaml");
    host.kubectl(&["apply", "-f", kinds.to_str().context("path")?])?;
    let classes = eventually(SOON, || {
        let classes = host.kubectl(&["get", "volumesnapshotclass", "--no-headers"])?;
        ensure!(words(&classes).starts_with(&["local", "dhow.io/local", "Delete"]), "{classes}");
        Ok(classes)
    })?;
    ensure!(classes.lines().count() == 1, "{classes}");
    claim(host, "origin", json!({}))?;
    let write = "mkdir -p /data/d; echo first > /data/d/row; chown 1000:2000 /data/d; chmod 2750 /data/d; \
                 ln -s row /data/d/link; dd if=/dev/zero of=/data/holes bs=1 count=1 seek=50M; sleep 1000";
    pod(host, "author", "origin", write, json!({}), json!({}))?;
    running(host, "author")?;
    let (volume, path) = directory(host, "origin")?;
    eventually(SOON, || {
        ensure!(path.join("holes").is_file(), "nothing in {}", path.display());
        Ok(())
    })?;
    let snapshot = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s"},
        "spec": {"source": {"persistentVolumeClaimName": "origin"}}});
    host.apply(&snapshot.to_string())?;
    host.kubectl(&["wait", "vs/s", "--for=jsonpath={.status.readyToUse}=true", "--timeout=30s"])?;
    let table = host.kubectl(&["get", "vs", "s", "--no-headers"])?;
    ensure!(words(&table)[..5] == ["s", "true", "origin", "10Mi", "local"], "{table}");
    let bound = host.kubectl(&["get", "vs", "s", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}"])?;
    let content = host.get(&["get", "vsc", &bound])?;
    ensure!(content["status"]["snapshotHandle"] == format!("e2e/{bound}"), "{content:#}");
    let kept = host.data_dir().join("node/volumes/.snapshots").join(&bound);
    ensure!(kept.join("files/d/row").is_file(), "nothing in {}", kept.display());

    // What is written later is not in what was taken before.
    exec(host, "author", "echo second > /data/d/row")?;
    filled(host, "restored", "VolumeSnapshot", "s", "dataSource")?;
    filled(host, "cloned", "PersistentVolumeClaim", "origin", "dataSourceRef")?;
    let both = host.get(&["get", "pvc", "cloned"])?;
    ensure!(both["spec"]["dataSource"]["name"] == "origin", "{both:#}");
    for (name, wanted) in [("restored", "first"), ("cloned", "second")] {
        pod(host, name, name, "sleep 1000", json!({}), json!({}))?;
        running(host, name)?;
        let script =
            "cat /data/d/link; stat -c '%u:%g %a' /data/d; stat -c %s /data/holes; du -k /data/holes | cut -f1";
        let seen = exec(host, name, script)?;
        let mut seen = seen.lines();
        let mut line = || seen.next().unwrap_or_default().to_owned();
        ensure!(line() == wanted && line() == "1000:2000 2750" && line() == "52428801", "{name} is not alike");
        let kilobytes: u64 = line().parse().context("size")?;
        ensure!(kilobytes < 1000, "the holes of {name} are filled: {kilobytes} KiB");
        let uid = host.kubectl(&["get", "pvc", name, "-o", "jsonpath={.metadata.uid}"])?;
        event(host, name, "VolumeFilling", &format!("into volume pvc-{uid}"))?;
        event(host, name, "ProvisioningSucceeded", &format!("pvc-{uid}"))?;
    }
    // A daemon killed while it copies leaves nothing half done.
    let big = std::fs::File::create(path.join("big"))?;
    big.set_len(64 << 20)?;
    for at in 0..64_u64 {
        std::os::unix::fs::FileExt::write_all_at(&big, &[7_u8; 4096], at << 20)?;
    }
    filled(host, "again", "PersistentVolumeClaim", "origin", "dataSource")?;
    pod(host, "again", "again", "sleep 1000", json!({}), json!({}))?;
    let uid = host.kubectl(&["get", "pvc", "again", "-o", "jsonpath={.metadata.uid}"])?;
    eventually(SOON, || host.kubectl(&["get", "pv", &format!("pvc-{uid}")]))?;
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"])?;
    running(host, "again")?;
    ensure!(exec(host, "again", "tail -c +1 /data/big | wc -c")?.trim() == "67108864", "big is not whole");

    // What cannot be says why.
    claim(
        host,
        "small",
        json!({"resources": {"requests": {"storage": "1Mi"}},
        "dataSource": {"kind": "PersistentVolumeClaim", "name": "origin"}}),
    )?;
    event(host, "small", "ProvisioningFailed", "claim \"origin\", its data source, has 10485760")?;
    filled(host, "nothing", "VolumeSnapshot", "nowhere", "dataSource")?;
    event(host, "nothing", "ProvisioningFailed", "snapshot \"nowhere\", its data source, does not exist")?;
    pod(host, "hopeless", "nothing", "sleep 1000", json!({}), json!({}))?;
    event(host, "hopeless", "FailedScheduling", "waiting for the data source of persistentvolumeclaim \"nothing\"")?;
    // A snapshot outlives what it is of, and goes with its files.
    host.kubectl(&["delete", "pod", "author", "hopeless", "--now", "--timeout=30s"])?;
    host.kubectl(&["delete", "pvc", "origin", "--timeout=30s"])?;
    gone(host, "pv", &volume)?;
    ensure!(!path.exists() && kept.join("files/d/row").is_file(), "the snapshot went with the volume");
    host.kubectl(&["delete", "vs", "s", "--timeout=30s"])?;
    gone(host, "vsc", &bound)?;
    ensure!(!kept.exists(), "{} is still there", kept.display());
    clear(host)
}

fn says_what_is_wrong(host: &Host) -> Result<()> {
    let pending = |name: &str, text: &str| event(host, name, "FailedScheduling", text);
    pod(host, "absent", "nowhere", "sleep 1000", json!({}), json!({}))?;
    pending("absent", "0/1 nodes are available: persistentvolumeclaim \"nowhere\" not found.")?;
    claim(host, "classless", json!({"storageClassName": ""}))?;
    pod(host, "unbound", "classless", "sleep 1000", json!({}), json!({}))?;
    pending("unbound", "pod has unbound immediate PersistentVolumeClaims")?;
    event(
        host,
        "classless",
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    )?;
    claim(host, "early", json!({}))?;
    event(host, "early", "WaitForFirstConsumer", "waiting for first consumer to be created before binding")?;
    claim(host, "huge", json!({"resources": {"requests": {"storage": "1Ei"}}}))?;
    pod(host, "hungry", "huge", "sleep 1000", json!({}), json!({}))?;
    pending("hungry", "1 node(s) did not have enough free storage")?;
    claim(host, "raw", json!({"volumeMode": "Block"}))?;
    let device = json!({"volumeMounts": [], "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]});
    pod(host, "device", "raw", "sleep 1000", device, json!({}))?;
    pending("device", "1 node(s) didn't find available persistent volumes to bind")?;
    event(host, "raw", "ProvisioningFailed", "makes directories, not block devices")?;
    // One pod at a time.
    claim(host, "alone", json!({"accessModes": ["ReadWriteOncePod"]}))?;
    pod(host, "one", "alone", "sleep 1000", json!({}), json!({}))?;
    running(host, "one")?;
    pod(host, "two", "alone", "sleep 1000", json!({}), json!({}))?;
    pending("two", "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")?;
    host.kubectl(&["delete", "pod", "one", "--now", "--timeout=30s"])?;
    running(host, "two")?;
    // What the node cannot mount, and what lies elsewhere.
    volume(host, "remote", json!({"storageClassName": "manual", "nfs": {"server": "198.18.0.9", "path": "/x"}}))?;
    claim(host, "over-nfs", json!({"storageClassName": "manual", "volumeName": "remote"}))?;
    pod(host, "network", "over-nfs", "sleep 1000", json!({}), json!({}))?;
    event(host, "network", "FailedMount", "this node mounts volumes of type local and hostPath")?;
    let terms =
        json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["other"]}]}]);
    let elsewhere = json!({"storageClassName": "manual", "local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
    volume(host, "elsewhere", elsewhere)?;
    claim(host, "far", json!({"storageClassName": "manual", "volumeName": "elsewhere"}))?;
    pod(host, "distant", "far", "sleep 1000", json!({}), json!({}))?;
    pending("distant", "1 node(s) didn't match PersistentVolume's node affinity")?;
    clear(host)
}
