//! Content store, layer snapshots, pull, import and export of images.
//!
//! One [`ImageStore`] per node owns a directory:
//! - `blobs/<algorithm>/<hex>`: verified content, written whole or not at all;
//! - `ingest/`: downloads under way, resumable;
//! - `layers/<chain>`: unpacked layers, each usable as an overlayfs `lowerdir`;
//! - `work/`: layers being unpacked or deleted, emptied on open;
//! - `index.json`: images and their names, replaced atomically.
//!
//! Invariants: a blob's bytes match its name; a directory in `layers` is complete and its archive matched
//! the image's config; nothing an image refers to is deleted while the index or work in progress knows it.

mod compress;
mod content;
mod digest;
mod error;
mod export;
mod import;
mod index;
mod manifest;
mod pull;
mod reference;
mod registry;
mod snapshot;
mod store;
mod unpack;

pub use digest::Digest;
pub use error::{Error, Result};
pub use manifest::Platform;
pub use pull::{Progress, ProgressFn, PullOptions};
pub use reference::Reference;
pub use registry::Auth;
pub use store::{Image, ImageStore};
pub use unpack::{Limits, Summary, unpack};
