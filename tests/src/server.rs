//! A control plane alone, for tests of its API: `dhow server` on a port of the loopback address.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{binary, eventually};

/// A running server with a folder of its own. Dropping it ends it and removes everything.
pub struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder")?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        let port = port.context("find a free port")?.port();
        let process = Command::new(binary()?)
            .args(["server", "--node-ip", "127.0.0.1", "--node-name", "e2e", "--api-port", &port.to_string()])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .arg("--run-dir")
            .arg(folder.path().join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the server")?;
        let mut server = Self { process, folder };
        eventually(Duration::from_secs(30), || {
            let ended = server.process.try_wait().context("look after the server")?;
            ensure!(ended.is_none(), "the server ended: {ended:?}");
            let ready = server.kubectl().args(["get", "--raw", "/readyz"]).output().context("start kubectl")?;
            ensure!(ready.status.success(), "{}", String::from_utf8_lossy(&ready.stderr));
            Ok(())
        })?;
        Ok(server)
    }

    /// The administrator's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("data/admin.kubeconfig")
    }

    /// kubectl as the administrator, to be run.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig()).env("NO_PROXY", "*").stdin(Stdio::null());
        command
    }

    /// A command of ours about this cloud, to be run.
    pub fn dhow(&self, command: &str) -> Result<Command> {
        let mut ours = Command::new(binary()?);
        ours.arg(command).arg("--kubeconfig").arg(self.kubeconfig()).env("NO_PROXY", "*").stdin(Stdio::null());
        Ok(ours)
    }

    /// Bytes of memory that the server has now, and the most that it ever had.
    pub fn resident(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let bytes = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {name}"))?;
            Ok(kilobytes << 10)
        };
        Ok((bytes("VmRSS:")?, bytes("VmHWM:")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
