//! Plugins of a node, driven with the real kubectl: a CSI driver and a device plugin of the test's own, which speak gRPC on
//! sockets as real ones do; and images as volumes.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod device;
mod driver;
mod sidecar;
mod wire;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dhow_e2e::pods::{SOON, delete, event, exec, merge, pod, running};
use dhow_e2e::{Host, eventually, run, workspace};
use serde_json::{Value, json};

use device::{Plugin, RESOURCE};
use driver::{Driver, NAME, NODE_ID, TOPOLOGY};

const NGINX: &str = "docker.io/library/nginx:latest";
const PASSWORD: &str = "s3cret-of-the-volume";

/// One test, because a host's names are the process'.
#[test]
fn plugins_and_images_bring_volumes_and_devices() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();
    host.import(&["busybox", "nginx"]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let driver = Driver::new(&host.folder().join("driver"));
    let parts: [(&str, &dyn Fn() -> Result<()>); 9] = [
        ("image volumes", &|| mounts_images(&host)),
        ("recursive read-only", &|| mounts_for_reading_only(&host)),
        ("registration", &|| takes_drivers_in(&host, &driver)),
        ("volumes of a driver", &|| mounts_what_a_driver_has(&host, &driver)),
        ("block devices of a driver", &|| hands_block_devices_over(&host, &driver)),
        ("volumes that could not be staged", &|| undoes_what_may_have_been_done(&host, &driver)),
        ("volumes in pods", &|| mounts_what_pods_describe(&host, &driver)),
        ("snapshots", &|| takes_snapshots(&host, &driver)),
        ("devices", &|| gives_devices(&host, &runtime)),
    ];
    let mut failures = Vec::new();
    let registry = host.data_dir().join("node/plugins_registry");
    let mut running = Some(driver.start(&registry));
    for (name, part) in parts {
        let begun = Instant::now();
        let result = part();
        eprintln!("{name}: {} ms", begun.elapsed().as_millis());
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failures.push(format!("{name}: {error:#}"));
        }
    }
    if failures.is_empty()
        && let Err(error) = notices_that_a_driver_went(&host, running.take())
    {
        failures.push(format!("a driver that goes: {error:#}"));
    }
    let log = std::fs::read_to_string(host.data_dir().join("dhow.log")).unwrap_or_default();
    if log.contains(PASSWORD) {
        failures.push("a volume's secret is in the log".into());
    }
    if !failures.is_empty() {
        eprintln!(
            "{}",
            host.kubectl(&["get", "pv,pvc,volumeattachments,csinodes,pods,events", "-A"]).unwrap_or_default()
        );
        for line in log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).take(60) {
            eprintln!("{line}");
        }
        // Its volumes are still mounted.
        let _ = host.kubectl(&["delete", "pods", "--all", "--now", "--timeout=60s"]);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What a script that must not succeed says.
fn refusal(host: &Host, pod: &str, script: &str) -> Result<String> {
    match exec(host, pod, script) {
        Ok(said) => anyhow::bail!("{script:?} in {pod} succeeds and says {said:?}"),
        Err(error) => Ok(error.to_string()),
    }
}

fn restart(host: &Host) -> Result<()> {
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"]).map(drop)
}

fn mounts_images(host: &Host) -> Result<()> {
    let image =
        |reference: &str| json!([{"name": "v", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}]);
    let mounts =
        json!([{"name": "v", "mountPath": "/files"}, {"name": "v", "mountPath": "/part", "subPath": "etc/nginx"}]);
    pod(host, "files", "sleep 1000", json!({"volumeMounts": mounts}), json!({"volumes": image(NGINX)}))?;
    running(host, "files")?;
    let same = "cmp /files/etc/nginx/nginx.conf /part/nginx.conf && echo same";
    ensure!(exec(host, "files", same)?.trim() == "same", "other files");
    let refused = refusal(host, "files", "echo x > /files/x")?;
    ensure!(refused.contains("Read-only file system"), "{refused}");
    ensure!(exec(host, "files", "test -x /files/usr/sbin/nginx && echo yes")?.trim() == "yes", "no program");
    event(host, "files", "Pulled", NGINX)?;
    // Neither by name nor to make room does an image go whose files somebody has.
    host.dhow(&["image", "rm", NGINX])?;
    host.dhow(&["image", "prune", "--all"])?;
    ensure!(exec(host, "files", "cat /part/nginx.conf")?.contains("http"), "its files are gone");
    delete(host, "files")?;

    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/files"}]});
    let absent = json!([{"name": "v", "image": {"reference": "docker.io/library/absent:1", "pullPolicy": "Never"}}]);
    pod(host, "absent", "sleep 1000", mounts, json!({"volumes": absent}))?;
    event(host, "absent", "ErrImageNeverPull", "is not present with pull policy of Never")?;
    let state = eventually(SOON, || {
        let pod = host.get(&["get", "pod", "absent"])?;
        let state = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        ensure!(state == "ErrImageNeverPull", "{:#}", pod["status"]);
        Ok(state)
    });
    delete(host, "absent")?;
    state.map(drop)
}

