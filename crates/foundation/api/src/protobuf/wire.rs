//! The wire format: tags, varints, lengths.

use super::Error;

/// Groups within groups that are skipped at most.
const MAX_GROUPS: usize = 32;

/// Walks over one message's fields. Never reads beyond its slice, never allocates.
pub struct Reader<'a> {
    rest: &'a [u8],
    message: &'a str,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], message: &'a str) -> Self {
        Self { rest: bytes, message }
    }

    /// The next field's number and wire type; `None` at the end.
    pub fn tag(&mut self) -> Result<Option<(u32, u8)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let (number, wire) = (tag >> 3, (tag & 7) as u8);
        match u32::try_from(number) {
            Ok(number) if number > 0 && number < 1 << 29 => Ok(Some((number, wire))),
            _ => Err(Error::IllegalTag { message: self.message.to_owned(), number, wire }),
        }
    }

    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for index in 0..10 {
            let (byte, rest) = self.rest.split_first().ok_or(Error::UnexpectedEof)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Overflow)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        if length > self.rest.len() {
            return Err(Error::UnexpectedEof);
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    fn expect(&self, wire: u8, wanted: u8, field: &str) -> Result<(), Error> {
        if wire == wanted { Ok(()) } else { Err(Error::WrongWireType { wire, field: field.to_owned() }) }
    }

    pub fn number(&mut self, wire: u8, field: &str) -> Result<i64, Error> {
        self.expect(wire, 0, field)?;
        // Two's complement, also for negative 32-bit numbers.
        Ok(self.varint()?.cast_signed())
    }

    pub fn double(&mut self, wire: u8, field: &str) -> Result<f64, Error> {
        self.expect(wire, 1, field)?;
        let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| Error::UnexpectedEof)?;
        Ok(f64::from_le_bytes(bytes))
    }

    pub fn bytes(&mut self, wire: u8, field: &str) -> Result<&'a [u8], Error> {
        self.expect(wire, 2, field)?;
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Error::UnexpectedEof)?)
    }

    pub fn string(&mut self, wire: u8, field: &str) -> Result<String, Error> {
        let bytes = self.bytes(wire, field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Error::Value(format!("field {field} contains invalid UTF-8"))),
        }
    }

    /// Passes over a value.
    pub fn skip(&mut self, wire: u8) -> Result<(), Error> {
        let mut groups = 0usize;
        let mut wire = wire;
        loop {
            match wire {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let length = self.varint()?;
                    self.take(usize::try_from(length).map_err(|_| Error::UnexpectedEof)?)?;
                }
                3 if groups == MAX_GROUPS => return Err(Error::TooDeep),
                3 => groups += 1,
                4 if groups == 0 => return Err(Error::EndOfGroup),
                4 => groups -= 1,
                5 => drop(self.take(4)?),
                other => return Err(Error::IllegalWireType(other)),
            }
            if groups == 0 {
                return Ok(());
            }
            wire = self.tag()?.ok_or(Error::UnexpectedEof)?.1;
        }
    }
}

/// Appends fields to a message.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn with_capacity(size: usize) -> Self {
        Self(Vec::with_capacity(size))
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, number: u32, wire: u8) {
        self.varint(u64::from(number) << 3 | u64::from(wire));
    }

    pub fn number(&mut self, number: u32, value: i64) {
        self.tag(number, 0);
        self.varint(value.cast_unsigned());
    }

    pub fn double(&mut self, number: u32, value: f64) {
        self.tag(number, 1);
        self.raw(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, number: u32, value: &[u8]) {
        self.tag(number, 2);
        self.varint(value.len() as u64);
        self.raw(value);
    }

    pub fn string(&mut self, number: u32, value: &str) {
        self.bytes(number, value.as_bytes());
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}
