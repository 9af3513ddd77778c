//! Content store, layer snapshots, pull, push, import, export and garbage collection of images.
//!
//! One [`ImageStore`] per node owns a directory:
//! - `blobs/<algorithm>/<hex>`: verified content, written whole or not at all;
//! - `ingest/`: downloads under way, resumable, and what unfinished pulls have so far;
//! - `layers/<chain>`: unpacked layers, each usable as an overlayfs `lowerdir`;
//! - `work/`: layers being unpacked, built or deleted, emptied on open;
//! - `steps/`: what builds made, by what they made it from;
//! - `index.json`: images and their names, replaced atomically.
//!
//! Invariants: a blob's bytes match its name; a directory in `layers` is complete and its archive matched
//! the image's config; nothing an image refers to is deleted while the index or work in progress knows it.

pub mod api;
mod build;
mod compress;
mod content;
mod credentials;
mod digest;
mod error;
mod export;
mod fetch;
mod gc;
mod give;
mod growing;
mod import;
mod index;
mod locks;
mod manifest;
mod publish;
mod pull;
mod reference;
mod registry;
mod snapshot;
mod store;
mod unpack;
mod view;

pub use build::cache::{INLINE as INLINE_CACHE, RemoteSteps, inline as inline_cache};
pub use build::pack::{Entry, EntryKind, LayerWriter};
pub use build::{Building, Compression, Statement, Variant};
pub use compress::{decompress, is_packed};
pub use content::Neighbour;
pub use credentials::Auth;
pub use credentials::docker::DockerConfig;
pub use digest::{Digest, Hasher};
pub use error::{Error, Result};
pub use export::ArchiveFormat;
pub use gc::{Collected, FsUsage, GcConfig};
pub use import::clean;
pub use index::Layer;
pub use manifest::Platform;
/// Media types of manifests and how large one may be.
pub mod media {
    pub use crate::manifest::{
        DOCKER_INDEX, DOCKER_MANIFEST, DOCKER_SCHEMA1, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST,
    };
}
pub use publish::PushOptions;
pub use pull::{Progress, ProgressFn, PullOptions};
pub use reference::Reference;
pub use registry::{
    CLUSTER_AUDIENCE, Candidates, ClusterRegistry, DownloadOptions, Downloaded, HostConfig, Mirror, NodePeers, Opener,
    Peer, PeerOptions, Pushed, Registries, RegistriesConfig, Remote, RemoteBlob, RemoteManifest, Traffic, download,
};
pub use snapshot::{Usage as DiskUsage, disk_usage};
pub use store::{Image, ImageStore};
pub use unpack::{Limits, Summary, unpack};
pub use view::{Node, View};

#[cfg(test)]
mod fuzz;
