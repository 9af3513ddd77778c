//! The same on each container runtime, driven with the real kubectl: a pod of nginx, its logs, a command in it, its
//! network, and the daemon's sudden end; then nginx, MariaDB, Redis and Python as one application.
//!
//! containerd and Docker are daemons of the test's own, started in its network namespace.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Daemon, Folder, HOST_IP, Host, containerd_config, dockerd, eventually, workspace};

const MINUTE: Duration = Duration::from_secs(60);

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: nginx
    image: nginx:latest
    imagePullPolicy: IfNotPresent
    ports: [{containerPort: 80}]
"#;

/// One test, because a host's names are the process'.
#[test]
fn applications_run_on_every_runtime() {
    embedded().context("embedded").unwrap();
    containerd().context("containerd").unwrap();
    docker().context("docker").unwrap();
}

fn embedded() -> Result<()> {
    let host = Host::new()?;
    runs_a_pod(&host, "embedded", "dhow://")
}

fn containerd() -> Result<()> {
    let host = Host::new()?;
    let folder = Folder::new()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("config.toml"), containerd_config(folder.path()))?;
    let mut command = host.command("containerd");
    command.args(["--config", &at("config.toml")]);
    let runtime = format!("containerd://{}", at("c.sock"));
    refuses_to_start_without(&host, &runtime)?;
    let daemon = Daemon::start(command, "containerd", folder.path(), &folder.path().join("c.sock"))?;
    let done = runs_a_pod(&host, &runtime, "containerd://");
    // Before the daemon, whose containers the cloud's end removes.
    drop(host);
    ensure!(!folder.path().join("net.d/00-dhow.conflist").exists(), "the CNI configuration is left");
    drop(daemon);
    done
}

fn docker() -> Result<()> {
    let host = Host::new()?;
    let folder = Folder::new()?;
    let (containerd, daemon) = dockerd::start(|program| host.command(program), folder.path())?;
    let socket = folder.path().join("d.sock");
    let done = runs_a_pod(&host, &format!("docker://{}", socket.display()), "docker://");
    drop(host);
    drop(daemon);
    drop(containerd);
    done
}

fn refuses_to_start_without(host: &Host, runtime: &str) -> Result<()> {
    let refused = host.dhow(&["up", "--runtime", runtime]).unwrap_err().to_string();
    ensure!(refused.contains("no container runtime answers at") && refused.contains("--runtime"), "{refused}");
    Ok(())
}

fn runs_a_pod(host: &Host, runtime: &str, version: &str) -> Result<()> {
    host.dhow(&["up", "--runtime", runtime])?;
    let node = host.get(&["get", "node", "e2e"])?;
    let shown = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap_or_default();
    ensure!(shown.starts_with(version), "the node says it runs {shown:?}");
    for name in ["nginx", "mariadb", "redis", "python"] {
        let archive = workspace().join(format!("target/images/{name}.tar"));
        let imported = host.dhow_command(&["image", "import", archive.to_str().context("path")?]).output()?;
        ensure!(imported.status.success(), "{name}: {}", String::from_utf8_lossy(&imported.stderr));
    }
    host.apply(POD)?;
    let begin = Instant::now();
    host.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])?;
    eprintln!("{version}: Ready after {} ms", begin.elapsed().as_millis());
    let pod = host.get(&["get", "pod", "web"])?;
    let address = pod["status"]["podIP"].as_str().context("the pod has no address")?.to_owned();
    ensure!(address.starts_with("10.42.0."), "{address}");
    let container = pod["status"]["containerStatuses"][0]["containerID"].clone();
    eventually(MINUTE, || host.curl(&[&format!("http://{address}/?seen-in-the-log")]))?;
    eventually(MINUTE, || {
        let logs = host.kubectl(&["logs", "web"])?;
        ensure!(logs.contains("seen-in-the-log"), "not in the log: {logs}");
        Ok(())
    })?;
    executes(host)?;
    survives_the_daemon(host, &container)?;
    host.kubectl(&["delete", "pod", "web", "--timeout=60s"])?;
    serves_an_application(host)?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

/// Four images that find each other by name; the database keeps its rows when its pod is replaced.
fn serves_an_application(host: &Host) -> Result<()> {
    let begin = Instant::now();
    host.kubectl(&[
        "apply",
        "-f",
        workspace().join("examples/applications/applications.yaml").to_str().context("path")?,
    ])?;
    for set in ["deployment/nginx", "deployment/python", "deployment/redis", "statefulset/mariadb"] {
        host.kubectl(&["rollout", "status", set, "--timeout=120s"])?;
    }
    eprintln!("the application is there after {} ms", begin.elapsed().as_millis());
    let page = format!("http://{HOST_IP}:30081/");
    let answer = eventually(MINUTE, || host.curl(&["--fail", &page]))?;
    ensure!(answer.trim() == "redis 1, mariadb 1", "{answer}");
    let asked = host.kubectl(&["exec", "deployment/redis", "--", "redis-cli", "get", "visits"])?;
    ensure!(asked.trim() == "1", "{asked:?}");
    let rows = r#"mariadb --user=root --password="$MARIADB_ROOT_PASSWORD" --skip-column-names -e 'SELECT path FROM visits.visit'"#;
    let asked = host.kubectl(&["exec", "mariadb-0", "--", "sh", "-c", rows])?;
    ensure!(asked.trim() == "/", "{asked:?}");
    host.kubectl(&["delete", "pod", "mariadb-0", "--timeout=60s"])?;
    host.kubectl(&["rollout", "status", "statefulset/mariadb", "--timeout=120s"])?;
    // Requests in between may have been counted by Redis, but wrote no row.
    let answer = eventually(MINUTE, || host.curl(&["--fail", &page]))?;
    ensure!(answer.trim().ends_with(", mariadb 2"), "{answer}");
    host.kubectl(&["delete", "all", "--all", "--timeout=60s"])?;
    Ok(())
}

fn executes(host: &Host) -> Result<()> {
    let name = host.kubectl(&["exec", "web", "--", "hostname"])?;
    ensure!(name.trim() == "web", "{name:?}");
    let mut command = host.command("sh");
    command.args(["-c", "printf 'through and back' | kubectl exec -i web -- cat"]);
    let output = command.output()?;
    ensure!(output.stdout == b"through and back", "{output:?}");
    let failed = host.command("kubectl").args(["exec", "web", "--", "sh", "-c", "exit 7"]).output()?;
    ensure!(failed.status.code() == Some(7), "{failed:?}");
    Ok(())
}

/// kill -9 disturbs no container, and the next daemon takes it over.
fn survives_the_daemon(host: &Host, container: &serde_json::Value) -> Result<()> {
    let pid = host.daemon_pid()?.to_string();
    ensure!(Command::new("kill").args(["-9", &pid]).status()?.success(), "cannot kill the daemon");
    host.dhow(&["up"])?;
    eventually(MINUTE, || {
        let pod = host.get(&["get", "pod", "web"])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(
            status["containerID"] == *container && status["restartCount"] == 0 && status["ready"] == true,
            "{status}"
        );
        Ok(())
    })?;
    host.kubectl(&["exec", "web", "--", "true"])?;
    Ok(())
}
