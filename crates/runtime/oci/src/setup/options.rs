//! Mount options by name, as the runtime specification lists them.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options of one mount, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Set on the mount, and on the file system if a new one is mounted.
    pub flags: MountFlags,
    /// Taken away; matters to bind mounts, which begin with what their source has.
    pub cleared: MountFlags,
    pub bind: bool,
    /// A bind mount brings the mounts below its source along.
    pub recursive: bool,
    pub remount: bool,
    /// In the order given.
    pub propagation: Vec<MountPropagationFlags>,
    /// Set and cleared on the mount and everything below it.
    pub all_below: Attributes,
    /// Ids are translated on the mount alone, or (true) on everything below it as well.
    pub idmap: Option<bool>,
    /// A new tmpfs begins with a copy of what it covers.
    pub copy_up: bool,
    /// For the file system itself.
    pub data: Vec<String>,
}

/// `MOUNT_ATTR_…` to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            cleared: MountFlags::empty(),
            bind: false,
            recursive: false,
            remount: false,
            propagation: Vec::new(),
            all_below: Attributes::default(),
            idmap: None,
            copy_up: false,
            data: Vec::new(),
        }
    }
}

/// Names that set a flag, and names that take it away.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("acl", MountFlags::from_bits_retain(libc::MS_POSIXACL as u32), true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("iversion", MountFlags::from_bits_retain(libc::MS_I_VERSION as u32), true),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("loud", MountFlags::SILENT, false),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
    ("noacl", MountFlags::from_bits_retain(libc::MS_POSIXACL as u32), false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("noiversion", MountFlags::from_bits_retain(libc::MS_I_VERSION as u32), false),
    ("nolazytime", MountFlags::LAZYTIME, false),
    ("nomand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
    ("norelatime", MountFlags::RELATIME, false),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("nosymfollow", NOSYMFOLLOW, true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("silent", MountFlags::SILENT, true),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("symfollow", NOSYMFOLLOW, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

const NOSYMFOLLOW: MountFlags = MountFlags::from_bits_retain(256);

const PROPAGATION: &[(&str, MountPropagationFlags)] = &[
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC)),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED.union(MountPropagationFlags::REC)),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC)),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC)),
];

/// How a mount hears of other mounts, by the specification's name.
pub fn propagation(name: &str) -> Option<MountPropagationFlags> {
    PROPAGATION.iter().find(|(known, _)| *known == name).map(|(_, flags)| *flags)
}

pub fn parse<S: AsRef<str>>(names: &[S]) -> Options {
    let mut options = Options::default();
    for name in names.iter().map(AsRef::as_ref) {
        if let Some((_, flag, sets)) = FLAGS.iter().find(|(known, ..)| *known == name) {
            options.flags.set(*flag, *sets);
            options.cleared.set(*flag, !*sets);
        } else if let Some(flags) = propagation(name) {
            options.propagation.push(flags);
        } else if let Some((_, flag, sets)) =
            name.strip_prefix('r').and_then(|rest| FLAGS.iter().find(|(known, ..)| *known == rest))
        {
            let Attributes { set, clear } = attributes(*flag, MountFlags::empty());
            if *sets {
                options.all_below.set |= set;
                options.all_below.clear |= clear;
            } else {
                options.all_below.clear |= set | clear;
            }
        } else {
            match name {
                "bind" => options.bind = true,
                "rbind" => (options.bind, options.recursive) = (true, true),
                "remount" => options.remount = true,
                "idmap" => options.idmap = Some(false),
                "ridmap" => options.idmap = Some(true),
                "tmpcopyup" => options.copy_up = true,
                "defaults" | "" => {}
                other => options.data.push(other.to_owned()),
            }
        }
    }
    options
}

/// Flags of `mount(2)` as the attributes of `mount_setattr(2)`. Flags of the file system have none.
pub fn attributes(set: MountFlags, cleared: MountFlags) -> Attributes {
    const PLAIN: [(MountFlags, u64); 5] = [
        (MountFlags::RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, libc::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    ];
    let mut attributes = Attributes::default();
    for (flag, attribute) in PLAIN.into_iter().chain([(NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW)]) {
        if set.contains(flag) {
            attributes.set |= attribute;
        }
        if cleared.contains(flag) {
            attributes.clear |= attribute;
        }
    }
    // The three ways of access times are one field, which has to be cleared as a whole before it is set.
    let times = [
        (MountFlags::NOATIME, libc::MOUNT_ATTR_NOATIME),
        (MountFlags::STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
        (MountFlags::RELATIME, libc::MOUNT_ATTR_RELATIME),
    ];
    if let Some((_, attribute)) = times.iter().find(|(flag, _)| set.contains(*flag)) {
        attributes.set |= attribute;
        attributes.clear |= libc::MOUNT_ATTR__ATIME;
    } else if times.iter().any(|(flag, _)| cleared.contains(*flag)) {
        attributes.clear |= libc::MOUNT_ATTR__ATIME;
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_flags() {
        let options = parse(&["rbind", "ro", "nosuid", "rslave", "rro", "rnoexec", "size=64k", "mode=755"]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(options.propagation, [MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC]);
        assert_eq!(options.all_below.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(options.data, ["size=64k", "mode=755"]);
    }

    #[test]
    fn the_last_word_counts() {
        let options = parse(&["ro", "noexec", "rw", "exec", "noexec"]);
        assert_eq!((options.flags, options.cleared), (MountFlags::NOEXEC, MountFlags::RDONLY));
        assert_eq!(parse(&["rrw"]).all_below, Attributes { set: 0, clear: libc::MOUNT_ATTR_RDONLY });
    }

    #[test]
    fn access_times_are_one_field() {
        let Attributes { set, clear } = attributes(MountFlags::NOATIME, MountFlags::RDONLY);
        assert_eq!(set, libc::MOUNT_ATTR_NOATIME);
        assert_eq!(clear, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME);
        assert_eq!(parse(&["rnoatime"]).all_below, attributes(MountFlags::NOATIME, MountFlags::empty()));
    }
}
