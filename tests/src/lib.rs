//! A host of its own for an end-to-end test: a network namespace, private folders, and a cloud in it.
#![allow(clippy::print_stderr)]

#[path = "../../crates/runtime/cri/tests/support/daemon.rs"]
mod daemon;
#[path = "../../crates/runtime/cri/tests/support/dockerd.rs"]
pub mod dockerd;
pub mod git;
pub mod kubelets;
pub mod machines;
pub mod pods;
pub mod s3;
mod server;
pub mod servers;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use daemon::{Daemon, Folder};
pub use server::Server;

/// Takes the steps of a test in their order, and says how long each took.
///
/// # Errors
/// That of the first step that fails, with its name.
pub fn in_turn<S: Copy>(steps: &[(&str, S)], take: impl Fn(S) -> Result<()>) -> Result<()> {
    for (name, step) in steps {
        let begin = Instant::now();
        take(*step).with_context(|| format!("step {name:?}"))?;
        eprintln!("{name}: {} ms", begin.elapsed().as_millis());
    }
    Ok(())
}

/// Address of the test's host, on a veth pair that never leaves its namespace.
pub const HOST_IP: &str = "198.18.0.1";

/// A machine that runs one cloud. Dropping it takes everything away.
pub struct Host {
    namespace: String,
    folder: tempfile::TempDir,
    binary: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Host {
    /// Makes the namespace and finds the `dhow` binary (built by the caller of the tests).
    pub fn new() -> Result<Self> {
        let namespace = format!("dhow-e2e-{}", std::process::id());
        let folder = tempfile::Builder::new().prefix("dhow-e2e").tempdir_in("/var/tmp").context("make a folder")?;
        let host = Self { namespace, folder, binary: binary()?, environment: Vec::new() };
        run(Command::new("ip").args(["netns", "add", &host.namespace]))?;
        for args in [
            vec!["link", "set", "lo", "up"],
            vec!["link", "add", "host0", "type", "veth", "peer", "name", "host1"],
            vec!["addr", "add", &format!("{HOST_IP}/24"), "dev", "host0"],
            vec!["link", "set", "host0", "up"],
            vec!["link", "set", "host1", "up"],
            vec!["route", "add", "default", "via", "198.18.0.254"],
        ] {
            run(host.command("ip").args(&args))?;
        }
        Ok(host)
    }

    /// Sets a variable for all that runs on the host from now on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// The name of its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A folder of the test's own; goes with the host.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A program inside the host's network, with the kubeconfig that `dhow up` wrote.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg("--")
            .arg(program.as_ref())
            .env("KUBECONFIG", self.kubeconfig())
            .env("DHOW_DATA_DIR", self.data_dir())
            .env("DHOW_RUN_DIR", self.run_dir())
            .env("DHOW_NODE_IP", HOST_IP)
            .env("DHOW_NODE_NAME", "e2e")
            // How full the disk of the machine is that tests is not part of them.
            .env("DHOW_IMAGES_GC_HIGH_THRESHOLD_PERCENT", "100")
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .env_remove("SUDO_UID")
            .env("NO_PROXY", "*")
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .env_remove("HTTP_PROXY")
            .env_remove("HTTPS_PROXY")
            .stdin(Stdio::null());
        command
    }

    /// The program under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// `dhow` with these arguments, to be run.
    pub fn dhow_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.binary);
        command.args(args);
        command
    }

    /// `dhow` with these arguments; returns standard output.
    pub fn dhow(&self, args: &[&str]) -> Result<String> {
        run(&mut self.dhow_command(args))
    }

    /// Puts images that `cargo xtask images` made, by the names of their archives, onto the node.
    pub fn import(&self, names: &[&str]) -> Result<()> {
        let archives = names.iter().map(|name| workspace().join(format!("target/images/{name}.tar")));
        run(self.dhow_command(&["image", "import"]).args(archives)).map(drop)
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        apply(self.command("kubectl"), manifest)
    }

    /// A web server on the host's address that answers everything with `text`; kill it when done.
    pub fn serve(&self, text: &str, port: u16) -> Result<Child> {
        let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        let script = "import socket, sys\n\
            listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n\
            while True:\n    \
            peer, _ = listener.accept()\n    \
            peer.recv(65536)\n    \
            peer.sendall(sys.argv[3].encode())\n    \
            peer.close()\n";
        self.spawn("python3", &["-c", script, HOST_IP, &port.to_string(), &answer])
    }

    /// The machine's real kubectl; returns standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.command("kubectl").args(args))
    }

    /// `kubectl … -o json`, parsed.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = run(self.command("kubectl").args(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).context("read kubectl's JSON")
    }

    /// An HTTP request from the host; returns the body. `--fail` makes a status of 400 or more an error.
    pub fn curl(&self, args: &[&str]) -> Result<String> {
        run(self.command("curl").args(["--fail", "--silent", "--show-error", "--max-time", "5"]).args(args))
    }

    pub fn spawn(&self, program: &str, args: &[&str]) -> Result<Child> {
        self.command(program)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))
    }

    /// Fails if anything of a purged cloud is left: folders, rules, interfaces, routes, mounts or control groups.
    pub fn ensure_purged(&self) -> Result<()> {
        ensure_purged(&self.data_dir(), &self.run_dir(), 3, |program| self.command(program))?;
        let mounts = std::fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
        ensure!(!mounts.contains(&*self.folder.path().to_string_lossy()), "mounts left: {mounts}");
        Ok(())
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(self.run_dir().join("dhow.pid")).context("read the pid file")?;
        text.trim().parse().context("read the pid")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.data_dir().join("dhow.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the daemon's log ends:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            if let Ok(all) = self.kubectl(&["get", "pods,events", "-A", "-o", "wide"]) {
                eprintln!("{all}");
            }
        }
        if let Err(error) = self.dhow(&["down", "--purge"]) {
            eprintln!("clean up: {error:#}");
        }
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

