//! Making layers: bootstrap, install on an overlay, or plain files. Mounts live in a mount namespace of
//! their own, so nothing stays mounted however a build ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::recipes::{Layer, Make};
use super::tarball;
use crate::shell;

/// Raise when the way layers are built changes, to build them anew.
const FORMAT: u32 = 3;

/// A finished layer in the cache.
#[derive(Clone)]
pub struct Built {
    /// Hash of everything that went in, the layers below included.
    pub key: String,
    /// The layer's files, as an overlay's lower directory.
    pub dir: PathBuf,
    pub blob: PathBuf,
    pub facts: Facts,
    pub name: &'static str,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Facts {
    pub digest: String,
    pub size: u64,
    pub diff_id: String,
}

pub struct Builder {
    cache: PathBuf,
    suite: String,
    sources: PathBuf,
}

impl Builder {
    pub fn new(cache: &Path) -> Result<Self> {
        for dir in ["apt/lists/partial", "apt/archives/partial"] {
            fs::create_dir_all(cache.join(dir)).with_context(|| format!("create {}", cache.display()))?;
        }
        let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let suite = release
            .lines()
            .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
            .map(|s| s.trim_matches('"').to_owned())
            .context("this system names no release; images are built from the packages of a Debian system")?;
        Ok(Builder { cache: cache.to_owned(), suite, sources: machine_sources()? })
    }

