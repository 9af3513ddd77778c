//! As much of SQLite's file format as it takes to read the rows of a table: an image's database is nothing to run a database over.
//!
//! Whatever a file says, no page is read twice and nothing larger than [`MAX_ROW`] is put together.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Largest row that is read; others are left out.
const MAX_ROW: u64 = 16 << 20;
/// Pages of all that are read.
const MAX_PAGES: usize = 1 << 19;

/// A value of a row, as far as it is wanted here.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    Number(i64),
    Bytes(Vec<u8>),
    Other,
}

pub struct Database {
    file: File,
    page: usize,
    /// Bytes of each page that have content.
    usable: usize,
    seen: BTreeSet<u32>,
}

impl Database {
    /// `None` if it is no such file.
    pub fn open(file: File) -> Option<Self> {
        let mut header = [0; 100];
        file.read_exact_at(&mut header, 0).ok()?;
        let page = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            size => usize::from(size),
        };
        let usable = page.checked_sub(usize::from(header[20]))?;
        let fine = header.starts_with(b"SQLite format 3\0") && page.is_power_of_two() && page >= 512 && usable >= 480;
        fine.then_some(Self { file, page, usable, seen: BTreeSet::new() })
    }

    /// The rows of a table, to `each`; `None` if there is none, or it is damaged.
    pub fn rows(&mut self, table: &str, mut each: impl FnMut(Vec<Value>)) -> Option<()> {
        let mut root = None;
        self.walk(1, &mut |row| {
            // type, name, table, root page, text
            let is =
                |at: usize, text: &str| matches!(row.get(at), Some(Value::Bytes(bytes)) if bytes == text.as_bytes());
            if is(0, "table")
                && is(1, table)
                && let Some(Value::Number(page)) = row.get(3)
            {
                root = u32::try_from(*page).ok();
            }
        })?;
        self.walk(root?, &mut each)
    }

    fn read(&mut self, number: u32) -> Option<Vec<u8>> {
        if number == 0 || self.seen.len() >= MAX_PAGES || !self.seen.insert(number) {
            return None;
        }
        let mut bytes = vec![0; self.page];
        let at = u64::from(number - 1).checked_mul(self.page as u64)?;
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    /// All rows below a page.
    fn walk(&mut self, root: u32, each: &mut dyn FnMut(Vec<Value>)) -> Option<()> {
        let mut todo = vec![root];
        while let Some(number) = todo.pop() {
            let page = self.read(number)?;
            // The first page begins with the file's own header.
            let at = if number == 1 { 100 } else { 0 };
            let cells = usize::from(u16::from_be_bytes([*page.get(at + 3)?, *page.get(at + 4)?]));
            let (inner, list) = match page.get(at)? {
                5 => (true, at + 12),
                13 => (false, at + 8),
                _ => return None,
            };
            let mut below = Vec::new();
            for cell in 0..cells {
                let pointer = page.get(list + 2 * cell..list + 2 * cell + 2)?;
                let start = usize::from(u16::from_be_bytes([pointer[0], pointer[1]]));
                let mut rest = page.get(start..self.usable)?;
                if inner {
                    below.push(number_of(rest)?);
                    continue;
                }
                let size = varint(&mut rest)?;
                varint(&mut rest)?;
                if let Some(row) = self.payload(rest, size)? {
                    each(record(&row)?);
                }
            }
            if inner {
                below.push(number_of(page.get(at + 8..)?)?);
            }
            todo.extend(below.into_iter().rev());
        }
        Some(())
    }

    /// A row's bytes, of which some may be on pages of their own; the inner `None` if they are too many.
    fn payload(&mut self, rest: &[u8], size: u64) -> Option<Option<Vec<u8>>> {
        let largest = self.usable - 35;
        let Ok(size) = usize::try_from(size.min(MAX_ROW + 1)) else { return None };
        if size as u64 > MAX_ROW {
            return Some(None);
        }
        if size <= largest {
            return Some(Some(rest.get(..size)?.to_vec()));
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let here = least + (size - least) % (self.usable - 4);
        let here = if here <= largest { here } else { least };
        let mut all = rest.get(..here)?.to_vec();
        let mut next = number_of(rest.get(here..)?)?;
        while all.len() < size {
            let page = self.read(next)?;
            next = number_of(&page)?;
            let take = (size - all.len()).min(self.usable - 4);
            all.extend_from_slice(page.get(4..4 + take)?);
        }
        Some(Some(all))
    }
}

fn number_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A number of one to nine bytes.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for index in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        if index == 8 {
            return Some(value << 8 | u64::from(*byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(value)
}

/// The values of a row.
fn record(row: &[u8]) -> Option<Vec<Value>> {
    let mut rest = row;
    let header = usize::try_from(varint(&mut rest)?).ok()?;
    let mut kinds = row.get(row.len() - rest.len()..header)?;
    let mut content = row.get(header..)?;
    let mut values = Vec::new();
    while !kinds.is_empty() {
        let kind = varint(&mut kinds)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            text => (text - 12) / 2,
        };
        let (bytes, after) = content.split_at_checked(usize::try_from(length).ok()?)?;
        content = after;
        values.push(match kind {
            8 | 9 => Value::Number(i64::try_from(kind).ok()? - 8),
            1..=6 => {
                let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
                let start = if negative { -1 } else { 0 };
                Value::Number(bytes.iter().fold(start, |sum, byte| sum << 8 | i64::from(*byte)))
            }
            12.. => Value::Bytes(bytes.to_vec()),
            _ => Value::Other,
        });
    }
    Some(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn database(script: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let script = format!("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\n{script}\nc.commit()\n");
        let done = std::process::Command::new("python3").args(["-c", &script]).arg(&path).status().unwrap();
        assert!(done.success());
        (folder, path)
    }

    #[test]
    fn rows_of_all_sizes_are_read() {
        let script = "
c.execute('CREATE TABLE other (a)')
c.execute('CREATE TABLE t (id INTEGER PRIMARY KEY, n, b BLOB)')
for i in range(3000):
    c.execute('INSERT INTO t VALUES (?, ?, ?)', (i, i - 1500, bytes([i % 256]) * (i * 7)))";
        let (_folder, path) = database(script);
        let mut rows = Vec::new();
        Database::open(File::open(&path).unwrap()).unwrap().rows("t", |row| rows.push(row)).unwrap();
        assert_eq!(rows.len(), 3000);
        for (i, row) in rows.iter().enumerate() {
            let n = i64::try_from(i).unwrap() - 1500;
            let bytes = vec![u8::try_from(i % 256).unwrap(); i * 7];
            assert_eq!(row[1..], [Value::Number(n), Value::Bytes(bytes)], "{i}");
        }
        assert!(Database::open(File::open(&path).unwrap()).unwrap().rows("none", |_| ()).is_none());
    }

    #[test]
    fn damaged_files_end() {
        let script = "
c.execute('PRAGMA page_size = 512')
c.execute('CREATE TABLE t (b)')
for i in range(200):
    c.execute('INSERT INTO t VALUES (?)', (b'x' * (i * 11),))";
        let (_folder, path) = database(script);
        let whole = std::fs::read(&path).unwrap();
        let mut seed = 1_u32;
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..8 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = seed as usize % bytes.len();
                bytes[at] = (seed >> 24) as u8;
            }
            std::fs::write(&path, &bytes).unwrap();
            if let Some(mut database) = Database::open(File::open(&path).unwrap()) {
                // Whatever comes of it, it comes to an end.
                let _ = database.rows("t", |_| ());
            }
        }
    }
}
