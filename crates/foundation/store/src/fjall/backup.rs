//! Backups of the embedded store: one file with every live key and lease of one revision.
//!
//! Layout: magic, format, revision, time, then records (a kind, fixed numbers, key, value), then a record `END` with
//! the number of records and the SHA-256 of everything before it, and nothing after that. Numbers are big endian. It is
//! written and read as a stream; nothing in it is believed before the checksum has been seen to match.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::disk::Restorer;
use super::{FjallKv, mark};
use crate::core::Keyspace;
use crate::{Error, KeyValue, LeaseId, Revision};

const MAGIC: &[u8; 8] = b"DHOWKV\r\n";
const FORMAT: u32 = 1;
const LEASE: u8 = 1;
const KEY: u8 = 2;
const END: u8 = 0;
/// Larger than anything the API server lets in.
const MAX_FIELD: u32 = 64 << 20;

/// Revisions to leave out after a restore, so that a revision given out after the backup was made is not given to
/// something else: whoever still knows one is told that it is compacted, and lists again.
pub const SKIP_REVISIONS: Revision = 1_000_000_000;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub revision: Revision,
    pub created: SystemTime,
    pub keys: u64,
    pub leases: u64,
    /// Size of the file.
    pub bytes: u64,
}

impl FjallKv {
    /// Writes a backup of this moment into `out` while writes go on; they are not waited for and do not wait. Blocks
    /// for as long as `out` takes.
    pub fn backup(&self, out: &mut dyn Write) -> Result<Backup, Error> {
        // A snapshot costs nothing: the live keys are in a persistent map.
        write(&self.hub().keyspace(), out).map_err(|e| failed("write the backup", e))
    }

    /// Makes the backup file `path`, readable by its owner only. It appears when it is whole and on disk.
    pub fn backup_file(&self, path: &Path) -> Result<Backup, Error> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = (|| {
            let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
            let mut out = BufWriter::with_capacity(1 << 20, file);
            let backup = write(&self.hub().keyspace(), &mut out)?;
            out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&partial, path)?;
            sync_dir(path.parent().unwrap_or(Path::new(".")))?;
            Ok(backup)
        })();
        written.map_err(|e| {
            let _ = std::fs::remove_file(&partial);
            failed(&format!("write the backup {}", path.display()), e)
        })
    }
}

/// Reads a whole backup file and checks it.
pub fn verify_backup(path: &Path) -> Result<Backup, Error> {
    Reader::open(path)?.read_all(|_| Ok(()))
}

/// Makes a store in `dir`, which must be empty or not there, from a backup file. Keys keep their revisions, leases
/// have their full time again; the store goes on at the backup's revision plus `skip_revisions` (see
/// [`SKIP_REVISIONS`]). The backup is checked first; a restore that is cut off leaves nothing that opens as a store.
pub fn restore_backup(path: &Path, dir: &Path, skip_revisions: Revision) -> Result<Backup, Error> {
    let backup = verify_backup(path)?;
    let here = format!("restore into {}", dir.display());
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed(&here, e)),
        Ok(false) => {
            return Err(Error::Invalid(format!(
                "{} is not empty; move what is in it away, or restore into another folder",
                dir.display()
            )));
        }
    }
    let revision = backup
        .revision
        .checked_add(skip_revisions)
        .filter(|r| i64::try_from(*r).is_ok())
        .ok_or_else(|| Error::Invalid(format!("cannot skip {skip_revisions} revisions: there are not so many")))?;
    let restored = (|| {
        let mut restorer = Restorer::begin(dir)?;
        let again = Reader::open(path)?.read_all(|record| match record {
            Record::Lease(id, ttl) => restorer.lease(id, ttl),
            Record::Key(kv) => restorer.key(&kv),
        })?;
        if again != backup {
            return Err(corrupt(path, "it changed while it was read"));
        }
        restorer.finish(revision)?;
        mark::Mark::open(dir)?.set(revision).map_err(|e| failed(&here, e))?;
        sync_dir(dir).map_err(|e| failed(&here, e))
    })();
    if let Err(error) = restored {
        // It was empty before.
        if let Ok(entries) = std::fs::read_dir(dir) {
            for entry in entries.flatten() {
                let path = entry.path();
                let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            }
        }
        return Err(error);
    }
    Ok(backup)
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

fn failed(context: &str, source: std::io::Error) -> Error {
    Error::Backend { context: context.to_owned(), source: source.into() }
}

fn corrupt(path: &Path, how: &str) -> Error {
    Error::Corrupt {
        path: path.display().to_string(),
        message: format!("this backup cannot be used ({how}); nothing was restored from it, use another one"),
    }
}

/// Hashes what goes through.
struct Hashed<T> {
    inner: T,
    hasher: Sha256,
    bytes: u64,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Write> Hashed<T> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.note(bytes);
        self.inner.write_all(bytes)
    }
}

