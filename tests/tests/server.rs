//! The control plane alone: on its embedded store with backup and restore, and on real etcd.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run};

const SOON: Duration = Duration::from_secs(20);

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `dhow server` in the foreground on a data folder, once its API answers.
fn server(host: &Host, data_dir: &Path, flags: &[&str]) -> Result<Running> {
    let mut command = host.dhow_command(&["server"]);
    command.args(flags).env("DHOW_DATA_DIR", data_dir).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Running(command.spawn().context("start the server")?);
    eventually(SOON, || ask(host, data_dir, &["get", "--raw", "/readyz"]).map(drop))?;
    Ok(server)
}

/// kubectl with the kubeconfig that the server wrote.
fn ask(host: &Host, data_dir: &Path, args: &[&str]) -> Result<String> {
    run(host.command("kubectl").args(args).env("KUBECONFIG", data_dir.join("admin.kubeconfig")))
}

/// Waits until the Deployment `web` has so many pods.
fn has_pods(host: &Host, data_dir: &Path, count: usize) -> Result<()> {
    eventually(SOON, || {
        let pods = ask(host, data_dir, &["get", "pods", "-l", "app=web", "-o", "name"])?;
        ensure!(pods.lines().count() == count, "{pods}");
        Ok(())
    })
}

fn terminate(mut server: Running) -> Result<()> {
    run(Command::new("kill").arg(server.0.id().to_string()))?;
    let status = server.0.wait()?;
    ensure!(status.success(), "the server ended with {status}");
    Ok(())
}

#[test]
fn backup_and_restore() {
    let host = Host::new().unwrap();
    let data = host.data_dir();
    let first = server(&host, &data, &[]).unwrap();
    let kubectl = |args: &[&str]| ask(&host, &data, args);
    // Controllers run, nodes do not.
    kubectl(&["create", "deployment", "web", "--image=image.invalid/web:1"]).unwrap();
    has_pods(&host, &data, 1).unwrap();
    assert_eq!(kubectl(&["get", "nodes", "-o", "name"]).unwrap(), "");
    kubectl(&["create", "secret", "generic", "kept", "--from-literal=word=hidden-in-the-store"]).unwrap();

    // Backups are made while writes go on, each of one moment: with number N, all smaller ones are in it.
    let mut writer = host.command("sh");
    writer.args(["-c", "i=0; while kubectl create configmap n-$i >/dev/null; do i=$((i+1)); done"]);
    let config = data.join("admin.kubeconfig");
    let writer = Running(writer.env("KUBECONFIG", config).stderr(Stdio::null()).spawn().unwrap());
    let numbers = |text: &str| text.lines().filter(|line| line.starts_with("configmap/n-")).count();
    eventually(SOON, || {
        ensure!(numbers(&kubectl(&["get", "configmaps", "-o", "name"])?) > 3);
        Ok(())
    })
    .unwrap();
    let archives = [host.folder().join("one.backup"), host.folder().join("two.backup")];
    for archive in &archives {
        host.dhow(&["server", "backup", archive.to_str().unwrap()]).unwrap();
    }
    drop(writer);
    let described = host.dhow(&["server", "verify", "-o", "json", archives[1].to_str().unwrap()]).unwrap();
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    assert!(described["entries"].as_u64().unwrap() > 20 && described["keys"].as_u64().unwrap() > 3, "{described}");
    // The store's part gives no secret away.
    let bytes = std::fs::read(&archives[1]).unwrap();
    let hidden = b"hidden-in-the-store";
    assert!(!bytes.windows(hidden.len()).any(|window| window == hidden));
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(hidden);
    assert!(!bytes.windows(encoded.len()).any(|window| window == encoded.as_bytes()));

    // After the backup: to be forgotten.
    kubectl(&["create", "configmap", "late"]).unwrap();
    let restore = ["server", "restore", archives[1].to_str().unwrap()];
    let refused = host.dhow(&restore).unwrap_err();
    assert!(format!("{refused:#}").contains("dhow down"), "{refused:#}");
    terminate(first).unwrap();
    let refused = host.dhow(&restore).unwrap_err();
    assert!(format!("{refused:#}").contains("--replace"), "{refused:#}");

    // Another machine knows nothing but the archive.
    let elsewhere = host.folder().join("elsewhere");
    let mut command = host.dhow_command(&restore);
    run(command.env("DHOW_DATA_DIR", &elsewhere)).unwrap();
    let second = server(&host, &elsewhere, &[]).unwrap();
    let kubectl = |args: &[&str]| ask(&host, &elsewhere, args);
    let names = kubectl(&["get", "configmaps", "-o", "name"]).unwrap();
    let count = numbers(&names);
    assert!(count > 3 && !names.contains("configmap/late"), "{names}");
    assert!((0..count).all(|n| names.lines().any(|line| line == format!("configmap/n-{n}"))), "{names}");
    let word = kubectl(&["get", "secret", "kept", "-o", "jsonpath={.data.word}"]).unwrap();
    assert_eq!(word, encoded);
    // Whoever trusted the first server's certificate trusts this one, and is who he was.
    ask(&host, &data, &["auth", "can-i", "*", "*"]).unwrap();
    // It goes on as a cluster.
    kubectl(&["scale", "deployment", "web", "--replicas=2"]).unwrap();
    has_pods(&host, &elsewhere, 2).unwrap();
    terminate(second).unwrap();

    // Without a daemon the store is read where it lies; what was there is put aside, and nothing is lost.
    let cold = host.folder().join("cold.backup");
    host.dhow(&["server", "backup", cold.to_str().unwrap()]).unwrap();
    host.dhow(&["server", "restore", "--replace", cold.to_str().unwrap()]).unwrap();
    let keys = std::fs::read(data.join("pki/sealing.keys")).unwrap();
    host.dhow(&["server", "rotate-keys"]).unwrap();
    assert_ne!(std::fs::read(data.join("pki/sealing.keys")).unwrap(), keys);
    let again = server(&host, &data, &[]).unwrap();
    ask(&host, &data, &["get", "configmap", "late"]).unwrap();
    ask(&host, &data, &["get", "secret", "kept"]).unwrap();
    terminate(again).unwrap();
}

