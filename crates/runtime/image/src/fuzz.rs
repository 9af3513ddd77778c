//! Parsers against what nobody would write: no panic, no endless loop, and what is accepted means one thing.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use proptest::prelude::*;

use crate::manifest::{Document, Platform};
use crate::unpack::tarball::{Kind, TarReader};
use crate::{Limits, Reference, unpack};

/// A small archive of the kinds of entries there are, to be damaged.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, path, link, data) in [
        (tar::EntryType::Directory, "dir", "", &b""[..]),
        (tar::EntryType::Regular, "dir/file", "", b"some data"),
        (tar::EntryType::Link, "dir/hard", "dir/file", b""),
        (tar::EntryType::Symlink, "link", "dir", b""),
        (tar::EntryType::Regular, "dir/.wh.gone", "", b""),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        tar.append_data(&mut header, path, data).unwrap();
    }
    tar.append_pax_extensions([("path", &b"long/name"[..]), ("SCHILY.xattr.user.x", b"y")]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    tar.append_data(&mut header, "short", &b"1"[..]).unwrap();
    tar.into_inner().unwrap()
}

/// Makes a header's checksum right again, so that damage gets past it.
fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn references_parse_to_what_they_print(text in "[a-zA-Z0-9._:/@\\[\\]-]{0,80}|\\PC{0,40}") {
        if let Ok(reference) = Reference::parse(&text) {
            let printed = reference.to_string();
            prop_assert_eq!(Reference::parse(&printed).unwrap(), reference);
            prop_assert!(!printed.contains("..") && !printed.contains("//"), "{}", printed);
        }
    }

    #[test]
    fn manifests_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        keys in proptest::collection::vec(
            prop_oneof![
                Just(r#""schemaVersion":2"#), Just(r#""schemaVersion":-1"#), Just(r#""manifests":[]"#),
                Just(r#""layers":[]"#), Just(r#""layers":[{"digest":"sha256:x","size":1}]"#), Just(r#""config":{}"#),
                Just(r#""manifests":[{"digest":"","size":-5}]"#), Just(r#""mediaType":7"#), Just(r#""layers":null"#),
            ],
            0..6,
        ),
    ) {
        let _ = Document::parse("fuzz", "", &bytes);
        let text = format!("{{{}}}", keys.join(","));
        if let Ok(Document::Index(index)) = Document::parse("fuzz", "", text.as_bytes()) {
            let _ = Platform::host().select(&index.manifests);
        }
    }

    #[test]
    fn archives_are_read_or_refused(noise in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut reader = TarReader::new(Cursor::new(noise));
        while let Ok(Some(_)) = reader.next_member() {}
    }

    #[test]
    fn damaged_archives_stay_inside(
        edits in proptest::collection::vec((0usize..8192, any::<u8>()), 1..12),
        cut in 0usize..8192,
        sealed in any::<bool>(),
    ) {
        let mut bytes = archive();
        for (at, value) in edits {
            let at = at % bytes.len();
            bytes[at] = value;
            if sealed {
                let start = at / 512 * 512;
                seal(&mut bytes[start..start + 512]);
            }
        }
        bytes.truncate(bytes.len() - cut % 512);
        let mut reader = TarReader::new(Cursor::new(&bytes));
        let mut seen = 0;
        while let Ok(Some(member)) = reader.next_member() {
            seen += 1;
            prop_assert!(seen < 100);
            if member.kind == Kind::File && member.size < 1 << 20 {
                let _ = reader.copy_data(&member, |_, _| Ok(()));
            }
        }
        let outer = tempfile::tempdir().unwrap();
        let inside = outer.path().join("layer");
        std::fs::create_dir(&inside).unwrap();
        let limits = Limits { entries: 1000, bytes: 1 << 24, ..Limits::default() };
        let _ = unpack(Cursor::new(&bytes), &inside, &[], "fuzz", &limits);
        prop_assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
    }
}
