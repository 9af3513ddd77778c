//! The file `acknowledged`: the last revision that was promised to someone.
//!
//! It is written after the sync that made the revision durable and before anyone hears of it, without a sync of its
//! own. So it survives the process, and after a power cut it is at most older than the truth, never newer: finding
//! less than it says means that data was lost.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Error, Revision};

const NAME: &str = "acknowledged";

pub(super) struct Mark {
    file: File,
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// `None` where there is no mark: a store that was never opened to the end.
pub(super) fn read(dir: &Path) -> Result<Option<Revision>, Error> {
    let path = path(dir);
    let bytes = match std::fs::read(&path) {
        // Made, but not written yet: the first start was cut off.
        Ok(bytes) if bytes.is_empty() => return Ok(None),
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::Backend { context: format!("read {}", path.display()), source: e.into() }),
    };
    let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    match (number(0), number(8)) {
        (Some(revision), Some(complement)) if revision == !complement => Ok(Some(revision)),
        _ => Err(Error::Corrupt {
            path: path.display().to_string(),
            message: "the file is damaged, and without it nobody can tell whether the store is complete; restore the \
                      store from a backup, or remove this file to go on with what is there"
                .to_owned(),
        }),
    }
}

impl Mark {
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = path(dir);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        file.map(|file| Self { file })
            .map_err(|e| Error::Backend { context: format!("open {}", path.display()), source: e.into() })
    }

    pub fn set(&self, revision: Revision) -> std::io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&revision.to_be_bytes());
        bytes[8..].copy_from_slice(&(!revision).to_be_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}
