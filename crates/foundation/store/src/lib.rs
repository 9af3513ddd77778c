//! Key-value and blob storage: traits, the suites every backend runs, and the backends.
//!
//! [`MemoryKv`] and [`FjallKv`] share one revisioned core: a persistent map of live keys, a bounded history of events,
//! watches and leases. They differ only in what happens between deciding a write and publishing it. [`EtcdKv`] is a
//! client of real etcd servers. [`SealedKv`] encrypts what one of them keeps, [`ShiftedKv`] lets one go on counting where
//! another ended.
//!
//! [`Blob`] keeps large values: [`FsBlob`] as files, [`S3Blob`] in a bucket, [`MemoryBlob`] for tests.

mod blob;
mod core;
mod error;
mod etcd;
mod fjall;
mod kv;
mod memory;
mod sealed;
mod shifted;
pub mod suite;

pub use blob::{
    Blob, BlobMeta, BlobStream, BlobUpload, FsBlob, MemoryBlob, PendingUpload, S3Blob, S3Config, S3Credentials, S3Page,
    S3Reader, S3Secret,
};
pub use core::Options;
pub use error::Error;
/// The wire messages, for benchmarks that serve them.
#[doc(hidden)]
pub use etcd::proto as etcd_proto;
pub use etcd::{EtcdConfig, EtcdKv};
pub use fjall::{Backup, FjallKv, SKIP_REVISIONS, restore_backup, verify_backup};
pub use kv::*;
pub use memory::MemoryKv;
pub use sealed::{SealedKv, SealingKeys};
pub use shifted::ShiftedKv;
