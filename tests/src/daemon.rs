//! Daemons of container runtimes that a test starts for itself.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PATIENCE: Duration = Duration::from_secs(60);

/// containerd and dockerd with all they have in the folder; Docker answers at `d.sock` there. `command` makes each program's
/// command.
pub fn docker_daemons(command: impl Fn(&str) -> Command, folder: &Path) -> Result<(Daemon, Daemon)> {
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{}\"\n",
        at("c-root"),
        at("c-state"),
        at("c.sock"),
    );
    fs::write(at("config.toml"), config)?;
    let mut start = command("containerd");
    start.args(["--config", &at("config.toml")]);
    let containerd = Daemon::start(start, folder, "c.sock")?;
    fs::write(at("none.json"), "{}")?;
    let mut start = command("dockerd");
    start.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    for (flag, value) in [
        ("--config-file", at("none.json")),
        ("--containerd", at("c.sock")),
        ("--data-root", at("data")),
        ("--exec-root", at("exec")),
        ("--pidfile", at("docker.pid")),
        ("--host", format!("unix://{}", at("d.sock"))),
    ] {
        start.arg(flag).arg(value);
    }
    let daemon = Daemon::start(start, folder, "d.sock")?;
    Ok((containerd, daemon))
}

/// A runtime's daemon; dropped, it is ended and what it mounted is unmounted.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    /// Returns once something listens at `socket`, a name in the folder.
    pub fn start(mut command: Command, folder: &Path, socket: &str) -> Result<Self> {
        let log = fs::File::create(folder.join(format!("{socket}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut daemon = Self { child, folder: folder.to_owned() };
        let begin = Instant::now();
        while UnixStream::connect(folder.join(socket)).is_err() {
            if daemon.child.try_wait()?.is_some() || begin.elapsed() > PATIENCE {
                bail!("it did not start: {}", fs::read_to_string(folder.join(format!("{socket}.log")))?);
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(20) {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(&self.folder) {
                let _ = Command::new("umount").args(["-l", point]).status();
            }
        }
    }
}