    /// The layer on top of `below` (base first), from the cache if its inputs are unchanged.
    pub fn layer(&self, layer: &Layer, below: &[Built]) -> Result<Built> {
        let mut hash = Sha256::new();
        hash.update(format!("{FORMAT} {} ", self.suite));
        hash.update(below.last().map_or("", |b| b.key.as_str()));
        hash.update(serde_json::to_vec(layer)?);
        let key = tarball::hex(&hash.finalize());
        let home = self.cache.join(format!("{}-{}", layer.name, &key[..16]));
        let (dir, blob, facts) = (home.join("root"), home.join("layer.tar.zst"), home.join("facts.json"));
        if let Ok(bytes) = fs::read(&facts) {
            let facts = serde_json::from_slice(&bytes).with_context(|| format!("read {}", facts.display()))?;
            return Ok(Built { key, dir, blob, facts, name: layer.name });
        }
        shell::step(&format!("building layer {}", layer.name));
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
        }
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        match &layer.make {
            Make::Bootstrap => self.bootstrap(&dir)?,
            Make::Install { packages, script } => {
                put_files(&dir, layer)?;
                self.install(&home, &dir, below, packages, script)?;
                // A package may have replaced a file of ours by its own.
                put_files(&dir, layer)?;
            }
            Make::Busybox => {
                self.busybox(&home, &dir)?;
                put_files(&dir, layer)?;
            }
            Make::Files => put_files(&dir, layer)?,
        }
        let made = tarball::write(&dir, &blob).context("pack layer")?;
        fs::write(&facts, serde_json::to_vec(&made)?)?;
        self.prune(layer.name, &home)?;
        Ok(Built { key, dir, blob, facts: made, name: layer.name })
    }

    /// Removes earlier builds of the same layer.
    fn prune(&self, name: &str, keep: &Path) -> Result<()> {
        for entry in fs::read_dir(&self.cache)? {
            let path = entry?.path();
            let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
            let ours = file.strip_prefix(name).and_then(|f| f.strip_prefix('-'));
            if path != keep
                && path.is_dir()
                && ours.is_some_and(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()))
            {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn bootstrap(&self, dir: &Path) -> Result<()> {
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory"]);
        for option in ["Apt::Install-Recommends \"false\"", "Acquire::Languages \"none\""] {
            command.arg(format!("--aptopt={option}"));
        }
        for path in ["doc/*", "man/*", "info/*", "locale/*", "lintian/*", "bug/*"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}"));
        }
        command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
        command.arg(&self.suite).arg(dir).arg(&self.sources);
        run(command)?;
        // Package lists serve the layers above, but are no part of the image.
        let lists = self.cache.join("apt/lists");
        for entry in fs::read_dir(dir.join("var/lib/apt/lists"))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), lists.join(entry.file_name()))?;
                fs::remove_file(entry.path())?;
            }
        }
        let policy = dir.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        for file in ["etc/resolv.conf", "etc/hostname", "etc/hosts"] {
            let path = dir.join(file);
            if path.symlink_metadata().is_ok() {
                fs::remove_file(&path)?;
            }
            fs::write(&path, "")?;
        }
        for log in ["var/log/apt", "var/cache/apt"] {
            let path = dir.join(log);
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
            fs::create_dir_all(&path)?;
        }
        for log in ["dpkg.log", "alternatives.log", "bootstrap.log"] {
            let _ = fs::remove_file(dir.join("var/log").join(log));
        }
        Ok(())
    }

    fn install(&self, home: &Path, upper: &Path, below: &[Built], packages: &[&str], script: &str) -> Result<()> {
        let merged = home.join("merged");
        let work = home.join("work");
        fs::create_dir_all(&merged)?;
        fs::create_dir_all(&work)?;
        let lowers: Vec<String> = below.iter().rev().map(|b| b.dir.display().to_string()).collect();
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), upper.display(), work.display());
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "/bin/sh", "-eu", "-c"])
            .arg(include_str!("files/install.sh"))
            .arg("install")
            .arg(&merged)
            .arg(self.cache.join("apt"))
            .arg(options)
            .arg(packages.join(" "))
            .arg(script)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        run(command)?;
        fs::remove_dir_all(&merged)?;
        fs::remove_dir_all(&work)?;
        Ok(())
    }

    fn busybox(&self, home: &Path, dir: &Path) -> Result<()> {
        let base = self.layer(&Layer { name: "debian-base", make: Make::Bootstrap, files: Vec::new() }, &[])?;
        let upper = home.join("package");
        fs::create_dir_all(&upper)?;
        self.install(home, &upper, &[base], &["busybox-static"], "")?;
        for path in
            ["bin", "dev", "etc", "home", "proc", "root", "sys", "usr/bin", "usr/sbin", "sbin", "var/tmp", "tmp"]
        {
            fs::create_dir_all(dir.join(path))?;
        }
        fs::set_permissions(dir.join("root"), fs::Permissions::from_mode(0o700))?;
        for path in ["tmp", "var/tmp"] {
            fs::set_permissions(dir.join(path), fs::Permissions::from_mode(0o1777))?;
        }
        let program = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|p| upper.join(p))
            .find(|p| p.is_file())
            .context("the package brought no busybox")?;
        let target = dir.join("bin/busybox");
        fs::copy(&program, &target)?;
        let listing = Command::new(&target).arg("--list").output().context("run busybox --list")?;
        for applet in String::from_utf8(listing.stdout)?.lines().filter(|a| *a != "busybox" && !a.contains('/')) {
            symlink("busybox", dir.join("bin").join(applet))?;
        }
        symlink("/bin/env", dir.join("usr/bin/env"))?;
        fs::remove_dir_all(&upper)?;
        Ok(())
    }
}

fn put_files(dir: &Path, layer: &Layer) -> Result<()> {
    for (path, mode, contents) in &layer.files {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, contents).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

/// The package sources this machine itself uses for Debian; third-party ones do not belong in an image.
fn machine_sources() -> Result<PathBuf> {
    let candidates = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let usable = |p: &&&str| {
        fs::read_to_string(p).is_ok_and(|s| s.lines().any(|l| l.starts_with("deb") || l.starts_with("Types:")))
    };
    match candidates.iter().find(usable) {
        Some(path) => Ok(PathBuf::from(path)),
        None => bail!("no Debian package sources in {}", candidates.join(" or ")),
    }
}

/// Runs a builder quietly; its output appears only if it fails.
fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {:?}", command.get_program()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        bail!("{:?} failed: {}\n{}", command.get_program(), output.status, tail.join("\n"));
    }
    Ok(())
}
