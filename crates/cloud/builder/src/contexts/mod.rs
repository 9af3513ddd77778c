//! Contexts that stay here from build to build, so that a client sends only what changed since.
//!
//! A client says what its folder has ([`Listing`]), is told what is missing here ([`Keeper::wanted`]), and sends just that;
//! [`Keeper::take`] makes the kept folder the same as the client's. Builds that change nothing share a folder; one that would
//! change what another build is reading is told to send everything, into a folder of its own.
//!
//! Invariant: what a kept folder has is what its index says. While that is not so, there is no index.

mod listing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhow_image::{Digest, Hasher};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use self::listing::Name;
pub use self::listing::{Listed, Listing};
use crate::copy::At;
use crate::error::{Error, Result, blocking};

/// Bytes of kept contexts above which those go that were used the longest ago.
const MOST: u64 = 2 << 30;

/// A context that nobody built from for so long is not kept.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// All kept contexts of a node.
pub struct Keeper {
    root: PathBuf,
    locks: Locks,
}

/// By the names of kept contexts. Whoever reads one has it shared, whoever changes or removes it alone.
#[derive(Clone, Default)]
struct Locks(Arc<Mutex<HashMap<String, Arc<RwLock<()>>>>>);

impl Locks {
    fn get(&self, name: &str) -> Arc<RwLock<()>> {
        Arc::clone(self.0.lock().entry(name.to_owned()).or_default())
    }

    /// Forgets those that nobody has.
    fn tidy(&self) {
        self.0.lock().retain(|_, lock| Arc::strong_count(lock) > 1);
    }
}

/// A kept context, as it is while this lives.
pub struct Lease {
    pub folder: PathBuf,
    pub digests: Arc<Digests>,
    /// Something came for it.
    pub changed: bool,
    _lock: OwnedRwLockReadGuard<()>,
}

/// Of the regular files of a context, by their places in it.
pub type Digests = HashMap<PathBuf, Digest>;

/// What a kept folder has.
#[derive(Default, Serialize, Deserialize)]
struct Index(BTreeMap<String, Known>);

#[derive(Clone, Serialize, Deserialize)]
struct Known {
    listed: Listed,
    /// Of a regular file.
    digest: Option<Digest>,
    bytes: u64,
}

impl Index {
    fn read(path: &Path) -> Self {
        // None, or one of another version: everything is sent again.
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn has(&self, listed: &Listed) -> bool {
        !listed.version.is_empty() && self.0.get(&listed.path).is_some_and(|known| known.listed == *listed)
    }

    fn digests(&self) -> Digests {
        let of = |(path, known): (&String, &Known)| Some((PathBuf::from(path), known.digest.clone()?));
        self.0.iter().filter_map(of).collect()
    }
}

impl Keeper {
    /// Below this folder; what an earlier process left goes, as nobody knows how far it had got on to the disk.
    pub fn open(root: PathBuf) -> Result<Self> {
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("clear kept contexts"),
            _ => {}
        }
        fs::create_dir_all(&root).at("make a folder for kept contexts")?;
        Ok(Keeper { root, locks: Locks::default() })
    }

