//! The registry over real sockets.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod artifacts;
mod blobs;
#[path = "../../../../runtime/cri/tests/support/busybox.rs"]
mod busybox;
mod clients;
mod collect;
mod compare;
mod crash;
#[path = "../../../../runtime/cri/tests/support/daemon.rs"]
mod daemon;
#[path = "../../../../runtime/cri/tests/support/dockerd.rs"]
mod dockerd;
mod full;
mod harness;
mod keyless;
mod manifests;
mod replicate;
mod signatures;
mod tokens;
mod upstream;
