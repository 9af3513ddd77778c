//! System packages that a task needs, installed when they are missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program, or a file by its path, and the Debian package that brings it.
pub type Need = (&'static str, &'static str);

/// What the tests use beside the Rust toolchain: peers to compare with and tools to look with.
pub const TEST_NEEDS: &[Need] = &[
    ("busybox", "busybox-static"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("skopeo", "skopeo"),
    ("etcd", "etcd-server"),
    ("openssl", "openssl"),
    ("docker-registry", "docker-registry"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("iptables-save", "iptables"),
    ("crun", "crun"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("dockerd", "docker.io"),
    ("buildah", "buildah"),
    ("podman", "podman"),
    ("git", "git"),
    ("ssh-agent", "openssh-client"),
    ("/usr/sbin/sshd", "openssh-server"),
    ("rpmbuild", "rpm"),
    ("db5.3_load", "db5.3-util"),
    ("bzip2", "bzip2"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("faketime", "faketime"),
    ("dig", "bind9-dnsutils"),
    ("nsd", "nsd"),
    ("knotd", "knot"),
    ("unbound", "unbound"),
    ("kubectl", "kubernetes-client"),
    ("python3", "python3"),
    ("/usr/lib/python3/dist-packages/kubernetes/__init__.py", "python3-kubernetes"),
    ("dbus-daemon", "dbus-daemon"),
    ("/usr/lib/python3/dist-packages/dbus/__init__.py", "python3-dbus"),
    ("/usr/lib/python3/dist-packages/gi/__init__.py", "python3-gi"),
    ("curl", "curl"),
    ("script", "bsdutils"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("systemd-analyze", "systemd"),
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
    let _quiet = NoServices::new()?;
    shell::run("apt-get", &args)
}

/// While it lives, packages start no services when they are installed: the tests run daemons of their own.
struct NoServices {
    /// Whether the policy is ours to take away again.
    ours: bool,
}

impl NoServices {
    /// Debian asks this program before it starts a service; 101 forbids it.
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> Result<Self> {
        let ours = !Path::new(Self::POLICY).exists();
        if ours {
            fs::write(Self::POLICY, "#!/bin/sh\nexit 101\n").context("forbid services to start")?;
            fs::set_permissions(Self::POLICY, fs::Permissions::from_mode(0o755)).context("forbid services to start")?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(Self::POLICY);
        }
    }
}

fn found(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    shell::has(program) || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).is_file())
}
