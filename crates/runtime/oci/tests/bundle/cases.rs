//! What a bundle may ask for, and what comes of it through every runtime.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::stage::{ALL, Case, Failure, Outcome, Runtime, Stage, contains, ensure, mount, namespaces, push};

pub const CASES: &[(&str, Case)] = &[
    ("lives_its_life", lives_its_life),
    ("ends_as_its_program_does", ends_as_its_program_does),
    ("is_who_it_is_told_to_be", is_who_it_is_told_to_be),
    ("has_all_five_capability_sets", has_all_five_capability_sets),
    ("mounts_with_every_option", mounts_with_every_option),
    ("translates_ids_of_mounts", translates_ids_of_mounts),
    ("sees_its_devices", sees_its_devices),
    ("is_limited", is_limited),
    ("filters_system_calls", filters_system_calls),
    ("runs_hooks_at_their_points", runs_hooks_at_their_points),
    ("stops_at_a_hook_that_fails", stops_at_a_hook_that_fails),
    ("joins_namespaces_by_path", joins_namespaces_by_path),
    ("has_users_of_its_own", has_users_of_its_own),
    ("has_a_terminal", has_a_terminal),
    ("executes_beside", executes_beside),
    ("closes_the_root_to_writers", closes_the_root_to_writers),
    ("refuses_what_is_wrong", refuses_what_is_wrong),
    ("leaves_nothing_behind_when_it_fails", leaves_nothing_behind_when_it_fails),
    ("confines_devices_on_v2", confines_devices_on_v2),
];

fn state(stage: &Stage, runtime: Runtime, id: &str) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&stage.ask(runtime, &["state", id])?)?)
}

fn lives_its_life(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "trap 'exit 7' TERM; echo ready > /tmp/ready; while :; do sleep 1; done")?;
    stage.config["annotations"] = json!({"org.example.key": "value"});
    for runtime in ALL {
        let id = stage.id();
        stage.write(&id)?;
        let (bundle, pid_file) = (stage.folder.path().to_str().unwrap(), stage.path("pid"));
        let create = ["create", "--bundle", bundle, "--pid-file", pid_file.to_str().unwrap(), &id];
        let status = runtime.command(&stage.state_root(runtime)).args(create).stdout(Stdio::null()).status()?;
        ensure(status.success(), || format!("{runtime:?} create: {status}"))?;
        let created = state(&stage, runtime, &id)?;
        ensure(created["status"] == "created" && created["id"] == id.as_str(), || format!("{runtime:?} {created}"))?;
        ensure(created["annotations"]["org.example.key"] == "value", || format!("{runtime:?} {created}"))?;
        let pid: i64 = std::fs::read_to_string(&pid_file)?.trim().parse()?;
        ensure(created["pid"] == pid && created["bundle"] == bundle, || format!("{runtime:?} {created}"))?;
        ensure(stage.ask(runtime, &create).is_err(), || "a name was given twice".into())?;
        stage.ask(runtime, &["start", &id])?;
        ensure(stage.ask(runtime, &["start", &id]).is_err(), || "it was started twice".into())?;
        ensure(state(&stage, runtime, &id)?["status"] == "running", || "it does not run".into())?;
        ensure(stage.ask(runtime, &["delete", &id]).is_err(), || "it was deleted while it ran".into())?;
        contains(&stage.ask(runtime, &["list", "-q"])?, &id)?;
        let listed: Value = serde_json::from_str(&stage.ask(runtime, &["list", "--format", "json"])?)?;
        ensure(listed[0]["id"] == id.as_str() && listed[0]["status"] == "running", || format!("{listed}"))?;
        let listed: Vec<i64> = serde_json::from_str(&stage.ask(runtime, &["ps", "--format", "json", &id])?)?;
        ensure(listed.contains(&pid), || format!("{pid} is not in {listed:?}"))?;
        wait_for(&stage.rootfs().join("tmp/ready"))?;
        stage.ask(runtime, &["kill", &id, "TERM"])?;
        wait_for_end(pid)?;
        ensure(state(&stage, runtime, &id)?["status"] == "stopped", || "it is not stopped".into())?;
        ensure(stage.ask(runtime, &["kill", &id, "TERM"]).is_err(), || "a dead container took a signal".into())?;
        stage.ask(runtime, &["delete", &id])?;
        ensure(stage.ask(runtime, &["state", &id]).is_err(), || "it is still known".into())?;
        stage.ask(runtime, &["delete", "--force", &id])?;
        std::fs::remove_file(stage.rootfs().join("tmp/ready"))?;
    }
    Ok(())
}

