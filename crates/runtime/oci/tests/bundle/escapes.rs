//! Ways out of a container that others left open once. Each case tries one and must fail to get out.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::stage::{Case, Outcome, Runtime, Stage, contains, ensure, mount, namespaces, push};

pub const CASES: &[(&str, Case)] = &[
    ("escape_by_the_runtime_s_own_binary", by_the_runtime_s_own_binary),
    ("escape_by_leaked_files", by_leaked_files),
    ("escape_by_working_folder", by_working_folder),
    ("escape_by_links_at_mount_points", by_links_at_mount_points),
    ("escape_by_links_at_devices", by_links_at_devices),
    ("escape_by_covering_proc", by_covering_proc),
    ("escape_by_linked_proc", by_linked_proc),
    ("escape_by_kernel_settings", by_kernel_settings),
    ("escape_by_release_agent", by_release_agent),
    ("escape_by_keys", by_keys),
    ("escape_by_tracing_the_runtime", by_tracing_the_runtime),
];

/// CVE-2019-5736: the container's program is the runtime itself, which is then overwritten from inside.
fn by_the_runtime_s_own_binary(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "")?;
    // As a script's interpreter, and as the program: whichever way it is run, what can be opened is not writable.
    let script = "#!/proc/self/exe\n";
    std::fs::write(stage.rootfs().join("bin/trap"), script)?;
    std::fs::set_permissions(stage.rootfs().join("bin/trap"), PermissionsExt::from_mode(0o755))?;
    let own = std::fs::read(std::env::current_exe()?)?;
    for program in ["/bin/trap", "/proc/self/exe"] {
        stage.config["process"]["args"] = json!([program, "--root", "/tmp", "list"]);
        let _ = stage.run(Runtime::Ours)?;
    }
    // A container that watches for the runtime in its processes and writes to whatever it finds.
    let watcher = "read line; for at in $(seq 300); do for p in /proc/[0-9]*; do \
                   case $(readlink $p/exe) in /bin/busybox|'') ;; *) readlink $p/exe; (echo x >> $p/exe) 2>&1; esac; done; done";
    stage.config["process"]["args"] = json!(["/bin/sh", "-c", watcher]);
    stage.config["linux"]["namespaces"] = namespaces(&["network", "ipc", "uts", "mount"]);
    let id = stage.id();
    stage.write(&id)?;
    let root = stage.state_root(Runtime::Ours);
    let mut command = Runtime::Ours.command(&root);
    command.args(["run", "--bundle"]).arg(stage.folder.path()).arg("--pid-file").arg(stage.path("pid")).arg(&id);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    drop(child.stdin.take());
    let _ = Runtime::Ours.command(&root).args(["exec", &id, "/bin/true"]).output()?;
    child.wait()?;
    ensure(std::fs::read(std::env::current_exe()?)? == own, || "the runtime's binary was changed".into())?;
    // And not for want of trying: the file that such a container would open refuses to be written to.
    let mut stage = Stage::new(name, "sleep 20")?;
    stage.config["process"]["args"] = json!(["/bin/sh", "-c", "sleep 20"]);
    let id = stage.id();
    stage.write(&id)?;
    let bundle = stage.folder.path().to_str().unwrap();
    let root = stage.state_root(Runtime::Ours);
    let pid_file = stage.path("pid");
    let create = ["create", "--bundle", bundle, "--pid-file", pid_file.to_str().unwrap(), &id];
    let made = Runtime::Ours.command(&root).args(create).stdout(Stdio::null()).status()?;
    let pid = std::fs::read_to_string(&pid_file)?;
    let file = rustix::fs::statvfs(format!("/proc/{pid}/exe"));
    stage.ask(Runtime::Ours, &["delete", "--force", &id])?;
    ensure(made.success(), || "it was not made".into())?;
    // That a program which runs cannot be written to ends with the process; that its mount is read-only does not.
    ensure(file?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), || "the binary could be written to".into())
}

