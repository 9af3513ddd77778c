//! Terminals of bundles' containers: handed to whoever asked for one, or joined to the caller's own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use oci_spec::runtime::Box as Size;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::birth::Line;
use crate::error::{Context, Result};
use crate::setup::terminal;
use crate::sys;

/// In the container's process: makes a terminal its own and hands the master to the maker. Returns the slave.
pub fn make(line: &Line, size: Option<Size>) -> Result<OwnedFd> {
    let (master, slave) = terminal::open()?;
    if let Some(size) = size {
        let part = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: part(size.height()), ws_col: part(size.width()), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).step("set the terminal's size")?;
    }
    line.hand_over_terminal(&master)?;
    terminal::take(&slave)?;
    Ok(slave)
}

/// Gives the master to whoever listens at `socket`.
pub fn send(socket: &Path, master: BorrowedFd<'_>) -> Result<()> {
    let stream = UnixStream::connect(socket).step(format!("connect to console socket {}", socket.display()))?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [master];
    control.push(SendAncillaryMessage::ScmRights(&files));
    // Files need a byte to travel with; receivers take it for the terminal's name.
    let name = std::io::IoSlice::new(b"/dev/ptmx");
    sendmsg(&stream, &[name], &mut control, SendFlags::NOSIGNAL).step("send the terminal").map(drop)
}

/// Signals that are passed on to a program in the foreground.
const PASSED_ON: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Waits for the signals that [`foreground`] looks at; to be called before the program is made, so that none is lost.
pub fn listen_for_signals() -> Result<OwnedFd> {
    let all: Vec<i32> = PASSED_ON.into_iter().chain([libc::SIGCHLD, libc::SIGWINCH]).collect();
    sys::signal_file(&all).step("listen for signals")
}

/// Stays with a program until it ends: passes signals on and, with a terminal, what is typed and printed.
/// Returns its exit code, as a shell has it.
pub fn foreground(pid: i32, master: Option<OwnedFd>, signals: &OwnedFd) -> Result<i32> {
    let ours = rustix::stdio::stdin();
    let _raw = master.as_ref().and_then(|_| Raw::enter());
    let resize = |master: &OwnedFd| tcgetwinsize(ours).map(|size| tcsetwinsize(master, size));
    if let Some(master) = &master {
        // A caller without a terminal has no size to give.
        let _ = resize(master);
    }
    let (mut typed, mut printed) = (master.is_some(), master.is_some());
    let status = loop {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        if let Some(master) = &master {
            // What is of no more interest is not waited for.
            let wanted = |wanted| if wanted { PollFlags::IN } else { PollFlags::empty() };
            fds.push(PollFd::new(master, wanted(printed)));
            fds.push(PollFd::from_borrowed_fd(ours, wanted(typed)));
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).step("wait for the program")?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if let (Some(master), [_, from_program, from_user]) = (&master, ready.as_slice()) {
            if printed && *from_program {
                printed = copy(master.as_fd(), rustix::stdio::stdout());
            }
            if typed && *from_user {
                typed = copy(ours, master.as_fd());
            }
        }
        if !ready[0] {
            continue;
        }
        let mut end = None;
        for signal in sys::read_signals(signals) {
            match (signal, &master) {
                (libc::SIGCHLD, _) => end = ended(pid).or(end),
                (libc::SIGWINCH, Some(master)) => drop(resize(master)),
                (libc::SIGWINCH, None) => {}
                (signal, _) => sys::kill(pid, signal),
            }
        }
        if let Some(end) = end {
            break end;
        }
    };
    // What it printed last; others may hold the terminal open, and are not waited for.
    while let Some(master) = master.as_ref().filter(|_| printed) {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        printed =
            poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0) && copy(master.as_fd(), rustix::stdio::stdout());
    }
    Ok(crate::shim::exit_code(status))
}

/// Takes the program's end, and that of any orphan that fell to us.
fn ended(pid: i32) -> Option<WaitStatus> {
    let mut found = None;
    while let Ok(Some((child, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if Some(child) == Pid::from_raw(pid) {
            found = Some(status);
        }
    }
    found
}

/// Passes one piece on; false at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 16 * 1024];
    match rustix::io::read(from, &mut buffer) {
        Ok(0) => false,
        Ok(count) => {
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                match rustix::io::write(to, rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        }
        Err(error) => error == Errno::INTR,
    }
}

/// The caller's own terminal while it belongs to the program; given back as it was.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return None;
        }
        let before = tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}
