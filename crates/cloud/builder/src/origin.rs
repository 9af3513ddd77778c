//! Contexts that the node brings here itself: what a run is built from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_image::{Digest, DownloadOptions, Hasher, Platform, PullOptions, View, clean};
use serde::{Deserialize, Serialize};

use crate::api::{Context, Request};
use crate::cloud::kinds::without_password;
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events, Step};
use crate::git::{Commit, Repository};
use crate::glob::Ignore;
use crate::{Builder, git};

/// Largest archive that is fetched.
const MOST: u64 = 4 << 30;
/// Largest Dockerfile and largest ignore file.
const MOST_TEXT: u64 = 4 << 20;

/// Where a run's files come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    Git(Repository),
    #[serde(rename_all = "camelCase")]
    Archive {
        url: String,
        /// `sha256:…` or `sha512:…`.
        checksum: Option<String>,
        /// Of the header of that name.
        authorization: Option<String>,
    },
    /// What was sent to this node under that name.
    Upload(String),
    /// The files of an image.
    Image(String),
    /// No files; the Dockerfile is in the request.
    #[default]
    Nothing,
}

impl Builder {
    /// Brings a run's files to `folder`, and completes the request with what is in them.
    pub(crate) async fn gather(&self, request: &mut Request, folder: &Path, events: &Events) -> Result<()> {
        let Some(run) = request.run.clone() else { return Ok(()) };
        let title = match &run.origin {
            Origin::Git(from) if from.reference.is_empty() => {
                format!("[internal] load {}", without_password(&from.url))
            }
            Origin::Git(from) => format!("[internal] load {}#{}", without_password(&from.url), from.reference),
            Origin::Archive { url, .. } => {
                format!("[internal] load {}", without_password(url.split('?').next().unwrap_or_default()))
            }
            Origin::Upload(_) => "[internal] load what was sent".to_owned(),
            Origin::Image(name) => format!("[internal] load the files of {name}"),
            Origin::Nothing => "[internal] load the Dockerfile".to_owned(),
        };
        let step = events.begin(title);
        let done = self.bring(&run, request, folder, &step).await;
        step.end(&done);
        if let Some(commit) = done? {
            for name in &mut request.names {
                *name = name.replace("$(commit)", commit.id.get(..12).unwrap_or(&commit.id));
            }
            events.tell(Event::Source { commit: commit.id, author: commit.author, subject: commit.subject });
        }
        if let Some(name) = request.names.iter().find(|name| name.contains("$(")) {
            return Err(Error::Invalid(format!("nothing is known to put into the name {name}")));
        }
        for name in &request.names {
            let registry = dhow_image::Reference::parse(name)?.registry;
            if !self.inner.config.registries.is_clusters(&registry) {
                git::check_registry(&registry).await?;
            }
        }
        Ok(())
    }

    async fn bring(
        &self,
        run: &crate::run::Run,
        request: &mut Request,
        folder: &Path,
        step: &Step,
    ) -> Result<Option<Commit>> {
        let context = folder.join("contexts").join("0");
        fs::create_dir_all(&context).at("make a folder for the context")?;
        let mut commit = None;
        match &run.origin {
            Origin::Nothing => return Ok(None),
            Origin::Image(name) => {
                let inner = &self.inner.config;
                let registry = dhow_image::Reference::parse(name)?.registry;
                if !inner.registries.is_clusters(&registry) {
                    git::check_registry(&registry).await?;
                }
                let auth = request.credentials.get(&registry).cloned().map(Into::into);
                let auth =
                    auth.or_else(|| run.cluster(&inner.registries, &registry)).unwrap_or(dhow_image::Auth::Anonymous);
                let platform = request.platform.as_deref().and_then(Platform::parse);
                let options = PullOptions { auth, registries: Arc::clone(&inner.registries), platform };
                let image = inner.store.pull(name, options, None).await?;
                let layers = inner.store.folders(&inner.store.layers_of(&image)?).await?;
                let file = request.file.clone();
                request.dockerfile = blocking(move || text(&View::open(&layers)?, &file)).await?;
                request.contexts.insert(String::new(), Context::Image(name.clone()));
                return Ok(None);
            }
            Origin::Git(from) => {
                let home = folder.join("home");
                fs::create_dir_all(&home).at("make a folder for git")?;
                let found = git::checkout(from, &context, &home, step).await?;
                fs::remove_dir_all(&home).at("remove what git was told")?;
                fs::remove_dir_all(context.join(".git")).at("remove git's folder")?;
                commit = Some(found);
            }
            Origin::Archive { url, checksum, authorization } => {
                let path = folder.join("archive");
                let options = DownloadOptions { authorization: authorization.clone(), guarded: true, most: Some(MOST) };
                dhow_image::download(url, &options, File::create(&path).at("make a file")?).await?;
                let (checksum, into, url) = (checksum.clone(), context.clone(), url.clone());
                blocking(move || {
                    if let Some(checksum) = &checksum {
                        check(&path, checksum, &url)?;
                    }
                    open(&path, &into, &url)?;
                    fs::remove_file(&path).at("remove an archive")
                })
                .await?;
            }
            Origin::Upload(id) => {
                let (path, into) = (self.inner.runs.upload(&run.namespace, id)?, context.clone());
                blocking(move || open(&path, &into, "what was sent")).await?;
            }
        }
        let (folder, file) = (run.context_dir.clone(), request.file.clone());
        let (dockerfile, number) = blocking(move || {
            let root = below(&context, &folder)?;
            let view = View::open(std::slice::from_ref(&root))?;
            let dockerfile = text(&view, &file)?;
            let beside = format!("{file}.dockerignore");
            let ignore = if exists(&view, &beside)? { beside } else { ".dockerignore".to_owned() };
            if exists(&view, &ignore)? {
                let said = |error| Error::Invalid(format!("{ignore}: {error}"));
                let ignore = Ignore::read(&text(&view, &ignore)?).map_err(said)?;
                leave_out(&root, "", &ignore).at("leave out what is ignored")?;
            }
            if root == context {
                return Ok((dockerfile, 0));
            }
            let own = context.with_file_name("1");
            fs::rename(&root, &own).at("take a folder of the context")?;
            Ok((dockerfile, 1))
        })
        .await?;
        request.dockerfile = dockerfile;
        request.contexts.insert(String::new(), Context::Folder(number));
        Ok(commit)
    }
}

