//! Every file below `examples/` on one running cloud: applied as its first lines say, and healthy.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, workspace};

const LATER: Duration = Duration::from_secs(120);
/// Files that a Compose project is known by.
const COMPOSE: &str = "compose.yaml";

/// What an example about sizing pods sizes.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "nginx:latest", imagePullPolicy: IfNotPresent, resources: {requests: {cpu: 10m, memory: 16Mi}}}
"#;

/// All YAML files, and folders in the place of Compose files; what defines kinds comes first.
fn examples(folder: &Path, found: &mut Vec<(bool, PathBuf)>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.join(COMPOSE).exists() {
            found.push((true, path));
        } else if path.is_dir() {
            examples(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            let defines = std::fs::read_to_string(&path)?.contains("kind: CustomResourceDefinition");
            found.push((!defines, path));
        }
    }
    Ok(())
}

#[test]
fn every_example_runs() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();
    host.import(&["nginx", "mariadb", "redis", "python", "demo-app-v1"]).unwrap();
    host.apply(WEB).unwrap();
    let mut found = Vec::new();
    examples(&workspace().join("examples"), &mut found).unwrap();
    found.sort();
    assert!(found.len() >= 7, "{found:?}");
    for defines in [true, false] {
        let of = found.iter().filter(|(later, _)| *later != defines).map(|(_, path)| path);
        deploy(&host, of).unwrap();
    }
    all_is_well(&host).unwrap();
    answers(&host).unwrap();
}

/// All at once: databases take their time.
fn deploy<'a>(host: &Host, paths: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let mut running = Vec::new();
    for path in paths {
        let mut command = host.dhow_command(&["deploy", "--timeout", "240", path.to_str().context("path")?]);
        running.push((path, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?));
    }
    for (path, command) in running {
        let output = command.wait_with_output()?;
        ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn all_is_well(host: &Host) -> Result<()> {
    eventually(LATER, || {
        let pods = host.get(&["get", "pods", "-A"])?;
        let pods = pods["items"].as_array().context("no pods")?;
        for pod in pods {
            let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready = ready.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
            ensure!(ready, "{} is not ready: {:#}", pod["metadata"]["name"], pod["status"]);
        }
        ensure!(pods.len() >= 15, "only {} pods", pods.len());
        host.dhow(&["doctor"]).map(drop)
    })?;
    let claims = host.get(&["get", "pvc", "-A"])?;
    for claim in claims["items"].as_array().context("no claims")? {
        ensure!(claim["status"]["phase"] == "Bound", "{claim:#}");
    }
    let recommended = eventually(LATER, || {
        let scaler = host.get(&["get", "vpa", "web"])?;
        let condition = scaler["status"]["conditions"].as_array().context("no conditions")?[0].clone();
        ensure!(condition["type"] == "RecommendationProvided", "{scaler}");
        Ok(condition)
    })?;
    ensure!(recommended["status"].is_string(), "{recommended}");
    Ok(())
}

/// Through the addresses that the examples promise.
fn answers(host: &Host) -> Result<()> {
    let page = |url: &str| eventually(LATER, || host.curl(&[url]));
    ensure!(page(&format!("http://{HOST_IP}:30080/"))?.contains("v1"), "the demo's page is another");
    ensure!(
        page(&format!("http://{HOST_IP}:8088/hits"))?.starts_with("visit "),
        "the Compose project's page is another"
    );
    let visit = page(&format!("http://{HOST_IP}:30081/"))?;
    ensure!(visit.contains("redis ") && visit.contains("mariadb "), "{visit}");
    Ok(())
}