fn mounts_for_reading_only(host: &Host) -> Result<()> {
    let folder = host.folder().join("tree");
    std::fs::create_dir_all(folder.join("below"))?;
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(folder.join("below")))?;
    let volumes = json!({"volumes": [{"name": "v", "hostPath": {"path": folder}}]});
    let mounts = |mode: &str| json!({"volumeMounts": [{"name": "v", "mountPath": "/tree", "readOnly": true, "recursiveReadOnly": mode}]});
    let result = (|| {
        pod(host, "all", "sleep 1000", mounts("Enabled"), volumes.clone())?;
        pod(host, "top", "sleep 1000", mounts("Disabled"), volumes.clone())?;
        running(host, "all")?;
        running(host, "top")?;
        let refused = refusal(host, "all", "echo x > /tree/below/x")?;
        ensure!(refused.contains("Read-only file system"), "{refused}");
        exec(host, "top", "echo x > /tree/below/x")?;
        let status = host.get(&["get", "pod", "all"])?;
        let shown = &status["status"]["containerStatuses"][0]["volumeMounts"][0]["recursiveReadOnly"];
        ensure!(*shown == "Enabled", "{shown}");
        delete(host, "all")?;
        delete(host, "top")
    })();
    run(Command::new("umount").arg(folder.join("below")))?;
    result
}

fn takes_drivers_in(host: &Host, driver: &Driver) -> Result<()> {
    eventually(SOON, || {
        let told = driver.told.lock();
        ensure!(told.iter().any(|one| one.plugin_registered), "{told:?}");
        Ok(())
    })?;
    let known = host.get(&["get", "csinode", "e2e"])?;
    let expected =
        json!([{"name": NAME, "nodeID": NODE_ID, "topologyKeys": [TOPOLOGY.0], "allocatable": {"count": 9}}]);
    ensure!(known["spec"]["drivers"] == expected, "{:#}", known["spec"]);
    ensure!(known["metadata"]["ownerReferences"][0]["kind"] == "Node", "{:#}", known["metadata"]);
    let node = host.get(&["get", "node", "e2e"])?;
    ensure!(node["metadata"]["labels"][TOPOLOGY.0] == TOPOLOGY.1, "{:#}", node["metadata"]["labels"]);
    let ids = node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].as_str().context("no node id")?;
    let read: serde_json::Value = serde_json::from_str(ids)?;
    ensure!(read == json!({NAME: NODE_ID}), "{ids}");

    let described = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME},
        "spec": {"attachRequired": true, "podInfoOnMount": true, "fsGroupPolicy": "File",
            "volumeLifecycleModes": ["Persistent", "Ephemeral"],
            "tokenRequests": [{"audience": "dirs", "expirationSeconds": 600}]}});
    host.apply(&described.to_string())?;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "dirs"},
        "provisioner": NAME, "allowVolumeExpansion": true, "volumeBindingMode": "Immediate"});
    host.apply(&class.to_string())?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"},
        "stringData": {"password": PASSWORD}});
    host.apply(&secret.to_string()).map(drop)
}

fn claim(host: &Host, name: &str, more: Value) -> Result<()> {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "dirs",
        "resources": {"requests": {"storage": "10Mi"}}});
    merge(&mut spec, more);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
    host.apply(&claim.to_string()).map(drop)
}

