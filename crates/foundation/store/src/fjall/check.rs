//! Looks at the engine's files before the engine does, to name the one that is damaged.
//!
//! The engine notices damage too, but by then it may have cut a journal short or thrown a folder away, and it does not
//! say which file it was. What is checked: `current` of each tree names a manifest and its checksum, the manifest
//! names the tables and theirs, and the batches of the journals carry their own. Layouts are those of fjall 3.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use crate::Error;

/// The engine's own tree and our three. Their numbers depend on how the first start went.
const TREES: usize = 4;
/// Ends every batch of a journal.
const END: &[u8] = b"FJL\x03";

/// Fails on damage. `complete` says that the store was once opened to the end, so every file must be there. Gives the
/// journal whose last batch was never finished, if there is one, cut to the last whole batch.
pub(super) fn check(dir: &Path, complete: bool) -> Result<Option<PathBuf>, Error> {
    let version = dir.join("version");
    match read(&version)? {
        Some(bytes) if bytes.starts_with(END) => {}
        Some(_) => return Err(damaged(&version, "its content makes no sense")),
        None if complete => return Err(missing(&version)),
        None => return Ok(None),
    }
    let trees = dir.join("keyspaces");
    let found = list(&trees)?;
    if complete && found.len() < TREES {
        return Err(missing(&trees.join("*")));
    }
    for tree in found.iter().filter(|path| path.is_dir()) {
        check_tree(tree, complete)?;
    }
    let mut journals = Vec::new();
    for path in list(dir)? {
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let (Some("jnl"), Some(number)) = (path.extension().and_then(|e| e.to_str()), number) {
            journals.push((number, path));
        }
    }
    journals.sort();
    let active = journals.pop();
    for (_, path) in &journals {
        if let Tail::Torn(at) = scan(&load(path)?) {
            return Err(damaged(path, &format!("at byte {at}")));
        }
    }
    let Some((_, path)) = active else { return Ok(None) };
    let bytes = load(&path)?;
    match scan(&bytes) {
        Tail::Whole => Ok(None),
        Tail::Torn(at) if finds_batch(&bytes[at + 1..]) => Err(damaged(&path, &format!("at byte {at}"))),
        // The write that was under way when the power went.
        Tail::Torn(at) => {
            tracing::warn!(journal = %path.display(), at, "the last write was not finished; cutting it off");
            let file = std::fs::File::options().write(true).open(&path).map_err(|e| failed(&path, e))?;
            file.set_len(at as u64).and_then(|()| file.sync_all()).map_err(|e| failed(&path, e))?;
            Ok(Some(path))
        }
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(dir, e)),
    };
    entries.map(|entry| entry.map(|e| e.path()).map_err(|e| failed(dir, e))).collect()
}

fn check_tree(tree: &Path, complete: bool) -> Result<(), Error> {
    let current = tree.join("current");
    let Some(pointer) = read(&current)? else {
        return if complete { Err(missing(&current)) } else { Ok(()) };
    };
    let (Some(id), Some(checksum)) = (number::<8>(&pointer, 0), number::<16>(&pointer, 8)) else {
        return Err(damaged(&current, "it is too short"));
    };
    let manifest = tree.join(format!("v{id}"));
    let Some(bytes) = read(&manifest)? else { return Err(missing(&manifest)) };
    if hash(&bytes[..]).map_err(|e| failed(&manifest, e))? != checksum {
        return Err(damaged(&manifest, &format!("it does not match its checksum in {}", current.display())));
    }
    for (id, checksum) in tables(&bytes).ok_or_else(|| damaged(&manifest, "its list of tables makes no sense"))? {
        let table = tree.join("tables").join(id.to_string());
        let file = match std::fs::File::open(&table) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(missing(&table)),
            Err(e) => return Err(failed(&table, e)),
        };
        if hash(file).map_err(|e| failed(&table, e))? != checksum {
            return Err(damaged(&table, "it does not match its checksum"));
        }
    }
    Ok(())
}

/// Number and checksum of each table a manifest names.
fn tables(manifest: &[u8]) -> Option<Vec<(u128, u128)>> {
    let archive = sfa::Reader::from_reader(&mut std::io::Cursor::new(manifest)).ok()?;
    let section = archive.toc().section(b"tables")?;
    let (start, length) = (usize::try_from(section.pos()).ok()?, usize::try_from(section.len()).ok()?);
    let mut bytes = manifest.get(start..start.checked_add(length)?)?;
    let mut take = |n: usize| {
        let (head, rest) = bytes.split_at_checked(n)?;
        bytes = rest;
        Some(head.iter().rev().fold(0u128, |all, byte| all << 8 | u128::from(*byte)))
    };
    let mut found = Vec::new();
    for _level in 0..take(1)? {
        for _run in 0..take(1)? {
            for _table in 0..take(4)? {
                let id = take(8)?;
                let _kind_of_checksum = take(1)?;
                found.push((id, take(16)?));
                let _sequence_number = take(8)?;
            }
        }
    }
    Some(found)
}

enum Tail {
    Whole,
    /// The batch at this offset is not whole.
    Torn(usize),
}

fn scan(journal: &[u8]) -> Tail {
    let mut at = 0;
    while at < journal.len() {
        match batch(&journal[at..]) {
            Some(length) => at += length,
            None => return Tail::Torn(at),
        }
    }
    Tail::Whole
}

/// Whether a whole batch begins anywhere: then what is before it was not the end of the journal.
fn finds_batch(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| bytes[at] == 1 && batch(&bytes[at..]).is_some())
}

/// Length of the batch that begins here, if it is whole: start, items or clearings, end with the checksum of those.
fn batch(bytes: &[u8]) -> Option<usize> {
    if *bytes.first()? != 1 {
        return None;
    }
    let items: u32 = number::<4>(bytes, 1)?.try_into().ok()?;
    let mut at = 13;
    for _ in 0..items {
        at += match *bytes.get(at)? {
            2 => {
                let key: usize = number::<2>(bytes, at + 11)?.try_into().ok()?;
                let value: usize = number::<4>(bytes, at + 17)?.try_into().ok()?;
                21 + key + value
            }
            4 => 9,
            _ => return None,
        };
        if at > bytes.len() {
            return None;
        }
    }
    let end = bytes.get(at..at + 13)?;
    let mut hasher = Xxh3Default::new();
    hasher.update(&bytes[13..at]);
    let whole = end[0] == 3 && &end[9..] == END && number::<8>(end, 1)? == u128::from(hasher.digest());
    whole.then_some(at + 13)
}

/// A journal up to its last byte that is not zero; the rest is space set aside.
fn load(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = std::fs::read(path).map_err(|e| failed(path, e))?;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    Ok(bytes)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u128> {
    let bytes = bytes.get(at..at + N)?;
    Some(bytes.iter().rev().fold(0, |all, byte| all << 8 | u128::from(*byte)))
}

fn hash(mut from: impl Read) -> std::io::Result<u128> {
    let mut hasher = Xxh3Default::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hasher.digest128()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(path, e)),
    }
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    Error::Backend { context: format!("read {}", path.display()), source: source.into() }
}

fn damaged(path: &Path, how: &str) -> Error {
    let message = format!("the file is damaged ({how}); restore the store from a backup");
    Error::Corrupt { path: path.display().to_string(), message }
}

fn missing(path: &Path) -> Error {
    let message = "the file is missing; restore the store from a backup".to_owned();
    Error::Corrupt { path: path.display().to_string(), message }
}
