//! The walking slice: one command to a running, reachable application, driven with the real kubectl.
//!
//! One test, because each step works on what the one before left, on one cloud.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run, workspace};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn one_command_to_a_reachable_application() {
    let host = Host::new().unwrap();
    starts(&host).unwrap();
    deploys_the_demo(&host).unwrap();
    shows_it(&host).unwrap();
    follows_logs(&host).unwrap();
    executes(&host).unwrap();
    scales(&host).unwrap();
    rolls_without_a_failed_request(&host).unwrap();
    undoes(&host).unwrap();
    restarts_a_killed_container(&host).unwrap();
    survives_kill_of_the_daemon(&host).unwrap();
    deletes_everything(&host).unwrap();
    purges(&host).unwrap();
}

fn starts(host: &Host) -> Result<()> {
    let begin = Instant::now();
    host.dhow(&["up"])?;
    eprintln!("start to Ready: {} ms", begin.elapsed().as_millis());
    let nodes = host.kubectl(&["get", "nodes"])?;
    ensure!(nodes.contains("Ready") && !nodes.contains("NotReady"), "{nodes}");
    Ok(())
}

fn deploys_the_demo(host: &Host) -> Result<()> {
    host.import(&["nginx", "mariadb", "demo-app-v1", "demo-app-v2"])?;
    let manifest = workspace().join("examples/demo/demo.yaml");
    let urls = host.dhow(&["deploy", manifest.to_str().context("path")?])?;
    let url = urls.lines().next().context("deploy printed no URL")?;
    // Applied again by kubectl, nothing is left to do; only a secret's `stringData` always looks new to kubectl.
    let applied = host.kubectl(&["apply", "-f", manifest.to_str().context("path")?])?;
    let settled = |line: &str| line.ends_with(" unchanged") || line.starts_with("secret/");
    ensure!(applied.lines().count() > 8 && applied.lines().all(settled), "{applied}");
    let page = eventually(MINUTE, || host.curl(&[url]))?;
    ensure!(page.contains("v1"), "{page}");
    host.curl(&["--data", "message=kept in the database", url])?;
    let page = host.curl(&[url])?;
    ensure!(page.contains("kept in the database"), "the row is not on the page: {page}");
    Ok(())
}

fn shows_it(host: &Host) -> Result<()> {
    let wide = host.kubectl(&["-n", "demo", "get", "pods", "-o", "wide"])?;
    ensure!(wide.contains("NODE") && wide.contains("e2e") && wide.contains("10.42.0."), "{wide}");
    let described = host.kubectl(&["-n", "demo", "describe", "pods", "-l", "app=demo-app"])?;
    for expected in ["Scheduled", "Pulled", "Created", "Started", "Ready"] {
        ensure!(described.contains(expected), "describe lacks {expected}: {described}");
    }
    Ok(())
}

fn follows_logs(host: &Host) -> Result<()> {
    let mut logs = host.spawn("kubectl", &["-n", "demo", "logs", "-f", "--tail=1", "deploy/nginx"])?;
    let output = logs.stdout.take().context("no output")?;
    host.curl(&[&format!("http://{HOST_IP}:30080/?seen-in-the-log")])?;
    let seen = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains("seen-in-the-log"));
    logs.kill()?;
    logs.wait()?;
    ensure!(seen, "the request was not in the followed log");
    // What the node refuses reaches the client in words.
    let refused = host.kubectl(&["-n", "demo", "logs", "--previous", "deploy/nginx"]).unwrap_err().to_string();
    ensure!(refused.contains("previous terminated container") && refused.contains("not found"), "{refused}");
    Ok(())
}

