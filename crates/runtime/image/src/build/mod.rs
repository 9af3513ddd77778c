//! What a builder needs of the store: folders to work in, layers made of them, images made of layers.

mod assemble;
pub(crate) mod cache;
pub(crate) mod kept;
pub(crate) mod pack;

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::content::{BlobWriter, sync_dir};
use crate::digest::Hasher;
use crate::error::At;
use crate::index::{Layer, chain_of};
use crate::manifest::OCI_LAYER;
use crate::snapshot::{remove_any, sync_file_system};
use crate::store::{ImageStore, blocking};
use crate::{Digest, Error, Image, Limits, Result};
use pack::LayerWriter;

pub use assemble::{Compression, Statement, Variant};

/// A build under way: the steps it uses stay while it lives.
pub struct Building {
    store: ImageStore,
    started: u64,
}

impl Drop for Building {
    fn drop(&mut self) {
        self.store.inner.kept.end(self.started);
    }
}

impl ImageStore {
    /// Says that a build begins.
    pub fn build(&self) -> Building {
        Building { store: self.clone(), started: self.inner.kept.begin() }
    }

    /// A folder on the layers' file system; what is left of it goes with it, or at the next start.
    pub fn workspace(&self) -> Result<tempfile::TempDir> {
        let work = self.inner.root.join("work");
        tempfile::Builder::new().prefix("build-").tempdir_in(&work).at("create a directory in", &work)
    }

    /// An image's layers, base first.
    pub fn layers_of(&self, image: &Image) -> Result<Vec<Layer>> {
        let id = Digest::parse(&image.id)?;
        let index = self.inner.index.lock();
        index.by_id(&id).map(|record| record.layers.clone()).ok_or_else(|| Error::NotFound(image.id.clone()))
    }

    /// An image's configuration as it was written.
    pub fn config_bytes(&self, image: &Image) -> Result<Vec<u8>> {
        self.inner.content.read("image config", &Digest::parse(&image.id)?)
    }

    /// What `key` was made into before: all layers, base first.
    pub fn kept(&self, key: &Digest) -> Option<Vec<Layer>> {
        self.inner.kept.get(key)
    }

    /// When `key` was made into that first, in seconds since 1970.
    pub fn made(&self, key: &Digest) -> Option<u64> {
        self.inner.kept.made(key)
    }

    /// Remembers what `key` was made into, layers that another step has kept already.
    pub fn keep(&self, key: &Digest, layers: &[Layer]) -> Result<()> {
        self.inner.kept.put(key, layers)
    }

    /// Makes a layer of a folder in a workspace: the upper one of an overlay over `below`. It is kept under `key`; all
    /// layers are returned, base first. A folder with nothing in it adds none. With `latest` no file is newer.
    pub async fn commit(
        &self,
        key: &Digest,
        upper: PathBuf,
        below: Vec<Layer>,
        latest: Option<i64>,
    ) -> Result<Vec<Layer>> {
        let (store, key) = (self.clone(), key.clone());
        blocking(move || store.commit_now(&key, &upper, below, latest)).await
    }

    fn commit_now(&self, key: &Digest, upper: &Path, layers: Vec<Layer>, latest: Option<i64>) -> Result<Vec<Layer>> {
        let inner = &self.inner;
        let failed = |e| Error::io(format!("write a layer of {}", upper.display()), e);
        let mut blob = inner.content.writer(Hasher::sha256())?;
        let mut writer = LayerWriter::new(BufWriter::with_capacity(256 << 10, &mut blob));
        let entries = pack::pack(upper, latest, &mut writer).map_err(failed)?;
        let mut buffered = writer.finish().map_err(failed)?;
        buffered.flush().map_err(failed)?;
        drop(buffered);
        if entries == 0 {
            inner.kept.put(key, &layers)?;
            return Ok(layers);
        }
        self.place(key, blob, upper, layers, |_| Ok(()))
    }