    fn place(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// The numbers of the entries that are missing here or were others.
    pub async fn wanted(&self, listing: Listing) -> Result<Vec<usize>> {
        let name = listing.check()?;
        let index = self.place(&name).join("index.json");
        let _reading = self.locks.get(name.as_str()).read_owned().await;
        blocking(move || {
            let index = Index::read(&index);
            Ok(listing
                .entries
                .iter()
                .enumerate()
                .filter(|(_, listed)| !index.has(listed))
                .map(|(number, _)| number)
                .collect())
        })
        .await
    }

    /// The kept context, made to be what is listed with what came.
    ///
    /// # Errors
    /// [`Error::Stale`] if neither what is here nor what came has all of it, or if another build reads what would change.
    pub async fn take(&self, listing: Listing, came: PathBuf) -> Result<Lease> {
        let name = listing.check()?;
        let (place, lock) = (self.place(&name), self.locks.get(name.as_str()));
        let index = place.join("index.json");
        let reading = Arc::clone(&lock).read_owned().await;
        let known_in = index.clone();
        let (same, listing) = blocking(move || {
            let index = Index::read(&known_in);
            let same = index.0.len() == listing.entries.len() && listing.entries.iter().all(|one| index.has(one));
            Ok((same.then_some(index), listing))
        })
        .await?;
        let folder = place.join("files");
        if let Some(known) = same {
            // When it was used last.
            File::open(&index).and_then(|file| file.set_modified(SystemTime::now())).at("note a context's use")?;
            return Ok(Lease { folder, digests: Arc::new(known.digests()), changed: false, _lock: reading });
        }
        drop(reading);
        let Ok(writing) = lock.try_write_owned() else {
            return Err(Error::Stale("another build is reading the context that is kept of this folder".to_owned()));
        };
        let into = folder.clone();
        let known = blocking(move || change(&index, &into, &listing, &came)).await?;
        Ok(Lease { folder, digests: Arc::new(known.digests()), changed: true, _lock: writing.downgrade() })
    }

    /// Removes what was used the longest ago while there is too much, and what nobody used for long.
    pub async fn trim(&self) -> Result<()> {
        self.trim_to(MOST).await
    }

    async fn trim_to(&self, most: u64) -> Result<()> {
        let (root, locks) = (self.root.clone(), self.locks.clone());
        blocking(move || {
            let mut all = Vec::new();
            for entry in fs::read_dir(&root).at("list kept contexts")? {
                let entry = entry.at("list kept contexts")?;
                let index = entry.path().join("index.json");
                // Without one it is being changed, or could not be.
                let used = fs::metadata(&index).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                let bytes: u64 = Index::read(&index).0.values().map(|known| known.bytes).sum();
                all.push((used, bytes, entry.file_name().to_string_lossy().into_owned()));
            }
            all.sort();
            let mut bytes: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
            for (used, size, name) in all {
                let old = used.elapsed().is_ok_and(|age| age > LONGEST);
                if !old && bytes <= most {
                    break;
                }
                let Ok(_writing) = locks.get(&name).try_write_owned() else { continue };
                fs::remove_dir_all(root.join(&name)).at("remove a kept context")?;
                bytes = bytes.saturating_sub(size);
            }
            locks.tidy();
            Ok(())
        })
        .await
    }
}

/// Makes `folder` what is listed. There is no index until that is done.
fn change(index: &Path, folder: &Path, listing: &Listing, came: &Path) -> Result<Index> {
    let old = Index::read(index);
    let (mut new, mut came_in) = (Index::default(), CameIn { root: came, folders: HashSet::new() });
    for listed in &listing.entries {
        let known = match old.0.get(&listed.path).filter(|_| old.has(listed)) {
            Some(known) => known.clone(),
            None => came_in.look(listed)?,
        };
        new.0.insert(listed.path.clone(), known);
    }
    match fs::remove_file(index) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("change a kept context"),
        Err(_) if folder.exists() => fs::remove_dir_all(folder).at("clear a context that nobody knows")?,
        _ => {}
    }
    fs::create_dir_all(folder).at("make a folder for a context")?;
    // What is in a folder comes after it.
    for path in old.0.keys().rev().filter(|path| !new.0.contains_key(*path)) {
        remove(folder, path, &new).at("remove what a context has no longer")?;
    }
    for (path, known) in &new.0 {
        if !old.has(&known.listed) {
            bring(&came.join(path), &folder.join(path), known.listed.folder.is_some()).at("change a kept context")?;
        }
    }
    for (path, known) in &new.0 {
        if let Some(seconds) = known.listed.folder {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            File::open(folder.join(path)).and_then(|file| file.set_modified(time)).at("date a context's folder")?;
        }
    }
    let text = serde_json::to_vec(&new).map_err(io::Error::from).at("write a context's index")?;
    let unfinished = index.with_extension("new");
    fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, index)).at("write a context's index")?;
    Ok(new)
}

/// What a client sent.
struct CameIn<'a> {
    root: &'a Path,
    /// Those that were found to be folders, not links to some.
    folders: HashSet<PathBuf>,
}

impl CameIn<'_> {
    /// What came for an entry; nothing is changed by that.
    fn look(&mut self, listed: &Listed) -> Result<Known> {
        let path = self.root.join(&listed.path);
        self.folder(Path::new(&listed.path).parent()).at("look at what was sent")?;
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() == listed.folder.is_some() => meta,
            Ok(_) => return Err(Error::Invalid(format!("{} is not what it is listed as", listed.path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Stale(format!("{} is not here any more, and was not sent", listed.path)));
            }
            Err(error) => return Err(error).at("look at what was sent"),
        };
        let digest = match meta.is_file() {
            true => Some(crate::add::hash(File::open(&path).at("read what was sent")?, Hasher::sha256())?),
            false => None,
        };
        let bytes = if meta.is_file() { meta.len() } else { 0 };
        Ok(Known { listed: listed.clone(), digest, bytes })
    }

    /// Makes sure that no link leads elsewhere. What is not there is found out later.
    fn folder(&mut self, below: Option<&Path>) -> io::Result<()> {
        let Some(below) = below.filter(|below| !below.as_os_str().is_empty() && !self.folders.contains(*below)) else {
            return Ok(());
        };
        self.folder(below.parent())?;
        if fs::symlink_metadata(self.root.join(below)).is_ok_and(|meta| !meta.is_dir()) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no folder", below.display())));
        }
        self.folders.insert(below.to_owned());
        Ok(())
    }
}

/// Removes what was listed, and the folders above that were only there for it: those that are listed stay, if they are empty.
fn remove(root: &Path, path: &str, listed: &Index) -> io::Result<()> {
    let at = root.join(path);
    match fs::symlink_metadata(&at) {
        // Others may be in a folder that is not itself listed any more.
        Ok(meta) if meta.is_dir() => drop(fs::remove_dir(&at)),
        Ok(_) => fs::remove_file(&at)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut below = path;
    while let Some((parent, _)) = below.rsplit_once('/') {
        if listed.0.contains_key(parent) || fs::remove_dir(root.join(parent)).is_err() {
            break;
        }
        below = parent;
    }
    Ok(())
}

/// Puts what came in its place. The listing was checked: all that is above is a folder, no link.
fn bring(from: &Path, to: &Path, folder: bool) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let there = fs::symlink_metadata(to).ok().map(|meta| meta.is_dir());
    if !folder {
        if there == Some(true) {
            fs::remove_dir_all(to)?;
        }
        return fs::rename(from, to);
    }
    if there == Some(false) {
        fs::remove_file(to)?;
    }
    if there != Some(true) {
        fs::create_dir(to)?;
    }
    let mode = fs::symlink_metadata(from)?.permissions().mode();
    fs::set_permissions(to, Permissions::from_mode(mode & 0o7777))
}

#[cfg(test)]
mod tests;