/// CVE-2024-21626 and its like: files of the runtime that a program finds open.
fn by_leaked_files(name: &str) -> Outcome {
    let script = "for fd in $(ls /proc/self/fd); do readlink /proc/$$/fd/$fd; done | sed 's/:.*//' | sort -u; \
                  ls -l /proc/1/fd | grep -c -e /sys/fs/cgroup -e /tmp/dhow";
    let stage = Stage::new(name, script)?;
    let output = stage.run(Runtime::Ours)?;
    let text = String::from_utf8(output.stdout)?;
    ensure(text == "/dev/null\npipe\n0\n", || text.clone())
}

fn by_working_folder(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "cat ../../../../etc/hostname; ls -d ../../../../work")?;
    for fd in 3..24 {
        stage.config["process"]["cwd"] = format!("/proc/self/fd/{fd}").into();
        let output = stage.run(Runtime::Ours)?;
        ensure(!output.status.success() && output.stdout.is_empty(), || format!("{fd}: {output:?}"))?;
        let text = String::from_utf8(output.stderr)?;
        ensure(text.contains("cwd") || text.contains("working directory"), || text.clone())?;
    }
    Ok(())
}

/// The image brings links where mounts are to go.
fn by_links_at_mount_points(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "cat /mnt/link/file /inside/file 2>/dev/null; true")?;
    let outside = stage.path("outside");
    std::fs::create_dir(&outside)?;
    std::fs::create_dir(stage.path("volume"))?;
    std::fs::write(stage.path("volume/file"), "volume\n")?;
    symlink(&outside, stage.rootfs().join("mnt/link"))?;
    symlink("../../../../../../inside", stage.rootfs().join("up"))?;
    push(&mut stage.config["mounts"], mount("bind", stage.folder.path().join("volume"), "/mnt/link", &["bind"]));
    push(&mut stage.config["mounts"], mount("bind", stage.folder.path().join("volume"), "/up", &["bind"]));
    push(
        &mut stage.config["mounts"],
        mount("bind", stage.folder.path().join("volume/file"), "/mnt/link/../../x", &["bind"]),
    );
    // Where links cannot be followed inside, the container is refused; nothing happens outside either way.
    let _ = stage.run(Runtime::Ours)?;
    let left = std::fs::read_dir(&outside)?.count();
    ensure(left == 0, || format!("{left} files were made outside"))?;
    ensure(!std::path::Path::new("/inside").exists(), || "a mount point was made on the host".into())
}

fn by_links_at_devices(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "true")?;
    let outside = stage.path("outside");
    std::fs::create_dir(&outside)?;
    // No tmpfs on /dev: the image's own folder is used.
    let mounts = stage.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    std::fs::remove_dir(stage.rootfs().join("dev"))?;
    symlink(&outside, stage.rootfs().join("dev"))?;
    stage.config["linux"]["devices"] = json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 3}]);
    let _ = stage.run(Runtime::Ours)?;
    let left = std::fs::read_dir(&outside)?.count();
    ensure(left == 0, || format!("{left} devices were made outside"))
}

/// A volume over `/proc/self/attr` would take the security labels away, one over `/proc/sys` the protection.
fn by_covering_proc(name: &str) -> Outcome {
    for place in ["/proc/self/attr", "/proc/sys", "/proc/1/task", "/mnt/../proc/self"] {
        let mut stage = Stage::new(name, "true")?;
        std::fs::create_dir(stage.path("volume"))?;
        push(&mut stage.config["mounts"], mount("bind", stage.folder.path().join("volume"), place, &["bind"]));
        let output = stage.run(Runtime::Ours)?;
        contains(&String::from_utf8(output.stderr)?, "inside /proc")?;
    }
    let mut stage = Stage::new(name, "cat /proc/uptime")?;
    std::fs::write(stage.path("uptime"), "fake\n")?;
    push(
        &mut stage.config["mounts"],
        mount("bind", stage.folder.path().join("uptime"), "/proc/uptime", &["bind", "ro"]),
    );
    ensure(stage.run(Runtime::Ours)?.stdout == b"fake\n", || "what may be covered is not".into())
}

