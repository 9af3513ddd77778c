//! CBOR (RFC 8949) as signatures are written in it: definite lengths, no floating point.

/// Deeper is no signature.
const MAX_DEPTH: usize = 16;
/// More values are no signature; each takes far more room than its byte.
const MAX_VALUES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Integer(i128),
    Bytes(&'a [u8]),
    Text(&'a str),
    Array(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    Tag(u64, Box<Value<'a>>),
    /// `false`, `true`, `null` and the like, by their number.
    Simple(u8),
}

impl<'a> Value<'a> {
    pub fn bytes(&self) -> Option<&'a [u8]> {
        if let Value::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    pub fn text(&self) -> Option<&'a str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    pub fn integer(&self) -> Option<i128> {
        if let Value::Integer(integer) = self { Some(*integer) } else { None }
    }

    pub fn array(&self) -> Option<&[Value<'a>]> {
        if let Value::Array(items) = self { Some(items) } else { None }
    }
}

/// The one value that `bytes` are.
///
/// # Errors
/// When they are malformed, or anything follows.
pub(super) fn decode(bytes: &[u8]) -> Result<Value<'_>, String> {
    let mut reader = Reader { rest: bytes, values: 0 };
    let value = reader.value(0).ok_or("it is no CBOR that signatures are written in")?;
    if reader.rest.is_empty() { Ok(value) } else { Err("something follows the end of it".to_owned()) }
}

/// The head of a byte string or an array of this length.
pub(super) fn head(major: u8, length: usize) -> Vec<u8> {
    let major = major << 5;
    match length {
        0..24 => vec![major | length as u8],
        24..0x100 => vec![major | 24, length as u8],
        0x100..0x1_0000 => [&[major | 25][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[major | 27][..], &(length as u64).to_be_bytes()].concat(),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    values: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn value(&mut self, depth: usize) -> Option<Value<'a>> {
        let first = *self.take(1)?.first()?;
        let (major, short) = (first >> 5, first & 31);
        let argument = match short {
            0..=23 => u64::from(short),
            // 28 to 31 are reserved or mean a length that is not told.
            24..=27 => self.take(1 << (short - 24))?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            _ => return None,
        };
        self.values += 1;
        if depth > MAX_DEPTH || self.values > MAX_VALUES {
            return None;
        }
        // A length is what somebody says: nothing is set aside for it.
        Some(match major {
            0 => Value::Integer(i128::from(argument)),
            1 => Value::Integer(-1 - i128::from(argument)),
            2 => Value::Bytes(self.take(argument)?),
            3 => Value::Text(std::str::from_utf8(self.take(argument)?).ok()?),
            4 => Value::Array((0..argument).map(|_| self.value(depth + 1)).collect::<Option<_>>()?),
            5 => {
                let pair = |_| Some((self.value(depth + 1)?, self.value(depth + 1)?));
                Value::Map((0..argument).map(pair).collect::<Option<_>>()?)
            }
            6 => Value::Tag(argument, Box::new(self.value(depth + 1)?)),
            _ if short < 24 => Value::Simple(short),
            _ => return None,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_of_the_specification() {
        // Appendix A of RFC 8949.
        let cases: [(&[u8], Value<'_>); 8] = [
            (&[0x18, 0x64], Value::Integer(100)),
            (&[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Value::Integer(u64::MAX.into())),
            (&[0x39, 0x03, 0xe7], Value::Integer(-1000)),
            (&[0x44, 1, 2, 3, 4], Value::Bytes(&[1, 2, 3, 4])),
            (&[0x63, 0xe6, 0xb0, 0xb4], Value::Text("水")),
            (&[0x82, 0x01, 0x80], Value::Array(vec![Value::Integer(1), Value::Array(vec![])])),
            (&[0xa1, 0x61, 0x61, 0xf5], Value::Map(vec![(Value::Text("a"), Value::Simple(21))])),
            (&[0xc1, 0x1a, 0x51, 0x4b, 0x67, 0xb0], Value::Tag(1, Box::new(Value::Integer(1_363_896_240)))),
        ];
        for (bytes, value) in cases {
            assert_eq!(decode(bytes).unwrap(), value);
        }
        // Indefinite, too short, too much, numbers that are none, and nothing.
        let bad: [&[u8]; 7] = [&[0x9f, 0xff], &[0x44, 1], &[0x01, 0x02], &[0xf9, 0, 0], &[0x1c], &[0x61, 0xff], &[]];
        for bytes in bad {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
        assert!(decode(&[0x81; 100_000]).is_err());
        let many = [&[0x99, 0xff, 0xff][..], &[0; 0xffff]].concat();
        assert!(decode(&many).is_err());
        assert!(decode(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_head_is_read_as_it_was_written(length in 0usize..70_000) {
            let mut bytes = head(2, length);
            bytes.resize(bytes.len() + length, 7);
            prop_assert_eq!(decode(&bytes).unwrap().bytes().unwrap().len(), length);
        }
    }
}
