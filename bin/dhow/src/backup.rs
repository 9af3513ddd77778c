//! Backup archives: a tar of the store's own backup and of the cluster's keys, without which neither certificates nor
//! sealed secrets would be worth anything after a restore.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use dhow_store::{Backup, SKIP_REVISIONS, restore_backup, verify_backup};
use tempfile::{NamedTempFile, TempDir};

/// The store's part of the archive.
const STORE: &str = "store";
/// Folder of the keys in the archive.
const KEYS: &str = "pki";
/// A key or certificate is a few KiB.
const LARGEST_KEY: u64 = 1 << 20;

/// What files and folders begin with that are not finished yet.
pub const UNFINISHED: &str = ".backup-";

/// What an archive holds.
pub struct Contents {
    pub store: Backup,
    /// Files with keys and certificates; none if they were left out.
    pub keys: usize,
}

/// Makes the archive `path`, with the cluster's keys if their folder is given; `store` writes the store's own backup.
pub fn make(path: &Path, keys: Option<&Path>, store: impl FnOnce(&Path) -> Result<()>) -> Result<Contents> {
    // Where the archive will be there is room for it.
    let scratch = folder_beside(path)?;
    let own = scratch.path().join(STORE);
    store(&own)?;
    write(path, &own, keys)
}

/// Makes the archive `path`, readable by its owner only, from the backup file of a store. It appears when it is whole
/// and on disk.
pub fn write(path: &Path, store: &Path, keys: Option<&Path>) -> Result<Contents> {
    let temporary = beside(path)?;
    let (contents, file) = pack(BufWriter::new(temporary.as_file()), store, keys)?;
    file.sync_all().context("write the archive")?;
    temporary.persist(path).map_err(|error| error.error).with_context(|| format!("write {}", path.display()))?;
    File::open(folder_of(path)).and_then(|folder| folder.sync_all()).context("write the archive's folder")?;
    Ok(contents)
}

/// Writes the archive of a store's backup file, and returns what it was written to.
pub fn pack<W: Write>(out: BufWriter<W>, store: &Path, keys: Option<&Path>) -> Result<(Contents, W)> {
    // What came over the network may have been cut off.
    let backup = verify_backup(store)?;
    let mut archive = tar::Builder::new(out);
    archive.append_path_with_name(store, STORE).context("write the archive")?;
    let mut count = 0;
    for key in keys.map(key_files).transpose()?.unwrap_or_default() {
        let name = key.file_name().context("a key without a name")?;
        archive.append_path_with_name(&key, Path::new(KEYS).join(name)).with_context(|| key.display().to_string())?;
        count += 1;
    }
    let out = archive.into_inner().context("write the archive")?;
    let out = out.into_inner().map_err(std::io::IntoInnerError::into_error).context("write the archive")?;
    Ok((Contents { store: backup, keys: count }, out))
}

/// Checks the whole archive.
pub fn verify(path: &Path) -> Result<Contents> {
    let unpacked = Unpacked::from(path, folder_of(path))?;
    Ok(Contents { store: verify_backup(unpacked.store.path())?, keys: unpacked.keys.len() })
}

/// What is already where a restore wants to write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Present {
    Refuse,
    PutAside,
}

/// Makes the store, and the keys if there are any in the archive, in a data folder that no process uses. Nothing is
/// changed unless all of the archive is good.
pub fn restore(path: &Path, data_dir: &Path, present: Present) -> Result<Contents> {
    let unpacked = Unpacked::from(path, data_dir)?;
    let (store_dir, keys_dir) = (data_dir.join("store"), data_dir.join("pki"));
    let with_keys = !unpacked.keys.is_empty();
    let there: Vec<&Path> = [(&store_dir, true), (&keys_dir, with_keys)]
        .iter()
        .filter(|(dir, wanted)| *wanted && filled(dir))
        .map(|(dir, _)| dir.as_path())
        .collect();
    if present == Present::Refuse
        && let Some(first) = there.first()
    {
        bail!("{} already holds state; --replace puts it aside", first.display());
    }
    if !with_keys && !filled(&keys_dir) {
        bail!("the backup holds no keys, and neither does {}; copy the cluster's keys there first", keys_dir.display());
    }
    // In folders beside the final ones, so that what takes time happens before anything is moved.
    let work = tempfile::Builder::new().prefix(".restore-").tempdir_in(data_dir).context("make a folder")?;
    let (new_store, new_keys) = (work.path().join("store"), work.path().join("pki"));
    let store = restore_backup(unpacked.store.path(), &new_store, SKIP_REVISIONS)?;
    if with_keys {
        write_keys(&new_keys, &unpacked.keys)?;
    }
    let stamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for dir in there {
        let aside = dir.with_extension(format!("before-restore-{stamp}"));
        fs::rename(dir, &aside).with_context(|| format!("put {} aside", dir.display()))?;
    }
    if with_keys {
        move_into_place(&new_keys, &keys_dir)?;
    }
    move_into_place(&new_store, &store_dir)?;
    File::open(data_dir).and_then(|folder| folder.sync_all()).context("write the data folder")?;
    Ok(Contents { store, keys: unpacked.keys.len() })
}

fn move_into_place(from: &Path, to: &Path) -> Result<()> {
    // An empty folder gives way to the rename.
    fs::rename(from, to).with_context(|| format!("make {}", to.display()))
}