fn of_claim(claim: &str) -> Value {
    json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}])
}

fn mounts_what_a_driver_has(host: &Host, driver: &Driver) -> Result<()> {
    claim(host, "data", json!({}))?;
    let secret = json!({"name": "key", "namespace": "default"});
    let volume = sidecar::provision(
        host,
        driver,
        "data",
        json!({"nodeStageSecretRef": secret, "nodePublishSecretRef": secret}),
    )?;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]});
    let group = json!({"fsGroup": 4242, "runAsUser": 1000});
    let spec = |name: &str| json!({"volumes": of_claim(name), "securityContext": group});
    pod(host, "one", "echo kept > /data/word; sleep 1000", mounts.clone(), spec("data"))?;
    // Nothing is staged before the volume is attached.
    let attachment = sidecar::attach(host, &volume)?;
    running(host, "one")?;
    event(host, "one", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume")?;
    ensure!(std::fs::read_to_string(driver.volume(&volume).join("word"))? == "kept\n", "nothing was written");
    ensure!(exec(host, "one", "stat -c %g /data")?.trim() == "4242", "not the pod's group's");
    let staged = driver.calls_of("stage", &volume);
    let [staged] = staged.as_slice() else { anyhow::bail!("staged {} times", staged.len()) };
    ensure!(staged.publish_context["lun"] == "7" && staged.context["made"] == "here", "{staged:?}");
    ensure!(staged.secrets["password"] == PASSWORD, "no secret");
    ensure!(staged.path.contains("/plugins/kubernetes.io/csi/") && staged.path.ends_with("/globalmount"), "{staged:?}");
    let published = driver.calls_of("publish", &volume);
    let [published] = published.as_slice() else { anyhow::bail!("published {} times", published.len()) };
    let info = |name: &str| published.context.get(&format!("csi.storage.k8s.io/{name}")).cloned().unwrap_or_default();
    ensure!(info("pod.name") == "one" && info("pod.namespace") == "default", "{published:?}");
    ensure!(info("serviceAccount.name") == "default" && info("ephemeral") == "false", "{published:?}");
    let tokens: Value = serde_json::from_str(&info("serviceAccount.tokens"))?;
    ensure!(tokens["dirs"]["token"].as_str().is_some_and(|token| token.split('.').count() == 3), "no token");
    ensure!(tokens["dirs"]["expirationTimestamp"].is_string(), "no expiry");
    ensure!(published.path.ends_with(&format!("/volumes/kubernetes.io~csi/{volume}/mount")), "{published:?}");
    let node = host.get(&["get", "node", "e2e"])?;
    let unique = format!("kubernetes.io/csi/{NAME}^{volume}");
    ensure!(node["status"]["volumesInUse"] == json!([unique]), "{:#}", node["status"]["volumesInUse"]);
    ensure!(node["status"]["volumesAttached"][0]["name"] == unique, "{:#}", node["status"]["volumesAttached"]);

    // A second pod on the node: published again, not staged again.
    pod(host, "two", "cat /data/word; sleep 1000", mounts, json!({"volumes": of_claim("data")}))?;
    running(host, "two")?;
    ensure!(
        driver.calls_of("stage", &volume).len() == 1 && driver.calls_of("publish", &volume).len() == 2,
        "staged again"
    );

    let summary = host.kubectl(&["get", "--raw", "/api/v1/nodes/e2e/proxy/stats/summary"])?;
    let summary: Value = serde_json::from_str(&summary)?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let own = pods.iter().find(|pod| pod["podRef"]["name"] == "one").context("pod is not measured")?;
    let volumes = own["volume"].as_array().context("no volumes")?;
    let measured = volumes.iter().find(|volume| volume["name"] == "v").context("the volume is not measured")?;
    ensure!(measured["capacityBytes"] == 4242 && measured["inodes"] == 77, "{measured:#}");
    ensure!(measured["pvcRef"]["name"] == "data", "{measured:#}");

    sidecar::grow(host, "data", &volume, "20Mi")?;
    eventually(SOON, || {
        let claim = host.get(&["get", "pvc", "data"])?;
        let status = &claim["status"];
        ensure!(status["capacity"]["storage"] == "20Mi", "{status:#}");
        ensure!(status["conditions"].as_array().is_none_or(Vec::is_empty), "{status:#}");
        Ok(())
    })?;
    let expanded = driver.calls_of("expand", &volume);
    ensure!(expanded.iter().any(|call| call.path == (20 << 20).to_string()), "{expanded:?}");
    event(host, "data", "FileSystemResizeSuccessful", "NodeExpandVolume succeeded")?;

    // The daemon is killed: what is mounted stays, and is known.
    restart(host)?;
    running(host, "one")?;
    ensure!(exec(host, "one", "cat /data/word")? == "kept\n", "another volume");
    ensure!(driver.calls_of("stage", &volume).len() == 1, "staged again after a restart");
    delete(host, "two")?;
    ensure!(driver.calls_of("unstage", &volume).is_empty(), "unstaged while it is used");
    delete(host, "one")?;
    ensure!(driver.calls_of("unpublish", &volume).len() == 2, "not unpublished");
    ensure!(driver.calls_of("unstage", &volume).len() == 1, "not unstaged");
    sidecar::detach(host, &volume)?;
    ensure!(host.kubectl(&["get", "volumeattachment", &attachment]).is_err(), "still attached");
    ensure!(driver.volume(&volume).join("word").is_file(), "the data is gone");
    host.kubectl(&["delete", "pvc", "data", "--timeout=60s"])?;
    host.kubectl(&["delete", "pv", &volume, "--timeout=60s"]).map(drop)
}