/// Waits, by the kernel's word, until a file is there.
fn wait_for(path: &std::path::Path) -> Outcome {
    use rustix::fs::inotify;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    std::fs::create_dir_all(path.parent().unwrap())?;
    let kinds = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, path.parent().unwrap(), kinds)?;
    while !path.exists() {
        readable(watch.as_fd())?;
        let _ = rustix::io::read(&watch, &mut [0; 4096])?;
    }
    Ok(())
}

fn wait_for_end(pid: i64) -> Outcome {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).ok_or("no pid")?;
    match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(process) => readable(process.as_fd()),
        Err(_) => Ok(()),
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> Outcome {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    ensure(rustix::event::poll(&mut fds, Some(&limit))? == 1, || "waited for 20 s in vain".into())
}

fn ends_as_its_program_does(name: &str) -> Outcome {
    for (script, code) in [("exit 3", 3), ("kill -KILL $$", 137), ("true", 0)] {
        let mut stage = Stage::new(name, script)?;
        // The first process of a namespace cannot kill itself; a child of the host's namespace can.
        stage.config["linux"]["namespaces"] = namespaces(&["network", "ipc", "uts", "mount"]);
        for runtime in ALL {
            let output = stage.run(runtime)?;
            ensure(output.status.code() == Some(code), || format!("{runtime:?} {script}: {output:?}"))?;
        }
    }
    Ok(())
}

fn is_who_it_is_told_to_be(name: &str) -> Outcome {
    let script = "id -u; id -g; id -G; umask; pwd; hostname; echo $HOME $GREETING; ulimit -n; ulimit -Hn; \
                  cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_forward; uname -m; \
                  grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status";
    let mut stage = Stage::new(name, script)?;
    let process = &mut stage.config["process"];
    process["user"] = json!({"uid": 33, "gid": 7, "umask": 0o27, "additionalGids": [5, 9]});
    process["cwd"] = "/tmp".into();
    push(&mut process["env"], "GREETING=hello".into());
    process["oomScoreAdj"] = json!(321);
    stage.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    stage.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    // What newer runtimes alone know of: runc and crun of this age pass over it.
    let text = stage.same_as(&[Runtime::Ours, Runtime::Runc]);
    let text = match text {
        Ok(text) => text,
        // runc learnt of personalities later.
        Err(_) => {
            let ours = String::from_utf8(stage.run(Runtime::Ours)?.stdout)?;
            let crun = String::from_utf8(stage.run(Runtime::Crun)?.stdout)?;
            ensure(ours == crun, || format!("ours: {ours}\ncrun: {crun}"))?;
            ours
        }
    };
    contains(&text, "33\n7\n7 5 9\n0027\n/tmp\nbox\n/var/www hello\n512\n1024\n321\n1\ni686\nNoNewPrivs:\t1\n")
}

fn has_all_five_capability_sets(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "grep Cap /proc/self/status")?;
    stage.config["process"]["user"] = json!({"uid": 33, "gid": 33});
    stage.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    });
    let text = stage.same()?;
    contains(&text, "CapInh:\t0000000000000020\nCapPrm:\t0000000000000020\nCapEff:\t0000000000000020\n")?;
    contains(&text, "CapBnd:\t0000000000002021\nCapAmb:\t0000000000000020\n")
}

