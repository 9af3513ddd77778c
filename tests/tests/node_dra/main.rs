//! Dynamic resource allocation, driven with the real kubectl: a driver of the test's own announces devices by the API and
//! prepares them over its socket, as real ones do.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod driver;
#[path = "../node_plugins/wire.rs"]
mod wire;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dhow_e2e::pods::{self, SOON, delete, event, exec, running};
use dhow_e2e::{Host, eventually, run};
use serde_json::{Value, json};

use driver::{Description, Driver, NAME};
use wire::Stop;

/// One test, because a host's names are the process'.
/// One part of the story, which begins where the one before ended.
type Part<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

#[test]
fn claims_bring_devices_to_pods() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();
    host.import(&["busybox"]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let description = Description::new(&["g0", "g1"]).unwrap();
    let driver = Driver::new(&host, &description).unwrap();
    let mut running: Vec<Stop> = Vec::new();
    let parts: [(&str, Part<'_>); 9] = [
        ("what the API refuses", Box::new(|| refuses_what_is_none(&host))),
        ("waiting", Box::new(|| waits_for_devices(&host))),
        ("a driver that is not there", Box::new(|| waits_for_its_driver(&host, &driver, &mut running))),
        ("one after the other", Box::new(|| hands_a_device_on(&host, &driver))),
        ("sharing", Box::new(|| shares_a_claim(&host, &driver))),
        ("a driver that fails", Box::new(|| tells_of_a_failing_driver(&host, &driver))),
        ("taints", Box::new(|| ends_pods_of_tainted_devices(&host))),
        ("devices to be prepared", Box::new(|| waits_until_devices_are_prepared(&host))),
        ("a driver is replaced", Box::new(|| calls_the_latest_instance(&host, &driver))),
    ];
    let mut failed = None;
    for (name, mut part) in parts {
        let begun = Instant::now();
        let result = part();
        eprintln!("{name}: {} ms", begun.elapsed().as_millis());
        if let Err(error) = result {
            failed = Some(format!("{name}: {error:#}"));
            break;
        }
    }
    if failed.is_none()
        && let Err(error) = forgets_a_driver(&host, std::mem::take(&mut running))
    {
        failed = Some(format!("a driver that goes: {error:#}"));
    }
    if let Some(failed) = &failed {
        eprintln!("{failed}");
        let shown = ["get", "pods,resourceclaims,resourceslices,events", "-A", "-o", "wide"];
        eprintln!("{}", host.kubectl(&shown).unwrap_or_default());
        let log = std::fs::read_to_string(host.data_dir().join("dhow.log")).unwrap_or_default();
        for line in log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).take(60) {
            eprintln!("{line}");
        }
        let _ = host.kubectl(&["delete", "pods", "--all", "--now", "--timeout=60s"]);
    }
    assert!(failed.is_none(), "{}", failed.unwrap_or_default());
}

fn claim_spec(count: i64) -> Value {
    json!({"devices": {"requests": [{"name": "gadget", "exactly": {"deviceClassName": "gadgets", "count": count}}]}})
}

fn pod(host: &Host, name: &str, source: Value) -> Result<()> {
    let mut claim = json!({"name": "own"});
    claim.as_object_mut().context("a map")?.extend(source.as_object().context("a map")?.clone());
    let script = "trap 'exit 0' TERM; sleep 1000 & wait";
    let container = json!({"resources": {"claims": [{"name": "own"}]}});
    pods::pod(host, name, script, container, json!({"resourceClaims": [claim]}))
}

fn by_template(host: &Host, name: &str) -> Result<()> {
    pod(host, name, json!({"resourceClaimTemplateName": "one-gadget"}))
}

/// The claim that was made for a pod.
fn claim_of(host: &Host, pod: &str) -> Result<Value> {
    let pod = host.get(&["get", "pod", pod])?;
    let name = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str().context("no claim was made")?;
    host.get(&["get", "resourceclaim", name])
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

fn announce(host: &Host, devices: &[&str], generation: i64) -> Result<()> {
    announce_as(host, devices, generation, json!({}))
}

/// Devices that have more to them.
fn announce_as(host: &Host, devices: &[&str], generation: i64, more: Value) -> Result<()> {
    let device = |name: &&str| {
        let mut device = json!({"name": name, "attributes": {"size": {"int": 1}}});
        more.as_object().into_iter().flatten().for_each(|(field, value)| device[field] = value.clone());
        device
    };
    let all: Vec<Value> = devices.iter().map(device).collect();
    let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "e2e-gadgets"},
        "spec": {"driver": NAME, "nodeName": "e2e", "devices": all,
            "pool": {"name": "e2e", "generation": generation, "resourceSliceCount": 1}}});
    host.apply(&slice.to_string()).map(drop)
}

