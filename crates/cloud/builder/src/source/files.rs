//! Files of a context: found without being led out of it, unpacked, left out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use dhow_image::{Digest, Hasher, View, clean};

use crate::copy::At;
use crate::error::{Error, Result};
use crate::glob::Ignore;

/// Largest Dockerfile and largest ignore file.
const MOST_TEXT: u64 = 4 << 20;

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

pub fn exists(view: &View, file: &str) -> Result<bool> {
    let at = view.resolve(Path::new(file), true).at("look for a file of the context")?;
    Ok(view.lstat(&at).at("look for a file of the context")?.is_some())
}

/// A file of the context. Links in it lead nowhere else.
pub fn text(view: &View, file: &str) -> Result<String> {
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

pub fn open(archive: &Path, into: &Path, called: &str) -> Result<()> {
    let file = File::open(archive).at("open an archive")?;
    match crate::add::unpack(file, into)? {
        true => Ok(()),
        false => {
            let why = "is no archive of a kind that is known: tar, plain or packed with gzip, bzip2, xz or zstd";
            Err(Error::Invalid(format!("{called} {why}")))
        }
    }
}

pub fn check(path: &Path, checksum: &str, url: &str) -> Result<()> {
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

/// The Dockerfile in `root`, after what its ignore file names was left out.
pub fn dockerfile(root: &Path, file: &str) -> Result<String> {
    let view = View::open(&[root.to_owned()])?;
    let dockerfile = text(&view, file)?;
    let beside = format!("{file}.dockerignore");
    let ignore = if exists(&view, &beside)? { beside } else { ".dockerignore".to_owned() };
    if exists(&view, &ignore)? {
        let said = |error| Error::Invalid(format!("{ignore}: {error}"));
        let ignore = Ignore::read(&text(&view, &ignore)?).map_err(said)?;
        leave_out(root, "", &ignore).at("leave out what is ignored")?;
    }
    Ok(dockerfile)
}

/// What is a Dockerfile itself, and no archive of one.
pub fn alone(path: &Path) -> Result<Option<String>> {
    if fs::metadata(path).at("look at what was downloaded")?.len() > MOST_TEXT {
        return Ok(None);
    }
    let text = fs::read(path).at("read what was downloaded")?;
    Ok(String::from_utf8(text).ok().filter(|text| !text.is_empty() && !text.contains('\0')))
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
