//! Where a case plays: a bundle of the machine's static busybox, and runtimes to run it with.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

pub type Failure = Box<dyn std::error::Error>;
pub type Outcome = Result<(), Failure>;
pub type Case = fn(&str) -> Outcome;

/// Makes the test binary the runtime.
pub const AS_RUNTIME: &str = "DHOW_TEST_AS_RUNTIME";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Ours,
    Runc,
    Crun,
}

pub const ALL: [Runtime; 3] = [Runtime::Ours, Runtime::Runc, Runtime::Crun];

/// crun refuses machines with both kinds of control groups, unless it sees one kind only.
const CRUN: &str =
    "if grep -q ' /sys/fs/cgroup/unified ' /proc/mounts; then umount /sys/fs/cgroup/unified; fi; exec crun \"$@\"";

impl Runtime {
    pub fn command(self, root: &Path) -> Command {
        let mut command = match self {
            Self::Ours => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.env(AS_RUNTIME, "1");
                command
            }
            Self::Runc => Command::new("runc"),
            Self::Crun => {
                let mut command = Command::new("unshare");
                command.args(["-m", "sh", "-c", CRUN, "crun"]);
                command
            }
        };
        command.arg("--root").arg(root).stdin(self.no_input());
        command
    }

    /// Nothing to read. crun gives its streams to the container's user, and `/dev/null` is the machine's.
    fn no_input(self) -> Stdio {
        match (self, io::pipe()) {
            (Self::Crun, Ok((reader, _closed))) => reader.into(),
            _ => Stdio::null(),
        }
    }
}

/// A bundle that can be run by each runtime in turn.
pub struct Stage {
    pub folder: tempfile::TempDir,
    pub config: Value,
    name: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Stage {
    /// A bundle whose program is a shell with this script.
    pub fn new(name: &str, script: &str) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("dhow-bundle-").tempdir()?;
        // Others, such as the users of a user namespace, find their way in.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        rootfs(&folder.path().join("rootfs"))?;
        Ok(Self { folder, config: config(script), name: name.replace('_', "-") })
    }

    pub fn rootfs(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn state_root(&self, runtime: Runtime) -> PathBuf {
        self.path(&format!("state-{runtime:?}"))
    }

    /// A name that nobody else on this machine has.
    pub fn id(&self) -> String {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("dhow-test-{}-{}-{count}", std::process::id(), self.name)
    }

    /// Writes the configuration for a container of this name.
    pub fn write(&self, id: &str) -> io::Result<()> {
        let mut config = self.config.clone();
        config["linux"]["cgroupsPath"] = format!("/{id}").into();
        std::fs::write(self.path("config.json"), serde_json::to_vec_pretty(&config)?)
    }

    /// Runs the bundle to its end.
    pub fn run(&self, runtime: Runtime) -> Result<Output, Failure> {
        let id = self.id();
        self.write(&id)?;
        let mut command = runtime.command(&self.state_root(runtime));
        let output = command.args(["run", "--bundle"]).arg(self.folder.path()).arg(&id).output()?;
        let _ = runtime.command(&self.state_root(runtime)).args(["delete", "--force", &id]).output()?;
        no_group_is_left(&id)?;
        Ok(output)
    }

    /// A verb on a container; what it prints, if it succeeds.
    pub fn ask(&self, runtime: Runtime, args: &[&str]) -> Result<String, Failure> {
        let output = runtime.command(&self.state_root(runtime)).args(args).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{runtime:?} {args:?}: {}: {text}", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The bundle says the same through every runtime; returns what.
    pub fn same(&self) -> Result<String, Failure> {
        self.same_as(&ALL)
    }

    pub fn same_as(&self, runtimes: &[Runtime]) -> Result<String, Failure> {
        let mut first: Option<(Option<i32>, String)> = None;
        for runtime in runtimes {
            let output = self.run(*runtime)?;
            let said = (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned());
            let complaint = String::from_utf8_lossy(&output.stderr);
            match &first {
                None => first = Some(said),
                Some(ours) if *ours == said => {}
                Some(ours) => {
                    return Err(format!("ours: {ours:?}\n{runtime:?}: {said:?}\ncomplaint: {complaint}").into());
                }
            }
        }
        let (code, text) = first.unwrap();
        if code != Some(0) {
            let complaint = self.run(Runtime::Ours)?.stderr;
            return Err(format!("exit code {code:?}: {text} {}", String::from_utf8_lossy(&complaint)).into());
        }
        Ok(text)
    }
}

fn no_group_is_left(id: &str) -> Outcome {
    for tree in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let group = tree.path().join(id);
        if group.exists() {
            return Err(format!("{} is left behind", group.display()).into());
        }
    }
    Ok(())
}

pub fn ensure(ok: bool, message: impl FnOnce() -> String) -> Outcome {
    if ok { Ok(()) } else { Err(message().into()) }
}

pub fn contains(text: &str, expected: &str) -> Outcome {
    ensure(text.contains(expected), || format!("{expected:?} is not in:\n{text}"))
}

fn rootfs(root: &Path) -> Result<(), Failure> {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "mnt"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\nlogs:x:44:web\n")?;
    Ok(())
}

pub fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({"type": kind})).collect()
}

pub fn mount(kind: &str, source: impl AsRef<Path>, target: &str, options: &[&str]) -> Value {
    json!({"type": kind, "source": source.as_ref(), "destination": target, "options": options})
}

/// What an engine would write, and what `runc spec` does.
fn config(script: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_MKNOD"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "box",
        "mounts": [
            mount("proc", "proc", "/proc", &[]),
            mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup"]),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Adds one more to a list of the configuration.
pub fn push(list: &mut Value, value: Value) {
    list.as_array_mut().unwrap().push(value);
}
