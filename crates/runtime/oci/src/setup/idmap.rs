//! Mounts that show their files with other owners: ids translated by the map of a user namespace.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::bundle::Ids;
use crate::error::{Context, Error, Result};
use crate::sys::{self, Forked};

/// Translates the ids of a mount that nobody else has, and with `below` of all mounts beneath it.
pub fn apply(tree: BorrowedFd<'_>, ids: &Ids, below: bool) -> Result<()> {
    let namespace = namespace(ids)?;
    sys::mount_setattr(tree, 0, 0, 0, Some(namespace.as_fd()), below).map_err(|error| match error {
        Errno::INVAL | Errno::OPNOTSUPP => Error::Invalid(
            "its file system cannot translate ids (idmapped mounts need ext4, xfs, btrfs, tmpfs, overlayfs or alike, and \
             Linux 5.12 or later)"
                .into(),
        ),
        error => Error::System { step: "translate the ids of a mount".into(), source: error },
    })
}

/// A user namespace with these maps. A process is needed to make it, but not to keep it.
pub fn namespace(ids: &Ids) -> Result<OwnedFd> {
    // SAFETY: the caller has one thread; the child only waits for its end.
    match unsafe { sys::fork(libc::CLONE_NEWUSER as u64, None) }.step("make a user namespace")? {
        Forked::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            loop {
                sys::wait_for_end();
            }
        }
        Forked::Parent { pid, .. } => {
            let namespace = ids
                .write(pid)
                .and_then(|()| File::open(format!("/proc/{pid}/ns/user")).step("open the user namespace"));
            sys::kill(pid, libc::SIGKILL);
            crate::birth::reap(pid);
            namespace.map(OwnedFd::from)
        }
    }
}
