//! Mounts that show their files with other owners: ids translated by the map of a user namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use oci_spec::runtime::LinuxIdMapping;

use crate::error::{Context, Error, Result};
use crate::spec::IdRange;
use crate::sys::{self, Forked};

/// Lines for the id maps of a new user namespace.
pub struct Ids {
    uids: String,
    gids: String,
}

impl Ids {
    pub fn new(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Self {
        let lines = |list: &[LinuxIdMapping]| {
            list.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect()
        };
        Self { uids: lines(uids), gids: lines(gids) }
    }

    /// One range for users and groups alike.
    pub fn of(range: IdRange) -> Self {
        let line = format!("0 {} {}\n", range.host, range.size);
        Self { uids: line.clone(), gids: line }
    }

    /// Writes the maps of a process that has just taken a user namespace.
    pub fn write(&self, pid: i32) -> Result<()> {
        let write = |file: &str, text: &str| {
            fs::write(format!("/proc/{pid}/{file}"), text).step(format!("write {file} {:?}", text.trim()))
        };
        write("gid_map", &self.gids)?;
        write("uid_map", &self.uids)
    }
}

/// Translates the ids of a mount that nobody else has, and with `below` of all mounts beneath it.
pub fn apply(tree: BorrowedFd<'_>, ids: &Ids, below: bool) -> Result<()> {
    apply_namespace(tree, namespace(ids)?.as_fd(), below)
}

/// The same with the map of a user namespace there is.
pub fn apply_namespace(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>, below: bool) -> Result<()> {
    sys::mount_setattr(tree, 0, 0, 0, Some(namespace), below).map_err(|error| match error {
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

/// Takes namespaces that belong to a user namespace, while the process itself stays outside of that.
pub fn take_namespaces(users: BorrowedFd<'_>, kinds: libc::c_int) -> Result<()> {
    let (ready, say_ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    // SAFETY: the caller has one thread; the child only waits for its end.
    match unsafe { sys::fork(0, None) }.step("make a helper process")? {
        Forked::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            let entered = sys::join_namespaces(users, libc::CLONE_NEWUSER as u64).and_then(|()| sys::unshare(kinds));
            let answer = entered.err().map_or(0, |error| error.raw_os_error());
            let _ = rustix::io::write(&say_ready, &answer.to_ne_bytes());
            loop {
                sys::wait_for_end();
            }
        }
        Forked::Parent { pid, pidfd } => {
            drop(say_ready);
            let mut answer = [0; 4];
            let heard = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut answer));
            let joined = match (heard, i32::from_ne_bytes(answer)) {
                (Ok(4), 0) => sys::join_namespaces(pidfd.as_fd(), u64::from(kinds.unsigned_abs()))
                    .step("take the namespaces of the pod's ids"),
                (Ok(4), error) => {
                    Err(rustix::io::Errno::from_raw_os_error(error)).step("make namespaces of the pod's ids")
                }
                _ => Err(Error::Shim("a helper process ended without a word".into())),
            };
            sys::kill(pid, libc::SIGKILL);
            crate::birth::reap(pid);
            joined
        }
    }
}

/// The root of the user namespace, who is nobody until its ids are mapped.
pub fn become_root() -> Result<()> {
    let (uid, gid) = (rustix::thread::Uid::ROOT, rustix::thread::Gid::ROOT);
    match rustix::thread::set_thread_groups(&[]) {
        // Where groups may not be set they cannot be misused either.
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(Error::System { step: "leave groups".into(), source: error }),
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("become the namespace's root group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("become the namespace's root")
}
