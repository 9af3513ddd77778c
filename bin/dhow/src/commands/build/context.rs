//! The files of a build: found, filtered, sent.

use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dhow_builder::Ignore;
use dhow_builder::api::{CacheFrom, Context, Request};
use dhow_image::{Entry, EntryKind, LayerWriter};
use futures::Stream;
use tokio::task::JoinHandle;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::cache;
use crate::cli::BuildArgs;

/// What goes to the node.
pub struct Sources {
    pub dockerfile: String,
    pub file: String,
    /// By number: the first is the build's own.
    folders: Vec<(PathBuf, Ignore)>,
    /// Where the build's own context is.
    pub own: Context,
    pub named: Vec<(String, Context)>,
    pub caches: Vec<CacheFrom>,
    /// Keeps an archive's files while they are sent.
    _unpacked: Option<tempfile::TempDir>,
}

impl Sources {
    pub async fn gather(args: &BuildArgs) -> Result<Self> {
        let address = args.path.to_str().filter(|path| is_address(path)).map(str::to_owned);
        let (root, text, unpacked) = if address.is_some() {
            (None, None, None)
        } else if args.path == Path::new("-") {
            if args.file.as_deref() == Some(Path::new("-")) {
                bail!("the context and the Dockerfile cannot both be standard input");
            }
            tokio::task::spawn_blocking(from_stdin).await.context("read standard input")??
        } else {
            if !args.path.is_dir() {
                bail!("{} is no folder", args.path.display());
            }
            (Some(args.path.clone()), None, None)
        };
        let (dockerfile, file, own_ignore) = match (&text, &args.file) {
            (Some(text), None) => (text.clone(), "Dockerfile".to_owned(), None),
            (_, Some(file)) if file == Path::new("-") => {
                let text = tokio::task::spawn_blocking(|| io::read_to_string(io::stdin())).await.context("read")??;
                (text, "Dockerfile".to_owned(), None)
            }
            // The node reads it.
            (None, file) if address.is_some() => {
                let file = file.as_ref().map_or_else(|| "Dockerfile".to_owned(), |file| file.display().to_string());
                (String::new(), file, None)
            }
            (_, file) => {
                let root = root.clone().unwrap_or_default();
                let path = match (file, &unpacked) {
                    (Some(file), Some(_)) => root.join(file),
                    (Some(file), None) => file.clone(),
                    (None, _) => root.join("Dockerfile"),
                };
                let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                let text = String::from_utf8_lossy(&text).into_owned();
                let mut beside = path.clone().into_os_string();
                beside.push(".dockerignore");
                (text, path.display().to_string(), Some(PathBuf::from(beside)))
            }
        };
        let ignore_file = own_ignore.filter(|path| path.is_file());
        let ignore_file = ignore_file.or_else(|| root.as_ref().map(|root| root.join(".dockerignore")));
        let ignore = match ignore_file.filter(|path| path.is_file()) {
            Some(path) => {
                let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                Ignore::read(&text).map_err(anyhow::Error::msg).with_context(|| format!("read {}", path.display()))?
            }
            None => Ignore::default(),
        };
        let mut folders = vec![(root.unwrap_or_default(), ignore)];
        let mut named = Vec::new();
        for text in &args.build_context {
            let (name, source) =
                text.split_once('=').with_context(|| format!("--build-context {text}: NAME=SOURCE"))?;
            let context = if is_address(source) {
                Context::Address(source.to_owned())
            } else if let Some(image) = source.strip_prefix("docker-image://") {
                Context::Image(image.to_owned())
            } else {
                let (folder, layout) = match source.strip_prefix("oci-layout://") {
                    Some(folder) => (PathBuf::from(folder.split(['@']).next().unwrap_or(folder)), true),
                    None => (PathBuf::from(source), false),
                };
                if !folder.is_dir() {
                    bail!("--build-context {text}: {} is no folder", folder.display());
                }
                let ignore = match std::fs::read_to_string(folder.join(".dockerignore")) {
                    Ok(text) if !layout => Ignore::read(&text).map_err(anyhow::Error::msg)?,
                    _ => Ignore::default(),
                };
                folders.push((folder, ignore));
                let number = folders.len() - 1;
                if layout { Context::Layout(number) } else { Context::Folder(number) }
            };
            named.push((name.to_owned(), context));
        }
        let mut caches = Vec::new();
        for text in &args.cache.cache_from {
            caches.push(match cache::from(text)? {
                cache::Source::Registry(name) => CacheFrom::Registry(name),
                cache::Source::Folder(folder, tag) => {
                    // The first build of all finds none.
                    if !folder.join("index.json").is_file() {
                        continue;
                    }
                    folders.push((folder, Ignore::default()));
                    CacheFrom::Folder(folders.len() - 1, tag)
                }
            });
        }
        let own = address.map_or(Context::Folder(0), Context::Address);
        Ok(Sources { dockerfile, file, folders, own, named, caches, _unpacked: unpacked })
    }

