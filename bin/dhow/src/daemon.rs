//! The long-running process: its start in the background, its readiness message, its life and end.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::builtins;
use crate::cli::LogFormat;
use crate::exit::TimedOut;
use crate::place::Place;

/// Runs server and node until SIGTERM or SIGINT. Containers go on running afterwards.
pub async fn serve(place: &Place) -> Result<()> {
    init_logging(place.log_format);
    fs::create_dir_all(&place.data_dir).with_context(|| format!("create {}", place.data_dir.display()))?;
    fs::create_dir_all(&place.run_dir).with_context(|| format!("create {}", place.run_dir.display()))?;
    let _lock = lock(place)?;
    fs::write(place.pid_file(), std::process::id().to_string()).context("write the pid file")?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.cancel();
    });
    let result = builtins::run(place, shutdown, || notify("READY=1")).await;
    notify("STOPPING=1");
    let _ = fs::remove_file(place.pid_file());
    result
}

fn init_logging(format: LogFormat) {
    use std::io::IsTerminal;
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    dhow_base::logging::init(if json { dhow_base::logging::Format::Json } else { dhow_base::logging::Format::Human });
}

/// Held while the daemon lives, so that two never share a data folder.
fn lock(place: &Place) -> Result<fs::File> {
    let path = place.data_dir.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow::anyhow!("another dhow already uses {}", place.data_dir.display()))?;
    Ok(file)
}

/// Tells whoever started us, by the protocol of systemd's `Type=notify`.
fn notify(message: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), Path::new(&address)));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot send the readiness message");
    }
}

/// Starts `dhow serve` in the background and waits until it is ready, or says why it is not.
pub fn start(place: &Place, timeout: Duration) -> Result<()> {
    fs::create_dir_all(&place.run_dir).with_context(|| format!("create {}", place.run_dir.display()))?;
    let socket_path = place.run_dir.join("notify.sock");
    let _ = fs::remove_file(&socket_path);
    let socket = UnixDatagram::bind(&socket_path).context("open the readiness socket")?;
    let log_path = place.log_file();
    let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).context("open the log file")?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());

    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("dhow")
        .arg("serve")
        .arg("--data-dir")
        .arg(&place.data_dir)
        .arg("--run-dir")
        .arg(&place.run_dir)
        .arg("--node-name")
        .arg(&place.node_name)
        .arg("--node-ip")
        .arg(place.node_ip.to_string())
        .arg("--api-port")
        .arg(place.api_port.to_string())
        .arg("--node-port")
        .arg(place.node_port.to_string())
        .env("NOTIFY_SOCKET", &socket_path)
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
            Err(error.context(format!("the daemon did not become ready; its log {} ends:\n{last}", log_path.display())))
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

/// The running daemon's process, if the pid file names a live `dhow`.
pub fn running(run_dir: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(run_dir.join("dhow.pid")).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let serves = command.split(|byte| *byte == 0).any(|argument| argument == b"serve" || argument == b"up");
    serves.then(|| Pid::from_raw(pid))?
}

/// Asks the daemon to end and waits for it. Returns whether one was running.
pub fn stop(run_dir: &Path) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(pid) = running(run_dir) else { return Ok(false) };
    let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return Ok(false) };
    rustix::process::pidfd_send_signal(&handle, Signal::TERM).context("stop the daemon")?;
    let wait = Timespec { tv_sec: 30, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&wait)).context("wait for the daemon")?;
    if ended == 0 {
        tracing::warn!("the daemon did not end within 30 s; killing it");
        rustix::process::pidfd_send_signal(&handle, Signal::KILL).context("kill the daemon")?;
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], None).context("wait for the daemon")?;
    }
    Ok(true)
}