fn hands_block_devices_over(host: &Host, driver: &Driver) -> Result<()> {
    claim(host, "raw", json!({"volumeMode": "Block"}))?;
    let volume = sidecar::provision(host, driver, "raw", json!({}))?;
    let devices = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/raw"}]});
    pod(host, "raw", "echo bytes > /dev/raw; sync; sleep 1000", devices, json!({"volumes": of_claim("raw")}))?;
    sidecar::attach(host, &volume)?;
    running(host, "raw")?;
    eventually(SOON, || {
        let said = exec(host, "raw", "head -c 5 /dev/raw")?;
        ensure!(said == "bytes", "{said:?}");
        Ok(())
    })?;
    delete(host, "raw")?;
    ensure!(std::fs::read(driver.volume(&volume))?.starts_with(b"bytes"), "nothing was written");
    ensure!(driver.calls_of("unstage", &volume).len() == 1, "the loop device is left");
    sidecar::detach(host, &volume)?;
    host.kubectl(&["delete", "pvc", "raw", "--timeout=60s"])?;
    host.kubectl(&["delete", "pv", &volume, "--timeout=60s"]).map(drop)
}

/// What surely was not done is not undone; what may have been done is.
fn undoes_what_may_have_been_done(host: &Host, driver: &Driver) -> Result<()> {
    for (name, code, undone) in
        [("surely", tonic::Code::InvalidArgument, 0), ("maybe", tonic::Code::DeadlineExceeded, 1)]
    {
        claim(host, name, json!({}))?;
        let volume = sidecar::provision(host, driver, name, json!({}))?;
        *driver.refuses_to_stage.lock() = Some(code);
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]});
        pod(host, name, "sleep 1000", mounts, json!({"volumes": of_claim(name)}))?;
        sidecar::attach(host, &volume)?;
        event(host, name, "FailedMount", &format!("rpc error: code = {code:?} desc = not today"))?;
        delete(host, name)?;
        *driver.refuses_to_stage.lock() = None;
        ensure!(!driver.calls_of("refused", &volume).is_empty(), "it was not asked");
        sidecar::detach(host, &volume)?;
        let calls = driver.calls_of("unstage", &volume).len();
        ensure!(calls == undone, "{code:?}: unstaged {calls} times");
        ensure!(driver.calls_of("unpublish", &volume).is_empty(), "{code:?}: unpublished what never was published");
        host.kubectl(&["delete", "pvc", name, "--timeout=60s"])?;
        host.kubectl(&["delete", "pv", &volume, "--timeout=60s"])?;
    }
    Ok(())
}

