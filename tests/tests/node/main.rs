//! The node agent through the real kubectl: words users meet, containers of every kind, probes, volumes, resources.
//!
//! One cloud for all of it; each part has pods of its own and takes them away.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod machine;
mod streams;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dhow_e2e::{Host, eventually};
use serde_json::{Value, json};

use dhow_e2e::pods::{IMAGE, SOON, condition, event, exec, merge, nothing, own, pod, running, status, until};

type Part = fn(&Host) -> Result<()>;

#[test]
fn the_node_runs_pods_as_their_specs_say() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();
    host.import(&["busybox"]).unwrap();
    let parts: [(&str, Part); 18] = [
        ("words", says_what_is_wrong),
        ("crash loops", backs_off),
        ("phases", ends_pods),
        ("probes", probes),
        ("init and sidecars", orders_containers),
        ("hooks", runs_hooks),
        ("debug containers", debugs),
        ("attach and cp", streams::attaches_and_copies),
        ("input once", streams::ends_input_with_the_one_that_gave_it),
        ("live volumes", follows_objects),
        ("volumes", mounts_volumes),
        ("environment", gives_environment),
        ("resize", resizes),
        ("admission", refuses_what_does_not_fit),
        ("static pods", machine::runs_static_pods),
        ("numbers", machine::tells_numbers),
        ("numbers of disks", machine::tells_what_pods_take_of_the_disk),
        ("restart of the machine", machine::comes_back_after_a_restart),
    ];
    let mut failures = Vec::new();
    for (name, part) in parts {
        let begun = Instant::now();
        let result = part(&host);
        eprintln!("{name}: {} ms", begun.elapsed().as_millis());
        if let Err(error) = result {
            failures.push(format!("{name}: {error:#}"));
        }
        let _ = host.kubectl(&["delete", "pods", "--all", "--now", "--timeout=30s"]);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn says_what_is_wrong(host: &Host) -> Result<()> {
    let of =
        |container: Value| move |host: &Host, name: &str| pod(host, name, "sleep 1000", container.clone(), nothing());
    let missing = json!({"envFrom": [{"configMapRef": {"name": "absent"}}]});
    let cases: [(&str, Value, &str); 7] = [
        ("name", json!({"image": "Not:A:Name"}), "InvalidImageName"),
        ("never", json!({"image": "absent.example/x", "imagePullPolicy": "Never"}), "ErrImageNeverPull"),
        ("pull", json!({"image": "127.0.0.1:1/absent/x"}), "ImagePullBackOff"),
        ("config", missing, "CreateContainerConfigError"),
        ("root", json!({"securityContext": {"runAsNonRoot": true}}), "CreateContainerConfigError"),
        ("binary", json!({"command": ["/no/such/program"]}), "RunContainerError"),
        (
            "key",
            json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}]}),
            "CreateContainerConfigError",
        ),
    ];
    for (name, container, _) in &cases {
        of(container.clone())(host, name)?;
    }
    for (name, _, reason) in &cases {
        until(host, name, |s| {
            let reasons = [&own(s)["state"]["waiting"]["reason"], &own(s)["lastState"]["terminated"]["reason"]];
            reasons[0] == reason || (*reason == "RunContainerError" && reasons[1] == "StartError")
        })?;
    }
    event(host, "never", "ErrImageNeverPull", "is not present with pull policy of Never")?;
    event(host, "pull", "Failed", "Failed to pull image \"127.0.0.1:1/absent/x\"")?;
    event(host, "pull", "BackOff", "Back-off pulling image")?;
    event(host, "name", "InspectFailed", "couldn't parse image name")?;
    event(host, "config", "Failed", "configmap \"absent\" not found")?;
    // What was missing is noticed when it comes, not at some later look.
    host.kubectl(&["create", "configmap", "absent", "--from-literal=k=v"])?;
    running(host, "config")?;
    host.kubectl(&["delete", "configmap", "absent"])?;
    pod(host, "mount", "sleep 1000", nothing(), json!({"volumes": [{"name": "v", "configMap": {"name": "late"}}]}))?;
    event(host, "mount", "FailedMount", "MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found")?;
    host.kubectl(&["create", "configmap", "late", "--from-literal=k=v"])?;
    running(host, "mount")?;
    host.kubectl(&["delete", "configmap", "late"])?;
    // Nobody runs without the confinement they ask for.
    if !std::path::Path::new("/sys/module/apparmor").exists() {
        let confined = json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}});
        pod(host, "confined", "sleep 1000", nothing(), confined)?;
        let refused = until(host, "confined", |s| s["phase"] == "Failed")?;
        ensure!(refused["reason"] == "AppArmor", "{refused:#}");
        event(host, "confined", "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")?;
    }
    Ok(())
}

