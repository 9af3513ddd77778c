//! Where audit events go: a file of JSON lines, written by a thread of its own and rotated by size and count.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::Bytes;
use dhow_base::metrics::Counter;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::Error;

/// Events that wait for the disk. When it cannot follow, more are dropped and counted: no request waits for it.
const QUEUE: usize = 10_000;
/// The time in the names of files put aside: to the microsecond, so that names sort by age and do not meet.
const TIME: &str = "%Y-%m-%dT%H-%M-%S.%6f";

/// Where the audit log is kept and how much of it.
#[derive(Debug, Clone)]
pub struct AuditFile {
    pub path: PathBuf,
    /// Bytes after which a file is put aside and a new one begun.
    pub largest: u64,
    /// Files put aside that are kept; 0 keeps all.
    pub kept: usize,
    /// Days after which a file put aside goes; 0 for never.
    pub days: u32,
}

impl AuditFile {
    /// 100 MiB a file, ten files put aside.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), largest: 100 << 20, kept: 10, days: 0 }
    }
}

pub struct Sink {
    queue: SyncSender<Bytes>,
    dropped: Counter,
}

impl Sink {
    pub fn open(file: AuditFile, dropped: Counter) -> Result<Self, Error> {
        let shown = file.path.display().to_string();
        let failed = |error: io::Error| Error::Configuration(format!("audit log {shown}: {error}"));
        let writer = Writer::open(file).map_err(&failed)?;
        let (queue, lines) = sync_channel(QUEUE);
        let failures = dropped.clone();
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&lines, &failures))
            .map_err(failed)?;
        Ok(Self { queue, dropped })
    }

    pub fn write(&self, line: Bytes) {
        match self.queue.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.inc(),
        }
    }
}

struct Writer {
    config: AuditFile,
    out: BufWriter<File>,
    size: u64,
}

impl Writer {
    fn open(config: AuditFile) -> io::Result<Self> {
        let file = append(&config.path)?;
        config.discard()?;
        let size = file.metadata()?.len();
        Ok(Self { config, out: BufWriter::new(file), size })
    }

    /// Writes until the last sender is gone; flushes whenever it has caught up.
    fn run(mut self, lines: &Receiver<Bytes>, lost: &Counter) {
        let mut failing = false;
        while let Ok(first) = lines.recv() {
            let mut result = self.line(&first);
            let mut count = 1;
            while let Ok(next) = lines.try_recv() {
                result = result.and_then(|()| self.line(&next));
                count += 1;
            }
            match result.and_then(|()| self.out.flush()) {
                Ok(()) => failing = false,
                Err(error) => {
                    lost.add(count);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(path = %self.config.path.display(), %error, "audit events are lost");
                    }
                    // What could not be written is not tried again in the middle of a later line.
                    if let Ok(file) = append(&self.config.path) {
                        drop(std::mem::replace(&mut self.out, BufWriter::new(file)).into_parts());
                    }
                }
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.size > 0 && self.size + length > self.config.largest {
            self.rotate()?;
        }
        self.out.write_all(line)?;
        self.out.write_all(b"\n")?;
        self.size += length;
        Ok(())
    }

    /// `audit.log` is put aside as `audit-<time>.log`.
    fn rotate(&mut self) -> io::Result<()> {
        self.out.flush()?;
        let path = &self.config.path;
        let (stem, extension) = parts(path);
        let now = Timestamp::now().strftime(TIME);
        std::fs::rename(path, path.with_file_name(format!("{stem}-{now}{extension}")))?;
        self.out = BufWriter::new(append(path)?);
        self.size = 0;
        self.config.discard()
    }
}

impl AuditFile {
    /// Removes files put aside that are too many or too old.
    fn discard(&self) -> io::Result<()> {
        let path = &self.path;
        let (stem, extension) = parts(path);
        let now = Timestamp::now();
        let length = now.strftime(TIME).to_string().len();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut aside: Vec<(String, PathBuf)> = std::fs::read_dir(folder)?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let time = path.file_name()?.to_str()?.strip_prefix(&format!("{stem}-"))?.strip_suffix(&extension)?;
                let ours = time.len() == length && time.starts_with(|c: char| c.is_ascii_digit());
                ours.then(|| (time.to_owned(), path.clone()))
            })
            .collect();
        aside.sort();
        let many = if self.kept == 0 { 0 } else { aside.len().saturating_sub(self.kept) };
        let age = (self.days > 0).then(|| SignedDuration::from_hours(i64::from(self.days) * 24));
        // Before time began nothing was put aside.
        let oldest = age.and_then(|age| now.checked_sub(age).ok()).map(|oldest| oldest.strftime(TIME).to_string());
        let old = |time: &str| oldest.as_ref().is_some_and(|oldest| time < oldest.as_str());
        let gone = aside.iter().enumerate().filter(|(at, (time, _))| *at < many || old(time));
        gone.map(|(_, (_, path))| path).try_for_each(std::fs::remove_file)
    }
}

/// A file's name before and with its last dot.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let extension = text(path.extension()).map(|extension| format!(".{extension}")).unwrap_or_default();
    (text(path.file_stem()).unwrap_or_default(), extension)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
