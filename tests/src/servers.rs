//! Control planes on one etcd: the example's three members and any number of `dhow server` processes, on loopback ports.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_client::Client;

use crate::{binary, eventually, run, workspace};

/// What a start may take on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The system gives each a free one; all are held until all are known, so none comes twice.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    held.iter().map(|one| Ok(one.local_addr()?.port())).collect()
}

/// Three members, started by `examples/etcd/three-members.sh`; gone when dropped.
pub struct Etcd {
    folder: PathBuf,
    /// What a server is told of them.
    pub flags: Vec<String>,
}

impl Etcd {
    pub fn start(folder: &Path) -> Result<Self> {
        let ports: Vec<String> = free_ports(6)?.iter().map(u16::to_string).collect();
        // From here on whatever was started ends with this value.
        let mut etcd = Self { folder: folder.to_owned(), flags: Vec::new() };
        let mut script = Command::new(workspace().join("examples/etcd/three-members.sh"));
        let flags = run(script.arg(folder).env("PORTS", ports.join(" ")))?;
        etcd.flags = flags.split_whitespace().map(str::to_owned).collect();
        Ok(etcd)
    }

    /// As a power cut would end it.
    pub fn kill(&self, member: usize) -> Result<()> {
        let file = self.folder.join(format!("m{member}.pid"));
        let pid = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        run(Command::new("kill").args(["-9", pid.trim()]))?;
        std::fs::remove_file(file).context("forget the member")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in 1..=3 {
            let _ = self.kill(member);
        }
    }
}

/// One `dhow server` process.
pub struct Server {
    pub name: String,
    pub data_dir: PathBuf,
    pub port: u16,
    process: Option<Child>,
}

impl Server {
    /// Makes the data folder; nothing runs yet.
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        let data_dir = folder.join(name);
        std::fs::create_dir_all(&data_dir).context("make a data folder")?;
        Ok(Self { name: name.to_owned(), data_dir, port: free_ports(1)?[0], process: None })
    }

    /// `dhow` with this server's place; the arguments come first.
    pub fn command(&self, args: &[&str], flags: &[String]) -> Result<Command> {
        // A test that is killed takes its servers along.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary()?).args(args).args(flags);
        command
            .env("DHOW_DATA_DIR", &self.data_dir)
            .env("DHOW_RUN_DIR", self.data_dir.join("run"))
            .env("DHOW_NODE_NAME", &self.name)
            .env("DHOW_NODE_IP", "127.0.0.1")
            .env("DHOW_API_PORT", self.port.to_string())
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Starts it and waits until its API answers.
    pub fn start(&mut self, flags: &[String]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file()).context("open the log")?;
        let mut command = self.command(&["server"], flags)?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn().context("start the server")?;
        self.process = Some(child);
        eventually(START, || self.kubectl(&["get", "--raw", "/readyz"]).map(drop))
            .with_context(|| format!("the server's log ends:\n{}", self.log()))
    }

    fn log_file(&self) -> PathBuf {
        self.data_dir.join("server.log")
    }

    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    pub fn token_file(&self) -> PathBuf {
        self.data_dir.join("pki/server.token")
    }

    /// The machine's kubectl against this server, with the kubeconfig it wrote.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(["--request-timeout", "20s"]).args(args);
        run(command.arg("--cache-dir").arg(self.data_dir.join("kubectl")).env("NO_PROXY", "*"))
    }

    /// A client as the administrator.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::from_kubeconfig(&self.kubeconfig(), None)?)
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        process.kill().context("kill the server")?;
        process.wait().context("wait for the server").map(drop)
    }

    /// Ends it in order.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        run(Command::new("kill").arg(process.id().to_string()))?;
        let status = process.wait().context("wait for the server")?;
        ensure!(status.success(), "the server ended with {status}:\n{}", self.log());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            let _ = self.kill();
        }
    }
}