fn executes(host: &Host) -> Result<()> {
    // `script` gives kubectl the terminal that -it asks for.
    let typed = "kubectl -n demo exec -it deploy/demo-app -- sh -c 'tty; stty size; exit 7'";
    let output = host.command("script").args(["-qec", typed, "/dev/null"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("/dev/pts/") || text.contains("/dev/console"), "no terminal: {text}");
    ensure!(output.status.code() == Some(7), "exit code {:?} is not the child's: {text}", output.status.code());
    Ok(())
}

fn scales(host: &Host) -> Result<()> {
    host.kubectl(&["-n", "demo", "scale", "deploy/demo-app", "--replicas=5"])?;
    host.kubectl(&["-n", "demo", "rollout", "status", "deploy/demo-app", "--timeout=60s"])?;
    let deployment = host.get(&["-n", "demo", "get", "deploy", "demo-app"])?;
    ensure!(deployment["status"]["readyReplicas"] == 5, "{}", deployment["status"]);
    Ok(())
}

fn rolls_without_a_failed_request(host: &Host) -> Result<()> {
    let service = host.get(&["-n", "demo", "get", "service", "demo-app"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_owned();
    let port = service["spec"]["ports"][0]["port"].as_u64().context("no port")?;
    // Ends when the flag file appears; prints one line per failed request and the count at the end.
    let flag = host.run_dir().join("stop-load");
    let load = format!(
        "n=0; while [ ! -e {flag} ]; do curl -sf -o /dev/null --max-time 5 http://{address}:{port}/healthz || echo failed; \
         n=$((n+1)); done; echo requests=$n",
        flag = flag.display()
    );
    let loader = host.spawn("sh", &["-c", &load])?;
    let update = host
        .kubectl(&["-n", "demo", "set", "image", "deploy/demo-app", "app=docker.io/dhow/demo-app:v2"])
        .and_then(|_| host.kubectl(&["-n", "demo", "rollout", "status", "deploy/demo-app", "--timeout=120s"]));
    std::fs::write(&flag, "")?;
    let output = loader.wait_with_output()?;
    update?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("rolling update: {}", text.trim());
    ensure!(!text.contains("failed") && text.contains("requests="), "requests failed during the update: {text}");
    let page = host.curl(&[&format!("http://{HOST_IP}:30080/")])?;
    ensure!(page.contains("v2"), "{page}");
    Ok(())
}

fn undoes(host: &Host) -> Result<()> {
    host.kubectl(&["-n", "demo", "rollout", "undo", "deploy/demo-app"])?;
    host.kubectl(&["-n", "demo", "rollout", "status", "deploy/demo-app", "--timeout=120s"])?;
    let page = host.curl(&[&format!("http://{HOST_IP}:30080/")])?;
    ensure!(page.contains("v1") && page.contains("kept in the database"), "{page}");
    Ok(())
}

fn restarts_a_killed_container(host: &Host) -> Result<()> {
    let pod = host.get(&["-n", "demo", "get", "pods", "-l", "app=nginx"])?;
    let name = pod["items"][0]["metadata"]["name"].as_str().context("no pod")?.to_owned();
    host.kubectl(&["-n", "demo", "exec", &name, "--", "sh", "-c", "kill -QUIT 1"])?;
    eventually(MINUTE, || {
        let pod = host.get(&["-n", "demo", "get", "pod", &name])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 1 && status["ready"] == true, "{status}");
        Ok(())
    })?;
    eventually(MINUTE, || host.curl(&[&format!("http://{HOST_IP}:30080/")]))?;
    Ok(())
}

fn survives_kill_of_the_daemon(host: &Host) -> Result<()> {
    let before = containers(host)?;
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    let page = host.curl(&[&format!("http://{HOST_IP}:30080/")])?;
    ensure!(page.contains("kept in the database"), "{page}");
    host.dhow(&["up"])?;
    host.kubectl(&["-n", "demo", "rollout", "status", "deploy/demo-app", "--timeout=60s"])?;
    let after = containers(host)?;
    ensure!(after == before, "containers changed while the daemon was away: {before:#?} became {after:#?}");
    // The new daemon is in charge: a change is carried out.
    host.kubectl(&["-n", "demo", "scale", "deploy/demo-app", "--replicas=1"])?;
    host.kubectl(&["-n", "demo", "rollout", "status", "deploy/demo-app", "--timeout=60s"])?;
    host.curl(&[&format!("http://{HOST_IP}:30080/")])?;
    Ok(())
}

/// Ids and restart counts of all containers of the demo that are to stay.
fn containers(host: &Host) -> Result<Vec<String>> {
    let pods = host.get(&["-n", "demo", "get", "pods"])?;
    let mut all = Vec::new();
    for pod in pods["items"].as_array().context("no pods")? {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            all.push(format!("{} {}", status["containerID"], status["restartCount"]));
        }
    }
    all.sort();
    Ok(all)
}

fn deletes_everything(host: &Host) -> Result<()> {
    host.kubectl(&["delete", "namespace", "demo", "--timeout=90s"])?;
    let left = host.kubectl(&["get", "all", "-n", "demo"])?;
    ensure!(left.trim().is_empty(), "left over: {left}");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let ours: Vec<&str> = mounts.lines().filter(|line| line.contains(&*host.run_dir().to_string_lossy())).collect();
    ensure!(ours.is_empty(), "mounts left: {ours:?}");
    Ok(())
}

fn purges(host: &Host) -> Result<()> {
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}