fn backs_off(host: &Host) -> Result<()> {
    pod(
        host,
        "crash",
        "echo last words; exit 3",
        json!({"terminationMessagePolicy": "FallbackToLogsOnError"}),
        nothing(),
    )?;
    let seen = until(host, "crash", |s| own(s)["state"]["waiting"]["reason"] == "CrashLoopBackOff")?;
    let message = own(&seen)["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
    ensure!(message.starts_with("back-off 10s restarting failed container=a pod=crash_default("), "{message}");
    let last = &own(&seen)["lastState"]["terminated"];
    ensure!(last["exitCode"] == 3 && last["reason"] == "Error" && last["message"] == "last words\n", "{last}");
    ensure!(own(&seen)["restartCount"] == 1 && seen["phase"] == "Running", "{seen:#}");
    event(host, "crash", "BackOff", "Back-off restarting failed container a in pod crash_default(")?;
    let table = host.kubectl(&["get", "pod", "crash"])?;
    ensure!(table.contains("CrashLoopBackOff"), "{table}");
    let previous = host.kubectl(&["logs", "crash", "--previous"])?;
    ensure!(previous == "last words\n", "{previous}");
    // A killed memory hog says so.
    let limits = json!({"resources": {"limits": {"memory": "16Mi"}}});
    pod(host, "hog", "tail /dev/zero", limits, json!({"restartPolicy": "Never"}))?;
    let seen = until(host, "hog", |s| own(s)["state"]["terminated"].is_object())?;
    let end = &own(&seen)["state"]["terminated"];
    ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{end}");
    ensure!(seen["qosClass"] == "Burstable" || seen["qosClass"] == "Guaranteed", "{seen:#}");
    Ok(())
}

fn ends_pods(host: &Host) -> Result<()> {
    let never = || json!({"restartPolicy": "Never"});
    pod(host, "well", "echo fine > /dev/termination-log", nothing(), never())?;
    pod(host, "badly", "exit 4", nothing(), never())?;
    pod(host, "late", "sleep 1000", nothing(), json!({"activeDeadlineSeconds": 2}))?;
    let rules = json!({"restartPolicy": "Never", "restartPolicyRules":
        [{"action": "Restart", "exitCodes": {"operator": "In", "values": [7]}}]});
    pod(
        host,
        "rules",
        "if [ -e /v/ran ]; then exit 0; fi; touch /v/ran; exit 7",
        {
            let mut container = rules;
            merge(&mut container, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
            container
        },
        json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}]}),
    )?;
    let seen = until(host, "well", |s| s["phase"] == "Succeeded")?;
    ensure!(own(&seen)["state"]["terminated"]["message"] == "fine\n", "{seen:#}");
    ensure!(condition(&seen, "Ready")["reason"] == "PodCompleted", "{seen:#}");
    ensure!(
        seen["podIP"].is_string() && own(&seen)["containerID"].as_str().unwrap_or_default().starts_with("dhow://"),
        "{seen:#}"
    );
    until(host, "badly", |s| s["phase"] == "Failed" && own(s)["state"]["terminated"]["exitCode"] == 4)?;
    until(host, "late", |s| s["phase"] == "Failed" && s["reason"] == "DeadlineExceeded")?;
    until(host, "rules", |s| s["phase"] == "Succeeded" && own(s)["restartCount"] == 1)?;
    // What is over uses nothing but its records: its logs can still be read.
    ensure!(host.kubectl(&["logs", "badly"]).is_ok(), "no logs of a pod that is over");
    Ok(())
}

