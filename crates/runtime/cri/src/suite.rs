//! What every [`Runtime`] must do, as tests that each backend runs against real containers.
//!
//! A case gets a [`Stage`] of its own: an empty runtime that knows one image with a shell.

mod images;
mod logs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Runtime;
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, ExecRequest, ImageAuth, Mount, MountPropagation, NamespaceMode,
    NamespaceOptions, PodIdentity, Resources, RuntimeEventKind, SandboxConfig, SandboxState, SeccompProfile,
    SecurityContext,
};

/// Where a case plays.
pub struct Stage {
    pub runtime: Arc<dyn Runtime>,
    /// An image with busybox' shell and applets, and a user `nobody`.
    pub image: String,
    /// Empty folder for logs and volumes.
    pub scratch: PathBuf,
    /// An image with a shell in a registry that wants a password.
    pub private_image: Option<PrivateImage>,
    /// What runtime class the sandboxes are of; empty is the default.
    pub handler: String,
    /// Opens the same runtime anew, knowing only what is on disk, as a restarted daemon does.
    pub reopen: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Runtime>> + Send + Sync>,
}

/// An image, and who may pull it.
#[derive(Clone)]
pub struct PrivateImage {
    pub reference: String,
    pub auth: ImageAuth,
}

/// An error that fails a case.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome = Result<(), Failure>;
pub type Case = for<'a> fn(&'a mut Stage) -> BoxFuture<'a, Outcome>;

/// All cases by name.
pub const CASES: &[(&str, Case)] = &[
    ("runs_to_the_end", |s| runs_to_the_end(s).boxed()),
    ("reports_what_cannot_run", |s| reports_what_cannot_run(s).boxed()),
    ("stops_politely_then_by_force", |s| stops_politely_then_by_force(s).boxed()),
    ("separates_streams_in_the_log", |s| separates_streams_in_the_log(s).boxed()),
    ("executes_beside", |s| executes_beside(s).boxed()),
    ("executes_in_a_terminal", |s| executes_in_a_terminal(s).boxed()),
    ("ends_commands_that_take_too_long", |s| ends_commands_that_take_too_long(s).boxed()),
    ("attaches", |s| attaches(s).boxed()),
    ("attaches_to_look_on", |s| attaches_to_look_on(s).boxed()),
    ("forwards_ports", |s| forwards_ports(s).boxed()),
    ("mounts_volumes", |s| mounts_volumes(s).boxed()),
    ("confines", |s| confines(s).boxed()),
    ("runs_as_whom_it_is_told", |s| runs_as_whom_it_is_told(s).boxed()),
    ("limits_memory", |s| limits_memory(s).boxed()),
    ("shares_processes_in_a_pod", |s| shares_processes_in_a_pod(s).boxed()),
    ("attaches_to_a_terminal", |s| attaches_to_a_terminal(s).boxed()),
    ("writes_the_log_format", |s| logs::writes_the_log_format(s).boxed()),
    ("goes_on_in_a_new_log", |s| logs::goes_on_in_a_new_log(s).boxed()),
    ("counts_what_is_used", |s| logs::counts_what_is_used(s).boxed()),
    ("changes_limits", |s| logs::changes_limits(s).boxed()),
    ("pulls_with_credentials", |s| images::pulls_with_credentials(s).boxed()),
    ("survives_the_daemon", |s| survives_the_daemon(s).boxed()),
    ("removes_without_a_trace", |s| removes_without_a_trace(s).boxed()),
];