fn mounts_with_every_option(name: &str) -> Outcome {
    let script = "for at in /mnt/a /mnt/b /mnt/c /mnt/d /mnt/new/e /proc /dev /dev/pts /dev/shm /dev/mqueue /sys; do \
                  awk -v at=$at '$5 == at { print $5, $6, ($7 ~ /:/) ? \"shared\" : \"private\" }' /proc/self/mountinfo; done; \
                  cat /mnt/a/file; (echo x > /mnt/a/file) 2>&1; (echo x > /mnt/c/below/file) 2>&1; cat /etc/copied/deep/file; \
                  echo more > /etc/copied/deep/file";
    let mut stage = Stage::new(name, script)?;
    for folder in ["a", "c/below", "d"] {
        std::fs::create_dir_all(stage.path(folder))?;
    }
    std::fs::write(stage.path("a/file"), "content\n")?;
    std::fs::create_dir_all(stage.rootfs().join("etc/copied/deep"))?;
    std::fs::write(stage.rootfs().join("etc/copied/deep/file"), "covered\n")?;
    let mounts = &mut stage.config["mounts"];
    push(mounts, mount("bind", stage.folder.path().join("a"), "/mnt/a", &["rbind", "ro", "nosuid", "nodev", "noexec"]));
    push(mounts, mount("tmpfs", "tmpfs", "/mnt/b", &["noatime", "size=1m", "mode=700"]));
    push(mounts, mount("bind", stage.folder.path().join("d"), "/mnt/d", &["bind", "rprivate", "nodiratime"]));
    push(mounts, mount("bind", "d", "/mnt/new/e", &["bind", "rw"]));
    push(mounts, mount("tmpfs", "tmpfs", "/etc/copied", &["tmpcopyup"]));
    let text = stage.same()?;
    contains(&text, "/mnt/a ro,nosuid,nodev,noexec,relatime private\n")?;
    contains(&text, "content\n")?;
    contains(&text, "can't create /mnt/a/file: Read-only file system")?;
    contains(&text, "covered\n")?;
    let kept = std::fs::read_to_string(stage.rootfs().join("etc/copied/deep/file"))?;
    ensure(kept == "covered\n", || format!("the covered file was changed: {kept}"))?;
    // Recursive options are newer than the runc at hand.
    let below = stage.path("c/below");
    let status = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&below).status()?;
    ensure(status.success(), || "cannot mount".into())?;
    stage.config["mounts"].as_array_mut().unwrap().push(mount(
        "bind",
        stage.folder.path().join("c"),
        "/mnt/c",
        &["rbind", "rro"],
    ));
    let ours = stage.run(Runtime::Ours);
    let crun = stage.run(Runtime::Crun);
    let _ = std::process::Command::new("umount").arg(&below).status()?;
    let (ours, crun) = (String::from_utf8(ours?.stdout)?, String::from_utf8(crun?.stdout)?);
    contains(&ours, "can't create /mnt/c/below/file: Read-only file system")?;
    ensure(ours == crun, || format!("ours: {ours}\ncrun: {crun}"))
}

