//! What rpm's database lists, in each of the formats that it has had: for each package its header, as packages have it.

use std::fs::File;
use std::path::Path;

use dhow_image::View;

use super::sqlite::{Database, Value};
use super::{Found, Package, bdb, escape, ndb};
use crate::copy::At;
use crate::error::Result;

/// Where distributions keep it.
const FOLDERS: [&str; 3] = ["var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm"];
/// SQLite, rpm's own format and Berkeley DB. Where there are several, the later ones are what was left behind by a change.
const FILES: [&str; 3] = ["rpmdb.sqlite", "Packages.db", "Packages"];
/// Most entries of a header.
const ENTRIES: usize = 65_536;

// Tags of a header.
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const VENDOR: u32 = 1011;
const LICENSE: u32 = 1014;
const ARCH: u32 = 1022;
const SOURCE: u32 = 1044;

// Types of values.
const INT32: u32 = 4;
const STRING: u32 = 6;
const I18N: u32 = 9;

impl Found {
    pub fn rpm(&mut self, view: &View, vendor: &str) -> Result<()> {
        for folder in FOLDERS {
            for name in FILES {
                let place = format!("{folder}/{name}");
                let at = view.resolve(Path::new(&place), true).at("look for packages")?;
                let Some(node) = view.lstat(&at).at("look for packages")? else { continue };
                if node.kind() != rustix::fs::FileType::RegularFile {
                    continue;
                }
                let before = self.packages.len();
                let file = view.file(&node).at("open rpm's database")?;
                // One that is damaged is read as far as it goes.
                let whole = headers(file, name, &mut |bytes| {
                    let package = Header::parse(bytes).and_then(|header| self.of_header(&header, vendor, &place));
                    self.packages.extend(package);
                });
                if whole.is_some() || self.packages.len() > before {
                    break;
                }
            }
        }
        Ok(())
    }

    fn of_header(&self, header: &Header<'_>, vendor: &str, place: &str) -> Option<Package> {
        let (name, version, release) = (header.text(NAME)?, header.text(VERSION)?, header.text(RELEASE)?);
        // A key that packages are verified with.
        if name == "gpg-pubkey" {
            return None;
        }
        let full = format!("{version}-{release}");
        let qualifier = |key: &str, value: Option<String>| value.map(|value| format!("{key}={}", escape(&value)));
        let epoch = header.number(EPOCH);
        let qualifiers = [
            qualifier("arch", header.text(ARCH)),
            qualifier("distro", self.distribution.clone()),
            qualifier("epoch", epoch.map(|epoch| epoch.to_string())),
            qualifier("upstream", header.text(SOURCE)),
        ];
        let qualifiers: Vec<String> = qualifiers.into_iter().flatten().collect();
        let asked = if qualifiers.is_empty() { String::new() } else { format!("?{}", qualifiers.join("&")) };
        Some(Package {
            purl: format!("pkg:rpm/{vendor}/{}@{}{asked}", escape(&name), escape(&full)),
            name,
            version: epoch.map_or_else(|| full.clone(), |epoch| format!("{epoch}:{full}")),
            license: header.text(LICENSE),
            supplier: header.text(VENDOR).filter(|vendor| vendor != "(none)"),
            found_in: format!("/{place}"),
        })
    }
}

/// All that may be headers in a database of this name; `None` if it is none, or damaged.
fn headers(file: File, name: &str, each: &mut dyn FnMut(&[u8])) -> Option<()> {
    match name {
        "Packages.db" => ndb::headers(&file, each),
        "Packages" => bdb::values(&file, each),
        _ => Database::open(file)?.rows("Packages", |row| {
            row.iter().for_each(|value| {
                if let Value::Bytes(bytes) = value {
                    each(bytes);
                }
            });
        }),
    }
}

