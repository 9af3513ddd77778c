//! Unpacking against well-behaved and hostile layers. Needs root, like the runtime itself.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

/// Builds a layer archive entry by entry; nothing is checked, so that it can lie.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn raw(
        mut self,
        kind: tar::EntryType,
        path: &str,
        link: &str,
        data: &[u8],
        edit: impl Fn(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        edit(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(tar::EntryType::Regular, path, "", data, |_| {})
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(tar::EntryType::Directory, path, "", b"", |h| h.set_mode(mode))
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Symlink, path, target, b"", |_| {})
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(tar::EntryType::Link, path, target, b"", |_| {})
    }

    fn xattrs(mut self, pairs: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn unpack_on(self, lowers: &[&Path]) -> Result<tempfile::TempDir> {
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = lowers.iter().map(|p| p.to_path_buf()).collect();
        unpack(&self.bytes()[..], dir.path(), &lowers, "test", &Limits::default())?;
        Ok(dir)
    }

    fn unpack(self) -> Result<tempfile::TempDir> {
        self.unpack_on(&[])
    }
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn opaque(path: &Path) -> bool {
    fsops::is_opaque(fsops::open_root(path).unwrap().as_fd())
}

#[test]
fn keeps_modes_owners_times_links_and_attributes() {
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let dir = Layer::new()
        .dir("etc", 0o750)
        .raw(tar::EntryType::Regular, "etc/su", "", b"x", |h| {
            h.set_mode(0o4755);
            h.set_uid(12);
            h.set_gid(34);
        })
        .hard_link("etc/su2", "etc/su")
        .symlink("etc/abs", "/etc/su")
        .xattrs(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("mtime", b"-5.25"),
        ])
        .file("etc/ping", b"p")
        .raw(tar::EntryType::Fifo, "etc/fifo", "", b"", |_| {})
        .unpack()
        .unwrap();
    let at = |p: &str| dir.path().join(p);
    let su = fs::metadata(at("etc/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 12, 34, 1_000_000));
    assert_eq!(su.ino(), fs::metadata(at("etc/su2")).unwrap().ino());
    assert_eq!(fs::read_link(at("etc/abs")).unwrap(), Path::new("/etc/su"));
    let etc = fs::metadata(at("etc")).unwrap();
    assert_eq!((etc.mode() & 0o7777, etc.mtime()), (0o750, 1_000_000));
    let ping = fs::File::open(at("etc/ping")).unwrap();
    let mut value = [0u8; 64];
    let n = rustix::fs::fgetxattr(&ping, "security.capability", &mut value).unwrap();
    assert_eq!(&value[..n], &capability);
    let n = rustix::fs::fgetxattr(&ping, "user.note", &mut value).unwrap();
    assert_eq!(&value[..n], b"hello");
    assert!(rustix::fs::fgetxattr(&ping, "trusted.overlay.opaque", &mut value).is_err());
    let meta = ping.metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-6, 750_000_000));
    assert!(fs::symlink_metadata(at("etc/fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn whiteouts_become_overlay_whiteouts() {
    let dir = Layer::new()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file("c/kept", b"k")
        .file(".wh.c", b"")
        .file(".wh.d", b"")
        .dir("d", 0o755)
        .file(".wh.e", b"")
        .file("e/deep/f", b"")
        .unpack()
        .unwrap();
    let at = |p: &str| dir.path().join(p);
    assert!(is_whiteout(&at("a/gone")));
    assert!(!at("a/.wh.gone").exists());
    assert!(opaque(&at("b")));
    assert!(opaque(&at("c")) && at("c/kept").exists(), "a whiteout spares what its own layer brings");
    assert!(opaque(&at("d")), "removed and made anew must hide the old contents");
    assert!(opaque(&at("e")) && at("e/deep/f").exists());
}

#[test]
fn implied_parents_come_from_lower_layers() {
    let lower = Layer::new()
        .dir("tmp", 0o1777)
        .dir("usr/lib", 0o711)
        .symlink("lib", "usr/lib")
        .file("usr/x", b"low")
        .unpack()
        .unwrap();
    let upper = Layer::new()
        .file("tmp/f", b"")
        .file("lib/new", b"")
        .hard_link("usr/y", "usr/x")
        .unpack_on(&[lower.path()])
        .unwrap();
    let mode = |p: &str| fs::metadata(upper.path().join(p)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("tmp"), 0o1777);
    assert_eq!(mode("usr/lib"), 0o711);
    assert!(upper.path().join("usr/lib/new").exists() && !upper.path().join("lib").exists());
    assert_eq!(fs::read(upper.path().join("usr/y")).unwrap(), b"low");
}

#[test]
fn sparse_data_stays_sparse() {
    let mut data = vec![0u8; 4 << 20];
    data[3 << 20] = 1;
    let dir = Layer::new().file("s", &data).unpack().unwrap();
    let meta = fs::metadata(dir.path().join("s")).unwrap();
    assert_eq!(meta.len(), data.len() as u64);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert!(fs::read(dir.path().join("s")).unwrap() == data);
}

#[test]
fn gnu_tar_sparse_formats_unpack() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("sparse")).unwrap();
    file.set_len(8 << 20).unwrap();
    for i in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", i * 200_000).unwrap();
    }
    let want = fs::read(dir.path().join("sparse")).unwrap();
    for format in [&["--format=gnu"][..], &["--format=posix", "--sparse-version=1.0"]] {
        let output = std::process::Command::new("tar")
            .args(["-S", "-c", "-C"])
            .arg(dir.path())
            .args(format)
            .args(["-f", "-", "sparse"])
            .output()
            .unwrap();
        assert!(output.stdout.len() < 2 << 20, "tar did not write it sparse");
        let into = tempfile::tempdir().unwrap();
        unpack(&output.stdout[..], into.path(), &[], "test", &Limits::default()).unwrap();
        assert!(fs::read(into.path().join("sparse")).unwrap() == want, "{format:?}");
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let dir = Layer::new()
        .dir("d", 0o755)
        .file("d/f", b"1")
        .file("d", b"now a file")
        .symlink("l", "d")
        .file("l", b"not through the link")
        .unpack()
        .unwrap();
    assert_eq!(fs::read(dir.path().join("d")).unwrap(), b"now a file");
    assert_eq!(fs::read(dir.path().join("l")).unwrap(), b"not through the link");
}

#[test]
fn nothing_escapes_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("v");
    let target = outside.path().to_str().unwrap().to_owned();
    // Absolute names and links are taken as beneath the layer's root.
    let dir = Layer::new()
        .file("/abs", b"in")
        .symlink("out", &target)
        .file("out/v", b"pwned")
        .symlink("up", "../../../../../../../..")
        .file(&format!("up{}/v", target), b"pwned")
        .unpack()
        .unwrap();
    assert!(dir.path().join("abs").exists());
    assert!(!victim.exists());
    assert!(dir.path().join(target.trim_start_matches('/')).join("v").exists());

    let refused = [
        Layer::new().file("../v", b""),
        Layer::new().file("a/../../v", b""),
        Layer::new().hard_link("h", "../../etc/passwd"),
        Layer::new().hard_link("h", "/etc/passwd"),
        Layer::new().symlink("loop", "loop").file("loop/f", b""),
        Layer::new().file(".wh...", b""),
        Layer::new().file(".wh.", b""),
        Layer::new().file("f", b"").file("f/below", b""),
        Layer::new().raw(tar::EntryType::Char, "forged", "", b"", |_| {}),
    ];
    for (i, layer) in refused.into_iter().enumerate() {
        let error = layer.unpack().map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Layer { .. }), "case {i}: {error}");
    }
}