fn probes(host: &Host) -> Result<()> {
    let quick = |action: Value| {
        let mut probe = json!({"periodSeconds": 1, "failureThreshold": 1});
        merge(&mut probe, action);
        probe
    };
    let file = |path: &str| quick(json!({"exec": {"command": ["cat", path]}}));
    pod(host, "ready", "touch /tmp/up; sleep 1000", json!({"readinessProbe": file("/tmp/ready")}), nothing())?;
    let named = json!({"livenessProbe": file("$(MARK)"), "env": [{"name": "MARK", "value": "/tmp/up"}]});
    pod(host, "alive", "touch /tmp/up; sleep 1000", named, nothing())?;
    let web = "mkdir -p /w; echo hi > /w/index.html; httpd -f -p 8080 -h /w";
    let http = quick(json!({"httpGet": {"path": "/index.html", "port": "web"}}));
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    pod(host, "web", web, json!({"readinessProbe": http, "ports": ports}), nothing())?;
    let tcp = quick(json!({"tcpSocket": {"port": 8080}}));
    pod(host, "tcp", web, json!({"readinessProbe": tcp}), nothing())?;
    let wrong = quick(json!({"httpGet": {"path": "/absent", "port": 8080}}));
    pod(host, "wrong", web, json!({"readinessProbe": wrong}), nothing())?;
    running(host, "web")?;
    running(host, "tcp")?;
    event(host, "wrong", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")?;
    event(host, "ready", "Unhealthy", "Readiness probe failed: cat: can't open '/tmp/ready'")?;
    let seen = status(host, "ready")?;
    ensure!(condition(&seen, "Ready")["reason"] == "ContainersNotReady", "{seen:#}");
    exec(host, "ready", "touch /tmp/ready")?;
    running(host, "ready")?;
    exec(host, "ready", "rm /tmp/ready")?;
    until(host, "ready", |s| own(s)["ready"] == false && s["phase"] == "Running")?;
    running(host, "alive")?;
    exec(host, "alive", "rm /tmp/up")?;
    until(host, "alive", |s| own(s)["restartCount"] == 1 && own(s)["ready"] == true)?;
    event(host, "alive", "Killing", "Container a failed liveness probe, will be restarted")?;
    Ok(())
}

fn orders_containers(host: &Host) -> Result<()> {
    let log = |name: &str, then: &str| {
        json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", format!("trap 'echo {name} ends >> /v/log; exit 0' TERM; echo {name} >> /v/log; {then}")],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]})
    };
    let wait = "while :; do sleep 0.1; done";
    let mut sidecar = log("s1", wait);
    merge(
        &mut sidecar,
        json!({"restartPolicy": "Always",
        "startupProbe": {"periodSeconds": 1, "exec": {"command": ["grep", "-q", "s1", "/v/log"]}}}),
    );
    let mut second = log("s2", wait);
    merge(&mut second, json!({"restartPolicy": "Always"}));
    let folder = host.folder().join("order");
    std::fs::create_dir_all(&folder)?;
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
        "initContainers": [log("i1", "true"), sidecar, second, log("i2", "true")],
        "containers": [log("a", "while [ ! -e /v/go ]; do sleep 0.1; done")],
        "volumes": [{"name": "v", "hostPath": {"path": folder, "type": "Directory"}}]});
    pod(host, "order", "", nothing(), spec)?;
    let seen = running(host, "order")?;
    ensure!(seen["initContainerStatuses"][1]["started"] == true, "{seen:#}");
    std::fs::write(folder.join("go"), "")?;
    until(host, "order", |s| s["phase"] == "Succeeded")?;
    let log = std::fs::read_to_string(folder.join("log"))?;
    ensure!(log == "i1\ns1\ns2\ni2\na\ns2 ends\ns1 ends\n", "{log}");
    Ok(())
}

fn runs_hooks(host: &Host) -> Result<()> {
    let folder = host.folder().join("hooks");
    std::fs::create_dir_all(&folder)?;
    let volume =
        || json!({"terminationGracePeriodSeconds": 10, "volumes": [{"name": "v", "hostPath": {"path": folder}}]});
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let run = |script: &str| json!({"exec": {"command": ["sh", "-c", script]}});
    let lifecycle = json!({"postStart": run("echo started >> /v/log"), "preStop": run("echo stopping >> /v/log"),
        "stopSignal": "SIGUSR1"});
    let script = "trap 'echo usr1 >> /v/log; exit 0' USR1; while :; do sleep 0.1; done";
    let os = json!({"lifecycle": lifecycle, "volumeMounts": mounts});
    let mut spec = volume();
    merge(&mut spec, json!({"os": {"name": "linux"}}));
    pod(host, "hooks", script, os, spec)?;
    running(host, "hooks")?;
    host.kubectl(&["delete", "pod", "hooks", "--timeout=20s"])?;
    let log = std::fs::read_to_string(folder.join("log"))?;
    ensure!(log == "started\nstopping\nusr1\n", "{log}");
    pod(host, "hook-fails", "sleep 1000", json!({"lifecycle": {"postStart": run("exit 5")}}), nothing())?;
    event(host, "hook-fails", "FailedPostStartHook", "exited with 5")?;
    until(host, "hook-fails", |s| own(s)["restartCount"].as_u64() >= Some(1))?;
    // A long grace is cut short by whoever is in a hurry.
    pod(
        host,
        "stubborn",
        "trap '' TERM; while :; do sleep 0.1; done",
        nothing(),
        json!({"terminationGracePeriodSeconds": 600}),
    )?;
    running(host, "stubborn")?;
    host.kubectl(&["delete", "pod", "stubborn", "--wait=false"])?;
    let begun = Instant::now();
    host.kubectl(&["delete", "pod", "stubborn", "--grace-period=1", "--timeout=20s"])?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    Ok(())
}

