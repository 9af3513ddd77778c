//! CBOR (RFC 8949) to JSON trees and back, as far as JSON goes: what Kubernetes accepts as `application/cbor`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Number, Value};

use crate::bounds::MAX_DEPTH;

/// Documents begin with the tag "this is CBOR".
const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];
/// Bounds what a small document can make of itself.
const MAX_VALUES: usize = 500_000;

/// Why a document cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unexpected EOF")]
    UnexpectedEof,
    #[error("cbor: {0} bytes of extraneous data")]
    Trailing(usize),
    #[error("cbor: invalid UTF-8 string")]
    Utf8,
    #[error("cbor: map keys must be strings")]
    Key,
    #[error("cbor: duplicate map key")]
    Duplicate,
    #[error("cbor: exceeded max nested level {MAX_DEPTH}")]
    TooDeep,
    #[error("cbor: too many values")]
    TooMany,
    #[error("cbor: value of a type that JSON does not have")]
    Unsupported,
    #[error("cbor: invalid additional information")]
    Malformed,
}

/// One whole document.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let rest = bytes.strip_prefix(&SELF_DESCRIBED).unwrap_or(bytes);
    let mut reader = Reader { rest, depth: 0, values: 0 };
    let value = reader.value()?;
    if reader.rest.is_empty() { Ok(value) } else { Err(Error::Trailing(reader.rest.len())) }
}

struct Reader<'a> {
    rest: &'a [u8],
    depth: usize,
    values: usize,
}

/// A head's argument; `None` means that parts follow until a break.
type Argument = Option<u64>;

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let length = usize::try_from(length).map_err(|_| Error::UnexpectedEof)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::UnexpectedEof)?;
        self.rest = rest;
        Ok(taken)
    }

    fn head(&mut self) -> Result<(u8, u8, Argument), Error> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let argument = match info {
            0..=23 => Some(u64::from(info)),
            24..=27 => {
                let bytes = self.take(1 << (info - 24))?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            }
            31 => None,
            _ => return Err(Error::Malformed),
        };
        Ok((major, info, argument))
    }

    /// Whether the parts of an indefinite item end here.
    fn at_break(&mut self) -> Result<bool, Error> {
        match self.rest.first() {
            None => Err(Error::UnexpectedEof),
            Some(0xff) => {
                self.rest = &self.rest[1..];
                Ok(true)
            }
            Some(_) => Ok(false),
        }
    }

    fn value(&mut self) -> Result<Value, Error> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(Error::TooMany);
        }
        let (major, info, argument) = self.head()?;
        // Lists, maps and tags; a scalar is no level of its own.
        let nests = usize::from((4..=6).contains(&major));
        if self.depth + nests > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        self.depth += nests;
        let value = match (major, argument) {
            (0, Some(number)) => number.into(),
            (1, Some(number)) => i64::try_from(number)
                .map_err(|_| Error::Unsupported)?
                .checked_neg()
                .and_then(|n| n.checked_sub(1))
                .ok_or(Error::Unsupported)?
                .into(),
            // Bytes are base64 in JSON.
            (2, argument) => BASE64.encode(self.bytes(2, argument)?).into(),
            (3, argument) => self.text(argument)?.into(),
            (4, argument) => self.list(argument)?,
            (5, argument) => self.map(argument)?,
            // Tags say how to read what JSON has no type for.
            (6, Some(_)) => self.value()?,
            (7, Some(number)) => simple(info, number)?,
            _ => return Err(Error::Malformed),
        };
        self.depth -= nests;
        Ok(value)
    }

    fn bytes(&mut self, major: u8, argument: Argument) -> Result<Vec<u8>, Error> {
        if let Some(length) = argument {
            return self.take(length).map(<[u8]>::to_vec);
        }
        let mut all = Vec::new();
        while !self.at_break()? {
            let (part, _, length) = self.head()?;
            match length {
                Some(length) if part == major => all.extend_from_slice(self.take(length)?),
                _ => return Err(Error::Malformed),
            }
        }
        Ok(all)
    }

    fn text(&mut self, argument: Argument) -> Result<String, Error> {
        String::from_utf8(self.bytes(3, argument)?).map_err(|_| Error::Utf8)
    }

    /// Whether another of `left` parts follows.
    fn more(&mut self, left: &mut Argument) -> Result<bool, Error> {
        match left {
            None => Ok(!self.at_break()?),
            Some(0) => Ok(false),
            Some(count) => {
                *count -= 1;
                Ok(true)
            }
        }
    }

    fn list(&mut self, mut left: Argument) -> Result<Value, Error> {
        let mut list = Vec::new();
        while self.more(&mut left)? {
            list.push(self.value()?);
        }
        Ok(Value::Array(list))
    }

    fn map(&mut self, mut left: Argument) -> Result<Value, Error> {
        let mut map = Map::new();
        while self.more(&mut left)? {
            // Upstream writes keys as byte strings and reads both.
            let (major, _, argument) = self.head()?;
            let key = match major {
                2 | 3 => String::from_utf8(self.bytes(major, argument)?).map_err(|_| Error::Utf8)?,
                _ => return Err(Error::Key),
            };
            let value = self.value()?;
            if map.insert(key, value).is_some() {
                return Err(Error::Duplicate);
            }
        }
        Ok(Value::Object(map))
    }
}

