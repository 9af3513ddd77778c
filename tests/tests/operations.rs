//! What an operator asks a running cloud: `dhow doctor`, `logs`, `exec`, `top`, `config`, `install`, `man`.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::ensure;
use dhow_e2e::{Host, eventually};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// A Deployment of two pods with two containers each; one counts, the other says a word and waits.
const TALKERS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: talkers}
spec:
  replicas: 2
  selector: {matchLabels: {app: talkers}}
  template:
    metadata: {labels: {app: talkers}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: counts
        image: docker.io/library/busybox:latest
        imagePullPolicy: Never
        command: [sh, -c, "i=0; while true; do echo count $i; i=$((i+1)); sleep 1; done"]
        resources: {requests: {cpu: 10m, memory: 16Mi}}
      - name: waits
        image: docker.io/library/busybox:latest
        imagePullPolicy: Never
        command: [sh, -c, "echo I wait; exec sleep 100000"]
"#;

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_operator_sees_what_runs_and_what_is_wrong() {
    let host = Host::new().unwrap();
    let doctor = |args: &[&str]| host.dhow_command(&["doctor"]).args(args).output().unwrap();
    let found = doctor(&[]);
    assert_eq!(found.status.code(), Some(1));
    assert!(says(&found).contains("PROBLEM  daemon: does not run"), "{}", says(&found));

    host.dhow(&["up"]).unwrap();
    host.import(&["busybox"]).unwrap();
    host.apply(TALKERS).unwrap();
    host.kubectl(&["rollout", "status", "deployment/talkers", "--timeout=60s"]).unwrap();
    let found = doctor(&[]);
    assert!(found.status.success(), "{}", says(&found));
    for line in
        ["ok       API: ", "ok       daemon: ", "ok       nodes: ", "ok       pods: ", "ok       certificates: "]
    {
        assert!(says(&found).contains(line), "{line}: {}", says(&found));
    }

    // Of a workload all containers' lines come, each whole and with its origin.
    let lines = host.dhow(&["logs", "talkers"]).unwrap();
    assert!(lines.lines().all(|line| line.starts_with("[talkers-") && line.contains("] ")), "{lines}");
    assert_eq!(lines.lines().filter(|line| line.ends_with("/waits] I wait")).count(), 2, "{lines}");
    let one = host.dhow(&["logs", "deployment/talkers", "-c", "counts", "--tail", "1"]).unwrap();
    assert_eq!(one.lines().count(), 2, "{one}");
    let missing = host.dhow_command(&["logs", "nothing"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(3));
    follows_pods_that_come_later(&host);
    runs_commands(&host);

    let top = |args: &[&str]| -> anyhow::Result<Value> { Ok(serde_json::from_str(&host.dhow(args)?)?) };
    let pods = eventually(LIMIT, || {
        let pods = top(&["top", "pods", "-o", "json"])?;
        ensure!(pods.as_array().is_some_and(|pods| pods.len() == 2), "{pods}");
        Ok(pods)
    })
    .unwrap();
    assert_eq!((&pods[0]["cpuBaseMillis"], &pods[0]["memoryBaseBytes"]), (&10.into(), &(16 << 20).into()), "{pods}");
    assert!(pods[0]["memoryBytes"].as_i64().unwrap() > 0, "{pods}");
    let nodes = host.dhow(&["top", "nodes"]).unwrap();
    assert!(nodes.contains("e2e") && nodes.contains('%'), "{nodes}");

    // What is wrong is told in words, with what helps, and by the exit code.
    let broken = "---\n{kind: Pod, apiVersion: v1, metadata: {name: broken}, spec: {containers: [{name: c, \
        image: 'docker.io/library/busybox:latest', imagePullPolicy: Never, command: [sh, -c, 'exit 3']}]}}";
    let homeless = "---\n{kind: Pod, apiVersion: v1, metadata: {name: homeless}, spec: {nodeSelector: {no: where}, \
        containers: [{name: c, image: x}]}}";
    host.apply(broken).unwrap();
    host.apply(homeless).unwrap();
    let found = eventually(LIMIT, || {
        let found = doctor(&["-o", "json"]);
        ensure!(says(&found).contains("CrashLoopBackOff"), "{}", says(&found));
        Ok(found)
    })
    .unwrap();
    assert_eq!(found.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&found.stdout).unwrap();
    let of = |about: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["about"] == about).unwrap_or_else(|| panic!("{about}: {report}")).clone()
    };
    let crash = of("pod default/broken");
    assert!(crash["says"].as_str().unwrap().contains("exit code 3"), "{crash}");
    assert_eq!(crash["fix"], "kubectl logs -n default broken -c c --previous");
    assert!(of("pod default/homeless")["says"].as_str().unwrap().starts_with("has no node: 0/1 nodes"), "{report}");
    host.dhow(&["down", "--purge"]).unwrap();
}