fn translates_ids_of_mounts(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "ls -ln /mnt/ids/file | awk '{ print $3, $4 }'; touch /mnt/ids/new")?;
    std::fs::create_dir(stage.path("ids"))?;
    std::fs::write(stage.path("ids/file"), "")?;
    std::os::unix::fs::chown(stage.path("ids/file"), Some(1000), Some(1001))?;
    std::os::unix::fs::chown(stage.path("ids"), Some(1000), Some(1000))?;
    let mut wanted = mount("bind", stage.folder.path().join("ids"), "/mnt/ids", &["bind"]);
    // What is 1000 on disk is 0 in the container.
    wanted["uidMappings"] = json!([{"containerID": 1000, "hostID": 0, "size": 10}]);
    wanted["gidMappings"] = json!([{"containerID": 1000, "hostID": 0, "size": 10}]);
    push(&mut stage.config["mounts"], wanted);
    let output = stage.run(Runtime::Ours)?;
    ensure(output.stdout == b"0 1\n", || format!("{output:?}"))?;
    let made = std::fs::metadata(stage.path("ids/new"))?;
    ensure(std::os::unix::fs::MetadataExt::uid(&made) == 1000, || format!("{made:?}"))?;
    // proc cannot do it, and says so.
    let mut wanted = mount("bind", "/proc", "/mnt/ids", &["bind"]);
    wanted["uidMappings"] = json!([{"containerID": 1000, "hostID": 0, "size": 10}]);
    wanted["gidMappings"] = json!([{"containerID": 1000, "hostID": 0, "size": 10}]);
    push(&mut stage.config["mounts"], wanted);
    let output = stage.run(Runtime::Ours)?;
    contains(&String::from_utf8(output.stderr)?, "cannot translate ids")
}

fn sees_its_devices(name: &str) -> Outcome {
    let script = "cd /dev; ls -l null zero full random urandom tty extra fifo | awk '{ print $1, $3, $4, $5, $6, $NF }'; \
                  readlink ptmx fd stdin stdout stderr; echo x > /dev/null; head -c 4 /dev/zero | wc -c; \
                  cat /dev/extra 2>&1; rm -f /tmp/disk; mknod /tmp/disk b 8 0; cat /tmp/disk 2>&1; true";
    let mut stage = Stage::new(name, script)?;
    for set in ["bounding", "effective", "permitted"] {
        push(&mut stage.config["process"]["capabilities"][set], "CAP_DAC_OVERRIDE".into());
    }
    stage.config["linux"]["devices"] = json!([
        {"path": "/dev/extra", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 33, "gid": 7},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o644},
    ]);
    let output = stage.run(Runtime::Ours)?;
    let text = String::from_utf8(output.stdout)?;
    for runtime in [Runtime::Runc, Runtime::Crun] {
        let theirs = String::from_utf8(stage.run(runtime)?.stdout)?;
        ensure(text == theirs, || format!("ours: {text}\n{runtime:?}: {theirs}"))?;
    }
    contains(&text, "crw------- web 7 10, 229 extra\n")?;
    contains(&text, "can't open '/dev/extra': Operation not permitted\n")?;
    contains(&text, "can't open '/tmp/disk': Operation not permitted\n")
}

fn is_limited(name: &str) -> Outcome {
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes cpu/cpu.shares \
                  cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max cpuset/cpuset.cpus; (echo 1 > pids/pids.max) 2>&1; \
                  cat /proc/self/cgroup | cut -d: -f3 | sort -u";
    let mut stage = Stage::new(name, script)?;
    push(
        &mut stage.config["mounts"],
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "ro"]),
    );
    let resources = &mut stage.config["linux"]["resources"];
    resources["memory"] = json!({"limit": 64 << 20, "reservation": 32 << 20});
    resources["cpu"] = json!({"shares": 512, "quota": 20000, "period": 50000, "cpus": "0"});
    resources["pids"] = json!({"limit": 17});
    if dhow_oci::cgroup::is_unified() {
        // The files have other names there; what is written to them is tested where it is decided.
        return Ok(());
    }
    let text = stage.same_as(&[Runtime::Ours, Runtime::Runc])?;
    contains(&text, "67108864\n33554432\n512\n20000\n50000\n17\n0\n")?;
    contains(&text, "Read-only file system")?;
    // Changed while it runs.
    let mut stage = Stage::new(name, "read line; cat /sys/fs/cgroup/pids/pids.max")?;
    push(&mut stage.config["mounts"], mount("cgroup", "cgroup", "/sys/fs/cgroup", &["ro"]));
    let id = stage.id();
    stage.write(&id)?;
    let root = stage.state_root(Runtime::Ours);
    let mut command = Runtime::Ours.command(&root);
    let pid_file = stage.path("pid");
    command.args(["run", "--bundle"]).arg(stage.folder.path()).arg("--pid-file").arg(&pid_file).arg(&id);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    wait_for(&pid_file)?;
    let mut update = Runtime::Ours.command(&root).args(["update", "-r", "-", &id]).stdin(Stdio::piped()).spawn()?;
    update.stdin.take().unwrap().write_all(br#"{"pids": {"limit": 23}}"#)?;
    ensure(update.wait()?.success(), || "update failed".into())?;
    child.stdin.take().unwrap().write_all(b"go\n")?;
    let output = child.wait_with_output()?;
    ensure(output.stdout == b"23\n", || format!("{output:?}"))
}

