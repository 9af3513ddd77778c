//! Containers from bundles: a folder with `config.json` and a root file system, as the runtime specification has them.
//!
//! Nothing stays behind a bundle's container but its own first process: `create` makes it and leaves it waiting at a
//! socket in the state folder, `start` tells it to run. What is known of it is in that folder.

pub mod config;
pub mod console;
mod create;
mod exec;
mod filesystem;
mod hooks;
mod namespaces;
mod process;
mod resources;
pub mod state;

pub use create::{Creation, create, start, update};
pub use exec::{Beside, exec};
pub use state::{Store, delete, kill};
