//! What keeps a cloud over the years: backups by schedule, bundles for support, upgrades, a restore on another machine.
//!
//! One test, because each step works on what the one before left, on one cloud.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_e2e::s3::S3;
use dhow_e2e::{Host, eventually, run};
use dhow_test_s3::SECRET_KEY;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);
/// Tells this test's processes from all others.
const NAP: &str = "100731";
const WORD: &str = "correct-horse-battery";
/// A backup that no schedule takes away.
const OBJECT: &str = "s3://dhow/elsewhere/dhow-20200101T000000Z.backup";

/// Two pods that sleep, one variable that should have been a Secret, and a word of one where it does not belong.
const WEB: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: words}
stringData:
  word: correct-horse-battery
  file: |
    user: somebody
    password: staple-in-the-second-line
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {note: "it is correct-horse-battery"}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: docker.io/library/busybox:latest
        imagePullPolicy: Never
        command: [sleep, "100731"]
        env:
        - {name: ADMIN_PASSWORD, value: only-in-a-variable}
        - {name: WORD, valueFrom: {secretKeyRef: {name: words, key: word}}}
"#;

#[test]
fn a_cloud_is_looked_after() {
    let mut host = Host::new().unwrap();
    let s3 = S3::start(&host).unwrap();
    starts(&mut host, &s3).unwrap();
    runs_what_was_pushed_into_a_bucket(&host, &s3).unwrap();
    makes_backups_by_schedule(&host).unwrap();
    tells_no_secret(&host).unwrap();
    changes_its_version_under_running_containers(&host).unwrap();
    comes_back_on_another_machine(&mut host, s3).unwrap();
}

fn backup_folder(host: &Host) -> PathBuf {
    host.folder().join("backups")
}

/// Writes the settings, with backups to this place.
fn set(host: &Host, s3: &S3, place: &str, to: Value) -> Result<PathBuf> {
    let config = host.folder().join("config.yaml");
    let mut backups = json!({"schedule": "@every 2s", "keep": 2});
    backups[place] = to;
    let mirror = json!({"mirrors": [{"endpoint": "registry.invalid"}], "username": "me", "password": "let-me-pull"});
    let registry = json!({"storage": {"s3": s3.settings("images")}});
    let registries = json!({"hosts": {"registry.invalid": mirror}});
    fs::write(&config, json!({"backups": backups, "registry": registry, "registries": registries}).to_string())?;
    Ok(config)
}

fn starts(host: &mut Host, s3: &S3) -> Result<()> {
    let config = set(host, s3, "folder", json!(backup_folder(host)))?;
    host.set("DHOW_CONFIG", config.to_str().context("path")?);
    host.dhow(&["up"])?;
    import(host)?;
    host.apply(WEB)?;
    host.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    Ok(())
}

/// The registry's blobs are objects, and so no files that an image store could share.
fn runs_what_was_pushed_into_a_bucket(host: &Host, s3: &S3) -> Result<()> {
    const IMAGE: &str = "198.18.0.1:5443/default/app:1";
    let project = "apiVersion: registry.dhow.io/v1alpha1\nkind: Project\nmetadata: {name: default}\n";
    eventually(MINUTE, || host.apply(project))?;
    eventually(MINUTE, || host.dhow(&["image", "push", "busybox", IMAGE]))?;
    let blobs: Vec<u64> = fs::read_dir(s3.objects("images/blobs/sha256"))?
        .map(|file| Ok(file?.metadata()?.len()))
        .collect::<Result<_>>()?;
    ensure!(blobs.len() >= 3 && blobs.iter().sum::<u64>() > 100_000, "{blobs:?}");
    host.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pushed}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{IMAGE}', imagePullPolicy: Always, command: [busybox, sleep, '1000']}}\n"
    ))?;
    host.kubectl(&["wait", "--for=condition=Ready", "pod/pushed", "--timeout=60s"])?;
    let doctor = host.dhow(&["doctor"])?;
    ensure!(doctor.contains("ok       registry: its bucket dhow answers"), "{doctor}");
    host.kubectl(&["delete", "pod", "pushed"])?;
    Ok(())
}

