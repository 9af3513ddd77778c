//! A container's terminal: made in its own devpts, handed to the shim as the open master.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use super::paths;
use crate::error::{Context, Error, Result};
use crate::sys;

/// Opens master and slave. Must run inside the container's file system.
pub fn open() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty()).step("open a terminal")?;
    // The container may have put something else there.
    let device = rustix::fs::fstat(&master).step("look at the terminal")?.st_rdev;
    if (rustix::fs::major(device), rustix::fs::minor(device)) != (5, 2) {
        return Err(Error::Invalid("/dev/pts/ptmx of the container is not a terminal".into()));
    }
    unlockpt(&master).step("unlock the terminal")?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).step("open the terminal's end")?;
    Ok((master, slave))
}

/// Makes the slave stdin, stdout and stderr, and the controlling terminal of a session of its own.
pub fn take(slave: &OwnedFd) -> Result<()> {
    sys::take_terminal(slave.as_fd()).step("take the terminal")?;
    for number in 0..=2 {
        sys::install(slave.as_fd(), number).step("install the terminal")?;
    }
    Ok(())
}

/// The terminal is also `/dev/console`. Runs in the container's root.
pub fn become_console(slave: &OwnedFd) -> Result<()> {
    let root = paths::open_root(Path::new("/"))?;
    let place = paths::mount_point(root.as_fd(), Path::new("/dev/console"), false)?;
    rustix::mount::mount_bind(paths::by_fd(slave), paths::by_fd(&place)).step("make /dev/console")
}