fn filled(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

fn write_keys(dir: &Path, keys: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    fs::create_dir(dir).context("make the folder of keys")?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).context("protect the folder of keys")?;
    for (name, bytes) in keys {
        let path = dir.join(name);
        let file = File::options().create_new(true).write(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .with_context(|| format!("write {}", path.display()))?;
    }
    File::open(dir).and_then(|folder| folder.sync_all()).context("write the folder of keys")
}

/// An archive's parts: the store's backup as a file that goes with this value, the keys in memory.
struct Unpacked {
    store: NamedTempFile,
    keys: Vec<(PathBuf, Vec<u8>)>,
}

impl Unpacked {
    fn from(path: &Path, scratch: &Path) -> Result<Self> {
        let bad = || format!("{} is not a whole backup", path.display());
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut archive = tar::Archive::new(BufReader::new(file));
        let (mut store, mut keys) = (None, Vec::new());
        for entry in archive.entries().with_context(bad)? {
            let mut entry = entry.with_context(bad)?;
            let name = entry.path().with_context(bad)?.into_owned();
            if name == Path::new(STORE) {
                let mut out =
                    NamedTempFile::new_in(scratch).with_context(|| format!("unpack into {}", scratch.display()))?;
                let (size, copied) = (entry.size(), std::io::copy(&mut entry, &mut out).with_context(bad)?);
                if copied != size {
                    bail!("{}: it ends too early", bad());
                }
                store = Some(out);
                continue;
            }
            let inside =
                name.strip_prefix(KEYS).ok().map(Path::to_path_buf).filter(|name| name.components().count() == 1);
            let Some(name) = inside.filter(|name| name.file_name().is_some()) else {
                bail!("{}: {} does not belong into it", bad(), name.display())
            };
            if entry.size() > LARGEST_KEY {
                bail!("{}: {} is too large for a key", bad(), name.display());
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).with_context(bad)?;
            keys.push((name, bytes));
        }
        match store {
            Some(store) => Ok(Self { store, keys }),
            None => bail!("{}: the state is not in it", bad()),
        }
    }
}

/// The regular files of the folder of keys, in order.
fn key_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("read {}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.file_type().with_context(reading)?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// A temporary file in the folder where `path` will be.
fn beside(path: &Path) -> Result<NamedTempFile> {
    let folder = folder_of(path);
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(folder)
        .with_context(|| format!("write into {}", folder.display()))
}

/// A folder of its own where `path` will be.
pub fn folder_beside(path: &Path) -> Result<TempDir> {
    let folder = folder_of(path);
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(folder)
        .with_context(|| format!("write into {}", folder.display()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dhow_store::FjallKv;

    /// A data folder with an empty store and a key, and an archive of both.
    fn archived(folder: &Path) -> (PathBuf, PathBuf) {
        let data = folder.join("data");
        fs::create_dir_all(data.join("pki")).unwrap();
        fs::write(data.join("pki/ca.key"), "secret").unwrap();
        let kv = FjallKv::open(data.join("store")).unwrap();
        let file = folder.join("only-store");
        kv.backup_file(&file).unwrap();
        let archive = folder.join("archive");
        write(&archive, &file, Some(&data.join("pki"))).unwrap();
        (data, archive)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn round_trip_and_refusals() {
        let folder = tempfile::tempdir().unwrap();
        let (data, archive) = archived(folder.path());
        assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(verify(&archive).unwrap().keys, 1);

        // What is there stays, unless told otherwise; then it is put aside.
        let refusal = restore(&archive, &data, Present::Refuse).map(drop).unwrap_err().to_string();
        assert!(refusal.contains("--replace"), "{refusal}");
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        restore(&archive, &elsewhere, Present::Refuse).unwrap();
        fs::write(elsewhere.join("pki/ca.key"), "another").unwrap();
        restore(&archive, &elsewhere, Present::PutAside).unwrap();
        assert_eq!(fs::read(elsewhere.join("pki/ca.key")).unwrap(), b"secret");
        let names: Vec<_> =
            fs::read_dir(&elsewhere).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names.iter().filter(|name| name.contains(".before-restore-")).count(), 2, "{names:?}");
        assert_eq!(names.len(), 4, "{names:?}");
        FjallKv::open(elsewhere.join("store")).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn damage_is_found_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (_, archive) = archived(folder.path());
        let whole = fs::read(&archive).unwrap();
        let target = folder.path().join("target");
        fs::create_dir(&target).unwrap();
        let broken = folder.path().join("broken");
        // Cut off anywhere, or with a byte of the store changed.
        for (at, cut) in [(100, true), (600, true), (whole.len() / 2, true), (530, false)] {
            let mut bytes = whole.clone();
            if cut {
                bytes.truncate(at)
            } else {
                bytes[at] ^= 1
            }
            fs::write(&broken, bytes).unwrap();
            assert!(verify(&broken).is_err(), "{at}");
            assert!(restore(&broken, &target, Present::Refuse).is_err(), "{at}");
            assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{at}");
        }
        // No name in an archive leads out of the folder of keys.
        let mut hostile = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..12].copy_from_slice(b"pki/../../up");
        header.set_size(0);
        header.set_cksum();
        hostile.append(&header, std::io::empty()).unwrap();
        fs::write(&broken, hostile.into_inner().unwrap()).unwrap();
        let refusal = format!("{:#}", restore(&broken, &target, Present::Refuse).map(drop).unwrap_err());
        assert!(refusal.contains("does not belong"), "{refusal}");
    }
}
