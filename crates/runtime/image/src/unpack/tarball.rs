//! A streaming tar reader that never trusts the archive: bounded extension headers, verified
//! checksums, GNU and PAX long names, extended attributes, old GNU and PAX 1.0 sparse files.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

const BLOCK: u64 = 512;
const BUFFER: usize = 128 << 10;
/// Long names and PAX records are names and attributes; a megabyte is generous.
const MAX_EXTENSION: u64 = 1 << 20;
const MAX_SPARSE_SEGMENTS: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct Member {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Size of the file once written, holes included.
    pub size: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where stored bytes go: (offset, length).
    segments: Option<Vec<(u64, u64)>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    #[default]
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Char,
    Block,
    Other(u8),
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_version: (Option<u32>, Option<u32>),
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    other_sparse: bool,
}

pub struct TarReader<R> {
    inner: R,
    /// Stored bytes of the current member not read yet.
    left: u64,
    padding: u64,
    global: Pax,
    finished: bool,
    /// For file data; one for all files.
    buffer: Vec<u8>,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        TarReader { inner, left: 0, padding: 0, global: Pax::default(), finished: false, buffer: Vec::new() }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next member; what is left of the previous one is skipped.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        let mut pax = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            if self.finished {
                return Ok(None);
            }
            let Some(header) = self.header()? else {
                self.finished = true;
                return Ok(None);
            };
            let stored = header.entry_size().map_err(|_| bad("malformed size in header"))?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => long_name = Some(until_nul(self.extension(stored)?)),
                EntryType::GNULongLink => long_link = Some(until_nul(self.extension(stored)?)),
                EntryType::XHeader => pax = parse_pax(&self.extension(stored)?)?,
                EntryType::XGlobalHeader => self.global = parse_pax(&self.extension(stored)?)?,
                _ => return self.member(&header, kind, pax, long_name, long_link).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        header: &Header,
        kind: EntryType,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Member> {
        let stored = match pax.size.or(self.global.size) {
            Some(size) => size,
            None => header.entry_size().map_err(|_| bad("malformed size in header"))?,
        };
        let mut member = Member {
            path: pax.path.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned()),
            link: pax
                .link
                .or(long_link)
                .unwrap_or_else(|| header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default()),
            mode: field(&header.as_old().mode, header.mode(), "malformed mode in header")? & 0o7777,
            uid: match pax.uid.or(self.global.uid) {
                Some(uid) => uid,
                None => field(&header.as_old().uid, header.uid(), "malformed uid in header")?,
            },
            gid: match pax.gid.or(self.global.gid) {
                Some(gid) => gid,
                None => field(&header.as_old().gid, header.gid(), "malformed gid in header")?,
            },
            mtime: pax.mtime.or(self.global.mtime).unwrap_or_else(|| header_mtime(header)),
            size: stored,
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: pax.xattrs,
            kind: match kind {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
                EntryType::Directory => Kind::Directory,
                EntryType::Symlink => Kind::Symlink,
                EntryType::Link => Kind::HardLink,
                EntryType::Fifo => Kind::Fifo,
                EntryType::Char => Kind::Char,
                EntryType::Block => Kind::Block,
                other => Kind::Other(other.as_byte()),
            },
            segments: None,
        };
        // Old archives mark a directory by a trailing slash only.
        if member.kind == Kind::File && kind == EntryType::Regular && member.path.ends_with(b"/") {
            member.kind = Kind::Directory;
        }
        if !matches!(member.kind, Kind::File | Kind::Other(_)) && kind != EntryType::Directory {
            // Links and nodes carry no data, whatever their size field says.
            member.size = 0;
            self.set_data(if kind == EntryType::Regular { stored } else { 0 });
            return Ok(member);
        }
        self.set_data(stored);
        if kind == EntryType::GNUSparse {
            self.old_gnu_sparse(header, &mut member)?;
        } else if pax.sparse_version == (Some(1), Some(0)) {
            member.path = pax.sparse_name.unwrap_or(member.path);
            member.size = pax.sparse_size.ok_or_else(|| bad("sparse file without its size"))?;
            member.segments = Some(self.pax_sparse_map()?);
        } else if pax.other_sparse {
            return Err(bad("unsupported sparse format (only GNU old and PAX 1.0 are)"));
        }
        if let Some(segments) = &member.segments {
            check_segments(segments, member.size)?;
        }
        Ok(member)
    }

    /// Calls `write(offset, bytes)` for each stored piece of the current member.
    pub fn copy_data(
        &mut self,
        member: &Member,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let whole = [(0, member.size)];
        let segments: &[(u64, u64)] = member.segments.as_deref().unwrap_or(&whole);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let copied = self.copy_segments(segments, &mut buffer, &mut write);
        self.buffer = buffer;
        copied
    }

    fn copy_segments(
        &mut self,
        segments: &[(u64, u64)],
        buffer: &mut [u8],
        write: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for &(start, length) in segments {
            let (mut offset, mut left) = (start, length);
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let n = self.read(&mut buffer[..want])?;
                if n == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends inside a file"));
                }
                write(offset, &buffer[..n])?;
                offset += n as u64;
                left -= n as u64;
            }
        }
        Ok(())
    }

    fn set_data(&mut self, stored: u64) {
        self.left = stored;
        self.padding = (BLOCK - stored % BLOCK) % BLOCK;
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let skip = self.left.checked_add(self.padding).ok_or_else(|| bad("size overflows"))?;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(skip), &mut io::sink())?;
        // Some writers leave out the padding of the last member.
        if skipped < skip && skip - skipped >= BLOCK {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends inside a file"));
        }
        Ok(())
    }

    /// One header, or `None` at the end: a zero block or the end of the stream.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends inside a header")),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(bad("header checksum does not match; this is not a tar archive or it is damaged"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad("extension header larger than 1 MiB"));
        }
        self.set_data(size);
        let mut bytes = Vec::new();
        (&mut *self).take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends inside an extension header"));
        }
        Ok(bytes)
    }

    fn old_gnu_sparse(&mut self, header: &Header, member: &mut Member) -> io::Result<()> {
        let gnu = header.as_gnu().ok_or_else(|| bad("sparse file in a non-GNU header"))?;
        let mut segments = Vec::new();
        let mut push = |block: &tar::GnuSparseHeader| -> io::Result<()> {
            if !block.is_empty() {
                segments.push((block.offset()?, block.length()?));
            }
            if segments.len() > MAX_SPARSE_SEGMENTS { Err(bad("too many sparse segments")) } else { Ok(()) }
        };
        for block in &gnu.sparse {
            push(block)?;
        }
        let mut more = gnu.is_extended();
        while more {
            // Extension blocks precede the data and are not part of its size.
            let mut ext = GnuExtSparseHeader::new();
            self.inner.read_exact(ext.as_mut_bytes())?;
            for block in &ext.sparse {
                push(block)?;
            }
            more = ext.is_extended();
        }
        member.size = gnu.real_size()?;
        member.segments = Some(segments);
        Ok(())
    }

    /// PAX 1.0: decimal numbers, one a line, padded to a block, at the head of the data.
    fn pax_sparse_map(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut consumed = 0u64;
        let mut number = |reader: &mut Self| -> io::Result<u64> {
            let mut value = 0u64;
            loop {
                let mut byte = [0u8];
                reader.read_exact(&mut byte)?;
                consumed += 1;
                match byte[0] {
                    b'\n' => return Ok(value),
                    d @ b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(d - b'0')))
                            .ok_or_else(|| bad("sparse map overflows"))?;
                    }
                    _ => return Err(bad("malformed sparse map")),
                }
            }
        };
        let count = number(self)?;
        if count > MAX_SPARSE_SEGMENTS as u64 {
            return Err(bad("too many sparse segments"));
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((number(self)?, number(self)?));
        }
        let pad = (BLOCK - consumed % BLOCK) % BLOCK;
        io::copy(&mut (&mut *self).take(pad), &mut io::sink())?;
        Ok(segments)
    }
}

