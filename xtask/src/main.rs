//! Development tasks: `cargo xtask up | test | images | tidy | bench`.

fn main() {}
