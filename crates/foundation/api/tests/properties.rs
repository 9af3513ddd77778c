//! What must hold for any input, checked with random ones; `cargo xtask fuzz` takes many more of them.
//!
//! Each module is about one thing that reads what clients send. None of them may panic, make much of little, or say
//! something else when asked twice.
#![allow(clippy::unwrap_used)]

#[path = "properties/applying.rs"]
mod applying;
#[path = "properties/encodings.rs"]
mod encodings;
#[path = "properties/expressions.rs"]
mod expressions;
#[path = "properties/generate.rs"]
mod generate;
#[path = "properties/patches.rs"]
mod patches;
#[path = "properties/selectors.rs"]
mod selectors;