fn import(host: &Host) -> Result<()> {
    host.import(&["busybox"])
}

fn listed(host: &Host) -> Result<Vec<PathBuf>> {
    let list: Value = serde_json::from_str(&host.dhow(&["backup", "list", "-o", "json"])?)?;
    let files = list.as_array().context("no list")?.iter().map(|one| one["file"].as_str().map(PathBuf::from));
    files.collect::<Option<_>>().context("no file")
}

fn metric(host: &Host, name: &str) -> Result<f64> {
    let metrics = host.kubectl(&["get", "--raw", "/metrics"])?;
    let line = metrics.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

/// One at once, then by the schedule; the oldest go; a failure is told of and mends itself.
fn makes_backups_by_schedule(host: &Host) -> Result<()> {
    let first = eventually(MINUTE, || listed(host)?.pop().context("no backup yet"))?;
    eventually(MINUTE, || {
        let now = listed(host)?;
        ensure!(now.len() == 2 && !now.contains(&first) && !first.exists(), "{now:?}");
        Ok(())
    })?;
    for file in listed(host)? {
        // The oldest may be gone by now.
        if let Ok(described) = host.dhow(&["backup", "verify", "-o", "json", file.to_str().context("path")?]) {
            let described: Value = serde_json::from_str(&described)?;
            ensure!(described["entries"].as_u64() > Some(20) && described["keys"].as_u64() > Some(3), "{described}");
        }
    }
    ensure!(metric(host, "dhow_backups_total{result=\"success\"}")? >= 3.0);
    ensure!(metric(host, "dhow_backup_last_success_timestamp_seconds")? > 1e9);
    let doctor = host.dhow(&["doctor"])?;
    ensure!(doctor.contains("ok       backups: the newest one is of 20"), "{doctor}");

    // A file is where the folder was.
    let (folder, aside) = (backup_folder(host), host.folder().join("aside"));
    fs::rename(&folder, &aside)?;
    fs::write(&folder, "in the way")?;
    let said = eventually(MINUTE, || {
        let events = host.get(&["get", "events", "-n", "default"])?;
        let of = |event: &&Value| event["reason"] == "BackupFailed";
        let event = events["items"].as_array().and_then(|all| all.iter().find(of)).context("no event")?;
        Ok(event["message"].as_str().unwrap_or_default().to_owned())
    })?;
    ensure!(said.contains("backups"), "{said}");
    ensure!(metric(host, "dhow_backups_total{result=\"failure\"}")? >= 1.0);
    let doctor = host.dhow_command(&["doctor"]).output()?;
    ensure!(doctor.status.code() == Some(1), "{}", String::from_utf8_lossy(&doctor.stdout));
    fs::remove_file(&folder)?;
    fs::rename(&aside, &folder)?;
    Ok(())
}

/// Everything that proves or unlocks something in this cluster, by a name for the failure.
fn secrets(host: &Host) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let token = host.dhow(&["token", "create"])?;
    let token = token.trim();
    let token = token.split_once("::").map_or(token, |(_, rest)| rest);
    all.insert("a join token".into(), token.to_owned());
    let list = host.get(&["get", "secrets", "-A"])?;
    for secret in list["items"].as_array().context("no Secrets")? {
        let kind = secret["type"].as_str().unwrap_or_default();
        for (key, value) in secret["data"].as_object().into_iter().flatten() {
            if kind.starts_with("bootstrap") && key != "token-secret" {
                continue;
            }
            let encoded = value.as_str().unwrap_or_default();
            let name = format!("Secret {}/{key}", secret["metadata"]["name"]);
            all.insert(format!("{name}, encoded"), encoded.to_owned());
            all.insert(name, String::from_utf8(STANDARD.decode(encoded)?)?);
        }
    }
    all.insert("a line of a Secret".into(), "staple-in-the-second-line".into());
    all.insert("a variable".into(), "only-in-a-variable".into());
    all.insert("the bucket's secret key".into(), SECRET_KEY.into());
    all.insert("a password in the settings".into(), "let-me-pull".into());
    let token = host.kubectl(&["create", "token", "default"])?;
    all.insert("a service account's token".into(), token.trim().to_owned());
    for entry in fs::read_dir(host.data_dir().join("pki"))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_file() && !name.ends_with(".crt") {
            let text = fs::read_to_string(&path)?;
            let lines = text.lines().filter(|line| line.len() > 20 && !line.starts_with("-----"));
            all.extend(lines.enumerate().map(|(n, line)| (format!("{name}, line {n}"), line.to_owned())));
        }
    }
    let config: Value = serde_json::from_str(&host.kubectl(&["config", "view", "--raw", "-o", "json"])?)?;
    let key = config["users"][0]["user"]["client-key-data"].as_str().context("no key")?;
    all.insert("the administrator's key".into(), key.to_owned());
    Ok(all)
}