fn filters_system_calls(name: &str) -> Outcome {
    let script = "mkdir /tmp/one 2>&1; chmod 700 /tmp 2>&1; chmod 755 /tmp 2>&1; sync; echo $?; grep -E '^Seccomp:' /proc/self/status";
    let mut stage = Stage::new(name, script)?;
    stage.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 0o700, "op": "SCMP_CMP_EQ"}]},
            {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    });
    let text = stage.same()?;
    contains(&text, "mkdir: can't create directory '/tmp/one': No space left on device\n")?;
    contains(&text, "chmod: /tmp: Operation not permitted\n159\nSeccomp:\t2\n")
}

/// A hook that writes down its name and what it is told.
fn hook(stage: &Stage, point: &str) -> Value {
    let log = stage.path("hooks");
    let script = format!(
        "status=$(sed 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/'); echo {point} $status $EXTRA $0 >> {}",
        log.display()
    );
    json!({"path": "/bin/sh", "args": ["argument-zero", "-c", script], "env": ["PATH=/usr/bin:/bin", "EXTRA=extra"], "timeout": 10})
}

fn runs_hooks_at_their_points(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "cat /tmp/hooks")?;
    let mut hooks = json!({});
    for point in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        hooks[point] = json!([hook(&stage, point)]);
    }
    // This one runs in the container's root.
    hooks["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo startContainer > /tmp/hooks"]}]);
    stage.config["hooks"] = hooks;
    let mut first = None;
    for runtime in ALL {
        let _ = std::fs::remove_file(stage.path("hooks"));
        let output = stage.run(runtime)?;
        ensure(output.stdout == b"startContainer\n", || format!("{runtime:?} {output:?}"))?;
        let log = std::fs::read_to_string(stage.path("hooks"))?;
        let points: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
        let expected = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
        ensure(points == expected, || format!("{runtime:?}: {log}"))?;
        if first.is_none() {
            contains(&log, "prestart creating extra argument-zero\n")?;
            contains(&log, "createContainer creating extra argument-zero\n")?;
            contains(&log, "poststart running extra argument-zero\n")?;
            contains(&log, "poststop stopped extra argument-zero\n")?;
            first = Some(log);
        }
    }
    Ok(())
}

