//! What the embedded runtime does beyond the suite that all runtimes share.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use dhow_cri::runtime::{
    ContainerConfig, ContainerState, Mount, MountPropagation, NamespaceMode, NamespaceOptions, PodIdentity, Resources,
    SandboxConfig, SecurityContext, UserNamespace,
};
use dhow_cri::suite::{Case, Failure, Outcome, Stage};
use futures::{FutureExt, StreamExt};

pub const CASES: &[(&str, Case)] = &[
    ("uses_sandboxes_made_ahead", |s| uses_sandboxes_made_ahead(s).boxed()),
    ("clears_sandboxes_that_waited", |s| clears_sandboxes_that_waited(s).boxed()),
    ("survives_a_waiting_sandbox_s_death", |s| survives_a_waiting_sandbox_s_death(s).boxed()),
    ("gives_pods_users_of_their_own", |s| gives_pods_users_of_their_own(s).boxed()),
    ("shares_mounts_with_the_host", |s| shares_mounts_with_the_host(s).boxed()),
    ("puts_full_logs_aside", |s| puts_full_logs_aside(s).boxed()),
    ("filters_what_runs_beside", |s| filters_what_runs_beside(s).boxed()),
    ("filters_32_bit_programs", |s| filters_32_bit_programs(s).boxed()),
];

fn ensure(ok: bool, message: impl FnOnce() -> String) -> Outcome {
    if ok { Ok(()) } else { Err(message().into()) }
}

fn sandbox(stage: &Stage, user: UserNamespace) -> SandboxConfig {
    SandboxConfig {
        pod: PodIdentity { namespace: "default".into(), name: "pod".into(), uid: "uid-1".into(), attempt: 0 },
        hostname: "pod".into(),
        log_directory: stage.scratch.join("logs"),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        namespaces: NamespaceOptions { pid: NamespaceMode::Container, user, ..NamespaceOptions::default() },
        sysctls: BTreeMap::new(),
        cgroup_parent: "kubepods/besteffort/poduid-1".into(),
        runtime_handler: String::new(),
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

fn mount(host: PathBuf, inside: &str, propagation: MountPropagation) -> Mount {
    Mount { host_path: host, container_path: inside.into(), propagation, ..Mount::default() }
}

/// Runs a container to its end; its exit code and what its log says.
async fn run(stage: &Stage, pod: &str, config: ContainerConfig) -> Result<(i32, String), Failure> {
    let mut events = stage.runtime.events();
    let id = stage.runtime.create_container(pod, config).await?;
    stage.runtime.start_container(&id).await?;
    loop {
        let status = stage.runtime.container_status(&id).await?;
        if status.state == ContainerState::Exited {
            let text = std::fs::read_to_string(&status.log_path)?;
            let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
            let text = lines.map(|line| format!("{line}\n")).collect();
            stage.runtime.remove_container(&id).await?;
            std::fs::remove_file(&status.log_path)?;
            return Ok((status.exit_code, text));
        }
        tokio::time::timeout(Duration::from_secs(30), events.next()).await?;
    }
}

/// Ids of sandboxes that have a shim but no record: those that wait.
fn waiting(stage: &Stage) -> Vec<String> {
    let folder = stage.scratch.parent().map(|folder| folder.join("sandboxes")).unwrap_or_default();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let waits = entries.filter(|entry| entry.path().join("shm").exists() && !entry.path().join("meta.json").exists());
    waits.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Waits, by the kernel's word, until as many sandboxes wait.
async fn until_waiting(stage: &Stage, count: usize) -> Outcome {
    let all_there = async {
        // What is looked at changes with processes and folders, which tell nobody; a test may look again.
        while waiting(stage).len() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_there)
        .await
        .map_err(|_| format!("waiting: {:?}", waiting(stage)))?;
    Ok(())
}

async fn uses_sandboxes_made_ahead(stage: &mut Stage) -> Outcome {
    until_waiting(stage, 2).await?;
    let before = waiting(stage);
    let pod = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Node)).await?;
    ensure(before.contains(&pod), || format!("{pod} is none of {before:?}"))?;
    let (code, text) =
        run(stage, &pod, container(stage, "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start")).await?;
    ensure(code == 0 && text == "pod\n0\n", || format!("{code}: {text}"))?;
    // The start of a container has another made.
    until_waiting(stage, 2).await?;
    // A pod that shares the host's network cannot use one.
    let mut config = sandbox(stage, UserNamespace::Node);
    config.pod.attempt = 1;
    config.namespaces.network = NamespaceMode::Node;
    let host = stage.runtime.run_sandbox(config).await?;
    ensure(waiting(stage).len() == 2 && !before.contains(&host), || format!("{host} was made ahead"))?;
    // More pods at once than sandboxes that wait.
    let mut pods = vec![pod, host];
    for attempt in 2..6 {
        let mut config = sandbox(stage, UserNamespace::Node);
        config.pod.attempt = attempt;
        pods.push(stage.runtime.run_sandbox(config).await?);
    }
    ensure(stage.runtime.list_sandboxes().await?.len() == pods.len(), || "a waiting sandbox was listed".into())?;
    for pod in pods {
        stage.runtime.remove_sandbox(&pod).await?;
    }
    Ok(())
}

async fn clears_sandboxes_that_waited(stage: &mut Stage) -> Outcome {
    until_waiting(stage, 2).await?;
    let before = waiting(stage);
    // A daemon that was killed leaves them; the next one makes its own.
    let next = (stage.reopen)().await;
    ensure(before.iter().all(|id| !waiting(stage).contains(id)), || "one is still there".into())?;
    stage.runtime = next;
    until_waiting(stage, 2).await
}

async fn survives_a_waiting_sandbox_s_death(stage: &mut Stage) -> Outcome {
    until_waiting(stage, 2).await?;
    for id in waiting(stage) {
        let pattern = format!("{id}$");
        std::process::Command::new("pkill").args(["-KILL", "-f", &pattern]).status()?;
    }
    let pod = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Node)).await?;
    let (code, text) = run(stage, &pod, container(stage, "echo it runs")).await?;
    ensure(code == 0 && text == "it runs\n", || format!("{code}: {text}"))?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