/// The bundle has what it should have and no secret, not even one that ran into an annotation or the log.
fn tells_no_secret(host: &Host) -> Result<()> {
    let secrets = secrets(host)?;
    ensure!(secrets.len() > 12, "{:?}", secrets.keys());
    let mut log = fs::OpenOptions::new().append(true).open(host.data_dir().join("dhow.log"))?;
    // What a variable holds is known by its name only, so it is found where variables are.
    for (_, secret) in secrets.iter().filter(|(name, _)| *name != "a variable") {
        writeln!(log, "by mistake: {secret}")?;
    }
    let file = host.folder().join("bundle.tar.gz");
    host.dhow(&["support-bundle", file.to_str().context("path")?])?;
    let unpacked = host.folder().join("bundle");
    fs::create_dir(&unpacked)?;
    run(Command::new("tar").args(["--strip-components=1", "-C"]).arg(&unpacked).arg("-xzf").arg(&file))?;
    let mut files = BTreeMap::new();
    read_all(&unpacked, "", &mut files)?;
    for (name, secret) in &secrets {
        for (file, text) in &files {
            ensure!(!text.contains(secret.trim()), "{name} is in {file}");
        }
    }
    for (file, part) in [
        ("README.txt", "doctor.txt"),
        ("settings.yaml", "[redacted]"),
        ("versions.yaml", "gitVersion: "),
        ("doctor.txt", "daemon: runs"),
        ("logs/dhow.log", "by mistake: [redacted]"),
        ("cluster/pods.yaml", "ADMIN_PASSWORD"),
        ("cluster/deployments.yaml", "it is [redacted]"),
        ("cluster/events.yaml", "BackupFailed"),
        ("cluster/secrets.yaml", "name: words"),
        ("cluster/nodes.yaml", "name: e2e"),
        ("metrics/server.txt", "dhow_backups_total"),
        ("metrics/nodes/e2e.txt", "kubelet_running_containers"),
        ("machine/nftables.txt", "table inet dhow"),
        ("machine/routes.txt", "10.42."),
        ("machine/mounts.txt", "cgroup"),
        ("machine/control-groups.txt", "dhow-"),
        ("machine/processes.txt", "sandbox-shim"),
        ("machine/data-sizes.txt", "store/"),
    ] {
        let text = files.get(file).with_context(|| format!("{file} is missing: {:?}", files.keys()))?;
        ensure!(text.contains(part), "{file} lacks {part}: {}", text.chars().take(2000).collect::<String>());
    }
    // It works with nothing but a kubeconfig, and says what it could not see.
    ensure!(files.get("missing.txt").is_none_or(|text| !text.contains("cluster/")));
    Ok(())
}

