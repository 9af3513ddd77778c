//! As much of Berkeley DB's file format as it takes to read the values of a hash (`Packages`), as rpm used to have it.
//!
//! Whatever a file says, no page is read twice and nothing larger than [`MAX_ROW`] is put together.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Largest value that is read; others are left out.
const MAX_ROW: usize = 16 << 20;
const MAX_PAGES: u32 = 1 << 19;

const MAGIC: u32 = 0x0006_1561;
/// Where a page's own header ends.
const HEADER: usize = 26;

// Types of pages.
const UNSORTED: u8 = 2;
const OVERFLOW: u8 = 7;
const META: u8 = 8;
const HASH: u8 = 13;

// Types of items.
const HERE: u8 = 1;
const ELSEWHERE: u8 = 3;

struct Database<'a> {
    file: &'a File,
    page: usize,
    big_endian: bool,
    seen: BTreeSet<u32>,
}

/// The values in a file, to `each`; `None` if it is no such file, or damaged.
pub fn values(file: &File, each: &mut dyn FnMut(&[u8])) -> Option<()> {
    let mut meta = [0; 72];
    file.read_exact_at(&mut meta, 0).ok()?;
    let mut database = Database { file, page: 0, big_endian: false, seen: BTreeSet::new() };
    if database.long(&meta, 12)? != MAGIC {
        database.big_endian = true;
    }
    database.page = usize::try_from(database.long(&meta, 20)?).ok()?;
    let (encrypted, kind) = (meta[24] != 0, meta[25]);
    let sized = database.page.is_power_of_two() && (512..=65536).contains(&database.page);
    if database.long(&meta, 12)? != MAGIC || encrypted || kind != META || !sized {
        return None;
    }
    let last = database.long(&meta, 32)?;
    for number in 1..=last.min(MAX_PAGES) {
        // Those of larger values are read with these.
        if database.seen.contains(&number) {
            continue;
        }
        let page = database.read(number)?;
        if matches!(page.get(25), Some(&(UNSORTED | HASH))) {
            database.seen.insert(number);
            database.items(&page, each)?;
        }
    }
    Some(())
}

impl Database<'_> {
    fn long(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn short(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }))
    }

    fn read(&self, number: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.page];
        self.file.read_exact_at(&mut bytes, u64::from(number) * self.page as u64).ok()?;
        Some(bytes)
    }

    /// Keys and values take turns; each ends where the one before it begins.
    fn items(&mut self, page: &[u8], each: &mut dyn FnMut(&[u8])) -> Option<()> {
        let mut end = page.len();
        for n in 0..self.short(page, 20)? {
            let start = self.short(page, HEADER + 2 * n)?;
            let item = page.get(start..end)?;
            end = start;
            if n % 2 == 0 {
                continue;
            }
            match *item.first()? {
                HERE => each(&item[1..]),
                ELSEWHERE => {
                    let (first, length) = (self.long(item, 4)?, self.long(item, 8)?);
                    if let Some(bytes) = self.overflow(first, usize::try_from(length).ok()?) {
                        each(&bytes);
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// A value over several pages, each of which names the next.
    fn overflow(&mut self, first: u32, length: usize) -> Option<Vec<u8>> {
        if length > MAX_ROW {
            return None;
        }
        let (mut bytes, mut next) = (Vec::new(), first);
        while next != 0 && bytes.len() < length {
            if !self.seen.insert(next) {
                return None;
            }
            let page = self.read(next)?;
            if page.get(25) != Some(&OVERFLOW) {
                return None;
            }
            let filled = self.short(&page, 22)?;
            bytes.extend_from_slice(page.get(HEADER..HEADER + filled)?);
            next = self.long(&page, 16)?;
        }
        (bytes.len() == length).then_some(bytes)
    }
}