fn refuses_what_is_none(host: &Host) -> Result<()> {
    let class = |expression: &str| {
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gadgets"},
            "spec": {"selectors": [{"cel": {"expression": expression}}]}})
    };
    let refused = host.apply(&class("device.nothing == 1").to_string()).err().context("a wrong expression is taken")?;
    ensure!(format!("{refused:#}").contains("compilation failed: "), "{refused:#}");
    host.apply(&class(&format!("device.driver == '{NAME}' && device.attributes['{NAME}'].size < 5")).to_string())?;
    let mut admin = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "admin"},
        "spec": claim_spec(1)});
    admin["spec"]["devices"]["requests"][0]["exactly"]["adminAccess"] = json!(true);
    let refused = host.apply(&admin.to_string()).err().context("admin access without the namespace's label")?;
    let why = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label";
    ensure!(format!("{refused:#}").contains(why), "{refused:#}");
    let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": "one-gadget"}, "spec": {"spec": claim_spec(1)}});
    host.apply(&template.to_string()).map(drop)
}

fn waits_for_devices(host: &Host) -> Result<()> {
    by_template(host, "first")?;
    event(host, "first", "FailedScheduling", "0/1 nodes are available: 1 cannot allocate all claims.")?;
    let described = host.kubectl(&["describe", "pod", "first"])?;
    ensure!(
        described.contains("It can run once a node has enough free devices for its claim (first-own-"),
        "{described}"
    );
    let claim = claim_of(host, "first")?;
    ensure!(claim["metadata"]["ownerReferences"][0]["name"] == "first", "{:#}", claim["metadata"]);
    ensure!(claim["status"]["allocation"].is_null(), "{:#}", claim["status"]);
    Ok(())
}