    /// As [`Self::commit`], of an archive: it is the layer. Unless there is a folder of the same layers already, `upper`, an
    /// empty one in a workspace, becomes what it unpacks to on `lowers`, the folders of `below`. Blocks.
    pub fn commit_archive(
        &self,
        key: &Digest,
        mut archive: impl Read,
        upper: &Path,
        below: Vec<Layer>,
        lowers: &[PathBuf],
    ) -> Result<Vec<Layer>> {
        let mut blob = self.inner.content.writer(Hasher::sha256())?;
        let mut to = BufWriter::with_capacity(256 << 10, &mut blob);
        io::copy(&mut archive, &mut to)
            .and_then(|_| to.flush())
            .map_err(|e| Error::io("write the layer of a step", e))?;
        drop(to);
        self.place(key, blob, upper, below, |archive| {
            crate::unpack::unpack(archive, upper, lowers, "of the step", &Limits::default()).map(drop)
        })
    }

    /// Adds a layer to those below it: its archive, and the folder `upper`, which is filled from it if it is needed.
    fn place(
        &self,
        key: &Digest,
        blob: BlobWriter,
        upper: &Path,
        mut layers: Vec<Layer>,
        fill: impl FnOnce(fs::File) -> Result<()>,
    ) -> Result<Vec<Layer>> {
        let inner = &self.inner;
        let (pin, size) = blob.finish()?;
        let diff_id = pin.digest().clone();
        layers.push(Layer { blob: diff_id.clone(), size, media_type: OCI_LAYER.to_owned(), diff_id });
        let chain = chain_of(&layers);
        let _lease = inner.snapshots.lease(&chain);
        if let Some(top) = chain.last() {
            let target = inner.snapshots.path(top);
            if target.is_dir() {
                remove_any(upper)?;
            } else {
                fill(inner.content.open_blob(pin.digest())?)?;
                sync_file_system(upper)?;
                match fs::rename(upper, &target) {
                    Ok(()) => {}
                    Err(_) if target.is_dir() => remove_any(upper)?,
                    Err(e) => return Err(e).at("create", &target),
                }
                sync_dir(target.parent().unwrap_or(&inner.root))?;
            }
        }
        inner.kept.put(key, &layers)?;
        inner.grown.notify_one();
        Ok(layers)
    }

    /// The folders of these layers, top first; those that are not unpacked are.
    pub async fn folders(&self, layers: &[Layer]) -> Result<Vec<PathBuf>> {
        self.unpack_layers(layers, &std::collections::HashMap::new(), &|_| {}).await
    }

    /// Forgets steps of builds, least recently used first, until at most so many bytes of them are left. Blocks.
    pub fn trim_kept(&self, limit: u64) -> Result<u64> {
        if self.inner.kept.trim(limit)? == 0 {
            return Ok(0);
        }
        self.collect(self.inner.index.lock())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::unpack::fsops;
    use crate::{Entry, EntryKind};

    fn upper(store: &ImageStore, fill: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
        let workspace = store.workspace().unwrap();
        let upper = workspace.path().join("upper");
        fs::create_dir(&upper).unwrap();
        fill(&upper);
        (workspace, upper)
    }

    fn odd_files(upper: &Path) {
        let long = "n".repeat(200);
        fs::create_dir_all(upper.join("d/opaque")).unwrap();
        fs::write(upper.join("d").join(&long), "long").unwrap();
        fs::write(upper.join("one"), "1").unwrap();
        fs::hard_link(upper.join("one"), upper.join("two")).unwrap();
        std::os::unix::fs::symlink("/somewhere", upper.join("link")).unwrap();
        let null = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, upper.join("d/gone"), null, 0.into(), 0).unwrap();
        fsops::set_opaque(fsops::open_root(&upper.join("d/opaque")).unwrap().as_fd()).unwrap();
        std::os::unix::fs::chown(upper.join("one"), Some(3_000_000), Some(7)).unwrap();
    }