fn debugs(host: &Host) -> Result<()> {
    pod(host, "patient", "exec sleep 4711", nothing(), nothing())?;
    running(host, "patient")?;
    let image = format!("--image={IMAGE}");
    let arguments = [
        "debug",
        "patient",
        &image,
        "--target=a",
        "-c",
        "doctor",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sh",
        "-c",
        "ps; exit 9",
    ];
    host.kubectl(&arguments)?;
    let seen = until(host, "patient", |s| s["ephemeralContainerStatuses"][0]["state"]["terminated"].is_object())?;
    ensure!(seen["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 9, "{seen:#}");
    ensure!(own(&seen)["ready"] == true && own(&seen)["restartCount"] == 0, "{seen:#}");
    let processes = host.kubectl(&["logs", "patient", "-c", "doctor"])?;
    ensure!(processes.contains("sleep 4711"), "the target's processes are not seen: {processes}");
    Ok(())
}

fn follows_objects(host: &Host) -> Result<()> {
    host.kubectl(&["create", "configmap", "live", "--from-literal=k=one"])?;
    let spec = json!({"volumes": [
        {"name": "c", "configMap": {"name": "live"}},
        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]});
    let mounts = json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}, {"name": "d", "mountPath": "/d"}]});
    pod(host, "live", "sleep 1000", mounts, spec)?;
    running(host, "live")?;
    ensure!(exec(host, "live", "cat /c/k")? == "one", "the first value");
    host.kubectl(&["patch", "configmap", "live", "-p", r#"{"data":{"k":"two"}}"#])?;
    let begun = Instant::now();
    eventually(SOON, || {
        ensure!(exec(host, "live", "cat /c/k")? == "two", "the old value");
        Ok(())
    })?;
    eprintln!("a config map's change seen in the pod after {} ms", begun.elapsed().as_millis());
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    host.kubectl(&["label", "pod", "live", "more=yes"])?;
    eventually(SOON, || {
        ensure!(exec(host, "live", "cat /d/labels")?.contains("more=\"yes\""), "the label");
        Ok(())
    })?;
    host.kubectl(&["delete", "configmap", "live"])?;
    Ok(())
}

fn mounts_volumes(host: &Host) -> Result<()> {
    host.kubectl(&["create", "secret", "generic", "s", "--from-literal=k=hidden"])?;
    let spec = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000, "supplementalGroups": [3000]},
        "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["alias.example"]}],
        "hostname": "own", "subdomain": "sub", "shareProcessNamespace": true,
        "volumes": [
            {"name": "e", "emptyDir": {}},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
            {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "x"}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "deep/k"}]}}]}}]});
    let container = json!({"securityContext": {"readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            "allowPrivilegeEscalation": false},
        "env": [{"name": "WHO", "value": "me"}],
        "volumeMounts": [
            {"name": "e", "mountPath": "/e"}, {"name": "m", "mountPath": "/m"},
            {"name": "e", "mountPath": "/part", "subPathExpr": "parts/$(WHO)"},
            {"name": "s", "mountPath": "/s/k", "subPath": "k"}, {"name": "p", "mountPath": "/p"}]});
    pod(host, "volumes", "sleep 1000", container, spec)?;
    running(host, "volumes")?;
    let check = |script: &str, expected: &str| -> Result<()> {
        let got = exec(host, "volumes", script)?;
        ensure!(got.trim() == expected, "{script}: {got:?} is not {expected:?}");
        Ok(())
    };
    check("id -u; id -g; id -G | tr ' ' '\\n' | sort", "1000\n1000\n1000\n2000\n3000")?;
    check("touch /e/f && stat -c %g /e/f", "2000")?;
    check("echo x > /part/f 2>/dev/null; ls -d /e/parts/me", "/e/parts/me")?;
    check("cat /s/k", "hidden")?;
    check("cat /p/deep/k; wc -c < /p/token | grep -q '^0$' || echo token", "hiddentoken")?;
    check("df -k /m | tail -1 | awk '{print $2}'", "1024")?;
    check("touch /x 2>/dev/null || echo read-only", "read-only")?;
    check(
        "hostname; grep alias.example /etc/hosts | cut -f1; grep -c own.sub.default.svc.cluster.local /etc/hosts",
        "own\n192.0.2.9\n1",
    )?;
    check(
        "grep CapEff /proc/self/status | cut -f2; grep NoNewPrivs /proc/self/status | cut -f2",
        "0000000000000000\n1",
    )?;
    host.kubectl(&["delete", "secret", "s"])?;
    Ok(())
}