fn waits_for_its_driver(host: &Host, driver: &Driver, running_driver: &mut Vec<Stop>) -> Result<()> {
    announce(host, &["g0"], 1)?;
    let text =
        format!("Failed to prepare dynamic resources: prepare dynamic resources: DRA driver {NAME} is not registered");
    event(host, "first", "FailedPrepareDynamicResources", &text)?;
    let claim = claim_of(host, "first")?;
    let result = &claim["status"]["allocation"]["devices"]["results"][0];
    ensure!(result["device"] == "g0" && result["driver"] == NAME && result["request"] == "gadget", "{result:#}");
    ensure!(claim["status"]["reservedFor"][0]["name"] == "first", "{:#}", claim["status"]);
    ensure!(
        claim["metadata"]["finalizers"] == json!(["resource.kubernetes.io/delete-protection"]),
        "{:#}",
        claim["metadata"]
    );
    let term = &claim["status"]["allocation"]["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0];
    ensure!(term["key"] == "metadata.name" && term["values"] == json!(["e2e"]), "{term:#}");
    *running_driver = driver.start(&host.data_dir().join("node/plugins_registry"));
    running(host, "first")?;
    ensure!(exec(host, "first", "echo $GADGET")?.trim() == "g0", "no environment");
    ensure!(
        exec(host, "first", "test -c /dev/gadget-g0 && echo x > /dev/gadget-g0 && echo ok")?.trim() == "ok",
        "device"
    );
    ensure!(*driver.prepared.lock() == [uid(&claim)], "{:?}", driver.prepared.lock());
    Ok(())
}

fn restart(host: &Host) -> Result<()> {
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"]).map(drop)
}

fn hands_a_device_on(host: &Host, driver: &Driver) -> Result<()> {
    let first = claim_of(host, "first")?;
    by_template(host, "second")?;
    event(host, "second", "FailedScheduling", "0/1 nodes are available: 1 cannot allocate all claims.")?;
    let before = host.get(&["get", "pod", "first"])?;
    restart(host)?;
    running(host, "first")?;
    let after = host.get(&["get", "pod", "first"])?;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    ensure!(id(&before) == id(&after), "{} is another container than {}", id(&after), id(&before));
    // A container that ends gets its devices again, though nobody prepares them again.
    // The command goes with its container, and may be told of as killed.
    let _ = exec(host, "first", "kill 1");
    eventually(SOON, || {
        let pod = host.get(&["get", "pod", "first"])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status:#}");
        Ok(())
    })?;
    ensure!(exec(host, "first", "echo $GADGET")?.trim() == "g0", "no environment after a restart");
    let second = host.get(&["get", "pod", "second"])?;
    ensure!(second["status"]["phase"] == "Pending" && second["spec"]["nodeName"].is_null(), "{:#}", second["status"]);
    ensure!(*driver.prepared.lock() == [uid(&first)], "prepared again: {:?}", driver.prepared.lock());
    ensure!(driver.unprepared.lock().is_empty(), "unprepared");
    let name = first["metadata"]["name"].as_str().context("no name")?.to_owned();
    delete(host, "first")?;
    running(host, "second")?;
    ensure!(exec(host, "second", "echo $GADGET")?.trim() == "g0", "no environment");
    ensure!(*driver.unprepared.lock() == [uid(&first)], "{:?}", driver.unprepared.lock());
    eventually(SOON, || {
        ensure!(host.kubectl(&["get", "resourceclaim", &name]).is_err(), "the claim of a pod that is gone is there");
        Ok(())
    })?;
    // Killed while a pod ends: what was prepared is undone all the same.
    let second = claim_of(host, "second")?;
    host.kubectl(&["delete", "pod", "second", "--wait=false"])?;
    restart(host)?;
    eventually(SOON, || {
        ensure!(driver.unprepared.lock().contains(&uid(&second)), "{:?}", driver.unprepared.lock());
        ensure!(host.get(&["get", "resourceclaims"])?["items"] == json!([]), "claims are left");
        Ok(())
    })
}

fn shares_a_claim(host: &Host, driver: &Driver) -> Result<()> {
    announce(host, &["g0", "g1"], 2)?;
    let shared = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "shared"},
        "spec": claim_spec(2)});
    host.apply(&shared.to_string())?;
    for name in ["left", "right"] {
        pod(host, name, json!({"resourceClaimName": "shared"}))?;
    }
    running(host, "left")?;
    running(host, "right")?;
    ensure!(exec(host, "right", "ls /dev/gadget-g0 /dev/gadget-g1 | wc -l")?.trim() == "2", "devices");
    let claim = host.get(&["get", "resourceclaim", "shared"])?;
    ensure!(claim["status"]["reservedFor"].as_array().is_some_and(|all| all.len() == 2), "{:#}", claim["status"]);
    let times = |list: &[String]| list.iter().filter(|own| **own == uid(&claim)).count();
    ensure!(times(&driver.prepared.lock()) == 1, "prepared again");
    delete(host, "left")?;
    eventually(SOON, || {
        let claim = host.get(&["get", "resourceclaim", "shared"])?;
        ensure!(claim["status"]["reservedFor"].as_array().is_some_and(|all| all.len() == 1), "{:#}", claim["status"]);
        Ok(())
    })?;
    ensure!(times(&driver.unprepared.lock()) == 0, "taken from the other pod");
    delete(host, "right")?;
    ensure!(times(&driver.unprepared.lock()) == 1, "{:?}", driver.unprepared.lock());
    eventually(SOON, || {
        let claim = host.get(&["get", "resourceclaim", "shared"])?;
        ensure!(claim["status"]["allocation"].is_null(), "{:#}", claim["status"]);
        ensure!(claim["metadata"]["finalizers"].is_null(), "{:#}", claim["metadata"]);
        Ok(())
    })?;
    host.kubectl(&["delete", "resourceclaim", "shared", "--timeout=60s"]).map(drop)
}

fn tells_of_a_failing_driver(host: &Host, driver: &Driver) -> Result<()> {
    *driver.broken.lock() = Some("the gadget is on fire".to_owned());
    by_template(host, "unlucky")?;
    event(host, "unlucky", "FailedPrepareDynamicResources", "the gadget is on fire")?;
    *driver.broken.lock() = None;
    running(host, "unlucky")?;
    delete(host, "unlucky")
}

