//! From Docker's log of a container to the pod's, in CRI's format.
//!
//! A follower per container reads Docker's log from where ours ends: the time of its last line. It outlives no daemon and
//! needs not to: Docker keeps what was written meanwhile.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::{Api, Failure};
use crate::Error;

/// How long the end of a container's output may take to arrive after the container's own.
const LINGER: Duration = Duration::from_secs(5);
/// First and longest pause before a log is followed again that Docker ended: it ends it a moment before it books the end of
/// the container, and when it restarts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// As much of our log's end is read for the time of its last line; lines have 16 KiB at most.
const TAIL: u64 = 64 * 1024;

/// All followers.
pub struct Logs {
    api: Api,
    end: CancellationToken,
    followers: Mutex<HashMap<String, Follower>>,
}

struct Follower {
    file: Arc<Mutex<LogFile>>,
    /// `true` once everything was written.
    done: watch::Receiver<bool>,
}

impl Logs {
    pub fn new(api: Api, end: CancellationToken) -> Self {
        Self { api, end, followers: Mutex::default() }
    }

    /// Follows the log of a started container, as inspected.
    pub fn follow(&self, inspected: &Value) -> Result<(), Error> {
        let status = super::answer::container(inspected)?;
        let failed = |error| Error::internal(format!("open log {}", status.log_path.display()), error);
        if let Some(folder) = status.log_path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let position = Position::of(&status.log_path).map_err(failed)?;
        let file = Arc::new(Mutex::new(LogFile::open(&status.log_path).map_err(failed)?));
        let (finished, done) = watch::channel(false);
        self.followers.lock().insert(status.id.clone(), Follower { file: Arc::clone(&file), done });
        let (api, id, tty) = (self.api.clone(), status.id, inspected["Config"]["Tty"] == true);
        tokio::spawn(self.end.clone().run_until_cancelled_owned(async move {
            let (mut position, mut pause) = (position, PAUSE.0);
            loop {
                let ended = !goes_on(&api, &id).await;
                // Once it has ended its log is whole; what a follower was told before may not be.
                if let Err(error) = copy(&api, &id, tty, !ended, &mut position, &file).await {
                    tracing::warn!(container = id, %error, "cannot follow a container's log");
                }
                if ended {
                    break;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
            finished.send_replace(true);
        }));
        Ok(())
    }

    /// Waits until an ended container's log is whole.
    pub async fn finished(&self, id: &str) {
        let Some(mut done) = self.followers.lock().get(id).map(|follower| follower.done.clone()) else { return };
        // Bounded, because a status must come even when Docker keeps the rest of a log to itself.
        let _ = tokio::time::timeout(LINGER, done.wait_for(|done| *done)).await;
    }

    /// Goes on in a new file at the log's path.
    pub fn reopen(&self, id: &str) -> Result<(), Error> {
        let followers = self.followers.lock();
        let follower = followers.get(id).ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })?;
        let mut file = follower.file.lock();
        *file = LogFile::open(&file.path).map_err(|error| Error::internal("reopen a log", error))?;
        Ok(())
    }

    pub fn forget(&self, id: &str) {
        self.followers.lock().remove(id);
    }
}

struct LogFile {
    path: PathBuf,
    file: fs::File,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }
}

/// Where our log ends: the time of its last lines, and how many have that time.
#[derive(Debug, Default, Clone, PartialEq)]
struct Position {
    time: String,
    lines: usize,
}

impl Position {
    fn of(path: &Path) -> io::Result<Self> {
        let mut file = match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?,
        };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut position = Self::default();
        for line in BufReader::new(file.take(TAIL)).split(b'\n') {
            let line = line?;
            let time = line.split(|byte| *byte == b' ').next().and_then(|time| std::str::from_utf8(time).ok());
            match time {
                Some(time) if time.parse::<jiff::Timestamp>().is_ok() => position.note(time),
                _ => {}
            }
        }
        Ok(position)
    }

    /// A line of this time was written.
    fn note(&mut self, time: &str) {
        if self.time != time {
            *self = Self { time: time.to_owned(), lines: 0 };
        }
        self.lines += 1;
    }

    /// The `since` of a request: seconds with nanoseconds.
    fn since(&self) -> String {
        let Ok(time) = self.time.parse::<jiff::Timestamp>() else { return "0".to_owned() };
        format!("{}.{:09}", time.as_second(), time.subsec_nanosecond())
    }

    /// Whether a line of this time is in our log already; counts it if so.
    fn knows(&mut self, time: &str) -> bool {
        let known = self.lines > 0 && self.time == time;
        self.lines -= usize::from(known);
        known
    }
}

