//! The container's file system: overlay, kernel file systems, bind mounts, devices, masks, and the change of root.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_recursive_bind_placeholder as _, mount_remount, unmount,
};

use super::paths::{by_fd, mount_point, open_in, open_root};
use crate::error::{Context, Error, Result};
use crate::spec::{ContainerSpec, Mount, Propagation, Rootfs};
