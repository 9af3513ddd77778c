//! As much of D-Bus as talking to systemd and logind takes: calls with texts, answers, signals and files over a Unix
//! socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::message::{Kind, Message, Outgoing};

/// Longer messages are no answers to anything that is asked here.
const MAX_MESSAGE: usize = 1 << 20;
/// Files that come with one read.
const MAX_FILES: usize = 8;

/// A connection to a bus.
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    received: Vec<u8>,
    files: VecDeque<OwnedFd>,
    /// Came while an answer was awaited.
    signals: VecDeque<Message>,
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The first address of a list that is a Unix socket: `unix:path=/run/dbus/system_bus_socket`.
fn socket(address: &str) -> io::Result<SocketAddr> {
    for one in address.split(';').filter_map(|one| one.strip_prefix("unix:")) {
        for (key, value) in one.split(',').filter_map(|pair| pair.split_once('=')) {
            match key {
                "path" => return SocketAddr::from_pathname(value),
                "abstract" => return SocketAddr::from_abstract_name(value),
                _ => {}
            }
        }
    }
    Err(bad(format!("{address:?} is no address of a Unix socket")))
}

impl Bus {
    /// Connects, says who we are, and is given a name.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::connect_addr(&socket(address)?)?;
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let mut this =
            Self { stream, serial: 0, received: Vec::new(), files: VecDeque::new(), signals: VecDeque::new() };
        let user: String =
            rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        this.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes()).await?;
        this.expect("OK").await?;
        this.stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
        this.expect("AGREE_UNIX_FD").await?;
        this.stream.write_all(b"BEGIN\r\n").await?;
        this.call(("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"), "Hello", &[]).await?;
        Ok(this)
    }

    async fn expect(&mut self, word: &str) -> io::Result<()> {
        let line = loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let rest = self.received.split_off(end + 2);
                break std::mem::replace(&mut self.received, rest);
            }
            self.read().await?;
        };
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if line.split(' ').next() == Some(word) { Ok(()) } else { Err(bad(format!("the bus answered {line:?}"))) }
    }

    /// Reads what has come, at least something.
    async fn read(&mut self) -> io::Result<()> {
        if self.received.len() > MAX_MESSAGE {
            return Err(bad("a message of the bus is too long"));
        }
        let mut buffer = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        loop {
            self.stream.readable().await?;
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let stream = &self.stream;
            let got = stream.try_io(Interest::READABLE, || {
                let mut parts = [io::IoSliceMut::new(&mut buffer)];
                Ok(recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?)
            });
            let count = match got {
                Ok(message) => message.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    self.files.extend(files);
                }
            }
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&buffer[..count]);
            return Ok(());
        }
    }

    async fn message(&mut self) -> io::Result<Message> {
        loop {
            if let Some((mut message, length)) = Message::parse(&self.received).map_err(bad)? {
                self.received.drain(..length);
                let count = message.file_count.min(self.files.len());
                message.files = self.files.drain(..count).collect();
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// Calls a method whose arguments are texts. `target` is destination, path and interface.
    pub async fn call(&mut self, target: (&str, &str, &str), member: &str, texts: &[&str]) -> io::Result<Message> {
        self.send(target, member, &Outgoing::texts(texts)).await
    }

    pub async fn send(&mut self, target: (&str, &str, &str), member: &str, body: &Outgoing) -> io::Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.stream.write_all(&body.call(serial, target, member)).await?;
        loop {
            let message = self.message().await?;
            match message.kind {
                Kind::Signal => self.signals.push_back(message),
                Kind::Return if message.reply_to == Some(serial) => return Ok(message),
                Kind::Error if message.reply_to == Some(serial) => {
                    let why = message.text().unwrap_or_default();
                    let name = message.error.unwrap_or_default();
                    return Err(io::Error::other(format!("{member}: {name}: {why}")));
                }
                _ => {}
            }
        }
    }

    /// Asks for a property of an object. `target` is destination, path and interface.
    pub async fn property(&mut self, target: (&str, &str, &str), name: &str) -> io::Result<Message> {
        let (destination, path, interface) = target;
        self.call((destination, path, "org.freedesktop.DBus.Properties"), "Get", &[interface, name]).await
    }

    /// Has signals of an interface delivered.
    pub async fn subscribe(&mut self, interface: &str, member: &str) -> io::Result<()> {
        let rule = format!("type='signal',interface='{interface}',member='{member}'");
        let bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus");
        self.call(bus, "AddMatch", &[&rule]).await.map(drop)
    }

    /// The next signal. Dropping the future loses nothing.
    pub async fn signal(&mut self) -> io::Result<Message> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        loop {
            let message = self.message().await?;
            if message.kind == Kind::Signal {
                return Ok(message);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let path = |text: &str| socket(text).ok().and_then(|a| a.as_pathname().map(std::path::Path::to_owned));
        assert_eq!(path("unix:path=/run/x,guid=1").unwrap(), std::path::Path::new("/run/x"));
        assert_eq!(path("tcp:host=a;unix:path=/y").unwrap(), std::path::Path::new("/y"));
        assert!(socket("unix:abstract=z").unwrap().as_abstract_name() == Some(b"z"));
        for text in ["", "unix:tmpdir=/tmp", "tcp:host=localhost"] {
            assert!(socket(text).is_err(), "{text}");
        }
    }
}
