//! `dhow`: command line and wiring.

fn main() {}
