//! What ADD does before it copies: downloads, clones, unpacks.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use dhow_image::{Digest, Hasher, View};
use rustix::fs::FileType;
use tempfile::TempDir;

use crate::build::{Build, Place};
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::Step;
use crate::git::{self, Logins, Who};
use crate::plan::{Add, Copy};
use crate::report::Material;

/// What is to be copied, part by part, with the folders that were made for it.
pub struct Fetched {
    parts: Vec<Part>,
    _folders: Vec<TempDir>,
}

struct Part {
    copy: Copy,
    /// `None`: where the instruction says.
    folder: Option<PathBuf>,
    /// Its files belong to root.
    roots: bool,
}

impl Fetched {
    /// Each part with where it comes from.
    pub fn jobs(&self, place: &Place) -> Vec<(Copy, Place)> {
        let job = |part: &Part| match &part.folder {
            None => (part.copy.clone(), place.clone()),
            Some(folder) => {
                let own = Place { folders: vec![folder.clone()], of_context: part.roots, ..Place::default() };
                (part.copy.clone(), own)
            }
        };
        self.parts.iter().map(job).collect()
    }
}

/// Brings here what is elsewhere.
pub async fn fetch(build: &Build, copy: &Copy, place: &Place, step: &Step) -> Result<Fetched> {
    let Some(add) = &copy.add else {
        return Ok(Fetched {
            parts: vec![Part { copy: copy.clone(), folder: None, roots: false }],
            _folders: Vec::new(),
        });
    };
    let local = |source: &String| !is_git(source) && !is_http(source);
    if add.checksum.is_some() && (!copy.inline.is_empty() || copy.sources.iter().any(local)) {
        return Err(Error::Invalid("checksum can't be specified for local sources".to_owned()));
    }
    let mut fetched = Fetched { parts: Vec::new(), _folders: Vec::new() };
    let mut rest = Copy { sources: Vec::new(), ..copy.clone() };
    for source in &copy.sources {
        let workspace = || build.builder.inner.config.store.workspace().map_err(Error::from);
        let (folder, part) = if is_git(source) {
            let folder = workspace()?;
            let who = match build.job.tenant {
                Some(_) => Who::Tenant,
                None => Who::Machine(build.job.agents.get("default")),
            };
            let logins = Logins::of_secrets(build.job.secrets.iter());
            let commit = git::add(source, add, folder.path(), &logins, who, step).await?;
            build.report.lock().uses(Material::commit(source, &commit));
            let part = Copy { sources: vec!["/".to_owned()], inline: Vec::new(), ..copy.clone() };
            (folder, part)
        } else if is_http(source) {
            let folder = workspace()?;
            let (name, digest) = download(source, add, folder.path(), build.job.tenant.is_some()).await?;
            build.report.lock().uses(Material::file(source, &digest));
            match add.unpack == Some(true) {
                true => {
                    let (archive, into) = (folder.path().join(&name), folder.path().join(".unpacked"));
                    if !blocking(move || unpack(File::open(&archive).at("open what was downloaded")?, &into)).await? {
                        return Err(Error::Invalid(format!("{source} is no archive")));
                    }
                    fetched.parts.push(Part {
                        copy: everything(copy),
                        folder: Some(folder.path().join(".unpacked")),
                        roots: false,
                    });
                    fetched._folders.push(folder);
                    continue;
                }
                false => {
                    let part = Copy { sources: vec![escape(&name)], inline: Vec::new(), ..copy.clone() };
                    (folder, part)
                }
            }
        } else {
            if add.unpack != Some(false)
                && let Some(folder) = archives(source, place, workspace()?).await?
            {
                fetched.parts.push(Part {
                    copy: everything(copy),
                    folder: Some(folder.path().to_owned()),
                    roots: false,
                });
                fetched._folders.push(folder);
                continue;
            }
            rest.sources.push(source.clone());
            continue;
        };
        fetched.parts.push(Part { copy: part, folder: Some(folder.path().to_owned()), roots: true });
        fetched._folders.push(folder);
    }
    if !rest.sources.is_empty() || !rest.inline.is_empty() {
        fetched.parts.push(Part { copy: rest, folder: None, roots: false });
    }
    Ok(fetched)
}

