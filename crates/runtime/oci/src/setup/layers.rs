//! Images as file systems: a container's own root, and the images it has as volumes. Mounted in its mount namespace only.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount};

use super::paths::{open_in, open_root};
use super::rootfs::Users;
use super::{idmap, mounts};
use crate::error::{Context, Error, Result};
use crate::spec::{Mount, Rootfs};

/// Mounts the container's root.
pub fn root(rootfs: &Rootfs, users: Option<Users<'_>>) -> Result<()> {
    let place = |path: &Path| escape(&path.display().to_string());
    let writable = format!(",upperdir={},workdir={}", place(&rootfs.upper), place(&rootfs.work));
    let empty = rootfs.work.with_extension("empty");
    overlay(&rootfs.lower, &empty, &rootfs.target, Some(&writable), users)
}

/// Mounts the container's root in this process's own mount namespace, for a runtime that wants a root that stands.
pub fn stand(rootfs: &Rootfs) -> Result<()> {
    let mounted = root(rootfs, None);
    rustix::process::chdir("/").step("leave the layers' folder")?;
    mounted
}

/// The files of the images among the mounts, by their place in the list: mounts of which nobody else knows.
pub fn trees(wanted: &[Mount], rootfs: &Rootfs, users: Option<Users<'_>>) -> Result<BTreeMap<usize, OwnedFd>> {
    let mut trees = BTreeMap::new();
    let empty = rootfs.work.with_extension("empty");
    for (place, mount) in wanted.iter().enumerate().filter(|(_, mount)| !mount.layers.is_empty()) {
        // The place of the root serves until the root is mounted there.
        overlay(&mount.layers, &empty, &rootfs.target, None, users)?;
        let tree = part(&rootfs.target, &mount.source);
        rustix::process::chdir("/").step("leave the layers' folder")?;
        // The overlay, and below it the translated layers.
        for _ in 0..=usize::from(users.is_some()) {
            unmount(&rootfs.target, UnmountFlags::DETACH).step("clear the place of the root")?;
        }
        trees.insert(place, tree?);
    }
    Ok(trees)
}

/// A copy of the mount at `root` that shows what is at `path` beneath it.
fn part(root: &Path, path: &Path) -> Result<OwnedFd> {
    let root = open_root(root)?;
    let found = open_in(root.as_fd(), path, OFlags::PATH)
        .map_err(|error| Error::Invalid(format!("path {} of the image: {error}", path.display())))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(&found, "", flags).step(format!("open path {} of the image", path.display()))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// Mounts layers, top first. Their names are made relative to a common folder, since options are a page at most.
fn overlay(
    layers: &[PathBuf],
    empty: &Path,
    target: &Path,
    writable: Option<&str>,
    users: Option<Users<'_>>,
) -> Result<()> {
    let (folder, mut names): (PathBuf, Vec<String>) = match layers.first().and_then(|first| first.parent()) {
        Some(parent) if layers.iter().all(|layer| layer.parent() == Some(parent)) => {
            let name = |layer: &PathBuf| layer.file_name().map(|n| n.to_string_lossy().into_owned());
            (parent.to_owned(), layers.iter().filter_map(name).collect())
        }
        _ => ("/".into(), layers.iter().map(|layer| layer.display().to_string()).collect()),
    };
    // An image without layers; and what nobody writes to needs two.
    if names.is_empty() || (writable.is_none() && names.len() == 1) {
        fs::create_dir_all(empty).step("create an empty layer")?;
        names.push(empty.display().to_string());
    }
    let lower: Vec<String> = names.iter().map(|name| escape(name)).collect();
    let options = format!("lowerdir={}{}", lower.join(":"), writable.unwrap_or_default());
    if options.len() >= 4096 {
        return Err(Error::Invalid(format!("image has {} layers, more than can be mounted", layers.len())));
    }
    match users {
        None => rustix::process::chdir(&folder).step("enter the layers' folder")?,
        Some((users, _)) => enter_translated(&folder, target, users)?,
    }
    let options = CString::new(options).map_err(|_| Error::Invalid("layer path holds NUL".into()))?;
    let flags = if writable.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
    mount("overlay", target, "overlay", flags, Some(options.as_c_str())).step("mount overlay")
}

/// Enters the layers' folder through a mount that shows them with the ids of a user namespace. It lies on the place of
/// the root, which the overlay covers next.
fn enter_translated(folder: &Path, place: &Path, users: BorrowedFd<'_>) -> Result<()> {
    if folder == Path::new("/") {
        return Err(Error::Invalid(
            "the image's layers lie apart: their ids cannot be translated for a user namespace".into(),
        ));
    }
    let tree = mounts::clone_tree(folder, false)?;
    idmap::apply_namespace(tree.as_fd(), users, false)
        .map_err(|error| Error::Invalid(format!("image layers in {}: {error}", folder.display())))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", rustix::fs::CWD, place, flags).step("mount the image's layers")?;
    rustix::process::chdir(place).step("enter the layers' folder")
}
