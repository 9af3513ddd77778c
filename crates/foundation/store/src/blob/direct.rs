//! Writes past the kernel's memory.
//!
//! What comes in large is read again much later or never. Kept in memory it would push out what programs of the machine
//! use, and each of its pages costs the processor more than the way to disk does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::{Buf, Bytes};
use rustix::fs::OFlags;

/// What begins and ends at multiples of this can be written so on every file system that takes such writes.
pub(super) const BLOCK: u64 = 4096;
/// One write.
const ROOM: usize = 1 << 20;

pub(super) struct Direct {
    file: File,
    /// Bytes on their way, from where they are aligned.
    room: Vec<u8>,
    start: usize,
}

impl Direct {
    /// # Errors
    /// When the file system takes no such writes.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        let room = vec![0; ROOM + BLOCK as usize];
        let start = room.as_ptr().align_offset(BLOCK as usize);
        Ok(Self { file, room, start })
    }

    /// Writes what begins at `at`; that and its length are whole blocks.
    pub fn write(&mut self, pieces: &[Bytes], mut at: u64) -> io::Result<()> {
        let room = self.room.get_mut(self.start..self.start + ROOM).ok_or(io::ErrorKind::InvalidInput)?;
        let mut filled = 0;
        for piece in pieces {
            let mut piece = &piece[..];
            while !piece.is_empty() {
                let taken = piece.len().min(ROOM - filled);
                room[filled..filled + taken].copy_from_slice(&piece[..taken]);
                piece.advance(taken);
                filled += taken;
                if filled == ROOM {
                    self.file.write_all_at(room, at)?;
                    at += ROOM as u64;
                    filled = 0;
                }
            }
        }
        self.file.write_all_at(&room[..filled], at)
    }
}

/// Cuts pieces in two: the first `length` bytes and the rest.
pub(super) fn cut(pieces: Vec<Bytes>, length: u64) -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut first, mut rest, mut left) = (Vec::with_capacity(pieces.len()), Vec::new(), length);
    for mut piece in pieces {
        let taken = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= taken as u64;
        if taken > 0 {
            first.push(piece.split_to(taken));
        }
        if !piece.is_empty() {
            rest.push(piece);
        }
    }
    (first, rest)
}