fn stops_at_a_hook_that_fails(name: &str) -> Outcome {
    for (script, timeout, expected) in [("echo broken >&2; exit 5", 10, "broken"), ("sleep 30", 1, "timed out")] {
        let mut stage = Stage::new(name, "echo it ran")?;
        for point in ["prestart", "createRuntime", "createContainer"] {
            stage.config["hooks"] =
                json!({point: [{"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout}]});
            let output = stage.run(Runtime::Ours)?;
            ensure(!output.status.success() && output.stdout.is_empty(), || format!("{point}: {output:?}"))?;
            let text = String::from_utf8(output.stderr)?;
            contains(&text, expected)?;
            contains(&text, point)?;
        }
    }
    Ok(())
}

fn joins_namespaces_by_path(name: &str) -> Outcome {
    let mut first = Stage::new(name, "read line")?;
    first.config["hostname"] = "first".into();
    let root = first.state_root(Runtime::Ours);
    let id = first.id();
    first.write(&id)?;
    let mut command = Runtime::Ours.command(&root);
    let pid_file = first.path("pid");
    command.args(["run", "--bundle"]).arg(first.folder.path()).arg("--pid-file").arg(&pid_file).arg(&id);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    wait_for(&pid_file)?;
    let pid = std::fs::read_to_string(&pid_file)?;
    let mut second = Stage::new(name, "hostname; readlink /proc/self/ns/net; echo $$ | grep -c '^1$'")?;
    second.config.as_object_mut().unwrap().remove("hostname");
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    second.config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"},
        {"type": "uts", "path": path("uts")}, {"type": "network", "path": path("net")},
        {"type": "ipc", "path": path("ipc")}, {"type": "pid", "path": path("pid")},
    ]);
    let network = std::fs::read_link(path("net"))?;
    let mut said = Vec::new();
    for runtime in ALL {
        said.push(String::from_utf8(second.run(runtime)?.stdout)?);
    }
    drop(child.stdin.take());
    child.wait()?;
    ensure(said.iter().all(|text| *text == format!("first\n{}\n0\n", network.display())), || format!("{said:?}"))
}

fn has_users_of_its_own(name: &str) -> Outcome {
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %u /etc/passwd; touch /tmp/mine; \
                  echo x > /dev/null && ls -l /dev/null | cut -c1; mount -t tmpfs none /mnt 2>&1 | head -n 1; hostname";
    let mut stage = Stage::new(name, script)?;
    stage.config["linux"]["namespaces"] = namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup", "user"]);
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    stage.config["linux"]["uidMappings"] = map.clone();
    stage.config["linux"]["gidMappings"] = map;
    // gid 5 of the namespace, which is mapped.
    chown_all(&stage.rootfs(), 200_000)?;
    let text = stage.same()?;
    contains(&text, "0\n 0 200000 65536\n0\nc\n")?;
    let made = std::fs::metadata(stage.rootfs().join("tmp/mine"))?;
    ensure(std::os::unix::fs::MetadataExt::uid(&made) == 200_000, || format!("{made:?}"))?;
    let null = std::fs::metadata("/dev/null")?;
    ensure(std::os::unix::fs::MetadataExt::uid(&null) == 0, || "the machine's /dev/null was given away".to_owned())?;
    // A program beside is in the same namespace.
    let mut stage = Stage::new(name, "read line")?;
    stage.config["linux"]["namespaces"] = namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup", "user"]);
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
    stage.config["linux"]["uidMappings"] = map.clone();
    stage.config["linux"]["gidMappings"] = map;
    chown_all(&stage.rootfs(), 200_000)?;
    let text =
        beside(&stage, Runtime::Ours, &["--user", "33", "--", "/bin/sh", "-c", "id -u; cat /proc/self/uid_map"])?;
    contains(&text, "33\n")?;
    contains(&text, "200000")
}

fn chown_all(path: &std::path::Path, id: u32) -> Outcome {
    std::os::unix::fs::lchown(path, Some(id), Some(id))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path)?.flatten() {
            chown_all(&entry.path(), id)?;
        }
    }
    Ok(())
}

/// What a program beside a container's first process prints; the first one waits for its standard input to end.
fn beside(stage: &Stage, runtime: Runtime, args: &[&str]) -> Result<String, Failure> {
    let id = stage.id();
    stage.write(&id)?;
    let root = stage.state_root(runtime);
    let pid_file = stage.path("pid");
    let _ = std::fs::remove_file(&pid_file);
    let mut command = runtime.command(&root);
    command.args(["run", "--bundle"]).arg(stage.folder.path()).arg("--pid-file").arg(&pid_file).arg(&id);
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    wait_for(&pid_file)?;
    let (options, program) = args.split_at(args.iter().position(|arg| *arg == "--").map_or(0, |place| place + 1));
    let options: Vec<&str> = options.iter().copied().filter(|arg| *arg != "--").collect();
    let text = loop {
        let output = runtime.command(&root).arg("exec").args(&options).arg(&id).args(program).output()?;
        let state = state(stage, runtime, &id)?;
        if output.status.success() || state["status"] == "running" {
            break format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        }
    };
    drop(child.stdin.take());
    child.wait()?;
    Ok(text)
}

