//! What programs say they were made of: Go's own note of its modules, and that of `cargo auditable`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dhow_image::{Node, View};
use object::read::elf::{ElfFile32, ElfFile64};
use object::{FileKind, Object, ObjectSection, ReadCache};
use serde::Deserialize;

use super::locks::golang;
use super::{Found, Package, escape};
use crate::copy::At;
use crate::error::Result;

/// Largest note that is read.
const MAX_NOTE: u64 = 16 << 20;
const GO_MAGIC: &[u8] = b"\xff Go buildinf:";

#[derive(Deserialize)]
struct Auditable {
    packages: Vec<Crate>,
}

#[derive(Deserialize)]
struct Crate {
    name: String,
    version: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    kind: String,
}

/// What a program notes.
#[derive(Default)]
struct Notes {
    go: Option<Vec<u8>>,
    rust: Option<Vec<u8>>,
}

impl Found {
    /// Reads a file if it is a program.
    pub fn program(&mut self, view: &View, node: &Node, path: &Path) -> Result<()> {
        let is_program = node.kind() == rustix::fs::FileType::RegularFile && node.stat.st_mode & 0o111 != 0;
        if !is_program {
            return Ok(());
        }
        let mut file = view.file(node).at("look into a program")?;
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() || magic != *b"\x7fELF" {
            return Ok(());
        }
        // A program that cannot be understood says nothing.
        let notes = notes(file).unwrap_or_default();
        let go = notes.go.as_deref().and_then(go).unwrap_or_default();
        let rust = notes.rust.as_deref().and_then(rust).unwrap_or_default();
        self.packages.extend(go.into_iter().chain(rust).map(|(name, version, purl)| Package {
            name,
            version,
            purl,
            found_in: format!("/{}", path.display()),
            ..Package::default()
        }));
        Ok(())
    }
}

fn notes(file: File) -> Option<Notes> {
    let cache = ReadCache::new(file);
    match FileKind::parse(&cache).ok()? {
        FileKind::Elf64 => Some(of(&ElfFile64::<object::Endianness, _>::parse(&cache).ok()?)),
        FileKind::Elf32 => Some(of(&ElfFile32::<object::Endianness, _>::parse(&cache).ok()?)),
        _ => None,
    }
}

fn of<'data>(program: &impl Object<'data>) -> Notes {
    let read = |name: &str| {
        let section = program.section_by_name(name).filter(|section| section.size() <= MAX_NOTE)?;
        section.data().ok().map(<[u8]>::to_vec)
    };
    Notes { go: read(".go.buildinfo"), rust: read(".dep-v0") }
}

type Packages = Vec<(String, String, String)>;

/// The modules of a program that Go 1.18 or later made: their texts stand in the section, each after its length.
fn go(note: &[u8]) -> Option<Packages> {
    const INLINE: u8 = 2;
    if !note.starts_with(GO_MAGIC) || note.get(15)? & INLINE == 0 {
        return None;
    }
    let mut rest = note.get(32..)?;
    let version = String::from_utf8_lossy(text(&mut rest)?).into_owned();
    let modules = text(&mut rest)?;
    // Between two marks of sixteen bytes.
    let modules = modules.get(16..modules.len().checked_sub(16)?)?;
    let mut all = Vec::new();
    if let Some(version) = version.split_ascii_whitespace().next().and_then(|word| word.strip_prefix("go")) {
        all.push(("stdlib".to_owned(), version.to_owned(), golang("stdlib", version)));
    }
    for line in String::from_utf8_lossy(modules).lines() {
        let mut fields = line.split('\t');
        let (Some(kind), Some(name), Some(version)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let found = (name.to_owned(), version.to_owned(), golang(name, version));
        match kind {
            "mod" | "dep" if version != "(devel)" => all.push(found),
            // In the place of the one before.
            "=>" => {
                all.pop();
                all.push(found);
            }
            _ => {}
        }
    }
    Some(all)
}

/// What stands after its length, which is written in sevens of bits.
fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            break;
        }
        shift += 7;
    }
    let (found, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(found)
}

/// The crates of a program: JSON that zlib packed.
fn rust(note: &[u8]) -> Option<Packages> {
    let mut plain = Vec::new();
    flate2::read::ZlibDecoder::new(note).take(MAX_NOTE).read_to_end(&mut plain).ok()?;
    let said: Auditable = serde_json::from_slice(&plain).ok()?;
    let used = said.packages.into_iter().filter(|one| one.kind != "build" && one.source != "local");
    let purl = |one: &Crate| format!("pkg:cargo/{}@{}", escape(&one.name), escape(&one.version));
    Some(used.map(|one| (one.name.clone(), one.version.clone(), purl(&one))).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A program that a distribution made with Go.
    #[test]
    fn programs_are_looked_into() {
        let root = tempfile::tempdir().unwrap();
        let which =
            std::process::Command::new("sh").args(["-c", "readlink -f \"$(command -v skopeo)\""]).output().unwrap();
        let program = String::from_utf8(which.stdout).unwrap();
        std::fs::copy(program.trim(), root.path().join("skopeo")).unwrap();
        std::fs::write(root.path().join("script"), "#!/bin/sh\n").unwrap();
        let found = super::super::find(&View::open(&[root.path().to_owned()]).unwrap()).unwrap();
        let go = found.packages.iter().find(|package| package.name == "stdlib").unwrap();
        assert!(go.purl.starts_with("pkg:golang/stdlib@1.") && go.found_in == "/skopeo", "{go:?}");
    }

    #[test]
    fn notes_are_read() {
        let modules = "path\texample.org/app\nmod\texample.org/app\t(devel)\t\ndep\tgithub.com/a/b\tv1.2.3\th1:x=\n\
            dep\tgithub.com/c/d\tv0.1.0\n=>\tgithub.com/e/f\tv0.2.0\th1:y=\nbuild\t-compiler=gc\n";
        let marked = [&[b'<'; 16], modules.as_bytes(), &[b'>'; 16]].concat();
        let mut note = [GO_MAGIC, &[8, 2], &[0; 16]].concat();
        note.extend([8]);
        note.extend(b"go1.22.1");
        note.extend([u8::try_from(marked.len() & 0x7f).unwrap() | 0x80, u8::try_from(marked.len() >> 7).unwrap()]);
        note.extend(&marked);
        let purls: Vec<String> = go(&note).unwrap().into_iter().map(|(_, _, purl)| purl).collect();
        assert_eq!(
            purls,
            ["pkg:golang/stdlib@1.22.1", "pkg:golang/github.com/a/b@v1.2.3", "pkg:golang/github.com/e/f@v0.2.0"]
        );
        for length in 0..note.len() {
            // Whatever is cut off: nothing, or less.
            let _ = go(&note[..length]);
        }
        let said = r#"{"packages": [{"name": "serde", "version": "1.0.2", "source": "crates.io"},
            {"name": "cc", "version": "1.0.0", "source": "crates.io", "kind": "build"}, {"name": "app", "version": "0.1.0", "source": "local"}]}"#;
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, said.as_bytes()).unwrap();
        let crates = rust(&packed.finish().unwrap()).unwrap();
        assert_eq!(crates, [("serde".to_owned(), "1.0.2".to_owned(), "pkg:cargo/serde@1.0.2".to_owned())]);
        assert!(rust(b"x").is_none());
    }
}
