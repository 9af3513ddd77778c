//! Files of a volume, replaced all at once: a fresh directory, then one rename of the `..data` link.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{bad, is_inside};
use crate::Error;

/// A file to be: what is in it, its mode, and its owner if that is not root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

/// By path below the volume.
pub type Payload = BTreeMap<String, File>;

/// With a group, everything belongs to it and can be read by it.
fn mode(file: &File, group: Option<u32>) -> u32 {
    if group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn is_same(path: &Path, file: &File, group: Option<u32>) -> bool {
    let Ok(meta) = std::fs::metadata(path) else { return false };
    let right = meta.permissions().mode() & 0o7777 == mode(file, group)
        && file.owner.is_none_or(|owner| owner == meta.uid())
        && group.is_none_or(|group| group == meta.gid());
    right && std::fs::read(path).is_ok_and(|have| have == file.bytes)
}

/// All files below a directory, by their relative paths.
fn files_below(root: &Path, prefix: &str, out: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(root.join(prefix)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(root, &path, out);
        } else {
            out.insert(path);
        }
    }
}

/// Makes the volume's files these, unless they are already.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>) -> Result<(), Error> {
    let failed = |what: &str| Error::io(format!("{what} volume {}", target.display()));
    if let Some(name) = payload.keys().find(|p| !is_inside(p) || p.starts_with("..")) {
        return Err(bad(format!("file path {name:?} leaves the volume")));
    }
    let link = target.join("..data");
    let old = std::fs::read_link(&link).ok();
    if old.is_some() {
        let mut have = BTreeSet::new();
        files_below(&link, "", &mut have);
        if have.iter().eq(payload.keys()) && payload.iter().all(|(p, file)| is_same(&link.join(p), file, group)) {
            return Ok(());
        }
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!("..{stamp}");
    make_dir(&target.join(&fresh), group).map_err(failed("write"))?;
    for (path, file) in payload {
        let place = target.join(&fresh).join(path);
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            make_dir(&target.join(&fresh).join(parent), group).map_err(failed("write"))?;
        }
        // Created closed, so that nobody reads a secret between its making and its mode.
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        let written = options.open(&place).and_then(|mut f| std::io::Write::write_all(&mut f, &file.bytes));
        written.map_err(failed("write"))?;
        std::os::unix::fs::chown(&place, file.owner, group).map_err(failed("own"))?;
        std::fs::set_permissions(&place, PermissionsExt::from_mode(mode(file, group))).map_err(failed("write"))?;
    }
    let next = target.join("..data_tmp");
    let _ = std::fs::remove_file(&next);
    std::os::unix::fs::symlink(&fresh, &next).map_err(failed("link"))?;
    std::fs::rename(&next, &link).map_err(failed("link"))?;
    let tops: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in std::fs::read_dir(target).map_err(failed("read"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !tops.contains(name.as_str()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    for top in tops {
        let user = target.join(top);
        if std::fs::symlink_metadata(&user).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(top), user).map_err(failed("link"))?;
        }
    }
    if let Some(old) = old {
        let _ = std::fs::remove_dir_all(target.join(old));
    }
    Ok(())
}

fn make_dir(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    std::os::unix::fs::chown(path, None, group)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> File {
        File { bytes: text.as_bytes().to_vec(), mode, owner: None }
    }

    #[test]
    fn files_are_replaced_together_and_dropped_ones_disappear() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let first = Payload::from([("a".into(), file("1", 0o644)), ("d/e/b".into(), file("2", 0o400))]);
        write(dir, &first, None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("d/e/b")).unwrap(), "2");
        let generation = std::fs::read_link(dir.join("..data")).unwrap();
        write(dir, &first, None).unwrap();
        assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), generation, "nothing changed, nothing is written");
        write(dir, &Payload::from([("a".into(), file("1", 0o644))]), None).unwrap();
        assert!(std::fs::symlink_metadata(dir.join("d")).is_err(), "a dropped file stays");
        write(dir, &Payload::from([("a".into(), file("3", 0o600))]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert_eq!(std::fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!dir.join(generation).exists());
        let out = write(dir, &Payload::from([("../x".into(), file("", 0o644))]), None);
        assert!(out.is_err());
    }
}