    #[tokio::test]
    async fn a_folder_becomes_the_same_layer_each_time() {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(root.path()).unwrap();
        let _building = store.build();
        let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
        let mut made = Vec::new();
        for key in [&key, &other] {
            let (_workspace, upper) = upper(&store, odd_files);
            made.push(store.commit(key, upper, Vec::new(), Some(1000)).await.unwrap());
        }
        assert_eq!(made[0], made[1]);
        assert_eq!(store.kept(&key).unwrap(), made[0]);

        // Unpacked from its archive it is what it was made of.
        let again = tempfile::tempdir().unwrap();
        let blob = store.inner.content.open_blob(&made[0][0].blob).unwrap();
        crate::unpack(blob, again.path(), &[], "layer", &crate::Limits::default()).unwrap();
        let at = |name: &str| again.path().join(name);
        assert_eq!(fs::read(at("d").join("n".repeat(200))).unwrap(), b"long");
        let (one, two) = (fs::metadata(at("one")).unwrap(), fs::metadata(at("two")).unwrap());
        assert_eq!((one.ino(), one.uid(), one.gid(), one.mtime()), (two.ino(), 3_000_000, 7, 1000));
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/somewhere"));
        assert_eq!(
            fsops::kind(fsops::open_root(&at("d")).unwrap().as_fd(), "gone".as_ref()).unwrap(),
            Some(fsops::Found::Whiteout)
        );
        assert!(fsops::is_opaque(fsops::open_root(&at("d/opaque")).unwrap().as_fd()));

        // Nothing changed: no layer more.
        let (_workspace, nothing) = upper(&store, |_| {});
        assert_eq!(store.commit(&key, nothing, made[0].clone(), None).await.unwrap(), made[0]);
    }

    #[tokio::test]
    async fn an_archive_becomes_a_folder_once() {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(root.path()).unwrap();
        let _building = store.build();
        let mut archive = LayerWriter::new(Vec::new());
        let file = Entry { path: b"d/f".to_vec(), kind: EntryKind::File(4), mode: 0o644, ..Entry::default() };
        archive.append(&file, &b"data"[..]).unwrap();
        let archive = archive.finish().unwrap();
        let mut folders = Vec::new();
        for key in [b"one", b"two"] {
            let (workspace, upper) = upper(&store, |_| {});
            let layers = store.commit_archive(&Digest::of(key), archive.as_slice(), &upper, Vec::new(), &[]).unwrap();
            assert!(!upper.exists(), "it is the layer's now, or not needed");
            drop(workspace);
            assert_eq!(layers[0].diff_id, Digest::of(&archive));
            folders.push(store.folders(&layers).await.unwrap()[0].clone());
        }
        assert_eq!(folders[0], folders[1]);
        assert_eq!(fs::read(folders[0].join("d/f")).unwrap(), b"data");
    }

    #[tokio::test]
    async fn steps_stay_until_room_is_wanted() {
        let root = tempfile::tempdir().unwrap();
        let key = Digest::of(b"key");
        let store = ImageStore::open(root.path()).unwrap();
        let building = store.build();
        let (workspace, upper) = upper(&store, |upper| fs::write(upper.join("f"), "data").unwrap());
        let layers = store.commit(&key, upper, Vec::new(), None).await.unwrap();
        drop(workspace);
        assert_eq!(store.prune(true).unwrap().images, Vec::<String>::new());
        assert!(store.kept(&key).is_some(), "a build under way uses it");
        drop(building);
        drop(store);
        let store = ImageStore::open(root.path()).unwrap();
        assert_eq!(store.kept(&key).as_ref(), Some(&layers), "a restart forgets nothing");
        let config = br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["#;
        let config = [&config[..], format!("\"{}\"]}}}}", layers[0].diff_id).as_bytes()].concat();
        for compression in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
            let image = store.assemble(config.clone(), layers.clone(), &["x:1".to_owned()], compression).await.unwrap();
            let folder = &store.layers(&image).await.unwrap()[0];
            assert_eq!(fs::read(folder.join("f")).unwrap(), b"data");
        }
        store.trim_kept(0).unwrap();
        assert!(store.kept(&key).is_none());
        assert!(store.get("x:1").is_some());
        store.remove("x:1").unwrap();
        assert!(!store.inner.content.has(&layers[0].blob), "nobody needs it any more");
    }
}