fn executes_beside(name: &str) -> Outcome {
    let stage = Stage::new(name, "read line")?;
    let script = "id -u; pwd; echo $EXTRA; hostname; grep -E '^CapEff:' /proc/self/status; \
                  cat /proc/1/cmdline | tr '\\0' ' '; readlink /proc/self/ns/pid > /tmp/a; readlink /proc/1/ns/pid | cmp /tmp/a -";
    let args = ["--cwd", "/tmp", "--env", "EXTRA=more", "--", "/bin/sh", "-c", script];
    let mut said = Vec::new();
    for runtime in ALL {
        said.push(beside(&stage, runtime, &args)?);
    }
    ensure(said.iter().all(|text| *text == said[0]), || format!("{said:?}"))?;
    contains(&said[0], "0\n/tmp\nmore\nbox\n")?;
    let text = beside(&stage, Runtime::Ours, &["--", "no-such-program"])?;
    contains(&text, "no-such-program")
}

fn has_a_terminal(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "tty; stty size; ls -l /dev/console | cut -c1; echo done")?;
    stage.config["process"]["terminal"] = true.into();
    stage.config["process"]["consoleSize"] = json!({"height": 33, "width": 101});
    let mut said = Vec::new();
    for runtime in ALL {
        let socket = stage.path("console");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        let id = stage.id();
        stage.write(&id)?;
        let (bundle, path) = (stage.folder.path().to_str().unwrap(), socket.to_str().unwrap());
        stage.ask(runtime, &["create", "--bundle", bundle, "--console-socket", path, &id])?;
        let master = receive(&listener)?;
        stage.ask(runtime, &["start", &id])?;
        let mut text = String::new();
        let mut buffer = [0; 1024];
        let mut master = std::fs::File::from(master);
        // The terminal's end is an error to whoever reads its master.
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        stage.ask(runtime, &["delete", "--force", &id])?;
        said.push(text);
    }
    ensure(said.iter().all(|text| *text == said[0]), || format!("{said:?}"))?;
    contains(&said[0], "/dev/pts/0\r\n33 101\r\nc\r\ndone\r\n")
}

/// The terminal that comes over a console socket.
fn receive(listener: &UnixListener) -> Result<OwnedFd, Failure> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    readable(listener.as_fd())?;
    let (stream, _) = listener.accept()?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message {
            return files.next().ok_or_else(|| "no file came".into());
        }
    }
    Err("no terminal came".into())
}

fn closes_the_root_to_writers(name: &str) -> Outcome {
    let script = "(echo x > /file) 2>&1; echo x > /dev/shm/file; awk '$5 == \"/\" { print $6 }' /proc/self/mountinfo | cut -d, -f1; \
                  cat /proc/kcore | wc -c; (echo 1 > /proc/sys/kernel/domainname) 2>&1; ls /sys/firmware | wc -l";
    let mut stage = Stage::new(name, script)?;
    stage.config["root"]["readonly"] = true.into();
    let text = stage.same()?;
    contains(&text, "can't create /file: Read-only file system\nro\n0\n")?;
    contains(&text, "can't create /proc/sys/kernel/domainname: Read-only file system\n0\n")
}

