//! A bundle's file system: its root, the mounts that are asked for, devices, masks, and the change of root.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxIdMapping, Mount, Spec};
use rustix::fs::FileType;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, mount_change, move_mount};

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::setup::devices::{self, Node};
use crate::setup::idmap::{self, Ids};
use crate::setup::mounts::{self, Source, Wanted};
use crate::setup::options::{self, Options};
use crate::setup::paths::open_root;
use crate::setup::{labels, rootfs};

/// What the maker has made ready because a container's own user could not: mounts with translated ids, by their place
/// in the list of mounts.
pub type Trees = BTreeMap<usize, OwnedFd>;

/// Translates the ids of those mounts that ask for it. Runs in the maker, before the container is made.
pub fn prepare(spec: &Spec, bundle: &Path) -> Result<Trees> {
    let linux = spec.linux().as_ref();
    let of_container = |list: Option<&Option<Vec<LinuxIdMapping>>>| list.cloned().flatten().unwrap_or_default();
    let mut trees = Trees::new();
    for (place, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = options_of(mount);
        let own = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        if !own && options.idmap.is_none() {
            continue;
        }
        let shown = mount.destination().display();
        if !options.bind {
            return Err(Error::Invalid(format!("mount {shown}: ids can be translated on bind mounts only")));
        }
        let ids = if own {
            Ids::new(
                mount.uid_mappings().as_deref().unwrap_or_default(),
                mount.gid_mappings().as_deref().unwrap_or_default(),
            )
        } else {
            Ids::new(&of_container(linux.map(Linux::uid_mappings)), &of_container(linux.map(Linux::gid_mappings)))
        };
        let tree = mounts::clone_tree(&source_of(mount, bundle), options.recursive)?;
        idmap::apply(tree.as_fd(), &ids, options.idmap.unwrap_or(false))
            .map_err(|error| Error::Invalid(format!("mount {shown}: {error}")))?;
        trees.insert(place, tree);
    }
    Ok(trees)
}

/// The container's file system while it is being built, seen from outside.
pub struct Building<'a> {
    pub spec: &'a Spec,
    pub linux: &'a Linux,
    pub bundle: &'a Path,
    pub rootfs: &'a Path,
    pub trees: &'a Trees,
    pub cgroup: &'a Cgroup,
    /// Sees its own control group alone.
    pub own_cgroups: bool,
    /// Has user ids of its own: makes no device nodes.
    pub own_users: bool,
}

