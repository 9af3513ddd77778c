//! System packages that a task needs, installed when they are missing.

use anyhow::{Result, bail};

use crate::shell;

/// A program, or a file by its path, and the Debian package that brings it.
pub type Need = (&'static str, &'static str);

/// What the tests use beside the Rust toolchain: peers to compare with and tools to look with.
pub const TEST_NEEDS: &[Need] = &[
    ("busybox", "busybox-static"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("skopeo", "skopeo"),
    ("etcd", "etcd-server"),
    ("openssl", "openssl"),
    ("docker-registry", "docker-registry"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("dig", "bind9-dnsutils"),
    ("kubectl", "kubernetes-client"),
    ("python3", "python3"),
    ("/usr/lib/python3/dist-packages/kubernetes/__init__.py", "python3-kubernetes"),
    ("curl", "curl"),
    ("script", "bsdutils"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
];

/// What building and showing the demo takes.
pub const UP_NEEDS: &[Need] = &[("curl", "curl"), ("mmdebstrap", "mmdebstrap")];

/// Installs the packages of those programs that are missing. Needs root and a Debian-like system for that.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&str> = needs.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    shell::step(&format!("installing {}", missing.join(", ")));
    if !shell::has("apt-get") {
        bail!("missing packages: {}; install them with your system's package manager", missing.join(", "));
    }
    shell::run("apt-get", &["update", "-qq"])?;
    let mut args = vec!["install", "-qq", "-y", "--no-install-recommends"];
    args.extend(&missing);
    shell::run("apt-get", &args)
}

fn found(program: &str) -> bool {
    if program.starts_with('/') {
        return std::path::Path::new(program).exists();
    }
    shell::has(program) || ["/usr/sbin", "/sbin"].iter().any(|dir| std::path::Path::new(dir).join(program).is_file())
}
