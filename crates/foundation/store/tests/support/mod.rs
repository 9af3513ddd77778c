//! What several tests and benchmarks of the store share.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

pub mod etcd;
pub mod histories;
