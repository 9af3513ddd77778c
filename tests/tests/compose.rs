//! Compose projects and kustomizations, deployed by `dhow deploy` and looked at with the real kubectl.
//!
//! One test follows one project through its life, because each step works on what the one before left.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, workspace};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_compose_project_lives_and_goes() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();
    plans_before_there_is_anything(&host).unwrap();
    deploys(&host).unwrap();
    starts_in_order(&host).unwrap();
    keeps_networks_apart(&host).unwrap();
    changes_nothing_again(&host).unwrap();
    shows_a_change(&host).unwrap();
    updates(&host).unwrap();
    puts_a_failure_back(&host).unwrap();
    prunes(&host).unwrap();
    goes(&host).unwrap();
}

fn example() -> String {
    workspace().join("examples/compose").display().to_string()
}

/// `dhow` with the version of the application in its environment.
fn dhow(host: &Host, version: &str, args: &[&str]) -> Result<Output> {
    host.dhow_command(args).env("VERSION", version).output().context("start dhow")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn page(host: &Host, path: &str) -> Result<String> {
    eventually(MINUTE, || host.curl(&[&format!("http://{HOST_IP}:8088{path}")]))
}

fn plans_before_there_is_anything(host: &Host) -> Result<()> {
    let output = dhow(host, "v1", &["deploy", "--diff", &example()])?;
    let (plan, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{errors}");
    ensure!(plan.contains("+++ b/namespace/guestbook") && plan.contains("+kind: StatefulSet"), "{plan}");
    ensure!(!plan.contains("demo-guestbook-root\n-"), "{plan}");
    let namespaces = host.kubectl(&["get", "namespaces", "-o", "name"])?;
    ensure!(!namespaces.contains("guestbook"), "the plan made something: {namespaces}");
    Ok(())
}

fn deploys(host: &Host) -> Result<()> {
    host.import(&["nginx", "mariadb", "redis", "python", "demo-app-v1", "demo-app-v2"])?;
    let output = dhow(host, "v1", &["deploy", &example()])?;
    let (urls, progress) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{progress}");
    ensure!(urls.trim() == format!("http://{HOST_IP}:8088"), "{urls}");
    ensure!(progress.contains("statefulset/guestbook/db: 1 of 1 available"), "{progress}");
    ensure!(page(host, "/")?.contains("v1"), "another page");
    host.curl(&["--data", "message=kept in the volume", &format!("http://{HOST_IP}:8088/")])?;
    ensure!(page(host, "/")?.contains("kept in the volume"), "the row is not on the page");
    ensure!(page(host, "/hits")? == "visit 1\n", "the first visit");
    ensure!(page(host, "/hits")? == "visit 2\n", "the second visit");
    Ok(())
}

/// When a condition of a pod came to be so.
fn since<'a>(pods: &'a Value, service: &str, condition: &str) -> Result<Vec<&'a str>> {
    let of_service = pods["items"]
        .as_array()
        .context("no pods")?
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["dhow.io/service"] == service);
    let times = of_service.map(|pod| {
        let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
        let found = conditions.iter().find(|one| one["type"] == condition && one["status"] == "True");
        found
            .and_then(|one| one["lastTransitionTime"].as_str())
            .with_context(|| format!("{service} is not {condition}"))
    });
    times.collect()
}

fn starts_in_order(host: &Host) -> Result<()> {
    let pods = host.get(&["-n", "guestbook", "get", "pods"])?;
    for (later, earlier) in [("app", "db"), ("hits", "cache"), ("proxy", "app"), ("proxy", "hits")] {
        let ready = since(&pods, earlier, "Ready")?.into_iter().max().context("no pod")?;
        let placed = since(&pods, later, "PodScheduled")?.into_iter().min().context("no pod")?;
        ensure!(ready <= placed, "{later} was placed at {placed}, {earlier} ready at {ready}");
    }
    Ok(())
}

fn keeps_networks_apart(host: &Host) -> Result<()> {
    let connect = |from: &str, to: &str, port: u16| {
        let script = format!("import socket; socket.create_connection(('{to}', {port}), 3)");
        host.kubectl(&["-n", "guestbook", "exec", &format!("deploy/{from}"), "--", "python3", "-c", &script])
    };
    connect("app", "db", 3306)?;
    connect("hits", "cache", 6379)?;
    ensure!(connect("hits", "db", 3306).is_err(), "hits reaches the database over a network that it is not on");
    ensure!(connect("app", "cache", 6379).is_err(), "app reaches the cache over a network that it is not on");
    Ok(())
}

fn changes_nothing_again(host: &Host) -> Result<()> {
    let output = dhow(host, "v1", &["deploy", &example()])?;
    let said = text(&output.stderr);
    let changed: Vec<&str> = said
        .lines()
        .filter(|line| ["created", "configured", "replaced"].iter().any(|word| line.ends_with(word)))
        .collect();
    ensure!(output.status.success() && changed.is_empty(), "{changed:?}\n{said}");
    let output = dhow(host, "v1", &["deploy", "--diff", &example()])?;
    ensure!(text(&output.stdout).trim() == "nothing would change", "{}", text(&output.stdout));
    Ok(())
}

