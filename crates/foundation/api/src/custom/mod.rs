//! Custom kinds: what a CustomResourceDefinition says, made into something that can prune, default, validate and
//! print, without IO.
//!
//! - [`schema`]: a structural schema, parsed once.
//! - [`prune`](Schema::prune), [`fill_defaults`](Schema::fill_defaults), [`validate`](Schema::validate): what a write goes through.
//! - [`definition`]: the definition as a whole: names, versions, subresources, columns.
//! - [`rules`]: what a schema's author wrote as expressions.
//! - [`path`]: the JSON paths of columns and selectable fields.
//! - [`names`]: which definition holds which names.
//! - [`catalog`]: all kinds there are at a moment.
//! - [`served`]: the rows of the registry that a definition makes.

pub mod catalog;
pub mod cost;
pub mod definition;
mod format;
pub(crate) mod intern;
pub mod names;
pub mod path;
mod prune;
pub mod rules;
pub mod schema;
pub mod served;
mod validate;

pub use catalog::Catalog;
pub use definition::{Definition, Version};
pub use rules::Rules;
pub use schema::Schema;
pub use served::{Served, rows};