fn mounts_what_pods_describe(host: &Host, driver: &Driver) -> Result<()> {
    let csi = json!({"driver": NAME, "readOnly": true, "volumeAttributes": {"size": "1"},
        "nodePublishSecretRef": {"name": "key"}});
    let mounts = json!({"volumeMounts": [{"name": "own", "mountPath": "/own"}]});
    pod(host, "brings", "sleep 1000", mounts.clone(), json!({"volumes": [{"name": "own", "csi": csi}]}))?;
    running(host, "brings")?;
    let refused = refusal(host, "brings", "echo x > /own/x")?;
    ensure!(refused.contains("Read-only file system"), "{refused}");
    let published =
        driver.calls.lock().iter().rfind(|call| call.name == "publish").cloned().context("not published")?;
    ensure!(published.volume.starts_with("csi-") && published.readonly, "{published:?}");
    ensure!(published.context["csi.storage.k8s.io/ephemeral"] == "true" && published.context["size"] == "1", "context");
    ensure!(published.secrets["password"] == PASSWORD, "no secret");
    delete(host, "brings")?;
    ensure!(driver.calls_of("unpublish", &published.volume).len() == 1, "not unpublished");

    let nobody = json!({"volumes": [{"name": "own", "csi": {"driver": "nobody.example.com"}}]});
    pod(host, "unknown", "sleep 1000", mounts, nobody)?;
    let text = "driver name nobody.example.com not found in the list of registered CSI drivers";
    event(host, "unknown", "FailedMount", text)?;
    delete(host, "unknown")
}

/// Between the server's controller and a driver's snapshotter.
fn takes_snapshots(host: &Host, driver: &Driver) -> Result<()> {
    let group = "snapshot.storage.k8s.io";
    let kinds = workspace().join("examples/storage/snapshots.yaml");
    host.kubectl(&["apply", "-f", kinds.to_str().context("path")?])?;
    host.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    let class = json!({"apiVersion": format!("{group}/v1"), "kind": "VolumeSnapshotClass", "metadata": {"name": "dirs"},
        "driver": NAME, "deletionPolicy": "Delete"});
    host.apply(&class.to_string())?;
    claim(host, "shot", json!({}))?;
    let volume = sidecar::provision(host, driver, "shot", json!({}))?;
    let snapshot = json!({"apiVersion": format!("{group}/v1"), "kind": "VolumeSnapshot", "metadata": {"name": "s"},
        "spec": {"volumeSnapshotClassName": "dirs", "source": {"persistentVolumeClaimName": "shot"}}});
    host.apply(&snapshot.to_string())?;
    let content = sidecar::snapshot(host, &volume)?;
    eventually(SOON, || {
        let status = host.get(&["get", "volumesnapshot", "s"])?["status"].take();
        ensure!(status["readyToUse"] == true && status["restoreSize"] == "10Mi", "{status:#}");
        ensure!(status["boundVolumeSnapshotContentName"] == content, "{status:#}");
        Ok(())
    })?;
    // A claim may ask to begin with what a snapshot holds; that is the provisioner's.
    claim(host, "restored", json!({"dataSource": {"name": "s", "kind": "VolumeSnapshot", "apiGroup": group}}))?;
    let restored = sidecar::provision(host, driver, "restored", json!({}))?;
    eventually(SOON, || {
        let claim = host.get(&["get", "pvc", "restored"])?;
        ensure!(claim["status"]["phase"] == "Bound", "{:#}", claim["status"]);
        Ok(())
    })?;
    host.kubectl(&["delete", "volumesnapshot", "s", "--wait=false"])?;
    sidecar::remove_snapshot(host, &content)?;
    host.kubectl(&["wait", "--for=delete", "volumesnapshot", "s", "--timeout=60s"])?;
    host.kubectl(&["delete", "pvc", "shot", "restored", "--timeout=60s"])?;
    host.kubectl(&["delete", "pv", &volume, &restored, "--timeout=60s"]).map(drop)
}

fn allocatable(host: &Host) -> Result<(String, String)> {
    let node = host.get(&["get", "node", "e2e"])?;
    let text = |list: &str| node["status"][list][RESOURCE].as_str().unwrap_or_default().to_owned();
    Ok((text("capacity"), text("allocatable")))
}

fn counts(host: &Host, capacity: &str, left: &str) -> Result<()> {
    eventually(SOON, || {
        let found = allocatable(host)?;
        ensure!(found == (capacity.to_owned(), left.to_owned()), "{found:?}");
        Ok(())
    })
}

