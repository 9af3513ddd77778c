//! A blob that is read while it is still being downloaded, so that unpacking starts with the first bytes.
//!
//! What is read this way is not verified yet; whoever reads it checks the result by another digest (a layer's diff id) and
//! keeps it only when the download ends well.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Running,
    /// Verified and in place.
    Whole,
    Failed,
}

struct State {
    file: Option<Arc<File>>,
    have: u64,
    /// Bytes handed out turned out to be wrong, or come no more.
    broken: bool,
}

pub(crate) struct Growing {
    state: Mutex<State>,
    changed: Condvar,
    outcome: watch::Sender<Outcome>,
}

impl Growing {
    pub fn new() -> Arc<Self> {
        let state = Mutex::new(State { file: None, have: 0, broken: false });
        Arc::new(Growing { state, changed: Condvar::new(), outcome: watch::channel(Outcome::Running).0 })
    }

    /// There is a file, with `have` bytes so far. A download that begins anew writes the same bytes again.
    pub fn begin(&self, file: Arc<File>, have: u64) {
        let mut state = self.state.lock();
        if state.file.is_none() {
            state.file = Some(file);
        }
        state.have = state.have.max(have);
        self.changed.notify_all();
    }

    pub fn advance(&self, have: u64) {
        let mut state = self.state.lock();
        state.have = state.have.max(have);
        self.changed.notify_all();
    }

    /// What was read so far is not to be relied on; the blob may still come from elsewhere.
    pub fn spoil(&self) {
        self.state.lock().broken = true;
        self.changed.notify_all();
    }

    pub fn end(&self, outcome: Outcome) {
        let mut first = false;
        self.outcome.send_if_modified(|known| {
            first = *known == Outcome::Running;
            if first {
                *known = outcome;
            }
            first
        });
        if first && outcome == Outcome::Failed {
            self.state.lock().broken = true;
        }
        self.changed.notify_all();
    }

    pub fn failed(&self) -> bool {
        *self.outcome.borrow() == Outcome::Failed
    }

    /// Whether the download ended well, once it ended.
    pub async fn whole(&self) -> bool {
        let mut outcome = self.outcome.subscribe();
        outcome.wait_for(|outcome| *outcome != Outcome::Running).await.is_ok_and(|outcome| *outcome == Outcome::Whole)
    }

    /// Reads from the start; blocks while there is nothing new.
    pub fn reader(self: &Arc<Self>, size: u64) -> GrowingReader {
        GrowingReader { growing: Arc::clone(self), at: 0, size }
    }
}

pub(crate) struct GrowingReader {
    growing: Arc<Growing>,
    at: u64,
    size: u64,
}

impl Read for GrowingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        let (file, have) = {
            let mut state = self.growing.state.lock();
            loop {
                if state.broken {
                    return Err(io::Error::other("the download did not succeed"));
                }
                if let Some(file) = state.file.clone().filter(|_| state.have > self.at) {
                    break (file, state.have);
                }
                self.growing.changed.wait(&mut state);
            }
        };
        let ready = usize::try_from(have.min(self.size) - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let n = file.read_at(&mut buffer[..ready], self.at)?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download lost bytes it had"));
        }
        self.at += n as u64;
        Ok(n)
    }
}
