//! What a process does to itself on its way into a container. Runs in a child of the single-threaded shim.

pub mod identity;
pub mod paths;
pub mod program;
pub mod rootfs;
pub mod seccomp;
pub mod seccomp_default;
pub mod terminal;
