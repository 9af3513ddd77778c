//! How processes of containers are made: forks whose children tell their maker how far they have come.
//!
//! A child sets itself up, asks its maker for what only the maker can do, and says when it is ready or why it failed.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::protocol::FailureKind;
use crate::spec::Ids;
use crate::sys::{self, Forked};
use crate::wire;

/// How long a child may take for its set-up before it is given up, in seconds.
const SETUP_LIMIT: u64 = 120;

/// What a child tells its maker before it runs its program. The end of the stream says that it runs.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// The process id of the child that a helper made, as the maker sees it.
    Pid(i32),
    /// Brings the terminal's master.
    Terminal,
    /// Who the program will run as.
    Ids(Ids),
    /// Waits for an answer.
    Ask(Question),
    /// Everything is set up; a container's first process waits for the word to run now.
    Ready,
    Failed {
        kind: FailureKind,
        message: String,
    },
}

/// What only the maker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Write the id maps of this process.
    MapIds,
    /// The file system stands: run the hooks of the runtime's namespaces.
    Hooks,
}

/// The maker's word to go on.
#[derive(Debug, Serialize, Deserialize)]
struct Go;

/// The child's end of the conversation.
pub struct Line(OwnedFd);

impl Line {
    /// Asks and waits until it is done. A maker that is gone, or refuses, ends the child.
    pub fn ask(&self, question: Question) -> Result<()> {
        wire::send(self.0.as_fd(), &Word::Ask(question), &[])?;
        self.await_go();
        Ok(())
    }

    pub fn hand_over_terminal(&self, master: &OwnedFd) -> Result<()> {
        wire::send(self.0.as_fd(), &Word::Terminal, &[master.as_fd()])
    }

    /// Says who the program will run as.
    pub fn tell_ids(&self, ids: Ids) -> Result<()> {
        wire::send(self.0.as_fd(), &Word::Ids(ids), &[])
    }

    pub fn ready(&self) -> Result<()> {
        wire::send(self.0.as_fd(), &Word::Ready, &[])
    }

    /// Waits for the maker's word.
    pub fn await_go(&self) {
        if !matches!(wire::receive::<Go>(self.0.as_fd()), Ok(Some(_))) {
            // The maker is gone or has changed its mind.
            sys::exit(1);
        }
    }
}

/// A child that is set up.
pub struct Made {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
    /// Who its program runs as, if it said so.
    pub ids: Option<Ids>,
    line: OwnedFd,
}

impl Made {
    /// Lets a container's first process run its program; returns once it does, or says why it cannot.
    pub fn start(&self) -> Result<()> {
        wire::send(self.line.as_fd(), &Go, &[])?;
        self.until_it_runs()
    }

    /// Waits until the child, which is ready, runs its program.
    pub fn until_it_runs(&self) -> Result<()> {
        match listen(&self.line)? {
            None => Ok(()),
            Some((Word::Failed { kind, message }, _)) => Err(kind.into_error(message)),
            Some(_) => Err(Error::Shim("the container's process spoke out of turn".into())),
        }
    }
}

/// How the maker answers its children: what is asked, and by which process.
pub type Answer<'a> = &'a mut dyn FnMut(Question, i32) -> Result<()>;

/// For children that ask nothing.
pub fn no_answer(question: Question, _: i32) -> Result<()> {
    Err(Error::Shim(format!("unexpected question {question:?}")))
}

fn listen(line: &OwnedFd) -> Result<Option<(Word, Vec<OwnedFd>)>> {
    wire::receive(line.as_fd())
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .step("make a socket pair")?;
    let limit = std::time::Duration::from_secs(SETUP_LIMIT);
    rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Recv, Some(limit))
        .step("limit the wait for a child")?;
    Ok((ours, theirs))
}

/// Forks a child right into the namespaces of `flags` and waits until it is ready. The caller has one thread.
pub fn child(
    flags: u64,
    born_into: Option<BorrowedFd<'_>>,
    answer: Answer<'_>,
    body: impl FnOnce(&Line) -> Result<Infallible>,
) -> Result<Made> {
    let (ours, theirs) = pair()?;
    // SAFETY: the caller has one thread; `run_body` never returns.
    match unsafe { sys::fork(flags, born_into) }.step("make the container's process")? {
        Forked::Child => run_body(Line(theirs), body),
        Forked::Parent { pid, pidfd } => {
            drop(theirs);
            await_words(ours, pid, pidfd, Vec::new(), answer)
        }
    }
}

