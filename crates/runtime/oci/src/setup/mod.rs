//! What a process does to itself on its way into a container. Runs in a child of a process with one thread.

pub mod capabilities;
pub mod copy;
pub mod devices;
pub mod identity;
pub mod idmap;
pub mod labels;
pub mod layers;
pub mod limits;
pub mod mounts;
pub mod options;
pub mod paths;
pub mod program;
pub mod rootfs;
pub mod seccomp;
pub mod sysctl;
pub mod terminal;
