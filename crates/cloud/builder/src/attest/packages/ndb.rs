//! rpm's own format of a database (`Packages.db`): pages of slots, each of which says where a package's header lies.
//!
//! Whatever a file says, no more is read than it is long.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Slots lie in pages of this, the first of which begins with the file's own header.
const PAGE: usize = 4096;
const HEADER: usize = 32;
const SLOT: usize = 16;
/// What slots count in.
const BLOCK: u64 = 16;
const MAX_PAGES: u32 = 4096;
/// Largest header that is read; others are left out.
const MAX_ROW: u64 = 16 << 20;

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The headers in a file, to `each`; `None` if it is no such file, or damaged.
pub fn headers(file: &File, each: &mut dyn FnMut(&[u8])) -> Option<()> {
    let mut left = file.metadata().ok()?.len();
    let mut head = [0; HEADER];
    file.read_exact_at(&mut head, 0).ok()?;
    let version = number(&head, 4)?;
    let pages = number(&head, 12)?;
    if !head.starts_with(b"RpmP") || version != 0 || pages > MAX_PAGES {
        return None;
    }
    let mut page = [0; PAGE];
    for n in 0..pages {
        file.read_exact_at(&mut page, u64::from(n) * PAGE as u64).ok()?;
        for slot in page[if n == 0 { HEADER } else { 0 }..].chunks_exact(SLOT) {
            if !slot.starts_with(b"Slot") {
                return None;
            }
            let (package, start, blocks) = (number(slot, 4)?, number(slot, 8)?, number(slot, 12)?);
            if start == 0 {
                continue;
            }
            let length = u64::from(blocks) * BLOCK;
            // Slots share nothing, so all of them are no longer than the file.
            left = left.checked_sub(length)?;
            if let Some(header) = blob(file, package, u64::from(start) * BLOCK, length) {
                each(&header);
            }
        }
    }
    Some(())
}

/// A header between what is before and behind it: who it is of and how long it is.
fn blob(file: &File, package: u32, at: u64, length: u64) -> Option<Vec<u8>> {
    const BEFORE: usize = 16;
    const BEHIND: usize = 12;
    let length = usize::try_from(length).ok().filter(|length| *length as u64 <= MAX_ROW)?;
    let mut all = vec![0; length];
    file.read_exact_at(&mut all, at).ok()?;
    let (before, rest) = all.split_at_checked(BEFORE)?;
    let (content, behind) = rest.split_at_checked(rest.len().checked_sub(BEHIND)?)?;
    let size = number(before, 12)?;
    let whole = before.starts_with(b"BlbS") && behind.ends_with(b"BlbE") && number(behind, 4)? == size;
    let content = content.get(..usize::try_from(size).ok()?)?;
    (whole && number(before, 4)? == package).then(|| content.to_vec())
}
