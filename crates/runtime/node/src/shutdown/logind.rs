//! systemd-logind: it tells of the machine's shutdown, and waits with it while a lock is held.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use super::bus::Bus;
use super::message::{Outgoing, Value};

const MANAGER: (&str, &str, &str) =
    ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager");
const SYSTEMD: (&str, &str, &str) =
    ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
const SIGNAL: &str = "PrepareForShutdown";
/// Where the longest wait is set.
const OVERRIDE: &str = "/etc/systemd/logind.conf.d/99-dhow.conf";

pub struct Logind {
    bus: Bus,
}

/// The shutdown waits while it is open.
pub struct Lock(#[allow(dead_code)] OwnedFd);

impl Logind {
    /// Connects and asks to be told of shutdowns.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let mut bus = Bus::connect(address).await?;
        bus.subscribe(MANAGER.2, SIGNAL).await?;
        Ok(Self { bus })
    }

    /// How long logind waits for holders of locks.
    pub async fn longest_wait(&mut self) -> io::Result<Duration> {
        match self.bus.property(MANAGER, "InhibitDelayMaxUSec").await?.value() {
            Some(Value::Number(micros)) => Ok(Duration::from_micros(micros)),
            _ => Err(io::Error::other("logind does not say how long it waits")),
        }
    }

    /// Has logind wait so long, as its administrator would: a file of settings, read again.
    pub async fn extend_wait(&mut self, wanted: Duration) -> io::Result<()> {
        let path = Path::new(OVERRIDE);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Rounded up: less than what is asked for would be refused again.
        let seconds = wanted.as_millis().div_ceil(1000);
        std::fs::write(path, format!("# Written by dhow\n[Login]\nInhibitDelayMaxSec={seconds}\n"))?;
        let hangup = rustix::process::Signal::HUP.as_raw();
        let body = Outgoing::texts(&["systemd-logind.service", "all"]).signed(hangup);
        self.bus.send(SYSTEMD, "KillUnit", &body).await.map(drop)
    }

    /// Takes a lock that delays shutdowns.
    pub async fn inhibit(&mut self) -> io::Result<Lock> {
        let texts = ["shutdown", "dhow", "Dhow ends the pods of this node in order", "delay"];
        let mut answer = self.bus.call(MANAGER, "Inhibit", &texts).await?;
        answer.files.pop().map(Lock).ok_or_else(|| io::Error::other("logind gave no lock"))
    }

    /// Resolves when a shutdown begins (true) or is called off.
    pub async fn shutdown(&mut self) -> io::Result<bool> {
        loop {
            let signal = self.bus.signal().await?;
            if let (true, Some(Value::Flag(begins))) = (signal.member.as_deref() == Some(SIGNAL), signal.value()) {
                return Ok(begins);
            }
        }
    }
}

/// Whether systemd is taking the machine down now.
pub async fn machine_stops(address: &str) -> io::Result<bool> {
    let state = Bus::connect(address).await?.property(SYSTEMD, "SystemState").await?;
    Ok(state.text().as_deref() == Some("stopping"))
}