fn ends_pods_of_tainted_devices(host: &Host) -> Result<()> {
    announce(host, &["g0"], 3)?;
    by_template(host, "tainted")?;
    running(host, "tainted")?;
    let rule = |effect: &str| {
        json!({"apiVersion": "resource.k8s.io/v1alpha3", "kind": "DeviceTaintRule", "metadata": {"name": "broken"},
            "spec": {"deviceSelector": {"driver": NAME, "device": "g0"}, "taint": {"key": "example.com/broken", "effect": effect}}})
    };
    let says = |text: &str| {
        eventually(SOON, || {
            let rule = host.get(&["get", "devicetaintrule", "broken"])?;
            let condition = &rule["status"]["conditions"][0];
            let right = condition["type"] == "EvictionInProgress" && condition["message"] == text;
            ensure!(right && condition["status"] == "False", "{:#}", rule["status"]);
            Ok(())
        })
    };
    host.apply(&rule("None").to_string())?;
    says("1 allocated devices are selected, 1 pods would be evicted.")?;
    host.apply(&rule("NoExecute").to_string())?;
    host.kubectl(&["wait", "--for=delete", "pod/tainted", "--timeout=60s"])?;
    event(host, "tainted", "DeviceTaintManagerEviction", "Marking for deletion Pod default/tainted")?;
    says("1 pods were evicted.")?;
    by_template(host, "kept-away")?;
    event(host, "kept-away", "FailedScheduling", "0/1 nodes are available: 1 cannot allocate all claims.")?;
    host.kubectl(&["delete", "devicetaintrule", "broken", "--timeout=30s"])?;
    running(host, "kept-away")?;
    delete(host, "kept-away")
}

fn waits_until_devices_are_prepared(host: &Host) -> Result<()> {
    let conditions =
        json!({"bindingConditions": ["example.com/Wired"], "bindingFailureConditions": ["example.com/Burnt"]});
    announce_as(host, &["g0"], 4, conditions)?;
    by_template(host, "wired")?;
    let allocated = |not: &Value| {
        eventually(SOON, || {
            let claim = claim_of(host, "wired")?;
            let since = claim["status"]["allocation"]["allocationTimestamp"].clone();
            ensure!(since.is_string() && since != *not, "{:#}", claim["status"]);
            Ok((claim, since))
        })
    };
    let (claim, since) = allocated(&Value::Null)?;
    let result = &claim["status"]["allocation"]["devices"]["results"][0];
    ensure!(result["bindingConditions"] == json!(["example.com/Wired"]), "{result:#}");
    let name = claim["metadata"]["name"].as_str().context("no name")?.to_owned();
    let shows = |condition: &str| {
        let condition = json!({"type": condition, "status": "True", "reason": "Seen", "message": "by the test",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let device = json!({"driver": NAME, "pool": "e2e", "device": "g0", "conditions": [condition]});
        let patch = json!({"status": {"devices": [device]}}).to_string();
        host.kubectl(&["patch", "resourceclaim", &name, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
    };
    let bound = host.get(&["get", "pod", "wired"])?;
    ensure!(bound["spec"]["nodeName"].is_null(), "bound to a device that is not prepared");
    shows("example.com/Burnt")?;
    event(
        host,
        "wired",
        "FailedScheduling",
        "device gadgets.example.com/e2e/g0 failed: example.com/Burnt: by the test",
    )?;
    let (claim, _) = allocated(&since)?;
    ensure!(claim["status"]["devices"].is_null(), "{:#}", claim["status"]);
    shows("example.com/Wired")?;
    running(host, "wired")?;
    delete(host, "wired")?;
    announce(host, &["g0", "g1"], 5)
}

fn calls_the_latest_instance(host: &Host, driver: &Driver) -> Result<()> {
    let older = driver.older();
    let running_driver = older.start(&host.data_dir().join("node/plugins_registry"));
    // Taken in as soon as the folder's change is seen: the first pods may still be the other instance's.
    eventually(SOON, || {
        by_template(host, "replaced")?;
        running(host, "replaced")?;
        delete(host, "replaced")?;
        ensure!(!older.prepared.lock().is_empty(), "the other instance is called");
        Ok(())
    })?;
    ensure!(older.unprepared.lock().len() == older.prepared.lock().len(), "{:?}", older.unprepared.lock());
    drop(running_driver);
    let before = driver.prepared.lock().len();
    by_template(host, "again")?;
    running(host, "again")?;
    ensure!(driver.prepared.lock().len() == before + 1, "the instance that is left is not called");
    delete(host, "again")
}

fn forgets_a_driver(host: &Host, driver: Vec<Stop>) -> Result<()> {
    drop(driver);
    eventually(SOON, || {
        let slices = host.get(&["get", "resourceslices"])?;
        ensure!(slices["items"] == json!([]), "{:#}", slices["items"]);
        Ok(())
    })
}
