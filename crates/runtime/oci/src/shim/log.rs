//! A container's log file in CRI's format: `<time> <stream> <F or P> <text>`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::spec::LogLimits;

pub struct Log {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    size: u64,
    limits: Option<LogLimits>,
}

impl Log {
    /// Without a path nothing is kept.
    pub fn open(path: &Path, limits: Option<LogLimits>) -> Result<Self> {
        let limits = limits.filter(|_| !path.as_os_str().is_empty());
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).step(format!("create log folder {}", folder.display()))?;
        }
        let (file, size) = open(path)?;
        Ok(Self { path: path.to_owned(), file, size, limits })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on in a new file of the same name, after the old one was moved away.
    pub fn reopen(&mut self) -> Result<()> {
        (self.file, self.size) = open(&self.path)?;
        Ok(())
    }

    /// Writes what was read in one go. Text without a newline at its end is a partial line. True if the file was full
    /// and put aside.
    pub fn write(&mut self, stream: &str, bytes: &[u8]) -> bool {
        let text = entries(stream, bytes, &now());
        // A full disk loses log lines, never the container.
        if self.file.write_all(&text).is_ok() {
            self.size += text.len() as u64;
        }
        let full = self.limits.filter(|limits| self.size >= limits.max_size);
        // A partial line is finished in the file it was begun in.
        full.is_some_and(|limits| bytes.ends_with(b"\n") && self.rotate(limits).unwrap_or(false))
    }

    /// Puts the file aside under the kubelet's name for it and begins a new one; the oldest are removed. At most once in
    /// a second: the name says no more.
    fn rotate(&mut self, limits: LogLimits) -> Result<bool> {
        let time = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
        let aside = with_suffix(&self.path, &format!(".{time}"));
        if aside.exists() || with_suffix(&aside, ".gz").exists() {
            return Ok(false);
        }
        std::fs::rename(&self.path, &aside).step("put a log file aside")?;
        self.reopen()?;
        let old = rotated(&self.path);
        for path in &old[..old.len().saturating_sub(limits.max_files.saturating_sub(1))] {
            std::fs::remove_file(path).step("remove an old log file")?;
        }
        Ok(true)
    }
}

fn open(path: &Path) -> Result<(File, u64)> {
    let path = if path.as_os_str().is_empty() { Path::new("/dev/null") } else { path };
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .step(format!("open log {}", path.display()))?;
    let size = file.metadata().map_or(0, |about| about.len());
    Ok((file, size))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// Files that were put aside for the log at `path`, compressed or not, oldest first.
pub fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().map(|name| name.to_string_lossy().into_owned()))
    else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries
        .filter(|entry| {
            let entry = entry.file_name().to_string_lossy().into_owned();
            let time = entry.strip_prefix(&name).and_then(|rest| rest.strip_prefix('.'));
            let time = time.map(|time| time.strip_suffix(".gz").unwrap_or(time));
            time.is_some_and(|time| time.len() == 15 && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
        })
        .map(|entry| entry.path())
        .collect();
    all.sort();
    all
}

fn now() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

fn entries(stream: &str, bytes: &[u8], time: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 128);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let (text, tag) = match line.strip_suffix(b"\n") {
            Some(text) => (text, "F"),
            None => (line, "P"),
        };
        out.extend_from_slice(time.as_bytes());
        out.extend_from_slice(format!(" {stream} {tag} ").as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        for old in ["0.log.20200101-000000.gz", "0.log.20200102-000000", "1.log.20200101-000000", "0.log.tmp"] {
            std::fs::write(folder.path().join(old), "").unwrap();
        }
        let mut log = Log::open(&path, Some(LogLimits { max_size: 100, max_files: 3 })).unwrap();
        assert!(!log.write("stdout", b"short\n"));
        assert!(!log.write("stdout", [b'x'; 100].as_slice()), "the line is not whole");
        assert!(log.write("stdout", b"its end\n"));
        assert!(!log.write("stdout", b"next\n"));
        let kept = rotated(&path);
        assert_eq!(kept.len(), 2);
        assert!(kept[0].ends_with("0.log.20200102-000000"));
        assert!(std::fs::read_to_string(&kept[1]).unwrap().ends_with("its end\n"));
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("next\n"));
        assert!(folder.path().join("1.log.20200101-000000").exists());
        // The file that a daemon before us had filled counts.
        let again = Log::open(&path, None).unwrap();
        assert_eq!(again.size, std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn without_a_path_nothing_is_kept() {
        let mut log = Log::open(Path::new(""), Some(LogLimits { max_size: 1, max_files: 2 })).unwrap();
        assert!(!log.write("stdout", b"lost\n"));
        log.reopen().unwrap();
    }

    #[test]
    fn lines_are_full_and_the_rest_is_partial() {
        let text = entries("stdout", b"one\n\ntw", "T");
        assert_eq!(String::from_utf8_lossy(&text), "T stdout F one\nT stdout F \nT stdout P tw\n");
        assert!(now().ends_with('Z') && now().len() == "2026-01-01T00:00:00.000000000Z".len());
    }
}
