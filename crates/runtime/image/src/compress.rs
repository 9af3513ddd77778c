//! Layers and archives come plain, gzipped or in zstd; the bytes tell, media types lie.

use std::io::{self, BufReader, Read};

/// Reads what is in it.
pub fn decompress<'a>(mut reader: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = [0u8; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match reader.read(&mut magic[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let head = magic[..filled].to_vec();
    let whole = io::Cursor::new(head).chain(reader);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(
            128 << 10,
            flate2::read::MultiGzDecoder::new(BufReader::with_capacity(128 << 10, whole)),
        )),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(BufReader::with_capacity(128 << 10, zstd::stream::read::Decoder::new(whole)?))
        }
        [b'B', b'Z', b'h', _] => return Err(unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X'] => return Err(unsupported("xz")),
        _ => Box::new(BufReader::with_capacity(128 << 10, whole)),
    })
}

fn unsupported(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{name} compression is not supported; use gzip or zstd"))
}
