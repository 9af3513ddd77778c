//! The files of a build: found, filtered, sent.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use dhow_builder::api::{CacheFrom, Context, Listings, Missing, Request};
use dhow_builder::{Ignore, Listing};
use dhow_image::{Entry, EntryKind, LayerWriter};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::super::image::Images;
use super::cache;
use super::walk::{self, Found};
use crate::cli::BuildArgs;

/// What goes to the node.
pub struct Sources {
    pub dockerfile: String,
    pub file: String,
    /// By number: the first is the build's own.
    folders: Vec<Source>,
    /// Where the build's own context is.
    pub own: Context,
    pub named: Vec<(String, Context)>,
    pub caches: Vec<CacheFrom>,
    /// Keeps an archive's files while they are sent.
    _unpacked: Option<tempfile::TempDir>,
}

/// A folder that goes along.
struct Source {
    path: PathBuf,
    ignore: Ignore,
    /// The node may keep it for the next build.
    kept: bool,
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
        let kept = unpacked.is_none();
        let mut folders = vec![Source { path: root.unwrap_or_default(), ignore, kept }];
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
                folders.push(Source { path: folder, ignore, kept: !layout });
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
                    folders.push(Source { path: folder, ignore: Ignore::default(), kept: false });
                    CacheFrom::Folder(folders.len() - 1, tag)
                }
            });
        }
        let own = address.map_or(Context::Folder(0), Context::Address);
        Ok(Sources { dockerfile, file, folders, own, named, caches, _unpacked: unpacked })
    }

    /// Looks at the folders, and at how what is in them differs from what the node has of them; with lists of those of which it
    /// has something.
    pub async fn look(self, images: &Images) -> Result<(Contexts, Listings)> {
        let mut contexts = tokio::task::spawn_blocking(move || self.walk()).await.context("look at the context")??;
        let mut listings = contexts.listings();
        if !listings.is_empty() {
            let missing = images.missing(&listings).await?;
            listings.retain(|number, _| missing.contains_key(number));
            contexts.send_only(missing);
        }
        Ok((contexts, listings))
    }

    fn walk(self) -> Result<Contexts> {
        let mut folders = Vec::new();
        for Source { path, ignore, kept } in self.folders {
            let found = match path.as_os_str().is_empty() {
                true => Vec::new(),
                false => walk::walk(&path, &ignore).with_context(|| format!("read {}", path.display()))?,
            };
            folders.push(Walked { path, found: found.into(), kept, missing: None });
        }
        Ok(Contexts { folders: folders.into(), _unpacked: self._unpacked })
    }
}

/// The files that go to the node.
pub struct Contexts {
    folders: Arc<[Walked]>,
    /// Keeps an archive's files while they are sent.
    _unpacked: Option<tempfile::TempDir>,
}

#[derive(Clone)]
struct Walked {
    path: PathBuf,
    found: Arc<[Found]>,
    /// It may be built from again.
    kept: bool,
    /// What is to be sent; everything if that is not known.
    missing: Option<Vec<usize>>,
}

impl Contexts {
    fn listings(&self) -> Listings {
        let now = SystemTime::now();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let listing = |(number, folder): (usize, &Walked)| {
            if !folder.kept || folder.found.is_empty() {
                return None;
            }
            let path = folder.path.canonicalize().ok()?;
            let name = format!("{host}:{}", path.display());
            let entries = folder.found.iter().map(|found| found.listed(now)).collect::<Option<_>>()?;
            Some((number, Listing { name, entries }))
        };
        self.folders.iter().enumerate().filter_map(listing).collect()
    }

    /// From now on this is sent of the contexts that are named, and everything of the others.
    pub fn send_only(&mut self, mut missing: Missing) {
        let folder = |(number, folder): (usize, &Walked)| Walked { missing: missing.remove(&number), ..folder.clone() };
        self.folders = self.folders.iter().enumerate().map(folder).collect();
    }

    /// The request as an archive, written while it is sent, and the task that writes it. `sent` counts bytes.
    pub fn stream(&self, request: &Request, sent: Arc<AtomicU64>) -> Sending {
        let (request, folders) = (serde_json::to_vec(request), Arc::clone(&self.folders));
        send(sent, "send the context", move |archive| {
            let request = request?;
            let entry = Entry {
                path: b"build.json".to_vec(),
                kind: EntryKind::File(request.len() as u64),
                mode: 0o600,
                ..Entry::default()
            };
            archive.append(&entry, request.as_slice())?;
            append(&folders, archive)
        })
    }
}

/// An archive that is written while it is sent, and the task that writes it.
type Sending = (ReaderStream<DuplexStream>, JoinHandle<Result<()>>);

/// What it is written to.
type Outgoing = LayerWriter<BufWriter<Counted<SyncIoBridge<DuplexStream>>>>;

/// Sends what is written; `sent` counts bytes.
fn send(
    sent: Arc<AtomicU64>,
    doing: &'static str,
    write: impl FnOnce(&mut Outgoing) -> io::Result<()> + Send + 'static,
) -> Sending {
    let (from, into) = tokio::io::duplex(1 << 20);
    let writing = tokio::task::spawn_blocking(move || {
        let bridge = Counted { to: SyncIoBridge::new(into), sent };
        let mut archive = LayerWriter::new(BufWriter::with_capacity(256 << 10, bridge));
        let written = write(&mut archive);
        match written.and_then(|()| archive.finish()).and_then(|mut writer| writer.flush()) {
            // The node stopped reading: it says why itself.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context(doing),
        }
    });
    (ReaderStream::with_capacity(from, 256 << 10), writing)
}

fn append(folders: &[Walked], archive: &mut Outgoing) -> io::Result<()> {
    for (number, folder) in folders.iter().enumerate() {
        let below = format!("contexts/{number}");
        let top = Entry { path: below.clone().into_bytes(), mode: 0o755, ..Entry::default() };
        archive.append(&top, io::empty())?;
        let mut send = |found: &Found| found.append(&folder.path, &below, archive);
        match &folder.missing {
            Some(missing) => missing.iter().filter_map(|at| folder.found.get(*at)).try_for_each(&mut send)?,
            None => folder.found.iter().try_for_each(&mut send)?,
        }
    }
    Ok(())
}

/// A folder as an archive, without what its `.dockerignore` leaves out; `kept` go along in any case.
pub fn archive(folder: &Path, kept: &[String]) -> Result<Sending> {
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
    let folder = folder.to_owned();
    Ok(send(Arc::default(), "send the folder", move |archive| {
        walk::walk(&folder, &ignore)?.iter().try_for_each(|one| one.append(&folder, ".", archive))
    }))
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