async fn gives_pods_users_of_their_own(stage: &mut Stage) -> Outcome {
    let volume = stage.scratch.join("volume");
    std::fs::create_dir_all(&volume)?;
    std::fs::set_permissions(&volume, PermissionsExt::from_mode(0o700))?;
    std::fs::write(volume.join("file"), "text\n")?;
    let first = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Pod)).await?;
    let mut config = sandbox(stage, UserNamespace::Pod);
    config.pod.attempt = 1;
    let second = stage.runtime.run_sandbox(config).await?;
    let script = "id -u; tr -s ' ' < /proc/self/uid_map; stat -c '%u %g' /bin/busybox /mnt/v/file /tmp; cat /mnt/v/file; \
                  echo new > /mnt/v/new; echo x > /dev/null; touch /made /dev/shm/made; chown 33 /made; stat -c %u /made; \
                  echo 5 > /proc/sys/net/ipv4/ip_default_ttl 2>/dev/null; ls -l /dev/stdout | wc -l; (echo x > /dev/kmsg) 2>&1; hostname";
    let mut wanted = container(stage, script);
    wanted.mounts = vec![mount(volume.clone(), "/mnt/v", MountPropagation::Private)];
    let (code, text) = run(stage, &first, wanted.clone()).await?;
    ensure(code == 0, || format!("{code}: {text}"))?;
    let lines: Vec<&str> = text.lines().collect();
    ensure(lines[0] == "0" && lines[1].starts_with(" 0 ") && lines[1].ends_with(" 65536"), || text.clone())?;
    ensure(lines[2..6] == ["0 0", "0 0", "0 0", "text"] && lines[6] == "33", || text.clone())?;
    // What it made belongs to root where the volume is, though it never was root there.
    ensure(std::fs::metadata(volume.join("new"))?.uid() == 0, || "the volume's ids are not translated".into())?;
    let (_, other) = run(stage, &second, wanted.clone()).await?;
    ensure(other.lines().nth(1) != Some(lines[1]), || format!("two pods share ids: {}", lines[1]))?;
    // A program beside is in the same namespace, and its user the container's.
    wanted.command = vec!["/bin/sleep".into(), "60".into()];
    let id = stage.runtime.create_container(&first, wanted).await?;
    stage.runtime.start_container(&id).await?;
    let command = ["/bin/sh", "-c", "id -u; tr -s ' ' < /proc/self/uid_map; kill -0 1 && echo mine"].map(str::to_owned);
    let result = stage.runtime.exec_sync(&id, &command, Some(Duration::from_secs(20))).await?;
    let said = String::from_utf8(result.stdout)?;
    ensure(said == format!("0\n{}\nmine\n", lines[1]), || {
        format!("{said} {:?}", String::from_utf8_lossy(&result.stderr))
    })?;
    // A file system that cannot translate ids is named.
    let mut wanted = container(stage, "true");
    wanted.mounts = vec![mount("/proc/sys".into(), "/mnt/v", MountPropagation::Private)];
    match stage.runtime.create_container(&first, wanted).await {
        Err(error) => ensure(error.to_string().contains("cannot translate ids"), || error.to_string())?,
        Ok(_) => return Err("a mount without translated ids was made".into()),
    }
    stage.runtime.remove_sandbox(&first).await?;
    Ok(stage.runtime.remove_sandbox(&second).await?)
}