/// A log that is followed goes on with the pods of a roll-out, and ends when its reader does.
fn follows_pods_that_come_later(host: &Host) {
    let mut following =
        host.dhow_command(&["logs", "-f", "talkers", "--tail", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let pod_of = |line: String| line.split('/').next().unwrap_or_default().to_owned();
    let first = pod_of(lines.next().unwrap().unwrap());
    host.kubectl(&["rollout", "restart", "deployment/talkers"]).unwrap();
    let old: Vec<String> = vec![first];
    let waited = lines
        .map_while(Result::ok)
        .find(|line| line.contains("/waits] I wait") && !old.contains(&pod_of(line.clone())));
    assert!(waited.is_some(), "the new pods' lines never came");
    host.kubectl(&["rollout", "status", "deployment/talkers", "--timeout=60s"]).unwrap();
    // Its reader is gone by now, which ends it by itself.
    assert!(following.wait().unwrap().success());
}

/// Input, both outputs, the exit code, and with a terminal its size.
fn runs_commands(host: &Host) {
    let script = "read line; echo \"got $line\"; echo oops >&2; exit 7";
    let mut running = host
        .dhow_command(&["exec", "-i", "deployment/talkers", "-c", "waits", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    running.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let ended = running.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), says(&ended).as_str()), (Some(7), "got hello\n"));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "oops\n");
    // Input ends for the command, too.
    let count = host.dhow_command(&["exec", "-i", "talkers", "--", "wc", "-c"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!((count.status.code(), says(&count).trim()), (Some(0), "0"), "{count:?}");
    let missing = host.dhow_command(&["exec", "talkers", "--", "no-such-program"]).output().unwrap();
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-program"), "{missing:?}");
    // `script` gives it a terminal of that size.
    // The size is told once the command runs.
    let inside = "for try in $(seq 50); do test -n \"$(stty size 2>/dev/null)\" && break; sleep 0.1; done; stty size; \
                  test -t 0 && test -t 1 && echo both";
    let dhow = format!("stty rows 33 cols 77; {} exec -it talkers -- sh -c '{inside}'", host.binary().display());
    let mut script = host.command("script");
    script.args(["-qec", &dhow, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut script = script.spawn().unwrap();
    // Were its input at an end, it would type that into the terminal, in the middle of what is shown.
    let _open = script.stdin.take();
    let shown = script.wait_with_output().unwrap();
    assert!(says(&shown).contains("33 77\r\nboth"), "{}", says(&shown));
}

#[test]
fn settings_units_and_manual_pages() {
    let host = Host::new().unwrap();
    let file = host.folder().join("config.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "node: {maxPods: 77}\n").unwrap();
    host.dhow(&["config", "check", "--config", path]).unwrap();
    let changed = host.dhow(&["config", "print", "--config", path, "--changed", "-o", "json"]).unwrap();
    // By the file, and by a variable that every cloud of these tests is given.
    let wanted = serde_json::json!({"node": {"maxPods": 77}, "images": {"gcHighThresholdPercent": 100}});
    assert_eq!(serde_json::from_str::<Value>(&changed).unwrap(), wanted);
    let all = host.dhow(&["config", "print", "--config", path]).unwrap();
    assert!(all.contains("maxPods: 77") && all.contains("gcHighThresholdPercent"), "{all}");
    std::fs::write(&file, "\nnode: {maxPod: 77}\n").unwrap();
    let wrong = host.dhow_command(&["config", "check", "--config", path]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    let error = String::from_utf8_lossy(&wrong.stderr);
    assert!(error.contains("config.yaml:2: unknown key \"node.maxPod\""), "{error}");

    let unit = host.folder().join("dhow.service");
    let binary = host.folder().join("bin-dhow");
    let install = |args: &[&str]| {
        let places = ["--unit", unit.to_str().unwrap(), "--binary", binary.to_str().unwrap(), "--no-start"];
        host.dhow(&[&["install"], &places[..], args].concat()).unwrap()
    };
    assert!(install(&["--print"]).contains("Type=notify"));
    assert!(!unit.exists() && !binary.exists());
    install(&["--server"]);
    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(text.contains(&format!("ExecStart={} server --config ", binary.display())), "{text}");
    assert!(host.command(&binary).arg("--version").output().unwrap().status.success());
    install(&["--remove"]);
    assert!(!unit.exists() && !binary.exists());

    let pages = host.folder().join("man");
    host.dhow(&["man", pages.to_str().unwrap()]).unwrap();
    let page = std::fs::read_to_string(pages.join("dhow-image-pull.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("Pull an image"), "{page}");
}
