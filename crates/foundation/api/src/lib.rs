//! Kubernetes API facts: kinds, schemas, list semantics, defaults, validation, printing. No IO.
//!
//! Code map
//! - [`registry`]: one table of every built-in kind; everything generic is driven by it.
//! - [`strategy`], [`defaulting`], [`validation`]: what a write goes through, in that order.
//! - [`conversion`]: between the forms of kinds that share storage.
//! - [`cel`]: the expressions in policies and in the schemas of custom kinds.
//! - [`custom`]: the same for kinds that a CustomResourceDefinition makes at run time.
//! - [`patch`], [`apply`], [`list_semantics`], [`schema`]: how documents merge. The merge is driven by tables, never guessed.
//! - [`descriptor`], [`protobuf`], [`cbor`]: every field's type and number; strict decoding and the wire formats.
//! - [`table`], [`openapi`], [`discovery`]: what clients read to print, explain and find kinds.
//! - [`bounds`], [`status`], [`header`], [`selectors`], [`meta`], [`quantity`], [`names`], [`time`],
//!   [`trust_bundle`]: small shared types.
//!
//! Invariants
//! - Nothing here does IO or reads a clock: callers pass `now`.
//! - Objects are `serde_json::Value`, so a field this crate does not know is never lost by it.

pub mod apply;
pub mod bounds;
pub mod cbor;
pub mod cel;
pub mod conditions;
pub mod conversion;
pub mod custom;
pub mod defaulting;
pub mod descriptor;
pub mod discovery;
pub mod error;
pub mod header;
pub mod list_semantics;
pub mod local_volumes;
pub mod meta;
pub mod names;
pub mod node_parts;
pub mod openapi;
pub mod patch;
pub mod pod_certificate;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod registry;
pub mod resource_claims;
pub mod schema;
pub mod selectors;
mod sparse;
pub mod status;
pub mod strategy;
pub mod strict_json;
pub mod table;
pub mod time;
pub mod trust_bundle;
pub mod validation;

pub use error::Error;
pub use header::{Labels, ObjectHeader};
pub use registry::{Kind, KindRef, Registry, Subresource};
pub use status::Status;