/// Reads the stored bytes of the current member.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        self.left -= n as u64;
        Ok(n)
    }
}

fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

/// A number of the header; some writers leave fields blank and mean zero.
fn field<T: Default>(raw: &[u8], parsed: io::Result<T>, complaint: &str) -> io::Result<T> {
    match parsed {
        Ok(value) => Ok(value),
        Err(_) if raw.iter().all(|b| matches!(b, 0 | b' ')) => Ok(T::default()),
        Err(_) => Err(bad(complaint)),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn header_mtime(header: &Header) -> (i64, u32) {
    (header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0)
}

fn check_segments(segments: &[(u64, u64)], size: u64) -> io::Result<()> {
    let mut end = 0;
    for &(offset, length) in segments {
        let stop = offset.checked_add(length).ok_or_else(|| bad("sparse segment overflows"))?;
        if offset < end || stop > size {
            return Err(bad("sparse segments overlap or reach past the end of the file"));
        }
        end = stop;
    }
    Ok(())
}

fn parse_pax(mut bytes: &[u8]) -> io::Result<Pax> {
    let mut pax = Pax::default();
    while !bytes.is_empty() && bytes[0] != 0 {
        let malformed = || bad("malformed PAX record");
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
        let length: usize =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|n| n.parse().ok()).ok_or_else(malformed)?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &bytes[space + 1..length - 1];
        bytes = &bytes[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], record[equals + 1..].to_vec());
        let number = || -> io::Result<u64> {
            std::str::from_utf8(&value).ok().and_then(|n| n.parse().ok()).ok_or_else(malformed)
        };
        match key {
            b"path" => pax.path = Some(value),
            b"linkpath" => pax.link = Some(value),
            b"size" => pax.size = Some(number()?),
            b"uid" => pax.uid = Some(number()?),
            b"gid" => pax.gid = Some(number()?),
            b"mtime" => pax.mtime = parse_time(&value),
            b"GNU.sparse.major" => pax.sparse_version.0 = u32::try_from(number()?).ok(),
            b"GNU.sparse.minor" => pax.sparse_version.1 = u32::try_from(number()?).ok(),
            b"GNU.sparse.name" => pax.sparse_name = Some(value),
            b"GNU.sparse.realsize" => pax.sparse_size = Some(number()?),
            b"GNU.sparse.map" | b"GNU.sparse.numblocks" | b"GNU.sparse.size" => pax.other_sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    pax.xattrs.push((name.to_vec(), value));
                }
            }
        }
    }
    Ok(pax)
}

/// `-12.5` and friends; the fraction always counts forward.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (text.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds - 1, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}
