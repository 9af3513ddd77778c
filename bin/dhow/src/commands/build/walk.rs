//! A folder, without what its `.dockerignore` leaves out: looked at, listed, sent.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dhow_builder::{Ignore, Listed};
use dhow_image::{Entry, EntryKind, LayerWriter};

/// Clocks of file systems tick more seldom: what changed so lately may change again without a trace.
const TICK: Duration = Duration::from_millis(100);

/// Something in the folder.
pub struct Found {
    /// Within the folder.
    at: PathBuf,
    meta: std::fs::Metadata,
}

/// All there is, folders before what is in them. Sockets and devices are nothing to build from.
pub fn walk(root: &Path, ignore: &Ignore) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    below(root, Path::new(""), ignore, &mut all)?;
    Ok(all)
}

fn below(root: &Path, folder: &Path, ignore: &Ignore, all: &mut Vec<Found>) -> io::Result<()> {
    let entries = std::fs::read_dir(root.join(folder))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let at = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        let left_out = ignore.ignores(&at.to_string_lossy());
        if left_out && !(kind.is_dir() && ignore.has_exceptions()) {
            continue;
        }
        // What is let in again below a folder that is not brings it along.
        if !left_out && (kind.is_dir() || kind.is_file() || kind.is_symlink() || kind.is_fifo()) {
            all.push(Found { at: at.clone(), meta: entry.metadata()? });
        }
        if kind.is_dir() {
            below(root, &at, ignore, all)?;
        }
    }
    Ok(())
}

impl Found {
    /// What a node needs to know of it; `None` if its name is no text.
    pub fn listed(&self, now: SystemTime) -> Option<Listed> {
        let meta = &self.meta;
        let changed = u64::try_from(meta.ctime()).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(changed, u32::try_from(meta.ctime_nsec()).unwrap_or(0));
        // One that is said to have changed in the future says nothing.
        let settled = now.duration_since(changed).is_ok_and(|age| age > TICK);
        let version = format!(
            "{:x}.{:o}.{:x}.{:x}.{:x}.{:x}.{:x}",
            meta.ino(),
            meta.mode(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        Some(Listed {
            path: self.at.to_str()?.to_owned(),
            folder: meta.is_dir().then(|| meta.mtime()),
            version: if settled { version } else { String::new() },
        })
    }

    /// Sends it, under `below` in the archive.
    pub fn append(&self, root: &Path, below: &str, archive: &mut LayerWriter<impl Write>) -> io::Result<()> {
        let (meta, path) = (&self.meta, root.join(&self.at));
        let mut entry = Entry {
            path: [below.as_bytes(), b"/", self.at.as_os_str().as_bytes()].concat(),
            mode: meta.mode(),
            mtime: meta.mtime(),
            ..Entry::default()
        };
        let kind = meta.file_type();
        if kind.is_dir() {
            return archive.append(&entry, io::empty());
        }
        if kind.is_file() {
            let file = std::fs::File::open(&path)?;
            // It may have grown since it was listed.
            entry.kind = EntryKind::File(file.metadata()?.len());
            return archive.append(&entry, file);
        }
        entry.kind = match kind.is_fifo() {
            true => EntryKind::Fifo,
            false => EntryKind::Symlink(std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec()),
        };
        archive.append(&entry, io::empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_even_if_the_time_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let version = |later: u64| {
            let found = walk(folder.path(), &Ignore::default()).unwrap();
            found[0].listed(SystemTime::now() + Duration::from_secs(later)).unwrap().version
        };
        // What has just been written may be written again within the same tick.
        assert_eq!(version(0), "");
        let first = version(10);
        assert_eq!(first, version(20));
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        // A tick of the file system's clock.
        let mut second = first.clone();
        while second == first {
            std::fs::write(&path, "two").unwrap();
            std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
            second = version(10);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), time);
    }

    #[test]
    fn what_is_left_out_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("d/e")).unwrap();
        for file in ["a.log", "b", "d/c.log", "d/keep.log", "d/e/f.log"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        let ignore = Ignore::read("**/*.log\nd/e\n!d/keep.log\n").unwrap();
        let found = walk(folder.path(), &ignore).unwrap();
        let names: Vec<_> = found.iter().map(|found| found.at.to_str().unwrap()).collect();
        assert_eq!(names, ["b", "d", "d/keep.log", "link"]);
    }
}
