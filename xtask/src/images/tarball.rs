//! Packs a directory as an image layer: overlay whiteouts become whiteout entries, hard links, extended
//! attributes and ownership are kept, order is fixed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};
use walkdir::WalkDir;

use super::build::Facts;

/// Fast enough not to matter, and unpacks several times faster than gzip.
const LEVEL: i32 = 5;

pub fn write(dir: &Path, blob: &Path) -> Result<Facts> {
    let file = File::create(blob).with_context(|| format!("create {}", blob.display()))?;
    let compressed = Counting { inner: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), size: 0 };
    let encoder = zstd::stream::Encoder::new(compressed, LEVEL)?;
    let plain = Counting { inner: encoder, hash: Sha256::new(), size: 0 };
    let mut tar = Builder::new(plain);
    pack(&mut tar, dir)?;
    let plain = tar.into_inner()?;
    let mut compressed = plain.inner.finish()?;
    compressed.inner.flush()?;
    Ok(Facts {
        digest: format!("sha256:{}", hex(&compressed.hash.finalize())),
        size: compressed.size,
        diff_id: format!("sha256:{}", hex(&plain.hash.finalize())),
    })
}

fn pack<W: Write>(tar: &mut Builder<W>, dir: &Path) -> Result<()> {
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    // What is in /dev is the build's; the runtime brings its own.
    let walk = WalkDir::new(dir).min_depth(1).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|e| !(e.depth() == 2 && e.path().parent() == Some(&dir.join("dev")))) {
        let entry = entry?;
        let path = entry.path();
        let name = path.strip_prefix(dir)?;
        let meta = fs::symlink_metadata(path)?;
        let kind = meta.file_type();
        let mut header = Header::new_gnu();
        header.set_metadata(&meta);
        header.set_size(0);
        if kind.is_socket() {
            continue;
        }
        if kind.is_char_device() && meta.rdev() == 0 {
            let mut whiteout = name.to_path_buf();
            let mut file = std::ffi::OsString::from(".wh.");
            file.push(name.file_name().unwrap_or_default());
            whiteout.set_file_name(file);
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            tar.append_data(&mut header, whiteout, io::empty())?;
            continue;
        }
        if kind.is_file() && meta.nlink() > 1 {
            if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                tar.append_link(&mut header, name, first)?;
                continue;
            }
            links.insert((meta.dev(), meta.ino()), name.to_path_buf());
        }
        let attributes = if kind.is_symlink() { Vec::new() } else { attributes(path)? };
        tar.append_pax_extensions(attributes.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        if kind.is_dir() {
            tar.append_data(&mut header, name, io::empty())?;
            if xattr::get(path, "trusted.overlay.opaque")?.as_deref() == Some(b"y") {
                let mut opaque = Header::new_gnu();
                opaque.set_entry_type(EntryType::Regular);
                opaque.set_mode(0o644);
                opaque.set_size(0);
                tar.append_data(&mut opaque, name.join(".wh..wh..opq"), io::empty())?;
            }
        } else if kind.is_symlink() {
            tar.append_link(&mut header, name, fs::read_link(path)?)?;
        } else if kind.is_file() {
            header.set_size(meta.len());
            tar.append_data(&mut header, name, File::open(path)?)?;
        } else {
            tar.append_data(&mut header, name, io::empty())?;
        }
    }
    Ok(())
}

/// Attributes that belong to the file rather than to this machine.
fn attributes(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr::list(path).with_context(|| format!("attributes of {}", path.display()))? {
        let bytes = name.as_bytes();
        if bytes != b"security.capability" && !bytes.starts_with(b"user.") {
            continue;
        }
        if let Some(value) = xattr::get(path, &name)? {
            found.push((format!("SCHILY.xattr.{}", name.to_string_lossy()), value));
        }
    }
    Ok(found)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Counting<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn packs_an_upper_directory_as_a_layer() {
        let home = std::env::temp_dir().join(format!("xtask-pack-{}", std::process::id()));
        let upper = home.join("upper");
        fs::create_dir_all(upper.join("dev/inside")).unwrap();
        fs::create_dir_all(upper.join("opaque")).unwrap();
        fs::write(upper.join("one"), b"1").unwrap();
        fs::hard_link(upper.join("one"), upper.join("two")).unwrap();
        std::os::unix::fs::symlink("/one", upper.join("link")).unwrap();
        xattr::set(upper.join("opaque"), "trusted.overlay.opaque", b"y").unwrap();
        xattr::set(upper.join("one"), "user.note", b"n").unwrap();
        assert!(Command::new("mknod").arg(upper.join("gone")).args(["c", "0", "0"]).status().unwrap().success());
        let facts = write(&upper, &home.join("blob")).unwrap();
        let plain = zstd::decode_all(File::open(home.join("blob")).unwrap()).unwrap();
        assert_eq!(facts.diff_id, format!("sha256:{}", hex(&Sha256::digest(&plain))));
        assert_eq!(facts.size, fs::metadata(home.join("blob")).unwrap().len());
        let mut archive = tar::Archive::new(&plain[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                let link = e.link_name().unwrap().map(|l| format!(" -> {}", l.display())).unwrap_or_default();
                format!("{}{link}", e.path().unwrap().display())
            })
            .collect();
        let want = [".wh.gone", "dev", "link -> /one", "one", "opaque", "opaque/.wh..wh..opq", "two -> one"];
        let mut names: Vec<&str> = names.iter().map(|n| n.trim_end_matches('/')).collect();
        names.sort_unstable();
        assert_eq!(names, want);
        fs::remove_dir_all(&home).unwrap();
    }
}