fn write(keyspace: &Keyspace, out: &mut dyn Write) -> std::io::Result<Backup> {
    let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut out = Hashed::new(out);
    out.put(MAGIC)?;
    out.put(&FORMAT.to_be_bytes())?;
    out.put(&keyspace.revision().to_be_bytes())?;
    out.put(&created.to_be_bytes())?;
    let (mut keys, mut leases) = (0u64, 0u64);
    for (id, ttl) in keyspace.leases() {
        out.put(&[LEASE])?;
        out.put(&id.to_be_bytes())?;
        out.put(&ttl.to_be_bytes())?;
        leases += 1;
    }
    for kv in keyspace.iter() {
        out.put(&[KEY])?;
        for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease as u64] {
            out.put(&number.to_be_bytes())?;
        }
        for field in [&kv.key, &kv.value] {
            let length = u32::try_from(field.len()).map_err(std::io::Error::other)?;
            out.put(&length.to_be_bytes())?;
            out.put(field)?;
        }
        keys += 1;
    }
    out.put(&[END])?;
    out.put(&keys.to_be_bytes())?;
    out.put(&leases.to_be_bytes())?;
    let (bytes, sum) = (out.bytes + 32, out.hasher.finalize());
    out.inner.write_all(&sum)?;
    out.inner.flush()?;
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(created);
    Ok(Backup { revision: keyspace.revision(), created, keys, leases, bytes })
}

enum Record {
    Lease(LeaseId, u64),
    Key(KeyValue),
}

struct Reader<'a> {
    path: &'a Path,
    from: Hashed<BufReader<File>>,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| failed(&format!("open the backup {}", path.display()), e))?;
        Ok(Self { path, from: Hashed::new(BufReader::with_capacity(1 << 20, file)) })
    }

    fn bytes(&mut self, length: u32) -> Result<Vec<u8>, Error> {
        if length > MAX_FIELD {
            return Err(corrupt(self.path, "a length in it makes no sense"));
        }
        // Grows with what is really there.
        let mut bytes = Vec::new();
        let read = self.from.inner.by_ref().take(u64::from(length)).read_to_end(&mut bytes);
        read.map_err(|e| failed(&format!("read the backup {}", self.path.display()), e))?;
        if bytes.len() < length as usize {
            return Err(corrupt(self.path, "it ends too early"));
        }
        self.from.note(&bytes);
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, Error> {
        Ok(self.bytes(N as u32)?.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    }

    fn field(&mut self) -> Result<Bytes, Error> {
        let length = self.number::<4>()? as u32;
        Ok(self.bytes(length)?.into())
    }

    /// Gives each record, then what the backup is, if all of it is right.
    fn read_all(mut self, mut each: impl FnMut(Record) -> Result<(), Error>) -> Result<Backup, Error> {
        if self.bytes(MAGIC.len() as u32)? != MAGIC {
            return Err(corrupt(self.path, "it is not a backup of a store"));
        }
        let format = self.number::<4>()?;
        if format != u64::from(FORMAT) {
            return Err(corrupt(self.path, &format!("it has format {format}, and this version reads only {FORMAT}")));
        }
        let (revision, created) = (self.number::<8>()?, self.number::<8>()?);
        let (mut keys, mut leases) = (0, 0);
        let mut last: Option<Bytes> = None;
        loop {
            match self.number::<1>()? as u8 {
                LEASE => {
                    leases += 1;
                    each(Record::Lease(self.number::<8>()? as LeaseId, self.number::<8>()?))?;
                }
                KEY => {
                    keys += 1;
                    let (create_revision, mod_revision) = (self.number::<8>()?, self.number::<8>()?);
                    let (version, lease) = (self.number::<8>()?, self.number::<8>()? as LeaseId);
                    let (key, value) = (self.field()?, self.field()?);
                    let ordered = last.as_ref().is_none_or(|last| *last < key);
                    if !ordered || create_revision > mod_revision || mod_revision > revision {
                        return Err(corrupt(self.path, "its keys contradict each other"));
                    }
                    last = Some(key.clone());
                    each(Record::Key(KeyValue { key, value, create_revision, mod_revision, version, lease }))?;
                }
                END => break,
                _ => return Err(corrupt(self.path, "a record in it is of an unknown kind")),
            }
        }
        if (self.number::<8>()?, self.number::<8>()?) != (keys, leases) {
            return Err(corrupt(self.path, "records are missing"));
        }
        let expected = self.from.hasher.clone().finalize();
        if self.bytes(32)? != expected[..] {
            return Err(corrupt(self.path, "its checksum does not match"));
        }
        let mut more = [0];
        match self.from.inner.read(&mut more) {
            Ok(0) => {}
            Ok(_) => return Err(corrupt(self.path, "something follows its end")),
            Err(e) => return Err(failed(&format!("read the backup {}", self.path.display()), e)),
        }
        let created = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(created))
            .ok_or_else(|| corrupt(self.path, "its date makes no sense"))?;
        Ok(Backup { revision, created, keys, leases, bytes: self.from.bytes })
    }
}