#[test]
fn disks_are_not_made_but_harmless_devices_are() {
    let device = |layer: Layer, path: &str, kind, major, minor| {
        layer.raw(kind, path, "", b"", move |h| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    };
    let layer = device(Layer::new(), "dev/sda", tar::EntryType::Block, 8, 0);
    let layer = device(layer, "dev/mem", tar::EntryType::Char, 1, 1);
    let dir = device(layer, "dev/null", tar::EntryType::Char, 1, 3).unpack().unwrap();
    assert!(!dir.path().join("dev/sda").exists() && !dir.path().join("dev/mem").exists());
    assert!(fs::symlink_metadata(dir.path().join("dev/null")).unwrap().file_type().is_char_device());
}

#[test]
fn bombs_hit_the_limits_and_are_named() {
    let limits = Limits { entries: 3, bytes: 1 << 20, xattr_bytes: 100, ..Limits::default() };
    let run = |layer: Layer| {
        let dir = tempfile::tempdir().unwrap();
        unpack(&layer.bytes()[..], dir.path(), &[], "sha256:abc", &limits).unwrap_err().to_string()
    };
    let many = (0..5).fold(Layer::new(), |l, i| l.file(&format!("f{i}"), b""));
    assert_eq!(run(many), "failed to extract layer sha256:abc: entry \"f3\": more than 3 entries");
    let large = Layer::new().raw(tar::EntryType::Regular, "big", "", b"", |h| h.set_size(1 << 40));
    assert!(run(large).contains("entry \"big\""));
    let attributes = Layer::new().xattrs(&[("SCHILY.xattr.user.a", &[b'x'; 200])]).file("f", b"");
    assert!(run(attributes).contains("bytes of attributes"));
    let name = Layer::new().raw(tar::EntryType::GNULongName, "././@LongLink", "", b"", |h| h.set_size(1 << 33));
    assert!(run(name).contains("larger than 1 MiB"));
}

#[test]
fn damaged_archives_are_refused() {
    let good = Layer::new().file("f", &[7; 2000]).bytes();
    let into = tempfile::tempdir().unwrap();
    let check = |bytes: &[u8]| unpack(bytes, into.path(), &[], "t", &Limits::default());
    assert!(check(&good[..1000]).is_err(), "cut inside the data");
    assert!(check(&good[..100]).is_err(), "cut inside the header");
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(check(&flipped).unwrap_err().to_string().contains("checksum"));
    assert!(check(b"").is_ok(), "an empty layer is fine");
}