async fn shares_mounts_with_the_host(stage: &mut Stage) -> Outcome {
    let place = stage.scratch.join("shared");
    std::fs::create_dir_all(place.join("from-host"))?;
    std::fs::create_dir_all(place.join("from-pod"))?;
    let sh = |script: &str| -> Outcome {
        let status = std::process::Command::new("sh").args(["-c", script]).current_dir(&place).status()?;
        ensure(status.success(), || format!("{script}: {status}"))
    };
    let pod = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Node)).await?;
    let mut wanted = container(
        stage,
        "mount -t tmpfs made /mnt/s/from-pod && echo inside > /mnt/s/from-pod/file && cat /mnt/s/from-host/file; \
                                       umount /mnt/s/from-host",
    );
    wanted.security.privileged = true;
    wanted.mounts = vec![mount(place.clone(), "/mnt/s", MountPropagation::Bidirectional)];
    // Not while the host's mount is private.
    sh("mount --bind . . && mount --make-private .")?;
    let refused = stage.runtime.create_container(&pod, wanted.clone()).await;
    sh("mount --make-shared . && cd . && mount -t tmpfs host from-host && echo host > from-host/file")?;
    let result = run(stage, &pod, wanted).await;
    let seen = std::fs::read_to_string(place.join("from-pod/file"));
    let gone = !place.join("from-host/file").exists();
    let _ = sh("umount -R -l .");
    let message = refused.err().map(|error| error.to_string()).unwrap_or_default();
    ensure(message.contains("is not on a shared mount"), || format!("private: {message}"))?;
    let (code, text) = result?;
    ensure(code == 0 && text == "host\n", || format!("{code}: {text}"))?;
    ensure(seen.as_deref().unwrap_or_default() == "inside\n", || {
        format!("the host does not see the pod's mount: {seen:?}")
    })?;
    ensure(gone, || "the host's mount is still there".into())?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