fn simple(info: u8, number: u64) -> Result<Value, Error> {
    let float = match (info, number) {
        (20, _) => return Ok(false.into()),
        (21, _) => return Ok(true.into()),
        (22, _) => return Ok(Value::Null),
        (25, bits) => half(bits as u16),
        (26, bits) => f64::from(f32::from_bits(bits as u32)),
        (27, bits) => f64::from_bits(bits),
        _ => return Err(Error::Unsupported),
    };
    Number::from_f64(float).map(Value::Number).ok_or(Error::Unsupported)
}

/// A 16-bit float.
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// One whole document.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = SELF_DESCRIBED.to_vec();
    write(&mut bytes, value);
    bytes
}

/// A watch event around an encoded document.
pub fn event(kind: &str, document: &[u8]) -> Vec<u8> {
    let mut bytes = SELF_DESCRIBED.to_vec();
    head(&mut bytes, 5, 2);
    string(&mut bytes, "type");
    string(&mut bytes, kind);
    string(&mut bytes, "object");
    bytes.extend_from_slice(document);
    bytes
}

fn head(bytes: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    let all = argument.to_be_bytes();
    match argument {
        0..=23 => bytes.push(major | argument as u8),
        24..=0xff => bytes.extend_from_slice(&[major | 24, argument as u8]),
        0x100..=0xffff => {
            bytes.push(major | 25);
            bytes.extend_from_slice(&all[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            bytes.push(major | 26);
            bytes.extend_from_slice(&all[4..]);
        }
        _ => {
            bytes.push(major | 27);
            bytes.extend_from_slice(&all);
        }
    }
}

fn write(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => bytes.push(0xf6),
        Value::Bool(flag) => bytes.push(if *flag { 0xf5 } else { 0xf4 }),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => head(bytes, 0, number),
            // -1 - n, as the bits of n inverted.
            (None, Some(number)) => head(bytes, 1, (!number).cast_unsigned()),
            (None, None) => {
                bytes.push(0xfb);
                bytes.extend_from_slice(&number.as_f64().unwrap_or_default().to_be_bytes());
            }
        },
        Value::String(text) => string(bytes, text),
        Value::Array(items) => {
            head(bytes, 4, items.len() as u64);
            items.iter().for_each(|item| write(bytes, item));
        }
        Value::Object(map) => {
            head(bytes, 5, map.len() as u64);
            for (key, value) in map {
                string(bytes, key);
                write(bytes, value);
            }
        }
    }
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    head(bytes, 3, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn documents_survive_the_round() {
        let value = json!({"kind": "Pod", "n": [0, 23, 24, 255, 256, 65536, 4294967296u64, -1, -25, i64::MIN, 1.5, -0.25],
            "t": true, "f": false, "z": null, "s": "ü", "o": {}, "l": []});
        assert_eq!(decode(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn other_writers_are_understood() {
        // {_ "a": [_ 1], h'62': (_ "x", "y"), "h": 1.0 as a half}
        let bytes = b"\xbf\x61a\x9f\x01\xff\x41b\x7f\x61x\x61y\xff\x61h\xf9\x3c\x00\xff";
        assert_eq!(decode(bytes).unwrap(), json!({"a": [1], "b": "xy", "h": 1.0}));
        for (bytes, error) in [
            (&b"\xa1\x01\x02"[..], Error::Key),
            (b"\xa2\x61a\x01\x61a\x02", Error::Duplicate),
            (b"\x01\x02", Error::Trailing(1)),
            (b"\x9a\xff\xff\xff\xff", Error::UnexpectedEof),
            (b"\x61\xff", Error::Utf8),
            (&[0x81; 200], Error::TooDeep),
            (&[0xc1; 200], Error::TooDeep),
            (b"\xf9\x7c\x00", Error::Unsupported),
        ] {
            assert_eq!(decode(bytes).unwrap_err(), error, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