/// What is in an archive goes into the destination, which is a folder then.
fn everything(copy: &Copy) -> Copy {
    let destination = format!("{}/", copy.destination.trim_end_matches('/'));
    Copy { sources: vec!["/".to_owned()], inline: Vec::new(), destination, ..copy.clone() }
}

fn escape(name: &str) -> String {
    name.chars().flat_map(|c| if "*?[\\".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
}

fn is_http(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Whether an address is that of a repository.
pub fn is_git(source: &str) -> bool {
    let path = source.split('#').next().unwrap_or_default();
    is_http(path) && path.ends_with(".git")
        || ["git://", "git@", "ssh://"].iter().any(|scheme| path.starts_with(scheme))
}

/// Unpacks a source that is one archive; `None` if it is not.
async fn archives(source: &str, place: &Place, folder: TempDir) -> Result<Option<TempDir>> {
    if source.contains(['*', '?', '[']) {
        return Ok(None);
    }
    let (folders, source) = (place.folders.clone(), source.to_owned());
    blocking(move || {
        let view = View::open(&folders)?;
        let at = view.resolve(Path::new(&source), true).at("look at a source")?;
        let Some(node) = view.lstat(&at).at("look at a source")? else { return Ok(None) };
        if node.kind() != FileType::RegularFile {
            return Ok(None);
        }
        let file = view.file(&node).at("open a source")?;
        Ok(unpack(file, folder.path())?.then_some(folder))
    })
    .await
}

/// Unpacks an archive, packed as it may be; `false` if it is none.
pub fn unpack(file: File, into: &Path) -> Result<bool> {
    let mut plain = dhow_image::decompress(file).at("decompress a source")?;
    let mut block = Vec::new();
    // What only looks packed is a file like any other.
    let read = (&mut plain).take(512).read_to_end(&mut block);
    // The magic of ustar, GNU and PAX archives.
    if read.is_err() || block.len() < 512 || &block[257..262] != b"ustar" {
        return Ok(false);
    }
    fs::create_dir_all(into).at("make a folder")?;
    dhow_image::unpack(block.chain(plain), into, &[], "of ADD", &dhow_image::Limits::default())?;
    Ok(true)
}

/// The name of the file that came, and its digest.
pub async fn download(source: &str, add: &Add, folder: &Path, guarded: bool) -> Result<(String, Digest)> {
    let temporary = folder.join(".download");
    let file = File::create(&temporary).at("make a file")?;
    let most = guarded.then_some(crate::source::MOST);
    let options = dhow_image::DownloadOptions { guarded, most, ..Default::default() };
    let done = dhow_image::download(source, &options, &file).await?;
    let path = source.split(['?', '#']).next().unwrap_or_default();
    let name = done.name.as_deref().or_else(|| path.rsplit('/').next()).unwrap_or_default();
    let name = match name.rsplit('/').next() {
        Some("" | "." | "..") | None => "index",
        Some(name) => name,
    };
    let target = folder.join(name);
    fs::rename(&temporary, &target).at("name what was downloaded")?;
    let want = add.checksum.as_deref().map(Digest::parse).transpose()?;
    let opened = target.clone();
    let hasher = want.as_ref().map_or_else(Hasher::sha256, Hasher::like);
    let got = blocking(move || hash(File::open(&opened).at("read what was downloaded")?, hasher)).await?;
    if let Some(want) = want
        && got != want
    {
        return Err(Error::Invalid(format!("digest mismatch {got}: {want} was expected of {source}")));
    }
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).at("close what was downloaded")?;
    let time = done.modified.and_then(|text| jiff::fmt::rfc2822::parse(&text).ok());
    let time = time.map_or(0, |time| time.timestamp().as_second());
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(time).unwrap_or(0));
    file.set_modified(time).at("date what was downloaded")?;
    Ok((name.to_owned(), got))
}

pub fn hash(mut file: File, mut hasher: Hasher) -> Result<Digest> {
    let bytes = file.metadata().map_or(u64::MAX, |meta| meta.len());
    let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX).clamp(1, 256 << 10)];
    loop {
        let n = file.read(&mut buffer).at("read a file")?;
        if n == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}