fn gives_environment(host: &Host) -> Result<()> {
    host.kubectl(&["create", "configmap", "env", "--from-literal=A=a", "--from-literal=B=b"])?;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let container = json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "env"}}],
        "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
        "args": ["unused"],
        "env": [field("IP", "status.podIP"), field("HOST", "status.hostIP"), field("NAME", "metadata.name"),
            {"name": "SUM", "value": "$(P_A)-$(NAME)-$$(X)-$(ABSENT)"},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]});
    pod(host, "env", "sleep 1000", container, nothing())?;
    let seen = running(host, "env")?;
    let got = exec(host, "env", "echo $P_A $P_B $SUM $MEM $NAME; echo $IP $HOST; echo $KUBERNETES_SERVICE_PORT")?;
    let ips = format!("{} {}", seen["podIP"].as_str().unwrap_or_default(), seen["hostIP"].as_str().unwrap_or_default());
    ensure!(got == format!("a b a-env-$(X)-$(ABSENT) 64 env\n{ips}\n443\n"), "{got}");
    host.kubectl(&["delete", "configmap", "env"])?;
    Ok(())
}

fn resizes(host: &Host) -> Result<()> {
    let of = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    let policy = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    pod(host, "resize", "sleep 1000", json!({"resources": of("100m", "64Mi"), "resizePolicy": policy}), nothing())?;
    let seen = running(host, "resize")?;
    ensure!(own(&seen)["allocatedResources"]["cpu"] == "100m" && seen["qosClass"] == "Guaranteed", "{seen:#}");
    let resize = |cpu: &str, memory: &str| {
        let patch = json!({"spec": {"containers": [{"name": "a", "resources": of(cpu, memory)}]}}).to_string();
        host.kubectl(&["patch", "pod", "resize", "--subresource", "resize", "-p", &patch])
    };
    let quota = || {
        let v2 =
            exec(host, "resize", "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us");
        v2.map(|text| text.split_whitespace().next().unwrap_or_default().to_owned())
    };
    ensure!(quota()? == "10000", "{}", quota()?);
    resize("200m", "64Mi")?;
    until(host, "resize", |s| own(s)["resources"]["limits"]["cpu"] == "200m" && own(s)["restartCount"] == 0)?;
    eventually(SOON, || {
        ensure!(quota()? == "20000", "{}", quota()?);
        Ok(())
    })?;
    resize("100", "64Mi")?;
    until(host, "resize", |s| condition(s, "PodResizePending")["reason"] == "Infeasible")?;
    resize("100m", "96Mi")?;
    until(host, "resize", |s| {
        own(s)["resources"]["limits"]["memory"] == "96Mi"
            && own(s)["restartCount"] == 1
            && condition(s, "PodResizePending").is_null()
    })?;
    Ok(())
}

fn refuses_what_does_not_fit(host: &Host) -> Result<()> {
    let much = json!({"resources": {"requests": {"cpu": "1000"}}});
    pod(host, "much", "sleep 1000", much, json!({"nodeName": "e2e"}))?;
    let seen = until(host, "much", |s| s["phase"] == "Failed")?;
    ensure!(seen["reason"] == "OutOfcpu", "{seen:#}");
    ensure!(seen["message"].as_str().unwrap_or_default().contains("requested: 1000000, used:"), "{seen:#}");
    pod(host, "elsewhere", "sleep 1000", nothing(), json!({"nodeName": "e2e", "nodeSelector": {"no": "such"}}))?;
    until(host, "elsewhere", |s| s["phase"] == "Failed" && s["reason"] == "NodeAffinity")?;
    Ok(())
}