#[test]
fn requests_are_recorded_as_the_policy_says() {
    let host = Host::new().unwrap();
    let data = host.data_dir();
    let policy = host.folder().join("policy.yaml");
    let text =
        "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, resources: [{resources: [secrets]}]}]}";
    std::fs::write(&policy, text).unwrap();
    let flags = ["--audit-policy", policy.to_str().unwrap()];
    let first = server(&host, &data, &flags).unwrap();
    ask(&host, &data, &["create", "secret", "generic", "s", "--from-literal=word=unspoken"]).unwrap();
    ask(&host, &data, &["create", "configmap", "c"]).unwrap();
    terminate(first).unwrap();
    let log = std::fs::read_to_string(data.join("audit.log")).unwrap();
    let events: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let created = |event: &&serde_json::Value| event["verb"] == "create" && event["user"]["username"] == "dhow-admin";
    let named: Vec<&str> = events.iter().filter(created).filter_map(|e| e["objectRef"]["resource"].as_str()).collect();
    assert!(!named.is_empty() && named.iter().all(|resource| *resource == "secrets"), "{log}");
    assert!(!log.contains("unspoken"));

    std::fs::write(&policy, text.replace("Metadata", "Everything")).unwrap();
    let mut command = host.dhow_command(&["server"]);
    let output = command.args(flags).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && message.contains("policy.yaml"), "{message}");
}

#[test]
fn state_in_etcd() {
    let host = Host::new().unwrap();
    let data = host.data_dir();
    let mut etcd = host.command("etcd");
    etcd.arg("--data-dir").arg(host.folder().join("etcd"));
    etcd.args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]);
    etcd.args(["--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]);
    etcd.args(["--initial-cluster=default=http://127.0.0.1:2380"]);
    let _etcd = Running(etcd.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let flags = ["--store", "etcd+http://127.0.0.1:2379"];
    let first = server(&host, &data, &flags).unwrap();
    ask(&host, &data, &["create", "configmap", "kept"]).unwrap();
    let archive = host.folder().join("backup");
    let refused = host.dhow(&["server", "backup", archive.to_str().unwrap()]).unwrap_err();
    assert!(format!("{refused:#}").contains("etcdctl snapshot save"), "{refused:#}");
    assert!(!archive.exists());
    drop(first);

    let second = server(&host, &data, &flags).unwrap();
    ask(&host, &data, &["get", "configmap", "kept"]).unwrap();
    terminate(second).unwrap();
    assert!(!data.join("store").exists(), "the embedded store was opened");

    // Another machine's etcd is reached by TLS or not at all.
    let plain = format!("etcd+http://{HOST_IP}:2379");
    let mut command = host.dhow_command(&["server", "--store", &plain]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("reached by TLS"));
}
