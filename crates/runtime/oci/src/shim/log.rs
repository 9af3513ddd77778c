//! A container's log file in CRI's format: `<time> <stream> <F or P> <text>`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).step(format!("create log folder {}", folder.display()))?;
        }
        Ok(Self { path: path.to_owned(), file: open(path)? })
    }

    /// Goes on in a new file of the same name, after the old one was moved away.
    pub fn reopen(&mut self) -> Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Writes what was read in one go. Text without a newline at its end is a partial line.
    pub fn write(&mut self, stream: &str, bytes: &[u8]) {
        // A full disk loses log lines, never the container.
        let _ = self.file.write_all(&entries(stream, bytes, &now()));
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path).step(format!("open log {}", path.display()))
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
    use super::*;

    #[test]
    fn lines_are_full_and_the_rest_is_partial() {
        let text = entries("stdout", b"one\n\ntw", "T");
        assert_eq!(String::from_utf8_lossy(&text), "T stdout F one\nT stdout F \nT stdout P tw\n");
        assert!(now().ends_with('Z') && now().len() == "2026-01-01T00:00:00.000000000Z".len());
    }
}