fn gives_devices(host: &Host, runtime: &tokio::runtime::Runtime) -> Result<()> {
    let folder = host.data_dir().join("node/device-plugins");
    let plugin = Plugin::new(&["n0", "n1", "n2"]);
    let refused = runtime.block_on(plugin.start(&folder, "v1alpha"));
    let refused = format!("{:#}", refused.err().context("an unknown version was taken in")?);
    ensure!(refused.contains("is not supported by kubelet"), "{refused}");
    let stop = runtime.block_on(plugin.start(&folder, "v1beta1"))?;
    counts(host, "3", "3")?;
    let asks = |count: &str| json!({"resources": {"limits": {RESOURCE: count}}});
    pod(host, "has", "env | grep NULLS; sleep 1000", asks("2"), json!({}))?;
    running(host, "has")?;
    // The plugin likes the last ones.
    ensure!(*plugin.allocated.lock() == [["n1", "n2"]], "{:?}", plugin.allocated.lock());
    ensure!(*plugin.started.lock() == [["n1", "n2"]], "{:?}", plugin.started.lock());
    ensure!(exec(host, "has", "echo $NULLS")?.trim() == "n1,n2", "no environment");
    ensure!(
        exec(host, "has", "test -c /dev/n1 && test -c /dev/n2 && echo x > /dev/n1 && echo ok")?.trim() == "ok",
        "devices"
    );
    ensure!(exec(host, "has", "ls /plugin/passwd")?.trim() == "/plugin/passwd", "no mount");
    let shown = |id: &str, health: &str| {
        eventually(SOON, || {
            let pod = host.get(&["get", "pod", "has"])?;
            let all = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"][0];
            let own = all["resources"].as_array().context("nothing shown")?.iter().find(|one| one["resourceID"] == id);
            ensure!(own.is_some_and(|own| own["health"] == health), "{all:#}");
            Ok(())
        })
    };
    shown("n1", "Healthy")?;
    plugin.set_health("n1", false);
    counts(host, "3", "2")?;
    shown("n1", "Unhealthy")?;
    plugin.set_health("n1", true);
    counts(host, "3", "3")?;

    // One that was bound here though there is not enough.
    let bound = json!({"nodeName": "e2e"});
    pod(host, "lacks", "sleep 1000", asks("2"), bound)?;
    eventually(SOON, || {
        let pod = host.get(&["get", "pod", "lacks"])?;
        let status = &pod["status"];
        ensure!(status["phase"] == "Failed" && status["reason"] == "UnexpectedAdmissionError", "{status:#}");
        let text = format!(
            "Pod was rejected: Allocate failed due to requested number of devices unavailable for {RESOURCE}. \
             Requested: 2, Available: 1, which is unexpected"
        );
        ensure!(status["message"] == text, "{status:#}");
        Ok(())
    })?;
    delete(host, "lacks")?;

    // The daemon is killed: what is given stays given. Its plugins present themselves again.
    restart(host)?;
    drop(stop);
    let _stop = runtime.block_on(plugin.start(&folder, "v1beta1"))?;
    counts(host, "3", "3")?;
    running(host, "has")?;
    pod(host, "last", "sleep 1000", asks("1"), json!({}))?;
    running(host, "last")?;
    ensure!(plugin.allocated.lock().last() == Some(&vec!["n0".to_owned()]), "{:?}", plugin.allocated.lock());
    delete(host, "has")?;
    pod(host, "next", "sleep 1000", asks("2"), json!({}))?;
    running(host, "next")?;
    ensure!(plugin.allocated.lock().last() == Some(&vec!["n1".to_owned(), "n2".to_owned()]), "not given back");
    delete(host, "last")?;
    delete(host, "next")
}

fn notices_that_a_driver_went(host: &Host, running: Option<Vec<wire::Stop>>) -> Result<()> {
    drop(running);
    eventually(SOON, || {
        let known = host.get(&["get", "csinode", "e2e"])?;
        ensure!(known["spec"]["drivers"].as_array().is_none_or(Vec::is_empty), "{:#}", known["spec"]);
        Ok(())
    })
}
