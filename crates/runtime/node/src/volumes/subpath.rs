//! A part of a volume as a mount source of its own.
//!
//! Whatever runs in a container may put links into its volume while we look. So the part is found by the kernel,
//! beneath the volume's root, and what was found is mounted where no container can reach: the runtime gets that place.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::is_inside;
use crate::Error;

fn beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Finds it, and makes what is missing of it as directories.
fn open(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    match beneath(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut whole = PathBuf::new();
    for part in path.components() {
        let parent = if whole.as_os_str().is_empty() { Path::new(".") } else { &whole };
        let parent = beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY)?;
        match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        whole.push(part);
    }
    beneath(root, path, OFlags::PATH)
}

/// Mounts `sub` of the volume at `place`, which is made for it.
pub fn mount(volume: &Path, sub: &str, place: &Path) -> Result<(), Error> {
    let refused = |errno: Errno| match errno {
        Errno::XDEV | Errno::LOOP => Error::config(format!("subPath {sub:?} leaves the volume")),
        errno => Error::io(format!("prepare subPath {sub:?}"))(errno.into()),
    };
    if !is_inside(sub) {
        return Err(Error::config(format!("subPath {sub:?} must not contain '..' or be absolute")));
    }
    // Without `.` in it, every part is a name to be made.
    let path: PathBuf = Path::new(sub).components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, volume, flags, Mode::empty()).map_err(refused)?;
    let found = if path.as_os_str().is_empty() { root } else { open(&root, &path).map_err(refused)? };
    let stat = rustix::fs::fstat(&found).map_err(refused)?;
    unmount(place);
    let parent = place.parent().unwrap_or(place);
    std::fs::create_dir_all(parent).map_err(Error::io("make a place for a subPath"))?;
    let made = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => std::fs::create_dir(place),
        _ => std::fs::File::create(place).map(drop),
    };
    made.map_err(Error::io("make a place for a subPath"))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(found.as_fd(), "", clone | OpenTreeFlags::AT_RECURSIVE).map_err(refused)?;
    rustix::mount::move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(refused)
}

/// Takes a place away, with what is mounted there.
pub fn unmount(place: &Path) {
    while rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    // Nothing of the volume is below it any more: it is an empty directory or file, or not there.
    let _ = std::fs::remove_dir(place).or_else(|_| std::fs::remove_file(place));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Fixture {
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("volume/real")).unwrap();
            std::fs::write(dir.path().join("volume/real/file"), "inside").unwrap();
            std::fs::write(dir.path().join("secret"), "outside").unwrap();
            Self { dir }
        }

        fn volume(&self) -> PathBuf {
            self.dir.path().join("volume")
        }

        fn place(&self) -> PathBuf {
            self.dir.path().join("places/a/0")
        }

        fn mount(&self, sub: &str) -> Result<(), Error> {
            mount(&self.volume(), sub, &self.place())
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            unmount(&self.place());
        }
    }

    #[test]
    fn parts_are_mounted_and_missing_ones_made() {
        let fixture = Fixture::new();
        fixture.mount("real").unwrap();
        assert_eq!(std::fs::read_to_string(fixture.place().join("file")).unwrap(), "inside");
        fixture.mount("real/file").unwrap();
        assert_eq!(std::fs::read_to_string(fixture.place()).unwrap(), "inside");
        fixture.mount("new/./deep").unwrap();
        assert!(fixture.volume().join("new/deep").is_dir());
        symlink("real", fixture.volume().join("link")).unwrap();
        fixture.mount("link/file").unwrap();
        assert_eq!(std::fs::read_to_string(fixture.place()).unwrap(), "inside");
    }

    #[test]
    fn links_do_not_lead_out_of_the_volume() {
        let fixture = Fixture::new();
        symlink("/", fixture.volume().join("root")).unwrap();
        symlink("../secret", fixture.volume().join("up")).unwrap();
        symlink(fixture.dir.path(), fixture.volume().join("real/out")).unwrap();
        symlink("/nowhere/at/all", fixture.volume().join("dangling")).unwrap();
        for sub in
            ["root", "root/etc", "up", "real/out", "real/out/secret", "dangling", "dangling/x", "../secret", "/etc"]
        {
            let error = fixture.mount(sub).expect_err(sub).to_string();
            assert!(error.contains("leaves the volume") || error.contains("must not"), "{sub}: {error}");
        }
        assert!(!Path::new("/nowhere").exists());
    }
}