/// A header: an index of tags, and what they stand for.
struct Header<'a> {
    index: &'a [u8],
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let entries = usize::try_from(number(bytes.get(..4)?)?).ok().filter(|entries| *entries <= ENTRIES)?;
        let length = usize::try_from(number(bytes.get(4..8)?)?).ok()?;
        let (index, rest) = bytes.get(8..)?.split_at_checked(entries * 16)?;
        Some(Self { index, data: rest.get(..length)? })
    }

    /// The type of a tag, and its bytes to the end of all.
    fn find(&self, tag: u32) -> Option<(u32, &'a [u8])> {
        let entry = self.index.chunks_exact(16).find(|entry| number(entry) == Some(tag))?;
        let offset = usize::try_from(number(entry.get(8..)?)?).ok()?;
        Some((number(entry.get(4..)?)?, self.data.get(offset..)?))
    }

    fn text(&self, tag: u32) -> Option<String> {
        let (kind, bytes) = self.find(tag)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        (matches!(kind, STRING | I18N) && !text.is_empty()).then_some(text)
    }

    fn number(&self, tag: u32) -> Option<u32> {
        let (kind, bytes) = self.find(tag)?;
        if kind == INT32 { number(bytes) } else { None }
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::super::find;
    use super::*;

    /// A database of rpm's own making, with packages of its own.
    fn tree(root: &Path) {
        let script = r#"
cd "$1"; mkdir -p tree/etc tree/var/lib/rpm; printf 'ID=fedora\nVERSION_ID=40\n' > tree/etc/os-release
for n in one two; do
    printf 'Name: %s\nVersion: 1.2\nRelease: 3.fc40\nSummary: s\nLicense: MIT\nVendor: Dhow\nBuildArch: noarch\n' $n > $n.spec
    test $n = one || echo 'Epoch: 2' >> $n.spec
    # The second one is larger than a page.
    printf '%%description\nd\n' >> $n.spec; test $n = one || seq 3000 >> $n.spec
    printf '%%files\n' >> $n.spec
    rpmbuild --quiet --define "_topdir $1/build" -bb $n.spec
done
rpm --root "$1/tree" --dbpath /var/lib/rpm --define '_db_backend sqlite' --nodeps --ignorearch -i build/RPMS/noarch/*.rpm
"#;
        let path = root.display().to_string();
        let done = Command::new("sh").args(["-euc", script, "sh", &path]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn check(root: &Path, found_in: &str) {
        let found = find(&View::open(&[root.join("tree")]).unwrap()).unwrap();
        let seen: Vec<_> = found.packages.iter().map(|one| (one.version.as_str(), one.purl.as_str())).collect();
        let purl = |name: &str, epoch: &str| {
            format!(
                "pkg:rpm/fedora/{name}@1.2-3.fc40?arch=noarch&distro=fedora-40{epoch}&upstream={name}-1.2-3.fc40.src.rpm"
            )
        };
        assert_eq!(seen, [("1.2-3.fc40", purl("one", "").as_str()), ("2:1.2-3.fc40", &purl("two", "&epoch=2"))]);
        let one = found.packages.first().unwrap();
        assert_eq!((one.license.as_deref(), one.supplier.as_deref()), (Some("MIT"), Some("Dhow")));
        assert_eq!(one.found_in, found_in);
    }

    fn read(path: &Path) -> (Vec<Vec<u8>>, bool) {
        let mut all = Vec::new();
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = headers(File::open(path).unwrap(), name, &mut |bytes| all.push(bytes.to_vec()));
        (all, whole.is_some())
    }

    /// The same packages as Berkeley DB's own program writes them.
    fn bdb(path: &Path, headers: &[Vec<u8>], order: &str) {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let mut text =
            format!("VERSION=3\nformat=bytevalue\ntype=hash\ndb_lorder={order}\ndb_pagesize=4096\nHEADER=END\n");
        // The first one says which number is next.
        text += " 00000000\n 03000000\n";
        for (n, header) in headers.iter().enumerate() {
            text += &format!(" {:02x}000000\n {}\n", n + 1, hex(header));
        }
        text += "DATA=END\n";
        let mut load = Command::new("db5.3_load").arg(path).stdin(Stdio::piped()).spawn().unwrap();
        load.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(load.wait().unwrap().success());
    }

    /// As rpm writes them where it is built for it, which Debian's is not; a slot is free, the last page is empty.
    fn ndb(path: &Path, headers: &[Vec<u8>]) {
        let long = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
        let mut slots = [&b"RpmP"[..], &long(0), &long(7), &long(2), &long(3), &[0; 12]].concat();
        slots.extend([&b"Slot"[..], &[0; 12]].concat());
        let mut blobs = Vec::new();
        for (n, header) in headers.iter().enumerate() {
            let blocks = (16 + header.len() + 12).div_ceil(16);
            slots.extend([&b"Slot"[..], &long(n + 1), &long(512 + blobs.len() / 16), &long(blocks)].concat());
            let mut blob = [&b"BlbS"[..], &long(n + 1), &long(7), &long(header.len()), header].concat();
            blob.resize(blocks * 16 - 12, 0);
            blobs.extend([blob, [&long(1)[..], &long(header.len()), b"BlbE"].concat()].concat());
        }
        while slots.len() < 2 * 4096 {
            slots.extend([&b"Slot"[..], &[0; 12]].concat());
        }
        std::fs::write(path, [slots, blobs].concat()).unwrap();
    }

    #[test]
    fn what_rpm_installed_is_found_in_every_format() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path());
        check(root.path(), "/var/lib/rpm/rpmdb.sqlite");
        let folder = root.path().join("tree/var/lib/rpm");
        let (headers, whole) = read(&folder.join("rpmdb.sqlite"));
        assert!(whole && headers.len() == 2 && headers.iter().any(|header| header.len() > 8192));
        // What a change of formats left behind is not asked.
        std::fs::write(folder.join("Packages"), "left behind").unwrap();
        check(root.path(), "/var/lib/rpm/rpmdb.sqlite");
        for order in ["1234", "4321"] {
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::create_dir(&folder).unwrap();
            bdb(&folder.join("Packages"), &headers, order);
            check(root.path(), "/var/lib/rpm/Packages");
        }
        ndb(&folder.join("Packages.db"), &headers);
        check(root.path(), "/var/lib/rpm/Packages.db");
        assert_eq!(read(&folder.join("Packages.db")), (headers, true));
    }

    #[test]
    fn what_is_no_database_is_none() {
        let folder = tempfile::tempdir().unwrap();
        for name in FILES {
            let path = folder.path().join(name);
            for bytes in [&b""[..], b"RpmP", &[0; 10_000], b"SQLite format 3"] {
                std::fs::write(&path, bytes).unwrap();
                assert_eq!(read(&path), (Vec::new(), false), "{name}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Bytes that were changed and files that were cut give less, never a panic or a loop.
        #[test]
        fn damaged_databases_are_read_as_far_as_they_go(
            changes in proptest::collection::vec((0usize..40_000, any::<u8>()), 0..24),
            cut in 0usize..80_000,
            small in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let folder = tempfile::tempdir().unwrap();
            for name in ["Packages", "Packages.db"] {
                let path = folder.path().join(name);
                let headers = [small.clone(), vec![7; 20_000]];
                if name == "Packages" { bdb(&path, &headers, "1234") } else { ndb(&path, &headers) }
                let mut bytes = std::fs::read(&path).unwrap();
                bytes.truncate(cut.max(1));
                for (at, byte) in &changes {
                    // Most of what matters is at the beginning of pages.
                    let at = if at % 3 == 0 { at / 4096 * 4096 + at % 64 } else { *at };
                    if let Some(old) = bytes.get_mut(at) {
                        *old = *byte;
                    }
                }
                std::fs::write(&path, &bytes).unwrap();
                let (found, _) = read(&path);
                prop_assert!(found.iter().map(Vec::len).sum::<usize>() <= 2 * bytes.len());
            }
        }

        #[test]
        fn any_header_is_read_without_harm(bytes: Vec<u8>) {
            if let Some(header) = Header::parse(&bytes) {
                let _ = (header.text(NAME), header.number(EPOCH));
            }
        }
    }
}