/// A folder below another one, wherever links in there lead: never out of it.
pub fn below(root: &Path, folder: &str) -> Result<PathBuf> {
    let folder = clean(folder);
    let view = View::open(&[root.to_owned()])?;
    let found = root.join(view.resolve(Path::new(&folder), true).at("find a folder of the context")?);
    if !fs::symlink_metadata(&found).is_ok_and(|meta| meta.is_dir()) {
        return Err(Error::Invalid(format!("there is no folder {folder:?}")));
    }
    Ok(found)
}

fn exists(view: &View, file: &str) -> Result<bool> {
    let at = view.resolve(Path::new(file), true).at("look for a file of the context")?;
    Ok(view.lstat(&at).at("look for a file of the context")?.is_some())
}

/// A file of the context. Links in it lead nowhere else.
fn text(view: &View, file: &str) -> Result<String> {
    use std::io::Read;
    let missing = || Error::Invalid(format!("failed to read {file}: the context has no such file"));
    let at = view.resolve(Path::new(file), true).at("look for a file of the context")?;
    let node = view.lstat(&at).at("look for a file of the context")?.ok_or_else(missing)?;
    if node.kind() != rustix::fs::FileType::RegularFile {
        return Err(missing());
    }
    let mut bytes = Vec::new();
    let opened = view.file(&node).at("open a file of the context")?;
    opened.take(MOST_TEXT + 1).read_to_end(&mut bytes).at("read a file of the context")?;
    if bytes.len() as u64 > MOST_TEXT {
        return Err(Error::Invalid(format!("{file} is larger than {MOST_TEXT} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn open(archive: &Path, into: &Path, called: &str) -> Result<()> {
    let file = File::open(archive).at("open an archive")?;
    match crate::add::unpack(file, into)? {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "{called} is no archive of a kind that is known: tar, or packed with gzip or zstd"
        ))),
    }
}

fn check(path: &Path, checksum: &str, url: &str) -> Result<()> {
    let want = Digest::parse(checksum)?;
    let got = crate::add::hash(File::open(path).at("read an archive")?, Hasher::like(&want))?;
    if got == want {
        Ok(())
    } else {
        Err(Error::Invalid(format!("digest mismatch {got}: {want} was expected of {url}")))
    }
}

/// Removes what a client would not have sent.
fn leave_out(root: &Path, relative: &str, ignore: &Ignore) -> std::io::Result<()> {
    for entry in fs::read_dir(root.join(relative))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let at = if relative.is_empty() { name } else { format!("{relative}/{name}") };
        let (folder, ignored) = (entry.file_type()?.is_dir(), ignore.ignores(&at));
        match (folder, ignored) {
            (true, true) if !ignore.has_exceptions() => fs::remove_dir_all(entry.path())?,
            (true, ignored) => {
                leave_out(root, &at, ignore)?;
                if ignored {
                    // Unless something in it was let in again.
                    let _ = fs::remove_dir(entry.path());
                }
            }
            (false, true) => fs::remove_file(entry.path())?,
            (false, false) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_a_context_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("context");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("/", root.join("out")).unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("a/Dockerfile")).unwrap();
        fs::write(root.join("a/b/Dockerfile"), "FROM scratch\n").unwrap();
        assert_eq!(below(&root, "../a/b").unwrap(), root.join("a/b"));
        // The root of all is the context's own.
        assert_eq!(below(&root, "out").unwrap(), root.join(""));
        assert!(below(&root, "nowhere").is_err());
        let view = View::open(&[root]).unwrap();
        assert_eq!(text(&view, "a/b/Dockerfile").unwrap(), "FROM scratch\n");
        let refused = text(&view, "a/Dockerfile").unwrap_err().to_string();
        assert!(refused.contains("no such file"), "{refused}");
    }

    #[test]
    fn what_is_ignored_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("d/e")).unwrap();
        for file in ["a.log", "b", "d/c.log", "d/keep.log", "d/e/f.log"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        leave_out(folder.path(), "", &Ignore::read("**/*.log\nd/e\n!d/keep.log\n").unwrap()).unwrap();
        let there = |name: &str| folder.path().join(name).exists();
        assert!(!there("a.log") && there("b") && !there("d/c.log") && there("d/keep.log") && !there("d/e"));
    }
}
