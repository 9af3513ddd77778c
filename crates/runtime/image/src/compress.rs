//! Layers and archives come plain or packed with gzip, zstd, bzip2 or xz; the bytes tell, media types lie.

use std::io::{self, BufReader, Read};

/// What unpacking an xz stream may take; its packer chose how much that is.
const XZ_MEMORY_KIB: u32 = 256 << 10;
const BUFFER: usize = 128 << 10;

/// Whether something begins as what [`decompress`] unpacks does.
pub fn is_packed(head: &[u8]) -> bool {
    Packing::of(head) != Packing::None
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Packing {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Packing::Bzip2,
            [0xfd, b'7', b'z', b'X', ..] => Packing::Xz,
            _ => Packing::None,
        }
    }
}

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
    let packing = Packing::of(&head);
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(head).chain(reader));
    let plain: Box<dyn Read + Send + 'a> = match packing {
        Packing::None => return Ok(Box::new(whole)),
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY_KIB)),
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER, plain)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn pack(program: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let feeding = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let packed = child.wait_with_output().unwrap().stdout;
        feeding.join().unwrap();
        packed
    }

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        decompress(bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn what_others_packed_is_unpacked() {
        let text: Vec<u8> = (0..200_000u32).flat_map(|n| (n % 1000 * n).to_le_bytes()).collect();
        for (program, args) in
            [("gzip", &["-c"][..]), ("bzip2", &["-c"]), ("xz", &["-c"]), ("xz", &["-c", "-9", "--check=sha256"])]
        {
            let packed = pack(program, args, &text);
            assert!(is_packed(&packed) && packed.len() < text.len(), "{program}");
            assert!(unpack(&packed).unwrap() == text, "{program}");
            // Several of them are read as one.
            assert!(unpack(&[packed.clone(), packed.clone()].concat()).unwrap().len() == 2 * text.len(), "{program}");
            assert!(unpack(&packed[..packed.len() / 2]).is_err(), "{program}, cut off");
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x55;
            assert!(unpack(&damaged).is_err(), "{program}, damaged");
        }
        assert!(unpack(b"plain").unwrap() == b"plain" && !is_packed(b"plain") && !is_packed(b""));
    }

    #[test]
    fn an_xz_stream_does_not_take_all_memory() {
        let packed = pack("xz", &["-c", "--lzma2=dict=1GiB"], b"small");
        let refused = unpack(&packed).unwrap_err().to_string();
        assert!(refused.contains("memory"), "{refused}");
    }
}
