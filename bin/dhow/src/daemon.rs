//! The long-running process: its start in the background, its readiness message, its life and end.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::LogFormat;
use crate::exit::TimedOut;
use crate::pidfile::PidFile;
use crate::place::Place;
use crate::{agent, builtins};

/// What begins with the start is over by then.
const AFTER_START: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_secs(10 * 60);

/// What of the cloud this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Server and node.
    All,
    /// The control plane alone.
    Server,
    /// The node alone, of a cluster that this machine joined.
    Node,
}

impl Role {
    /// The command that runs it in the foreground.
    pub fn command(self) -> &'static str {
        match self {
            Self::All => "serve",
            Self::Server => "server",
            Self::Node => "serve-node",
        }
    }
}

/// Runs the cloud's parts until SIGTERM or SIGINT. Containers go on running afterwards.
pub async fn serve(place: &Place, role: Role) -> Result<()> {
    init_logging(place.log_format)?;
    fs::create_dir_all(&place.data_dir).with_context(|| format!("create {}", place.data_dir.display()))?;
    let _lock = lock(&place.data_dir)?;
    fs::create_dir_all(&place.run_dir).with_context(|| format!("create {}", place.run_dir.display()))?;
    let _pid_file = PidFile::take(&place.pid_file())?;
    let shutdown = shutdown_signal()?;
    let ready = || {
        notify("READY=1");
        tokio::spawn(stay_small());
    };
    let result = match role {
        Role::All => builtins::run(place, shutdown, ready).await,
        Role::Server => builtins::run_server(place, shutdown, ready).await,
        Role::Node => agent::run(place, shutdown, ready).await,
    };
    notify("STOPPING=1");
    let _ = fs::remove_file(place.pid_file());
    result
}

/// Takes out of memory what only a start or a busy time needed, from time to time.
pub async fn stay_small() {
    let mut pause = AFTER_START;
    loop {
        tokio::time::sleep(pause).await;
        if let Err(error) = dhow_base::memory::unmap_code() {
            tracing::debug!(%error, "cannot unmap code");
        }
        pause = BETWEEN;
    }
}

/// Is cancelled by SIGTERM or SIGINT.
pub fn shutdown_signal() -> Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.cancel();
    });
    Ok(shutdown)
}

pub fn init_logging(format: LogFormat) -> Result<()> {
    use dhow_base::logging::{Format, init};
    init(match format {
        LogFormat::Auto => Format::Auto,
        LogFormat::Human => Format::Text,
        LogFormat::Json => Format::Json,
    })
    .context("set up logging")
}

/// Held while the daemon lives, so that two never share a data folder.
pub fn lock(data_dir: &Path) -> Result<fs::File> {
    let path = data_dir.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another dhow already uses {}", data_dir.display()))?;
    Ok(file)
}

/// Tells whoever started us, by the protocol of systemd's `Type=notify`.
fn notify(message: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), Path::new(&address)));
    if let Err(error) = sent {
        // `dhow up` listens for the first message only.
        tracing::debug!(%error, message, "nobody takes the message");
    }
}

/// Starts a role in the background and waits until it is ready, or says why it is not.
pub fn start(place: &Place, role: Role, timeout: Duration) -> Result<()> {
    for folder in [&place.data_dir, &place.run_dir] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let socket_path = place.run_dir.join("notify.sock");
    let _ = fs::remove_file(&socket_path);
    let socket = UnixDatagram::bind(&socket_path).context("open the readiness socket")?;
    let log_path = place.log_file();
    let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).context("open the log file")?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());

    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("dhow")
        .arg(role.command())
        .args(place.as_args())
        .env("NOTIFY_SOCKET", &socket_path)
        // It has been used by now.
        .env_remove("DHOW_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .process_group(0);
    let mut child = command.spawn().context("start the daemon")?;
    let ready = wait_ready(&socket, &mut child, timeout);
    let _ = fs::remove_file(&socket_path);
    match ready {
        Ok(()) => Ok(()),
        Err(error) => {
            let last = tail(&log_path, log_start);
            let log = format!("the end of its log {}:\n{last}", log_path.display());
            // A deadline stays what it is, for the exit code.
            Err(match error.downcast::<TimedOut>() {
                Ok(late) => TimedOut(format!("the daemon is {late}; it goes on (`dhow down` ends it); {log}")).into(),
                Err(error) => anyhow::anyhow!("the daemon did not become ready: {error:#}; {log}"),
            })
        }
    }
}

fn wait_ready(socket: &UnixDatagram, child: &mut std::process::Child, timeout: Duration) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let pid = Pid::from_child(child);
    let exited = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).context("watch the daemon")?;
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            bail!(TimedOut(format!("not ready after {} s", timeout.as_secs())));
        }
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&exited, PollFlags::IN)];
        let wait =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&wait)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for the daemon"),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).context("read the readiness message")?;
            if buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(());
            }
        }
        if fds[1].revents().contains(PollFlags::IN) {
            let status = child.wait().context("reap the daemon")?;
            bail!("it ended with {status}");
        }
    }
}

fn tail(path: &Path, from: u64) -> String {
    use std::io::Seek;
    let mut text = String::new();
    if let Ok(mut file) = fs::File::open(path) {
        let _ = file.seek(std::io::SeekFrom::Start(from));
        let _ = file.read_to_string(&mut text);
    }
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