async fn puts_full_logs_aside(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Node)).await?;
    // A file is named by the second, so at most one a second is put aside.
    let script = "n=0; while [ $n -lt 5 ]; do i=0; while [ $i -lt 60 ]; do echo line $n $i of some length to fill it; i=$((i+1)); done; \
                  n=$((n+1)); usleep 1100000; done; echo last";
    let mut events = stage.runtime.events();
    let id = stage.runtime.create_container(&pod, container(stage, script)).await?;
    stage.runtime.start_container(&id).await?;
    while stage.runtime.container_status(&id).await?.state != ContainerState::Exited {
        tokio::time::timeout(Duration::from_secs(30), events.next()).await?;
    }
    let log = stage.scratch.join("logs/main/0.log");
    let current = std::fs::read_to_string(&log)?;
    ensure(current.ends_with("F last\n") && current.len() < 8192, || current.clone())?;
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(stage.scratch.join("logs/main")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let settled = async {
        // Compression is done beside everything else and tells nobody.
        while names().iter().filter(|name| name.ends_with(".gz")).count() != 1
            || names().iter().any(|n| n.ends_with(".tmp"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.map_err(|_| format!("{:?}", names()))?;
    let names = names();
    ensure(names.len() == 3 && names[0] == "0.log" && names[1].ends_with(".gz") && !names[2].ends_with(".gz"), || {
        format!("{names:?}")
    })?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

/// A filter that holds for the first process alone would be none.
async fn filters_what_runs_beside(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Node)).await?;
    let id = stage.runtime.create_container(&pod, container(stage, "sleep 60")).await?;
    stage.runtime.start_container(&id).await?;
    let script = "grep -E '^(Seccomp|CapEff):' /proc/self/status; unshare -m true 2>&1; unshare -U true 2>&1; \
                  mount -t tmpfs none /tmp 2>&1; chroot / /bin/true && echo chroot; ls /proc/self/fd | wc -l; cat /proc/kcore | wc -c; \
                  (echo c > /proc/sysrq-trigger) 2>&1; (echo x > /proc/sys/kernel/core_pattern) 2>&1; \
                  (echo x > /sys/fs/cgroup/memory/release_agent) 2>&1; mknod /tmp/disk b 8 0; cat /tmp/disk 2>&1";
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    let result = stage.runtime.exec_sync(&id, &command, Some(Duration::from_secs(20))).await?;
    let text = String::from_utf8(result.stdout)?;
    for expected in [
        "Seccomp:\t2\n",
        "CapEff:\t00000000a80425fb\n",
        "unshare: unshare(0x20000): Operation not permitted\n",
        "unshare: unshare(0x10000000): Operation not permitted\n",
        "mount: permission denied",
        "chroot\n4\n0\n",
        "can't create /proc/sys/kernel/core_pattern: Read-only file system\n",
        "can't open '/tmp/disk': Operation not permitted\n",
    ] {
        ensure(text.contains(expected), || format!("{expected:?} is not in {text}"))?;
    }
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

/// A program of 32 bits: writes `32`, makes a call that is filtered, ends with the error's number.
#[cfg(target_arch = "x86_64")]
fn program_32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let code: &[&[u8]] = &[
        &[0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9], // write(1, …
        &(BASE + HEADERS + 45).to_le_bytes(),
        &[0xba, 3, 0, 0, 0, 0xcd, 0x80],                            // …, 3)
        &[0xb8, 0x20, 1, 0, 0, 0xbb, 0x0f, 0x27, 0, 0, 0xcd, 0x80], // keyctl(9999)
        &[0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80],    // exit(-result)
        b"32\n",
    ];
    let code = code.concat();
    let length = HEADERS + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2_u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        file.extend(u32::to_le_bytes(word));
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, 0, BASE, BASE, length, length, 5, 0x1000] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend(code);
    file
}

async fn filters_32_bit_programs(stage: &mut Stage) -> Outcome {
    #[cfg(target_arch = "x86_64")]
    {
        let folder = stage.scratch.join("programs");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("small"), program_32())?;
        std::fs::set_permissions(folder.join("small"), PermissionsExt::from_mode(0o755))?;
        let pod = stage.runtime.run_sandbox(sandbox(stage, UserNamespace::Node)).await?;
        let mut wanted = container(stage, "/mnt/p/small; echo $?");
        wanted.mounts = vec![mount(folder, "/mnt/p", MountPropagation::Private)];
        let (_, text) = run(stage, &pod, wanted).await?;
        // Not killed, and not let through: an unknown operation would be EOPNOTSUPP, 95.
        ensure(text == "32\n1\n", || text.clone())?;
        stage.runtime.remove_sandbox(&pod).await?;
    }
    Ok(())
}
