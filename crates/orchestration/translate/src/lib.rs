//! Compose files, Swarm stack files and kustomizations as Kubernetes objects. Pure: what other files a file names is read
//! through [`Files`], and nothing else is asked of the world.
//!
//! Code map
//! - [`yaml`], [`schema`] and [`view`], a tree that knows its places, its allowed keys, and what of it was read.
//! - [`interpolate`], [`dotenv`], [`merge`] and [`load`], from files to one tree.
//! - [`compose`], from the tree to objects.
//! - [`kustomize`] for kustomizations.
//!
//! Invariants
//! - The same input gives the same objects, byte for byte.
//! - A key is kept or named in a warning with its place: what no translator has read is told at the end by the tree
//!   itself, so none can be forgotten.

pub mod compose;
pub mod dotenv;
pub mod error;
pub mod interpolate;
pub mod kustomize;
pub mod load;
pub mod merge;
mod names;
pub mod schema;
pub mod short;
pub mod units;
pub mod view;
pub mod yaml;

pub use compose::{Build, GATE, Options, PROJECT, SERVICE, Secret, Translation, translate};
pub use error::{Error, Place, Result};
pub use interpolate::Variables;
pub use load::{FileKind, Files, Source};
pub use view::Warning;