/// Whether a container whose log has ended still runs, as far as Docker is there to tell.
async fn goes_on(api: &Api, id: &str) -> bool {
    match api.get(&format!("/containers/{id}/json")).await {
        Ok(inspected) => inspected["State"]["Running"] == true,
        Err(Failure::Refused(_)) => false,
        Err(Failure::Broken(_)) => true,
    }
}

async fn copy(
    api: &Api,
    id: &str,
    tty: bool,
    follow: bool,
    position: &mut Position,
    file: &Mutex<LogFile>,
) -> Result<(), Error> {
    let (since, mut known) = (position.since(), position.clone());
    let path = format!("/containers/{id}/logs?follow={follow}&stdout=true&stderr=true&timestamps=true&since={since}");
    let mut stream = match api.stream(&path).await {
        Err(Failure::Refused(refusal)) if refusal.status == http::StatusCode::NOT_FOUND => return Ok(()),
        stream => stream.map_err(|failure| failure.on("container", id))?,
    };
    let failed = |error| Error::internal("read a log from Docker", error);
    let mut entry = Vec::new();
    loop {
        entry.clear();
        let name = if tty {
            // A terminal's output comes bare, a line an entry.
            stream.read_until(b'\n', &mut entry).await.map_err(failed)?;
            "stdout"
        } else {
            let mut head = [0; 8];
            match stream.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => drop(read.map_err(failed)?),
            }
            let [kind, _, _, _, length @ ..] = head;
            let length = u64::from(u32::from_be_bytes(length));
            (&mut stream).take(length).read_to_end(&mut entry).await.map_err(failed)?;
            if kind == 2 { "stderr" } else { "stdout" }
        };
        if entry.is_empty() {
            return Ok(());
        }
        let Some((time, line)) = line(name, &entry) else { continue };
        if known.knows(time) {
            continue;
        }
        // Small, and to the page cache: not worth another thread.
        file.lock().file.write_all(&line).map_err(|error| Error::internal("write a log", error))?;
        position.note(time);
    }
}

/// An entry of Docker's, `time text`, as a line of CRI's, `time stream tag text`. Without a line's end it is a part of one.
fn line<'a>(stream: &str, entry: &'a [u8]) -> Option<(&'a str, Vec<u8>)> {
    let space = entry.iter().position(|byte| *byte == b' ')?;
    let (time, text) = (std::str::from_utf8(&entry[..space]).ok()?, &entry[space + 1..]);
    let (tag, text) = match text.strip_suffix(b"\n") {
        Some(text) => ("F", text),
        None => ("P", text),
    };
    let mut line = format!("{time} {stream} {tag} ").into_bytes();
    line.extend_from_slice(text);
    line.push(b'\n');
    Some((time, line))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_become_lines() {
        let of = |entry: &str| line("stdout", entry.as_bytes()).map(|(_, line)| String::from_utf8(line).unwrap());
        assert_eq!(of("T whole line\n").unwrap(), "T stdout F whole line\n");
        assert_eq!(of("T part").unwrap(), "T stdout P part\n");
        assert_eq!(of("T \n").unwrap(), "T stdout F \n");
        assert_eq!(of("nothing"), None);
    }

    #[test]
    fn a_log_is_continued_after_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        assert_eq!(Position::of(&path).unwrap().since(), "0");
        let (first, last) = ("2026-01-01T00:00:00.000000001Z", "2026-01-01T00:00:01.5Z");
        fs::write(&path, format!("{first} stdout F a\n{last} stdout F b\n{last} stderr F c\n")).unwrap();
        let mut position = Position::of(&path).unwrap();
        assert_eq!((position.since().as_str(), position.lines), ("1767225601.500000000", 2));
        assert!(position.knows(last) && position.knows(last) && !position.knows(last));
    }
}
