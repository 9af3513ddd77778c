//! A connection into a sandbox' network: Docker has no call for it.
//!
//! No thread of the daemon may enter another namespace, so a process of its own does, connects, and hands the connection
//! over. It is this same binary, started by `nsenter`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use dhow_oci::wire;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::process::Command;

use crate::Error;
use crate::runtime::Duplex;

/// First argument of that process; the port is the second.
pub const COMMAND: &str = "connect-inside";
const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a port on loopback and sends the connection through standard input, or the reason why not.
pub fn main(mut args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let port = args.next().and_then(|port| port.to_str()?.parse::<u16>().ok());
    let connected = port.ok_or_else(|| "no port".to_owned()).and_then(|port| connect(port).map_err(|e| e.to_string()));
    let (answer, stream) = match connected {
        Ok(stream) => (Ok(()), Some(stream)),
        Err(error) => (Err(error), None),
    };
    let files: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
    match wire::send(std::io::stdin().as_fd(), &answer, &files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let to = |address| TcpStream::connect_timeout(&address, CONNECT);
    to(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .or_else(|first| to(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|_| first))
}

/// Connects to a port in the network of a process.
pub async fn open(pid: u32, port: u16) -> Result<Box<dyn Duplex>, Error> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Error::Network(format!("{what}: {error}"));
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|error| failed("make a socket", &error))?;
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg("--")
        // Also when the file was replaced since.
        .arg(format!("/proc/{}/exe", std::process::id()))
        .args([COMMAND, &port.to_string()])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("run nsenter", &error))?;
    let received = tokio::task::spawn_blocking(move || receive(&ours)).await;
    let received = received.map_err(|error| failed("wait for a connection", &error))?;
    let _ = child.wait().await;
    let stream = TcpStream::from(received?);
    let prepared = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
    Ok(Box::new(prepared.map_err(|error| failed("use a connection", &error))?))
}

/// The connection, or the end of the process that should have made it.
fn receive(socket: &OwnedFd) -> Result<OwnedFd, Error> {
    match wire::receive::<Result<(), String>>(socket.as_fd()) {
        Ok(Some((Ok(()), files))) => {
            files.into_iter().next().ok_or_else(|| Error::Network("no connection came".to_owned()))
        }
        Ok(Some((Err(message), _))) => Err(Error::Network(message)),
        Ok(None) => Err(Error::Network("the sandbox' network cannot be entered".to_owned())),
        Err(error) => Err(Error::Network(error.to_string())),
    }
}