/// Forks a helper that enters namespaces and makes the real child there as a sibling of itself, a child of the caller.
pub fn sibling(
    flags: u64,
    born_into: Option<BorrowedFd<'_>>,
    answer: Answer<'_>,
    enter: impl FnOnce(&Line) -> Result<()>,
    body: impl FnOnce(&Line) -> Result<Infallible>,
) -> Result<Made> {
    let (ours, theirs) = pair()?;
    // SAFETY: the caller has one thread; `run_body` never returns.
    match unsafe { sys::fork(0, born_into) }.step("make a helper process")? {
        Forked::Child => run_body(Line(theirs), |line| {
            enter(line)?;
            // SAFETY: the helper has one thread, too.
            match unsafe { sys::fork(flags | sys::SIBLING, None) }.step("make the process")? {
                Forked::Child => match rustix::io::fcntl_dupfd_cloexec(&line.0, 3) {
                    Ok(line) => run_body(Line(line), body),
                    Err(_) => sys::exit(1),
                },
                Forked::Parent { pid, .. } => {
                    wire::send(line.0.as_fd(), &Word::Pid(pid), &[])?;
                    sys::exit(0)
                }
            }
        }),
        Forked::Parent { pid: helper, .. } => {
            drop(theirs);
            let named = until_named(&ours, helper, answer);
            if named.is_err() {
                sys::kill(helper, libc::SIGKILL);
            }
            reap(helper);
            let (pid, words) = named?;
            let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| Error::Shim("no process id".into()))?;
            let pidfd =
                rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).step("open the process")?;
            await_words(ours, pid, pidfd, words, answer)
        }
    }
}

type Heard = Vec<(Word, Vec<OwnedFd>)>;

/// Serves the helper until it has made the child; the child may speak before its helper names it.
fn until_named(line: &OwnedFd, helper: i32, answer: Answer<'_>) -> Result<(i32, Heard)> {
    let mut words = Vec::new();
    loop {
        match listen(line)? {
            Some((Word::Pid(pid), _)) => return Ok((pid, words)),
            Some((Word::Failed { kind, message }, _)) => return Err(kind.into_error(message)),
            Some((Word::Ask(Question::MapIds), _)) => {
                answer(Question::MapIds, helper)?;
                wire::send(line.as_fd(), &Go, &[])?;
            }
            Some(other) => words.push(other),
            None => return Err(Error::Shim("a helper process ended without a word".into())),
        }
    }
}

/// Waits until the child is set up; `heard` is what it has said already.
fn await_words(line: OwnedFd, pid: i32, pidfd: OwnedFd, heard: Heard, answer: Answer<'_>) -> Result<Made> {
    let (mut terminal, mut ids) = (None, None);
    let mut heard = heard.into_iter();
    let failed = loop {
        let word = match heard.next() {
            Some(word) => Ok(Some(word)),
            None => listen(&line),
        };
        match word {
            Ok(Some((Word::Terminal, mut fds))) => terminal = fds.pop(),
            Ok(Some((Word::Ids(told), _))) => ids = Some(told),
            Ok(Some((Word::Ready, _))) => return Ok(Made { pid, pidfd, terminal, ids, line }),
            Ok(Some((Word::Ask(question), _))) => {
                if let Err(error) = answer(question, pid).and_then(|()| wire::send(line.as_fd(), &Go, &[])) {
                    break error;
                }
            }
            Ok(Some((Word::Failed { kind, message }, _))) => break kind.into_error(message),
            Ok(Some((Word::Pid(_), _))) => {}
            Ok(None) => break Error::Shim("the container's process ended during its set-up".into()),
            Err(error) => break error,
        }
    };
    sys::kill(pid, libc::SIGKILL);
    reap(pid);
    Err(failed)
}

/// Waits for a child that is about to end.
pub fn reap(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ =
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
    }
}

/// Runs a child's life; whatever goes wrong is told to the maker.
fn run_body(line: Line, body: impl FnOnce(&Line) -> Result<Infallible>) -> ! {
    let message = match catch_unwind(AssertUnwindSafe(|| body(&line))) {
        Ok(Err(error)) => match error.into() {
            crate::protocol::Reply::Failed { kind, message } => Word::Failed { kind, message },
            _ => sys::exit(1),
        },
        Err(_) => Word::Failed { kind: FailureKind::Other, message: "the container's set-up panicked".into() },
    };
    let _ = wire::send(line.0.as_fd(), &message, &[]);
    sys::exit(1)
}

/// Where the machine does not let us protect a process more, it stays as likely to be killed as it was.
pub fn adjust_oom(score: Option<i32>) {
    if let Some(score) = score {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}
