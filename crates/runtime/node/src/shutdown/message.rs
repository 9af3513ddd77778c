//! D-Bus messages as bytes: what is sent is built from texts, numbers and yes or no; of what comes, the header and the
//! first value of the body are read. Little-endian only: those we talk to are on this machine.

use std::os::fd::OwnedFd;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Call,
    Return,
    Error,
    Signal,
}

/// A message that came.
#[derive(Debug)]
pub struct Message {
    pub kind: Kind,
    pub reply_to: Option<u32>,
    pub interface: Option<String>,
    pub member: Option<String>,
    pub error: Option<String>,
    pub file_count: usize,
    pub files: Vec<OwnedFd>,
    signature: String,
    body: Vec<u8>,
}

/// The first value of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
    Flag(bool),
}

/// Arguments of a call.
#[derive(Debug, Default)]
pub struct Outgoing {
    signature: String,
    body: Vec<u8>,
}

/// The longest header or body that is read.
const MAX_PART: usize = 1 << 20;

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

impl Outgoing {
    pub fn texts(texts: &[&str]) -> Self {
        texts.iter().fold(Self::default(), |body, text| body.text(text))
    }

    pub fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        put_text(&mut self.body, text);
        self
    }

    pub fn signed(mut self, number: i32) -> Self {
        self.signature.push('i');
        pad(&mut self.body, 4);
        self.body.extend(number.to_le_bytes());
        self
    }

    /// The whole call.
    pub fn call(&self, serial: u32, target: (&str, &str, &str), member: &str) -> Vec<u8> {
        let (destination, path, interface) = target;
        let mut fields = Vec::new();
        for (code, kind, text) in [(1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", destination)] {
            pad(&mut fields, 8);
            fields.extend([code, 1]);
            fields.extend(kind.as_bytes());
            fields.push(0);
            put_text(&mut fields, text);
        }
        if !self.signature.is_empty() {
            pad(&mut fields, 8);
            fields.extend([8, 1, b'g', 0, u8::try_from(self.signature.len()).unwrap_or(u8::MAX)]);
            fields.extend(self.signature.as_bytes());
            fields.push(0);
        }
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut message = vec![b'l', 1, 0, 1];
        message.extend(length(&self.body));
        message.extend(serial.to_le_bytes());
        message.extend(length(&fields));
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(&self.body);
        message
    }
}

/// Reads values where they have to begin.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) -> Option<()> {
        let next = self.at.checked_next_multiple_of(to)?;
        (next <= self.bytes.len()).then(|| self.at = next)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4)?;
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        (self.byte()? == 0).then_some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?.to_owned();
        (self.byte()? == 0).then_some(text)
    }

    /// One value of this type, of the types that answers have here.
    fn value(&mut self, kind: char) -> Option<Value> {
        Some(match kind {
            's' | 'o' => Value::Text(self.text()?),
            'g' => Value::Text(self.signature()?),
            'b' => Value::Flag(self.number()? != 0),
            'u' | 'h' => Value::Number(self.number()?.into()),
            't' => {
                self.align(8)?;
                Value::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
            }
            'v' => {
                let signature = self.signature()?;
                // A variant in a variant is not among them.
                self.value(signature.chars().next().filter(|kind| *kind != 'v')?)?
            }
            _ => return None,
        })
    }
}

impl Message {
    /// The message that the bytes begin with, and its length; `None` if it is not all there.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let Some(start) = bytes.get(..16) else { return Ok(None) };
        if start[0] != b'l' || start[3] != 1 {
            return Err("a message of the bus is of an unknown form".to_owned());
        }
        let kind = match start[1] {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            other => return Err(format!("a message of the bus is of an unknown kind {other}")),
        };
        let length = |at: usize| {
            let four = start[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
            usize::try_from(four).ok().filter(|length| *length <= MAX_PART).ok_or("a message of the bus is too long")
        };
        let (body, fields) = (length(4)?, length(12)?);
        let body_at = (16 + fields).next_multiple_of(8);
        if bytes.len() < body_at + body {
            return Ok(None);
        }
        let mut message = Self {
            kind,
            reply_to: None,
            interface: None,
            member: None,
            error: None,
            file_count: 0,
            files: Vec::new(),
            signature: String::new(),
            body: bytes[body_at..body_at + body].to_vec(),
        };
        let mut reader = Reader { bytes: &bytes[..16 + fields], at: 16 };
        while reader.at < 16 + fields {
            message.field(&mut reader).ok_or("a header of the bus cannot be read")?;
        }
        Ok(Some((message, body_at + body)))
    }

    fn field(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        reader.align(8)?;
        let code = reader.byte()?;
        let kind = reader.signature()?;
        let value = reader.value(kind.chars().next()?)?;
        match (code, value) {
            (2, Value::Text(text)) => self.interface = Some(text),
            (3, Value::Text(text)) => self.member = Some(text),
            (4, Value::Text(text)) => self.error = Some(text),
            (5, Value::Number(serial)) => self.reply_to = u32::try_from(serial).ok(),
            (8, Value::Text(text)) => self.signature = text,
            (9, Value::Number(count)) => self.file_count = usize::try_from(count).ok()?,
            _ => {}
        }
        Some(())
    }

    /// The first value of the body, or what is in it if it is a variant.
    pub fn value(&self) -> Option<Value> {
        Reader { bytes: &self.body, at: 0 }.value(self.signature.chars().next()?)
    }

    pub fn text(&self) -> Option<String> {
        match self.value()? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn call() -> Vec<u8> {
        Outgoing::texts(&["shutdown", "who"]).signed(-1).call(
            7,
            ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"),
            "Inhibit",
        )
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = call();
        let (message, length) = Message::parse(&bytes).unwrap().unwrap();
        assert_eq!((message.kind, length), (Kind::Call, bytes.len()));
        assert_eq!(message.member.as_deref(), Some("Inhibit"));
        assert_eq!(message.interface.as_deref(), Some("org.freedesktop.login1.Manager"));
        assert_eq!((message.signature.as_str(), message.text().as_deref()), ("ssi", Some("shutdown")));
        for end in 0..bytes.len() {
            assert!(Message::parse(&bytes[..end]).unwrap().is_none(), "{end}");
        }
    }

    #[test]
    fn values_in_variants() {
        let of = |body: &[u8]| {
            let (mut message, _) = Message::parse(&call()).unwrap().unwrap();
            message.signature = "v".into();
            message.body = body.to_vec();
            message.value()
        };
        assert_eq!(of(&[1, b't', 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]), Some(Value::Number(5)));
        assert_eq!(of(&[1, b's', 0, 0, 2, 0, 0, 0, b'h', b'i', 0]), Some(Value::Text("hi".into())));
        assert_eq!(of(&[1, b'b', 0, 0, 1, 0, 0, 0]), Some(Value::Flag(true)));
        for bad in [&[1, b'v', 0, 1, b'v', 0][..], &[9, b's'], &[1, b't', 0, 0], &[]] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }

    /// No bytes make the reader panic, nor take more than there is: every byte of a good message changed in turn, in
    /// every bit.
    #[test]
    fn damaged_messages_do_no_harm() {
        let good = call();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                if let Ok(Some((message, length))) = Message::parse(&bytes) {
                    assert!(length <= bytes.len());
                    let _ = message.value();
                }
            }
        }
    }
}