/// CVE-2019-19921: masks and protection miss a `/proc` that lies elsewhere.
fn by_linked_proc(name: &str) -> Outcome {
    for kind in ["proc", "sys"] {
        let stage = Stage::new(name, "true")?;
        std::fs::remove_dir(stage.rootfs().join(kind))?;
        symlink("/mnt", stage.rootfs().join(kind))?;
        let output = stage.run(Runtime::Ours)?;
        ensure(!output.status.success(), || "it ran".into())?;
        contains(&String::from_utf8(output.stderr)?, "must be mounted on an ordinary folder")?;
    }
    Ok(())
}

/// Programs that the kernel runs on the host's side.
fn by_kernel_settings(name: &str) -> Outcome {
    let script = "for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger \
                  /sys/kernel/uevent_helper /proc/sys/fs/binfmt_misc/register /proc/sys/vm/panic_on_oom; do \
                  if [ -e $file ]; then (echo '|/tmp/evil' > $file) 2>&1 | grep -o 'Read-only file system'; fi; done | sort -u; \
                  head -c 1 /proc/kcore | wc -c; cat /proc/keys | wc -l";
    let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let stage = Stage::new(name, script)?;
    let text = String::from_utf8(stage.run(Runtime::Ours)?.stdout)?;
    ensure(text == "Read-only file system\n0\n0\n", || text.clone())?;
    ensure(std::fs::read_to_string("/proc/sys/kernel/core_pattern")? == before, || "core_pattern was changed".into())
}

/// CVE-2022-0492 and the oldest trick of v1: a program that the kernel runs when a group becomes empty.
fn by_release_agent(name: &str) -> Outcome {
    let script = "for agent in /sys/fs/cgroup/*/release_agent; do (echo /tmp/evil > $agent) 2>&1; done | grep -c -v -e Read-only -e nonexistent; \
                  mount -t cgroup -o memory none /mnt 2>&1; (echo 1 > /sys/fs/cgroup/memory/notify_on_release) 2>&1; \
                  unshare -m true 2>&1 | head -n 1";
    let mut stage = Stage::new(name, script)?;
    push(
        &mut stage.config["mounts"],
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "ro"]),
    );
    let text = String::from_utf8(stage.run(Runtime::Ours)?.stdout)?;
    ensure(text.starts_with("0\n"), || text.clone())?;
    contains(&text, "mount: permission denied")
}

/// The session keyring of whoever drives the runtime holds what it authenticates with.
fn by_keys(name: &str) -> Outcome {
    if !std::path::Path::new("/proc/keys").exists() {
        return Ok(());
    }
    let mut stage = Stage::new(name, "cat /proc/keys")?;
    stage.config["linux"]["maskedPaths"] = json!([]);
    let text = String::from_utf8(stage.run(Runtime::Ours)?.stdout)?;
    contains(&text, "keyring   _ses.dhow-test-")
}

/// CVE-2016-9962: whoever enters the container can be looked into before it has let go of the host.
fn by_tracing_the_runtime(name: &str) -> Outcome {
    let mut stage = Stage::new(name, "true")?;
    stage.config["linux"]["namespaces"] = namespaces(&["network", "ipc", "uts", "mount", "pid"]);
    let id = stage.id();
    stage.write(&id)?;
    let bundle = stage.folder.path().to_str().unwrap();
    let root = stage.state_root(Runtime::Ours);
    let pid_file = stage.path("pid");
    let create = ["create", "--bundle", bundle, "--pid-file", pid_file.to_str().unwrap(), &id];
    Runtime::Ours.command(&root).args(create).stdout(Stdio::null()).status()?;
    let pid = std::fs::read_to_string(&pid_file)?;
    // A process that is not to be looked into belongs to root, whoever it runs as.
    let script = format!(
        "setpriv --reuid 0 --regid 0 --clear-groups --bounding-set -all --inh-caps -all \
                          sh -c 'ls -l /proc/{pid}/fd /proc/{pid}/exe'"
    );
    let output = Command::new("sh").args(["-c", &script]).output()?;
    stage.ask(Runtime::Ours, &["delete", "--force", &id])?;
    let text = String::from_utf8(output.stderr)?;
    contains(&text, "Permission denied")
}