fn refuses_what_is_wrong(name: &str) -> Outcome {
    let stage = Stage::new(name, "true")?;
    let complaint = |change: fn(&mut Value)| -> Result<String, Failure> {
        let mut stage = Stage::new(name, "true")?;
        change(&mut stage.config);
        let output = stage.run(Runtime::Ours)?;
        ensure(!output.status.success(), || "it ran".into())?;
        Ok(String::from_utf8(output.stderr)?)
    };
    contains(&complaint(|c| c["ociVersion"] = "3.0.0".into())?, "ociVersion \"3.0.0\" is not supported")?;
    contains(&complaint(|c| c["root"]["path"] = "missing".into())?, "missing cannot be used")?;
    contains(
        &complaint(|c| c["process"]["args"] = json!(["no-such"]))?,
        "exec: \"no-such\": executable file not found in $PATH",
    )?;
    contains(&complaint(|c| c["process"]["apparmorProfile"] = "docker-default".into())?, "AppArmor")
        .or_else(|error| if std::path::Path::new("/sys/module/apparmor").exists() { Ok(()) } else { Err(error) })?;
    contains(&complaint(|c| c["linux"]["resources"]["unified"] = json!({"memory.high": "1"}))?, "cgroup v2")
        .or_else(|error| if dhow_oci::cgroup::is_unified() { Ok(()) } else { Err(error) })?;
    contains(&complaint(|c| push(&mut c["mounts"], mount("bind", "/no/such", "/mnt", &["bind"])))?, "/no/such")?;
    // The log file is for engines.
    let log = stage.path("log.json");
    let mut command = Runtime::Ours.command(&stage.state_root(Runtime::Ours));
    let output = command.args(["--log-format", "json", "--log"]).arg(&log).args(["state", "nobody"]).output()?;
    ensure(output.status.code() == Some(1), || format!("{output:?}"))?;
    let line: Value = serde_json::from_str(std::fs::read_to_string(&log)?.trim())?;
    ensure(line["level"] == "error" && line["msg"] == "container nobody does not exist", || line.to_string())
}

fn leaves_nothing_behind_when_it_fails(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "true")?;
    stage.config["process"]["args"] = json!(["no-such"]);
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").map(|text| text.contains("dhow-bundle-"));
    for _ in 0..3 {
        // The group is looked for after each run.
        ensure(!stage.run(Runtime::Ours)?.status.success(), || "it ran".into())?;
    }
    let left = std::fs::read_dir(stage.state_root(Runtime::Ours))?.count();
    ensure(left == 0, || format!("{left} folders of state are left"))?;
    ensure(!mounts()?, || "a mount is left on the host".into())
}

/// On a machine with both kinds of control groups: as if there were the second kind only.
fn confines_devices_on_v2(name: &str) -> Outcome {
    let script = "echo x > /dev/null; head -c 2 /dev/zero | wc -c; mknod /tmp/disk b 8 0; cat /tmp/disk 2>&1; \
                  mknod /tmp/tun c 10 200; cat /tmp/tun 2>&1; mknod /tmp/full c 1 7; head -c 1 /tmp/full | wc -c; \
                  head -c 1 /tmp/kmsg 2>&1; cat /proc/self/cgroup | grep '^0::'";
    let mut stage = Stage::new(name, script)?;
    push(&mut stage.config["mounts"], mount("cgroup", "cgroup", "/sys/fs/cgroup", &["ro"]));
    let id = stage.id();
    stage.write(&id)?;
    let alone = "umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";
    let runtime = std::env::current_exe()?;
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", alone, "sh"]).arg(runtime).arg("--root").arg(stage.state_root(Runtime::Ours));
    command.args(["run", "--bundle"]).arg(stage.folder.path()).arg(&id).env(crate::stage::AS_RUNTIME, "1");
    let output = command.output()?;
    let text = String::from_utf8(output.stdout)?;
    let complaint = String::from_utf8(output.stderr)?;
    contains(&text, "2\ncat: can't open '/tmp/disk': Operation not permitted\n")
        .map_err(|error| format!("{error} {complaint}"))?;
    contains(&text, "cat: can't open '/tmp/tun': Operation not permitted\n1\n")?;
    contains(&text, "0::/\n")
}