    /// The request as an archive, written while it is sent, and the task that writes it. `sent` counts bytes.
    pub fn stream(
        self,
        request: &Request,
        sent: Arc<AtomicU64>,
    ) -> (impl Stream<Item = io::Result<Bytes>> + use<>, JoinHandle<Result<()>>) {
        let (from, into) = tokio::io::duplex(1 << 20);
        let request = serde_json::to_vec(request);
        let writing = tokio::task::spawn_blocking(move || {
            // An archive's files stay until they are sent.
            let _unpacked = self._unpacked;
            let bridge = Counted { to: SyncIoBridge::new(into), sent };
            let mut archive = LayerWriter::new(BufWriter::with_capacity(256 << 10, bridge));
            let request = request.context("write the request")?;
            let entry = Entry {
                path: b"build.json".to_vec(),
                kind: EntryKind::File(request.len() as u64),
                mode: 0o600,
                ..Entry::default()
            };
            let outcome = archive.append(&entry, request.as_slice()).and_then(|()| {
                self.folders.iter().enumerate().try_for_each(|(number, (folder, ignore))| {
                    let below = format!("contexts/{number}");
                    let top = Entry { path: below.clone().into_bytes(), mode: 0o755, ..Entry::default() };
                    archive.append(&top, io::empty())?;
                    if folder.as_os_str().is_empty() {
                        return Ok(());
                    }
                    let mut walk = Walk { archive: &mut archive, ignore, below };
                    walk.folder(folder, "")
                })
            });
            let finished = outcome.and_then(|()| archive.finish()).and_then(|mut writer| writer.flush());
            match finished {
                // The node stopped reading: it says why itself.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => other.context("send the context"),
            }
        });
        (ReaderStream::with_capacity(from, 256 << 10), writing)
    }
}

/// A folder as an archive, without what its `.dockerignore` leaves out; `kept` go along in any case.
pub fn archive(
    folder: &Path,
    kept: &[String],
) -> Result<(impl Stream<Item = io::Result<Bytes>> + use<>, JoinHandle<Result<()>>)> {
    if !folder.is_dir() {
        bail!("{} is no folder", folder.display());
    }
    let ignore = match std::fs::read_to_string(folder.join(".dockerignore")) {
        Ok(text) => {
            let text = kept.iter().fold(text, |text, name| format!("{text}\n!{name}"));
            Ignore::read(&text).map_err(anyhow::Error::msg).context("read .dockerignore")?
        }
        Err(_) => Ignore::default(),
    };
    let (from, into) = tokio::io::duplex(1 << 20);
    let folder = folder.to_owned();
    let writing = tokio::task::spawn_blocking(move || {
        let to = BufWriter::with_capacity(256 << 10, SyncIoBridge::new(into));
        let mut archive = LayerWriter::new(to);
        let mut walk = Walk { archive: &mut archive, ignore: &ignore, below: ".".to_owned() };
        let walked = walk.folder(&folder, "");
        match walked.and_then(|()| archive.finish()).and_then(|mut writer| writer.flush()) {
            // Whoever takes it stopped reading, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("send the folder"),
        }
    });
    Ok((ReaderStream::with_capacity(from, 256 << 10), writing))
}

struct Counted<W> {
    to: W,
    sent: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.sent.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

struct Walk<'a, W: Write> {
    archive: &'a mut LayerWriter<W>,
    ignore: &'a Ignore,
    below: String,
}

impl<W: Write> Walk<'_, W> {
    fn folder(&mut self, folder: &Path, relative: &str) -> io::Result<()> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
        names.sort();
        for name in names {
            let path = folder.join(&name);
            let at = match relative {
                "" => name.to_string_lossy().into_owned(),
                _ => format!("{relative}/{}", name.to_string_lossy()),
            };
            let meta = std::fs::symlink_metadata(&path)?;
            let left_out = self.ignore.ignores(&at);
            let kind = meta.file_type();
            if left_out && !(kind.is_dir() && self.ignore.has_exceptions()) {
                continue;
            }
            let mut entry = Entry {
                path: [self.below.as_bytes(), b"/", at.as_bytes()].concat(),
                mode: meta.mode(),
                mtime: meta.mtime(),
                ..Entry::default()
            };
            if kind.is_dir() {
                // What is let in again below a folder that is not brings it along.
                if !left_out {
                    self.archive.append(&entry, io::empty())?;
                }
                self.folder(&path, &at)?;
            } else if kind.is_symlink() {
                entry.kind = EntryKind::Symlink(std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec());
                self.archive.append(&entry, io::empty())?;
            } else if kind.is_file() {
                entry.kind = EntryKind::File(meta.len());
                self.archive.append(&entry, std::fs::File::open(&path)?)?;
            } else if kind.is_fifo() {
                entry.kind = EntryKind::Fifo;
                self.archive.append(&entry, io::empty())?;
            }
        }
        Ok(())
    }
}

/// Whether the node is to fetch it.
fn is_address(text: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@", "github.com/"].iter().any(|scheme| text.starts_with(scheme))
}

type Stdin = (Option<PathBuf>, Option<String>, Option<tempfile::TempDir>);

/// A Dockerfile, or an archive of a context.
fn from_stdin() -> Result<Stdin> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("read standard input")?;
    let tar = bytes.get(257..262) == Some(b"ustar");
    if !tar && !dhow_image::is_packed(&bytes) {
        return Ok((None, Some(String::from_utf8(bytes).context("the Dockerfile is not UTF-8")?), None));
    }
    let folder = tempfile::tempdir().context("make a folder for the archive")?;
    let plain = dhow_image::decompress(bytes.as_slice()).context("decompress the archive")?;
    tar::Archive::new(plain).unpack(folder.path()).context("unpack the archive")?;
    Ok((Some(folder.path().to_owned()), None, Some(folder)))
}
