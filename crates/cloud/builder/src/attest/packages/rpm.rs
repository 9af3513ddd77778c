//! What rpm's database lists: one row of a table for each package, its header as packages have it.

use std::path::Path;

use dhow_image::View;

use super::sqlite::{Database, Value};
use super::{Found, Package, escape};
use crate::copy::At;
use crate::error::Result;

/// Where distributions keep it.
const PLACES: [&str; 3] =
    ["var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite", "usr/share/rpm/rpmdb.sqlite"];
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
        for place in PLACES {
            let at = view.resolve(Path::new(place), true).at("look for packages")?;
            let Some(node) = view.lstat(&at).at("look for packages")? else { continue };
            if node.kind() != rustix::fs::FileType::RegularFile {
                continue;
            }
            let Some(mut database) = Database::open(view.file(&node).at("open rpm's database")?) else { continue };
            // One that is damaged is read as far as it goes.
            let _ = database.rows("Packages", |row| {
                let header = row.iter().find_map(|value| match value {
                    Value::Bytes(bytes) => Header::parse(bytes),
                    _ => None,
                });
                let package = header.and_then(|header| self.of_header(&header, vendor, place));
                self.packages.extend(package);
            });
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
    use std::process::Command;

    use super::super::find;
    use super::*;

    /// A database of rpm's own making, with packages of its own.
    #[test]
    fn what_rpm_installed_is_found() {
        let root = tempfile::tempdir().unwrap();
        let script = r#"
cd "$1"; mkdir -p tree/etc tree/var/lib/rpm; printf 'ID=fedora\nVERSION_ID=40\n' > tree/etc/os-release
for n in one two; do
    printf 'Name: %s\nVersion: 1.2\nRelease: 3.fc40\nSummary: s\nLicense: MIT\nVendor: Dhow\nBuildArch: noarch\n' $n > $n.spec
    test $n = one || echo 'Epoch: 2' >> $n.spec
    printf '%%description\nd\n%%files\n' >> $n.spec
    rpmbuild --quiet --define "_topdir $1/build" -bb $n.spec
done
rpm --root "$1/tree" --dbpath /var/lib/rpm --define '_db_backend sqlite' --nodeps --ignorearch -i build/RPMS/noarch/*.rpm
"#;
        let path = root.path().display().to_string();
        let done = Command::new("sh").args(["-euc", script, "sh", &path]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let found = find(&View::open(&[root.path().join("tree")]).unwrap()).unwrap();
        let seen: Vec<_> = found.packages.iter().map(|one| (one.version.as_str(), one.purl.as_str())).collect();
        let purl = |name: &str, epoch: &str| {
            format!(
                "pkg:rpm/fedora/{name}@1.2-3.fc40?arch=noarch&distro=fedora-40{epoch}&upstream={name}-1.2-3.fc40.src.rpm"
            )
        };
        assert_eq!(seen, [("1.2-3.fc40", purl("one", "").as_str()), ("2:1.2-3.fc40", &purl("two", "&epoch=2"))]);
        let one = found.packages.first().unwrap();
        assert_eq!((one.license.as_deref(), one.supplier.as_deref()), (Some("MIT"), Some("Dhow")));
    }
}
