//! How the program is linked for release. Equal functions are folded into one: kinds are decoded in many crates, each of which
//! brings the same code. Relocations are written as bitmaps, which takes a fiftieth of the space. The linker that comes with the
//! compiler, LLD, can do both.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