fn read_all(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let name = format!("{prefix}{}", entry.file_name().display());
        if entry.path().is_dir() {
            read_all(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.insert(name, String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
        }
    }
    Ok(())
}

/// The test is the service manager: it starts what the unit says, and waits until that is ready.
struct Service {
    child: Child,
}

impl Service {
    fn start(host: &Host, unit: &Path) -> Result<Self> {
        let text = fs::read_to_string(unit)?;
        let command = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("no ExecStart")?;
        let mut words = command.split(' ');
        let socket = host.folder().join("notify");
        let _ = fs::remove_file(&socket);
        let notified = UnixDatagram::bind(&socket)?;
        notified.set_read_timeout(Some(MINUTE))?;
        let log = fs::OpenOptions::new().append(true).create(true).open(host.data_dir().join("dhow.log"))?;
        let mut command = host.command(words.next().context("no program")?);
        command.args(words).env("NOTIFY_SOCKET", &socket).stdout(Stdio::null()).stderr(log);
        let child = command.spawn()?;
        let mut message = [0; 64];
        let length = notified.recv(&mut message).context("wait for readiness")?;
        ensure!(message[..length].starts_with(b"READY=1"), "{}", String::from_utf8_lossy(&message[..length]));
        Ok(Self { child })
    }

    /// `KillMode=process`: the daemon alone is asked to end.
    fn stop(mut self) -> Result<()> {
        run(Command::new("kill").arg(self.child.id().to_string()))?;
        ensure!(self.child.wait()?.success(), "the daemon failed at its end");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ids and restart counts of all containers with the time their processes began, and these processes' ids.
fn containers(host: &Host) -> Result<(Vec<String>, String)> {
    let pods = host.get(&["get", "pods", "-l", "app=web"])?;
    let mut all = Vec::new();
    for pod in pods["items"].as_array().context("no pods")? {
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["ready"] == true, "{pod}");
        let started = &status["state"]["running"]["startedAt"];
        all.push(format!("{} {} {started}", status["containerID"], status["restartCount"]));
    }
    all.sort();
    let processes = run(Command::new("pgrep").args(["-x", "-f", &format!("sleep {NAP}")]))?;
    ensure!(processes.lines().count() == all.len(), "{processes} {all:?}");
    Ok((all, processes))
}

fn server_version(host: &Host) -> Result<String> {
    let versions: Value = serde_json::from_str(&host.dhow(&["version", "-o", "json"])?)?;
    Ok(versions["server"]["gitVersion"].as_str().context("no version")?.to_owned())
}

/// A copy of the program with another version in it, of the same length.
fn another_version(host: &Host) -> Result<(PathBuf, String, String)> {
    let now = run(Command::new(host.binary()).arg("--version"))?;
    let now = now.trim().rsplit(' ').next().context("no version")?.to_owned();
    let (head, last) = now.split_at(now.len() - 1);
    let next = format!("{head}{}", if last == "9" { "8" } else { "9" });
    let copy = host.folder().join("dhow-next");
    fs::copy(host.binary(), &copy)?;
    let change = format!("s/{}/{next}/g", now.replace('.', r"\."));
    run(Command::new("sed").env("LC_ALL", "C").args(["-i", &change]).arg(&copy))?;
    let said = run(Command::new(&copy).arg("--version"))?;
    ensure!(said.trim() == format!("dhow {next}"), "{said}");
    Ok((copy, now, next))
}

fn changes_its_version_under_running_containers(host: &Host) -> Result<()> {
    let before = containers(host)?;
    let (next_binary, now, next) = another_version(host)?;
    let (binary, unit) = (host.folder().join("installed"), host.folder().join("dhow.service"));
    let install = |program: &Path| -> Result<()> {
        let mut command = host.command(program);
        command.args(["install", "--no-start", "--binary"]).arg(&binary).arg("--unit").arg(&unit);
        run(&mut command).map(drop)
    };
    install(host.binary())?;
    run(Command::new("kill").arg(host.daemon_pid()?.to_string()))?;
    eventually(MINUTE, || if host.run_dir().join("dhow.pid").exists() { bail!("it still runs") } else { Ok(()) })?;
    let service = Service::start(host, &unit)?;
    ensure!(containers(host)? == before, "containers changed as systemd took over");
    ensure!(server_version(host)?.ends_with(&now));

    install(&next_binary)?;
    service.stop()?;
    let service = Service::start(host, &unit)?;
    ensure!(server_version(host)?.ends_with(&next), "{}", server_version(host)?);
    ensure!(containers(host)? == before, "containers changed in the upgrade");
    // The new daemon is in charge of the old one's pods, and makes new ones.
    host.kubectl(&["scale", "deployment/web", "--replicas=3"])?;
    host.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let grown = containers(host)?;
    ensure!(before.0.iter().all(|container| grown.0.contains(container)), "{before:?} {grown:?}");
    let word = host.dhow(&["exec", "web", "--", "sh", "-c", "echo $WORD"])?;
    ensure!(word.trim() == WORD, "{word}");
    // Of the backups that were due meanwhile one is made up for.
    eventually(MINUTE, || {
        ensure!(metric(host, "dhow_backups_total{result=\"success\"}")? >= 1.0);
        Ok(())
    })?;

    // Back to what was kept.
    let mut kept = binary.clone().into_os_string();
    kept.push(".previous");
    install(Path::new(&kept))?;
    service.stop()?;
    let service = Service::start(host, &unit)?;
    ensure!(server_version(host)?.ends_with(&now));
    ensure!(containers(host)? == grown, "containers changed on the way back");
    host.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
    eventually(MINUTE, || {
        ensure!(containers(host)?.0.len() == 2);
        Ok(())
    })?;
    service.stop()
}

/// As in a folder: one at once, then by the schedule, the oldest go, and a failure is told of.
fn makes_backups_in_a_bucket(host: &Host, s3: S3) -> Result<S3> {
    let first = eventually(MINUTE, || listed(host)?.pop().context("no backup yet"))?;
    ensure!(first.starts_with("s3://dhow/backups"), "{}", first.display());
    eventually(MINUTE, || {
        let now = listed(host)?;
        ensure!(now.len() == 2 && !now.contains(&first), "{now:?}");
        Ok(())
    })?;
    ensure!(metric(host, "dhow_backups_total{result=\"success\"}")? >= 3.0);
    let doctor = host.dhow(&["doctor"])?;
    ensure!(doctor.contains("ok       backups: the newest one is of 20"), "{doctor}");
    host.dhow(&["backup", "create", OBJECT])?;
    let described: Value = serde_json::from_str(&host.dhow(&["backup", "verify", "-o", "json", OBJECT])?)?;
    ensure!(described["entries"].as_u64() > Some(20) && described["keys"].as_u64() > Some(3), "{described}");
    let elsewhere = host.dhow(&["backup", "list", "s3://dhow/elsewhere"])?;
    ensure!(elsewhere.lines().count() == 2 && elsewhere.contains(OBJECT), "{elsewhere}");

    drop(s3);
    eventually(MINUTE, || {
        ensure!(metric(host, "dhow_backups_total{result=\"failure\"}")? >= 1.0);
        let events = host.kubectl(&["get", "events", "-A", "--field-selector", "reason=BackupFailed"])?;
        ensure!(events.contains("s3://dhow/") && events.contains("cannot be reached"), "{events}");
        Ok(())
    })?;
    let doctor = host.dhow_command(&["doctor"]).output()?;
    let says = String::from_utf8_lossy(&doctor.stdout);
    ensure!(doctor.status.code() == Some(1) && says.contains("backups: they cannot be listed"), "{says}");
    let s3 = S3::start(host)?;
    let left = fs::read_dir(s3.objects("backups/.uploads")).map_or(0, Iterator::count);
    ensure!(left == 0, "{left} uploads are left");
    Ok(s3)
}

fn comes_back_on_another_machine(host: &mut Host, s3: S3) -> Result<()> {
    set(host, &s3, "s3", s3.settings("backups"))?;
    host.dhow(&["up"])?;
    let _s3 = makes_backups_in_a_bucket(host, s3)?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()?;
    host.set("DHOW_NODE_NAME", "another");
    host.dhow(&["backup", "restore", OBJECT])?;
    host.dhow(&["up"])?;
    import(host)?;
    // The machine that was is no more; its pods are made anew on this one.
    host.kubectl(&["delete", "node", "e2e"])?;
    eventually(MINUTE, || {
        let pods = host.get(&["get", "pods", "-l", "app=web"])?;
        let pods = pods["items"].as_array().context("no pods")?;
        let here = |pod: &Value| {
            pod["spec"]["nodeName"] == "another" && pod["status"]["containerStatuses"][0]["ready"] == true
        };
        ensure!(pods.len() == 2 && pods.iter().all(here), "{pods:#?}");
        Ok(())
    })?;
    let word = host.dhow(&["exec", "web", "--", "sh", "-c", "echo $WORD"])?;
    ensure!(word.trim() == WORD, "{word}");
    host.dhow(&["doctor"])?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}