/// The control group of the cloud with this data folder: its name ends in the FNV-1a hash of the path.
fn control_group(data_dir: &Path) -> String {
    let bytes = data_dir.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("dhow-{hash:08x}")
}

/// The `dhow` that is tested.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DHOW_BINARY") {
        return Ok(path.into());
    }
    // Test executables lie in <target>/<profile>/deps.
    let here = std::env::current_exe().context("find the test executable")?;
    let binary = here.ancestors().nth(2).context("find the target folder")?.join("dhow");
    if !binary.is_file() {
        bail!("{} is missing; run `cargo build --package dhow` first", binary.display());
    }
    Ok(binary)
}

/// Runs a command to its end and returns standard output; an error shows both outputs.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    check(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let arguments: Vec<_> = command.get_args().skip(2).map(|argument| argument.to_string_lossy()).collect();
    bail!(
        "`{}` failed: {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// `kubectl apply` of a manifest, by this kubectl.
fn apply(mut kubectl: Command, manifest: &str) -> Result<String> {
    kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = kubectl.spawn().context("start kubectl")?;
    running.stdin.take().context("no input")?.write_all(manifest.as_bytes()).context("write the manifest")?;
    let output = running.wait_with_output().context("wait for kubectl")?;
    check(&kubectl, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a cloud left nothing but the `links` of its machine, whose network `inside` runs programs in.
fn ensure_purged(data: &Path, run_dir: &Path, links: usize, inside: impl Fn(&str) -> Command) -> Result<()> {
    ensure!(!data.exists() && !run_dir.exists(), "folders left");
    let rules = run(inside("nft").args(["list", "ruleset"]))?;
    ensure!(rules.trim().is_empty(), "rules left: {rules}");
    let left = run(inside("ip").args(["-br", "link"]))?;
    ensure!(left.lines().count() == links, "interfaces left: {left}");
    let routes = run(inside("ip").args(["route"]))?;
    ensure!(!routes.contains("10.42.") && !routes.contains("10.43."), "routes left: {routes}");
    let routes = run(inside("ip").args(["-6", "route"]))?;
    ensure!(!routes.contains("fd42:") && !routes.contains("fd43:"), "routes left: {routes}");
    // Other clouds on the machine have groups of their own names.
    let group = control_group(data);
    let left = run(Command::new("find").args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", &group]))?;
    ensure!(left.is_empty(), "control groups left: {left}");
    Ok(())
}

/// The configuration of a containerd that keeps all it has, its socket `c.sock` included, in a folder.
pub fn containerd_config(folder: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "dhow.local/pause:1"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{net}"
    bin_dir = "{bin}"
"#,
        root = at("root"),
        state = at("state"),
        socket = at("c.sock"),
        net = at("net.d"),
        bin = at("bin"),
    )
}

/// Checks again and again for so long, and fails as soon as the check does.
pub fn always(length: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + length;
    while Instant::now() < end {
        check()?;
        std::thread::park_timeout(Duration::from_millis(500));
    }
    Ok(())
}

/// Tries until it succeeds; the last error after `limit`. For things outside that offer no event to wait for.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {} s", limit.as_secs())));
            }
            Err(_) => std::thread::park_timeout(Duration::from_millis(100)),
        }
    }
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}