fn shows_a_change(host: &Host) -> Result<()> {
    let output = dhow(host, "v2", &["deploy", "--diff", &example()])?;
    let plan = text(&output.stdout);
    let lines: Vec<&str> = plan.lines().filter(|line| line.starts_with(['+', '-'])).collect();
    ensure!(lines.len() == 4, "more than the image: {lines:#?}");
    ensure!(lines[0] == "--- a/deployment/guestbook/app" && lines[1] == "+++ b/deployment/guestbook/app", "{lines:?}");
    ensure!(lines[2].contains("demo-app:v1") && lines[3].contains("demo-app:v2"), "{lines:?}");
    ensure!(page(host, "/")?.contains("v1"), "the plan changed something");
    Ok(())
}

fn updates(host: &Host) -> Result<()> {
    let output = dhow(host, "v2", &["deploy", &example()])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let page = page(host, "/")?;
    ensure!(page.contains("v2") && page.contains("kept in the volume"), "{page}");
    Ok(())
}

fn puts_a_failure_back(host: &Host) -> Result<()> {
    let output = dhow(host, "missing", &["deploy", "--rollback-on-failure", "--timeout", "20", &example()])?;
    let said = text(&output.stderr);
    ensure!(!output.status.success(), "a missing image was rolled out: {said}");
    ensure!(said.contains("deployment/guestbook/app put back"), "{said}");
    host.kubectl(&["-n", "guestbook", "rollout", "status", "deploy/app", "--timeout=60s"])?;
    let app = host.get(&["-n", "guestbook", "get", "deploy", "app"])?;
    let image = &app["spec"]["template"]["spec"]["containers"][0]["image"];
    ensure!(image == "dhow/demo-app:v2", "{image}");
    ensure!(page(host, "/")?.contains("v2"), "another page");
    Ok(())
}

/// The same project with a service less.
fn prunes(host: &Host) -> Result<()> {
    let folder = host.folder().join("smaller");
    std::fs::create_dir(&folder)?;
    for file in ["compose.yaml", ".env", "site.conf", "hits.py"] {
        std::fs::copy(Path::new(&example()).join(file), folder.join(file))?;
    }
    let smaller =
        "services:\n  hits: !reset null\n  proxy:\n    depends_on: {hits: !reset null}\n    configs: !override []\n";
    std::fs::write(folder.join("compose.override.yaml"), smaller)?;
    let output = dhow(host, "v2", &["deploy", "--prune", "--timeout", "0", folder.to_str().context("path")?])?;
    let said = text(&output.stderr);
    ensure!(output.status.success() && said.contains("deployment/guestbook/hits removed"), "{said}");
    let left = host.kubectl(&["-n", "guestbook", "get", "deploy,service,statefulset", "-o", "name"])?;
    ensure!(!left.contains("/hits") && left.contains("statefulset.apps/db"), "{left}");
    Ok(())
}

fn goes(host: &Host) -> Result<()> {
    let output = dhow(host, "v2", &["undeploy", &example()])?;
    let said = text(&output.stderr);
    ensure!(output.status.success() && said.contains("persistentvolumeclaim/guestbook/data kept"), "{said}");
    let left = host.kubectl(&[
        "-n",
        "guestbook",
        "get",
        "pods,service,deploy,statefulset,configmap,networkpolicy",
        "-l",
        "dhow.io/project=guestbook",
        "-o",
        "name",
    ])?;
    ensure!(left.trim().is_empty(), "left over: {left}");
    host.kubectl(&["-n", "guestbook", "get", "pvc", "data"])?;
    let output = dhow(host, "v2", &["undeploy", "--project", "guestbook", "--volumes"])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let left = host.kubectl(&["get", "namespaces,pv", "-o", "name"])?;
    ensure!(!left.contains("guestbook"), "left over: {left}");
    let output = dhow(host, "v2", &["undeploy", "--project", "guestbook"])?;
    ensure!(output.status.code() == Some(3), "gone twice: {}", text(&output.stderr));
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

/// Objects by kind and name.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects.into_iter().map(|object| (format!("{} {}", object["kind"], object["metadata"]["name"]), object)).collect()
}

/// Items that a patch adds are first for kustomize and last for Kubernetes.
fn without_order(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().map(|(name, value)| (name.clone(), without_order(value))).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            sorted.into_iter().collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(without_order).collect();
            items.sort_by_key(Value::to_string);
            items.into()
        }
        other => other.clone(),
    }
}

#[test]
fn kustomizations_are_built_as_kubectl_builds_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kustomize");
    for case in std::fs::read_dir(folder).unwrap() {
        let case = case.unwrap().path().join("overlay");
        let path = case.to_str().unwrap();
        let reference = Command::new("kubectl").args(["kustomize", path]).output().unwrap();
        assert!(reference.status.success(), "{path}: {}", text(&reference.stderr));
        let expected: Vec<Value> = serde_saphyr::from_multiple(&text(&reference.stdout)).unwrap();
        let ours = Command::new(dhow_e2e::binary().unwrap()).args(["deploy", "-o", "json", path]).output().unwrap();
        assert!(ours.status.success(), "{path}: {}", text(&ours.stderr));
        let list: Value = serde_json::from_slice(&ours.stdout).unwrap();
        let found = by_name(list["items"].as_array().unwrap().clone());
        let expected = by_name(expected);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{path}");
        for (name, object) in expected {
            assert_eq!(without_order(&found[&name]), without_order(&object), "{path}: {name}");
        }
    }
}