fn ensure(ok: bool, message: impl FnOnce() -> String) -> Outcome {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn sandbox(stage: &Stage) -> SandboxConfig {
    SandboxConfig {
        pod: PodIdentity { namespace: "default".into(), name: "pod".into(), uid: "uid-1".into(), attempt: 0 },
        hostname: "pod".into(),
        log_directory: stage.scratch.join("logs"),
        dns: Some(crate::runtime::DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        port_mappings: Vec::new(),
        labels: BTreeMap::from([("app".into(), "test".into())]),
        annotations: BTreeMap::new(),
        namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
        sysctls: BTreeMap::new(),
        cgroup_parent: "kubepods/besteffort/poduid-1".into(),
        runtime_handler: stage.handler.clone(),
    }
}

fn container(stage: &Stage, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        attempt: 0,
        image: stage.image.clone(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        args: Vec::new(),
        working_dir: None,
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: "main/0.log".into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources::default(),
        security: SecurityContext::default(),
        ..ContainerConfig::default()
    }
}

/// A folder of the host's, writable.
fn mount(host_path: &Path, container_path: &str) -> Mount {
    Mount { host_path: host_path.to_owned(), container_path: container_path.into(), ..Mount::default() }
}

async fn start(stage: &Stage, sandbox: &str, config: ContainerConfig) -> Result<String, Failure> {
    let id = stage.runtime.create_container(sandbox, config).await?;
    stage.runtime.start_container(&id).await?;
    Ok(id)
}

/// Waits, by events, until the container has ended.
async fn ended(stage: &Stage, id: &str) -> Result<ContainerStatus, Failure> {
    let mut events = stage.runtime.events();
    let wait = async {
        loop {
            let status = stage.runtime.container_status(id).await?;
            if status.state == ContainerState::Exited {
                return Ok::<_, Failure>(status);
            }
            events.next().await.ok_or("the events ended")?;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await?
}

/// The container's log without times, one `stream tag text` a line.
fn log(status: &ContainerStatus) -> String {
    let text = std::fs::read_to_string(&status.log_path).unwrap_or_default();
    text.lines().filter_map(|line| Some(format!("{}\n", line.split_once(' ')?.1))).collect()
}

/// What a script prints, and how it ends.
async fn run(stage: &Stage, config: ContainerConfig) -> Result<(ContainerStatus, String), Failure> {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let id = start(stage, &pod, config).await?;
    let status = ended(stage, &id).await?;
    let text = log(&status);
    stage.runtime.remove_sandbox(&pod).await?;
    Ok((status, text))
}

async fn runs_to_the_end(stage: &mut Stage) -> Outcome {
    let runtime = &stage.runtime;
    let mut events = runtime.events();
    let pod = runtime.run_sandbox(sandbox(stage)).await?;
    let status = runtime.sandbox_status(&pod).await?;
    ensure(status.state == SandboxState::Ready && status.labels["app"] == "test", || format!("{status:?}"))?;
    let mut config = container(stage, "hostname; cat /etc/resolv.conf; echo $GREETING; pwd; exit 3");
    config.envs = vec![("GREETING".into(), "hello".into())];
    config.working_dir = Some("/new/folder".into());
    let id = runtime.create_container(&pod, config).await?;
    let status = runtime.container_status(&id).await?;
    ensure(status.state == ContainerState::Created && status.started_at.is_none(), || format!("{status:?}"))?;
    runtime.start_container(&id).await?;
    let status = ended(stage, &id).await?;
    ensure(status.exit_code == 3 && status.reason == "Error", || format!("{status:?}"))?;
    ensure(status.finished_at >= status.started_at && status.started_at >= Some(status.created_at), || {
        format!("{status:?}")
    })?;
    let text = log(&status);
    for expected in
        ["F pod\n", "F nameserver 10.43.0.10\n", "F search default.svc.cluster.local\n", "F hello\n", "F /new/folder\n"]
    {
        ensure(text.contains(expected), || format!("{expected:?} is not in {text}"))?;
    }
    let mut kinds = Vec::new();
    while kinds.last() != Some(&(id.clone(), RuntimeEventKind::Exited)) {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await?.ok_or("the events ended")?;
        kinds.push((event.container_id, event.kind));
    }
    ensure(kinds.contains(&(id.clone(), RuntimeEventKind::Started)), || format!("{kinds:?}"))?;
    runtime.remove_container(&id).await?;
    runtime.remove_sandbox(&pod).await?;
    Ok(())
}

async fn reports_what_cannot_run(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(stage, "");
    config.command = vec!["no-such-program".into()];
    let id = stage.runtime.create_container(&pod, config).await?;
    match stage.runtime.start_container(&id).await {
        Err(crate::Error::CannotRun(message)) => ensure(message.contains("no-such-program"), || message)?,
        other => return Err(format!("expected CannotRun, got {other:?}").into()),
    }
    let status = ended(stage, &id).await?;
    ensure(status.exit_code == 128 && status.message.contains("no-such-program"), || format!("{status:?}"))?;
    let mut config = container(stage, "true");
    config.attempt = 1;
    config.image = "docker.io/library/never-pulled:latest".into();
    ensure(
        matches!(stage.runtime.create_container(&pod, config).await, Err(crate::Error::NotFound { kind: "image", .. })),
        || "a missing image must be NotFound".into(),
    )?;
    for result in [stage.runtime.start_container("none").await, stage.runtime.container_status("none").await.map(drop)]
    {
        ensure(matches!(result, Err(crate::Error::NotFound { .. })), || format!("{result:?}"))?;
    }
    // Ends of what does not exist succeed.
    stage.runtime.stop_container("none", Duration::ZERO).await?;
    stage.runtime.remove_container("none").await?;
    stage.runtime.stop_sandbox("none").await?;
    Ok(stage.runtime.remove_sandbox("none").await?)
}

async fn stops_politely_then_by_force(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let polite =
        start(stage, &pod, container(stage, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1 & wait; done"))
            .await?;
    let mut config = container(stage, "trap '' TERM; while :; do sleep 1; done");
    config.name = "stubborn".into();
    config.log_path = "stubborn/0.log".into();
    let stubborn = start(stage, &pod, config).await?;
    wait_for_line(stage, &polite, "up").await?;
    stage.runtime.stop_container(&polite, Duration::from_secs(20)).await?;
    let status = stage.runtime.container_status(&polite).await?;
    ensure(status.exit_code == 5 && log(&status).contains("bye"), || format!("{status:?}"))?;
    stage.runtime.stop_container(&stubborn, Duration::from_millis(200)).await?;
    let status = stage.runtime.container_status(&stubborn).await?;
    ensure(status.exit_code == 137 && status.state == ContainerState::Exited, || format!("{status:?}"))
}

/// Waits until the log holds a line; logs have no events, so it looks again.
async fn wait_for_line(stage: &Stage, id: &str, line: &str) -> Outcome {
    for _ in 0..600 {
        let status = stage.runtime.container_status(id).await?;
        if log(&status).contains(&format!("F {line}\n")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("{line:?} never came").into())
}

async fn separates_streams_in_the_log(stage: &mut Stage) -> Outcome {
    let (_, text) = run(stage, container(stage, "echo out; echo err >&2; printf rest")).await?;
    for expected in ["stdout F out\n", "stderr F err\n", "stdout P rest\n"] {
        ensure(text.contains(expected), || format!("{expected:?} is not in {text}"))?;
    }
    Ok(())
}

async fn executes_beside(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let id = start(stage, &pod, container(stage, "sleep 1000")).await?;
    let command = |text: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
    let result = stage.runtime.exec_sync(&id, &command("echo $$ $0; echo oh >&2; exit 4"), None).await?;
    ensure(result.exit_code == 4 && result.stderr == b"oh\n", || format!("{result:?}"))?;
    let error = stage.runtime.exec_sync(&id, &["nothing-here".into()], None).await;
    ensure(matches!(error, Err(crate::Error::CannotRun(_))), || format!("{error:?}"))?;
    // Processes beside the first one are under the same filter and without new rights.
    let status =
        stage.runtime.exec_sync(&id, &command("grep -E '^(Seccomp|CapEff|CapBnd):' /proc/self/status"), None).await?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure(text.contains("Seccomp:\t2"), || text.clone())?;
    let request = ExecRequest { command: command("cat; exit 9"), tty: false, stdin: true, stdout: true, stderr: true };
    let mut streams = stage.runtime.exec(&id, request).await?;
    let mut stdin = streams.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"through and back").await?;
    stdin.shutdown().await?;
    drop(stdin);
    let mut output = String::new();
    streams.stdout.take().ok_or("no stdout")?.read_to_string(&mut output).await?;
    ensure(output == "through and back", || output.clone())?;
    let code = streams.exit.await??;
    ensure(code == 9, || format!("exit code {code}"))
}

async fn executes_in_a_terminal(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let id = start(stage, &pod, container(stage, "sleep 1000")).await?;
    // The size goes its own way, so the program waits for it.
    let script = "tty; until test \"$(stty size)\" = '45 123'; do sleep 0.05; done; read line; echo got $line; exit 6";
    let command = vec!["/bin/sh".into(), "-c".into(), script.into()];
    let request = ExecRequest { command, tty: true, stdin: true, stdout: true, stderr: false };
    let mut streams = stage.runtime.exec(&id, request).await?;
    streams.resize.as_ref().ok_or("no resize")?.send((123, 45)).await?;
    let mut stdin = streams.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"typed\n").await?;
    let mut output = String::new();
    streams.stdout.take().ok_or("no stdout")?.read_to_string(&mut output).await?;
    for expected in ["/dev/pts/", "got typed"] {
        ensure(output.contains(expected), || format!("{expected:?} is not in {output:?}"))?;
    }
    let code = streams.exit.await??;
    ensure(code == 6, || format!("exit code {code}"))
}

async fn ends_commands_that_take_too_long(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let id = start(stage, &pod, container(stage, "sleep 1000")).await?;
    let limit = Some(Duration::from_millis(200));
    let result = stage.runtime.exec_sync(&id, &["sleep".into(), "777".into()], limit).await;
    ensure(matches!(result, Err(crate::Error::DeadlineExceeded(_))), || format!("{result:?}"))?;
    let check = vec!["/bin/sh".into(), "-c".into(), "ps | grep -v grep | grep -c 'sleep 777'".into()];
    let left = stage.runtime.exec_sync(&id, &check, None).await?;
    ensure(left.stdout == b"0\n", || "the command goes on".into())
}

async fn attaches(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(stage, "read line; echo heard $line; exit 2");
    config.stdin = true;
    config.stdin_once = true;
    let id = start(stage, &pod, config).await?;
    let mut streams = stage.runtime.attach(&id, true).await?;
    streams.stdin.take().ok_or("no stdin")?.write_all(b"you\n").await?;
    let mut output = String::new();
    streams.stdout.take().ok_or("no stdout")?.read_to_string(&mut output).await?;
    ensure(output == "heard you\n", || output.clone())?;
    let code = streams.exit.await??;
    ensure(code == 2, || format!("exit code {code}"))
}

async fn attaches_to_look_on(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(stage, "read line; echo heard $line; exit 3");
    config.stdin = true;
    config.stdin_once = true;
    let id = start(stage, &pod, config).await?;
    // Who only looks on takes nobody's input, and ends none.
    let watching = stage.runtime.attach(&id, false).await?;
    ensure(watching.stdin.is_none(), || "input that was not asked for".into())?;
    let mut writing = stage.runtime.attach(&id, true).await?;
    writing.stdin.take().ok_or("no stdin")?.write_all(b"you\n").await?;
    for streams in [watching, writing] {
        let mut output = String::new();
        streams.stdout.ok_or("no stdout")?.read_to_string(&mut output).await?;
        ensure(output == "heard you\n", || output.clone())?;
        let code = streams.exit.await??;
        ensure(code == 3, || format!("exit code {code}"))?;
    }
    Ok(())
}

async fn attaches_to_a_terminal(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(
        stage,
        "until test \"$(stty size)\" = '33 99'; do sleep 0.05; done; read line; echo heard $line; exit 4",
    );
    config.stdin = true;
    config.tty = true;
    let id = start(stage, &pod, config).await?;
    let mut streams = stage.runtime.attach(&id, true).await?;
    ensure(streams.stderr.is_none(), || "a terminal has one stream".into())?;
    streams.resize.as_ref().ok_or("no resize")?.send((99, 33)).await?;
    streams.stdin.as_mut().ok_or("no stdin")?.write_all(b"you\n").await?;
    let mut output = String::new();
    streams.stdout.take().ok_or("no stdout")?.read_to_string(&mut output).await?;
    ensure(output.contains("heard you"), || output.clone())?;
    let code = streams.exit.await??;
    ensure(code == 4, || format!("exit code {code}"))
}

async fn forwards_ports(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let id = start(stage, &pod, container(stage, "echo up; while :; do nc -l -p 8080 -e /bin/cat; done")).await?;
    wait_for_line(stage, &id, "up").await?;
    let mut answer = Err("the port never answered".into());
    for _ in 0..100 {
        answer = through(stage, &pod, 8080).await;
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    answer?;
    let refused = through(stage, &pod, 9).await;
    ensure(refused.is_err(), || "a port where nobody listens answered".into())
}

/// Sends something through a forwarded connection and hears it again.
async fn through(stage: &Stage, pod: &str, port: u16) -> Outcome {
    let mut connection = stage.runtime.port_forward(pod, port).await?;
    connection.write_all(b"ping").await?;
    let mut answer = [0; 4];
    connection.read_exact(&mut answer).await?;
    ensure(&answer == b"ping", || format!("{answer:?}"))
}

async fn mounts_volumes(stage: &mut Stage) -> Outcome {
    let folder = stage.scratch.join("volume");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("given"), "from outside\n")?;
    let mut config = container(
        stage,
        "cat /data/deep/given; echo back > /data/deep/made; echo no > /fixed/x || echo refused; cat /one-file",
    );
    let mount = |host: PathBuf, path: &str, readonly| Mount {
        host_path: host,
        container_path: path.into(),
        readonly,
        propagation: MountPropagation::Private,
        ..Mount::default()
    };
    config.mounts = vec![
        mount(folder.clone(), "/data/deep", false),
        mount(folder.clone(), "/fixed", true),
        mount(folder.join("given"), "/one-file", true),
    ];
    let (status, text) = run(stage, config).await?;
    ensure(status.exit_code == 0, || format!("{status:?} {text}"))?;
    ensure(text.matches("from outside").count() == 2 && text.contains("refused"), || text.clone())?;
    ensure(std::fs::read_to_string(folder.join("made"))? == "back\n", || "nothing came back".into())
}

/// Attempts to get out or to do harm; each must fail.
async fn confines(stage: &mut Stage) -> Outcome {
    let attempts = [
        ("mount", "mount -t tmpfs none /mnt"),
        ("write to /proc/sys", "echo 1 > /proc/sys/kernel/panic"),
        ("write to /sys", "echo 1 > /sys/kernel/mm/ksm/run"),
        ("trigger sysrq", "echo b > /proc/sysrq-trigger"),
        ("read kernel memory", "test -s /proc/kcore && head -c1 /proc/kcore | grep -q ."),
        ("set the host name", "hostname other"),
        ("make a disk device and use it", "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk | wc -c | grep -q 1"),
        ("take a new namespace", "unshare -m true"),
        (
            "write the cgroup tree",
            "mkdir /sys/fs/cgroup/memory/x || { test -e /sys/fs/cgroup/cgroup.procs && mkdir /sys/fs/cgroup/x; }",
        ),
        ("see the host's processes", "test $(ls -d /proc/[0-9]* | wc -l) -gt 10"),
        ("leave by an open folder", "ls /proc/self/fd/ | grep -vE '^[0-3]$' | grep -q ."),
        (
            "change the runtime's binary",
            "for p in /proc/[0-9]*; do echo x 2>/dev/null >> $p/exe && exit 0; done; exit 1",
        ),
        ("set the clock", "date -s 2000-01-01; test $(date +%Y) = 2000"),
    ];
    let script: String = attempts
        .iter()
        .map(|(name, attempt)| format!("( {attempt} ) >/dev/null 2>&1 && echo 'done: {name}'\n"))
        .collect();
    let (status, text) =
        run(stage, container(stage, &format!("{script}\ngrep -E '^(Seccomp|NoNewPrivs):' /proc/self/status"))).await?;
    ensure(status.exit_code == 0 && text.contains("Seccomp:\t2"), || format!("{status:?} {text}"))?;
    ensure(!text.contains("done: "), || text.clone())?;
    // A profile is the machine's file: the container has none of that name.
    let profile = stage.scratch.join("profile.json");
    let denied = r#"{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}"#;
    std::fs::write(&profile, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{denied}]}}"#))?;
    let mut config = container(stage, "touch /tmp/x; chmod 400 /tmp/x || echo denied");
    config.security.seccomp = SeccompProfile::Localhost(profile);
    let (status, text) = run(stage, config).await?;
    ensure(text.contains("F denied\n"), || format!("{status:?} {text}"))
}

async fn runs_as_whom_it_is_told(stage: &mut Stage) -> Outcome {
    let mut config = container(stage, "id -u; id -g; id -G; touch /refused || echo no");
    config.security.run_as_username = Some("nobody".into());
    config.security.supplemental_groups = vec![4242];
    config.security.no_new_privs = true;
    let (_, text) = run(stage, config).await?;
    ensure(text.contains("F 65534\n") && text.contains("4242") && text.contains("F no\n"), || text.clone())?;
    let mut config = container(stage, "id -u; grep CapEff /proc/self/status; touch /x || echo readonly; touch /tmp/x");
    config.security.run_as_user = Some(0);
    config.security.drop_capabilities = vec!["ALL".into()];
    config.security.readonly_rootfs = true;
    let (_, text) = run(stage, config).await?;
    ensure(text.contains("CapEff:\t0000000000000000") && text.contains("F readonly\n"), || text.clone())
}

async fn limits_memory(stage: &mut Stage) -> Outcome {
    let mut config = container(stage, "a=x; while :; do a=$a$a$a; done");
    config.resources.memory_limit = Some(16 << 20);
    let (status, _) = run(stage, config).await?;
    ensure(status.reason == "OOMKilled" && status.exit_code == 137, || format!("{status:?}"))
}

async fn shares_processes_in_a_pod(stage: &mut Stage) -> Outcome {
    let mut config = sandbox(stage);
    config.namespaces.pid = NamespaceMode::Pod;
    let pod = stage.runtime.run_sandbox(config).await?;
    start(stage, &pod, container(stage, "exec sleep 4321")).await?;
    let mut other = container(
        stage,
        "i=0; while ! ps | grep -v grep | grep -q 'sleep 4321'; do i=$((i+1)); test $i -lt 100 || exit 1; sleep 0.05; done; exit 0",
    );
    other.name = "other".into();
    other.log_path = "other/0.log".into();
    let id = start(stage, &pod, other).await?;
    let status = ended(stage, &id).await?;
    ensure(status.exit_code == 0, || format!("the other container's process is not seen: {}", log(&status)))?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

async fn survives_the_daemon(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let lasting = start(stage, &pod, container(stage, "echo up; sleep 1000")).await?;
    let mut config = container(stage, "echo begun; while [ ! -e /v/go ]; do sleep 0.05; done; exit 42");
    config.name = "ending".into();
    config.log_path = "ending/0.log".into();
    config.mounts = vec![mount(&stage.scratch, "/v")];
    let ending = start(stage, &pod, config).await?;
    wait_for_line(stage, &ending, "begun").await?;
    let before = stage.runtime.container_status(&lasting).await?;
    stage.runtime = (stage.reopen)().await;
    std::fs::write(stage.scratch.join("go"), "")?;
    let after = stage.runtime.container_status(&lasting).await?;
    ensure(after.state == ContainerState::Running && after.started_at == before.started_at, || format!("{after:?}"))?;
    let status = ended(stage, &ending).await?;
    ensure(status.exit_code == 42, || format!("{status:?}"))?;
    let result = stage.runtime.exec_sync(&lasting, &["echo".into(), "still".into()], None).await?;
    ensure(result.stdout == b"still\n", || format!("{result:?}"))?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

async fn removes_without_a_trace(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    for attempt in 0..3 {
        let mut config = container(stage, "sleep 1000 & sleep 1000 & wait");
        config.attempt = attempt;
        let id = start(stage, &pod, config).await?;
        stage.runtime.remove_container(&id).await?;
    }
    let id = start(stage, &pod, container(stage, "sleep 1000")).await?;
    let namespace = stage.runtime.exec_sync(&id, &["readlink".into(), "/proc/self/ns/net".into()], None).await?;
    let namespace = String::from_utf8(namespace.stdout)?.trim().to_owned();
    ensure(in_use(&namespace)?, || format!("{namespace} is not in use"))?;
    stage.runtime.remove_sandbox(&pod).await?;
    ensure(stage.runtime.list_sandboxes().await?.is_empty(), || "a sandbox is left".into())?;
    ensure(stage.runtime.list_containers().await?.is_empty(), || "a container is left".into())?;
    ensure(!in_use(&namespace)?, || "a process of the sandbox is left".into())?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure(!mounts.contains(&pod), || format!("a mount is left: {mounts}"))
}

/// Whether any process of this machine is in the network namespace.
fn in_use(namespace: &str) -> Result<bool, Failure> {
    let links =
        std::fs::read_dir("/proc")?.flatten().filter_map(|entry| std::fs::read_link(entry.path().join("ns/net")).ok());
    Ok(links.into_iter().any(|link| link.to_string_lossy() == namespace))
}