impl Building<'_> {
    /// Mounts everything beneath the root. The process has a mount namespace of its own.
    pub fn mount(&self) -> Result<()> {
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", self.root_propagation()?.unwrap_or(slave)).step("set the propagation of mounts")?;
        // The root is to be a mount of its own, and its neighbours are not to hear of what happens here.
        let tree = mounts::clone_tree(self.rootfs, true)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", rustix::fs::CWD, self.rootfs, flags).step("mount the root file system")?;
        make_neighbours_private(self.rootfs)?;
        let root = open_root(self.rootfs)?;
        let root = root.as_fd();
        let mut fresh_dev = false;
        for (place, mount) in self.spec.mounts().iter().flatten().enumerate() {
            self.mount_one(root, place, mount)?;
            fresh_dev |= mount.destination() == Path::new("/dev") && !options_of(mount).bind;
        }
        for device in self.linux.devices().iter().flatten() {
            let kind = match device.typ() {
                LinuxDeviceType::B => FileType::BlockDevice,
                LinuxDeviceType::P => FileType::Fifo,
                _ => FileType::CharacterDevice,
            };
            let number = |number: i64| u32::try_from(number).unwrap_or(0);
            let node = Node {
                path: device.path().to_string_lossy().into_owned(),
                kind,
                major: number(device.major()),
                minor: number(device.minor()),
                mode: device.file_mode().unwrap_or(0o666),
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
            };
            devices::make(root, &node, self.own_users)?;
        }
        // A `/dev` of the host's is left as it is.
        if fresh_dev || !self.spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new("/dev")) {
            devices::standard(root, self.own_users)?;
        }
        Ok(())
    }

    fn mount_one(&self, root: BorrowedFd<'_>, place: usize, mount: &Mount) -> Result<()> {
        let target = mount.destination().as_path();
        let kind = mount.typ().as_deref().unwrap_or_default();
        let mut options = options_of(mount);
        if kind == "cgroup" || (kind == "cgroup2" && !options.bind) {
            let group = (!self.own_cgroups).then_some(self.cgroup);
            return mounts::control_groups(root, target, &options, group);
        }
        let path;
        let name = mount.source().as_ref().map_or(kind.into(), |source| source.to_string_lossy());
        let source = match self.trees.get(&place) {
            Some(tree) => Source::Tree(tree.as_fd()),
            None if options.bind => {
                path = source_of(mount, self.bundle);
                Source::Path(&path)
            }
            None => Source::Name(&name),
        };
        if let Some(label) = self.linux.mount_label().as_deref().filter(|_| !options.bind && labels::selinux()) {
            options.data.push(format!("context={label:?}"));
        }
        mounts::perform(root, &Wanted { source, target, kind, options })
    }

    /// Hides and protects, makes the root `/`, and closes it to writers if it is to be read-only.
    pub fn enter(&self, pivot: bool) -> Result<()> {
        {
            let root = open_root(self.rootfs)?;
            let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
            mounts::restrict(root.as_fd(), &list(self.linux.masked_paths()), &list(self.linux.readonly_paths()))?;
        }
        if pivot {
            rootfs::change_root(self.rootfs)?;
        } else {
            move_root(self.rootfs)?;
        }
        if let Some(flags) = self.root_propagation()?
            && !flags.contains(MountPropagationFlags::DOWNSTREAM)
        {
            mount_change("/", flags).step("set the propagation of the root")?;
        }
        if self.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
            let root = open_root(Path::new("/"))?;
            mounts::set(&root, options::attributes(MountFlags::RDONLY, MountFlags::empty()), false)
                .step("make the root read-only")?;
        }
        Ok(())
    }

    fn root_propagation(&self) -> Result<Option<MountPropagationFlags>> {
        match self.linux.rootfs_propagation().as_deref() {
            None | Some("") => Ok(None),
            Some(name) => match options::propagation(name) {
                Some(flags) => Ok(Some(flags | MountPropagationFlags::REC)),
                None => Err(Error::Invalid(format!("linux.rootfsPropagation {name:?} is not known"))),
            },
        }
    }
}

fn options_of(mount: &Mount) -> Options {
    let mut options = options::parse(mount.options().as_deref().unwrap_or_default());
    // The type says so, too, in some engines' files.
    options.bind |= mount.typ().as_deref() == Some("bind");
    options
}

/// Relative sources lie in the bundle.
fn source_of(mount: &Mount, bundle: &Path) -> PathBuf {
    bundle.join(mount.source().as_deref().unwrap_or(Path::new("")))
}

/// A root cannot be changed below a mount that is shared with others.
fn make_neighbours_private(rootfs: &Path) -> Result<()> {
    let parent = rootfs.parent().unwrap_or(Path::new("/"));
    let folder = parent.ancestors().find(|folder| mount_change(*folder, MountPropagationFlags::PRIVATE).is_ok());
    folder.map(drop).ok_or_else(|| Error::Invalid(format!("no mount above {} can be made private", rootfs.display())))
}

/// For a root that cannot be left, such as the first one of a machine (an initramfs).
fn move_root(target: &Path) -> Result<()> {
    rustix::process::chdir(target).step("enter the new root")?;
    rustix::mount::mount_move(target, "/").step("move the root")?;
    rustix::process::chroot(".").step("change the root")?;
    rustix::process::chdir("/").step("enter the root")
}
