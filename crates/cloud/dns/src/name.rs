//! Names in wire form: lower-cased, never compressed, without allocation.

use std::fmt;

pub const MAX_NAME: usize = 255;
pub const MAX_LABEL: usize = 63;

/// A whole name, root included, on the stack.
#[derive(Clone, Copy)]
pub struct WireName {
    len: u8,
    bytes: [u8; MAX_NAME],
}

impl WireName {
    pub const ROOT: Self = Self { len: 1, bytes: [0; MAX_NAME] };

    /// Reads the name at `offset` of a message, lower-cased; returns what follows it there. Pointers may only lead
    /// backwards, so that a circle is impossible.
    pub fn read(message: &[u8], offset: usize) -> Option<(Self, usize)> {
        let mut name = Self { len: 0, bytes: [0; MAX_NAME] };
        let (mut at, mut next, mut lowest) = (offset, None, offset);
        loop {
            let length = usize::from(*message.get(at)?);
            match length {
                0 => {
                    name.push(&[0])?;
                    return Some((name, next.unwrap_or(at + 1)));
                }
                1..=MAX_LABEL => {
                    name.push(message.get(at..=at + length)?)?;
                    at += 1 + length;
                }
                0xc0.. => {
                    let target = (length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                    if target >= lowest {
                        return None;
                    }
                    next = next.or(Some(at + 2));
                    (at, lowest) = (target, target);
                }
                // Label types nobody uses.
                _ => return None,
            }
        }
    }

    /// Lower-cases on the way. Length bytes are below `A` and stay as they are.
    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let begin = usize::from(self.len);
        let room = self.bytes.get_mut(begin..begin + bytes.len())?;
        room.copy_from_slice(bytes);
        room.make_ascii_lowercase();
        self.len = u8::try_from(begin + bytes.len()).ok()?;
        Some(())
    }

    /// A name as people write it, with or without the last dot; `\.` and `\046` are escapes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut name = Self { len: 0, bytes: [0; MAX_NAME] };
        let text = if text == "." { "" } else { text.strip_suffix('.').filter(|t| !t.ends_with('\\')).unwrap_or(text) };
        if !text.is_empty() {
            let mut label = vec![0];
            let mut bytes = text.bytes();
            let mut finish = |label: &mut Vec<u8>| {
                let length = label.len() - 1;
                if !(1..=MAX_LABEL).contains(&length) {
                    return None;
                }
                label[0] = u8::try_from(length).ok()?;
                name.push(label)?;
                label.truncate(1);
                Some(())
            };
            while let Some(byte) = bytes.next() {
                match byte {
                    b'.' => finish(&mut label)?,
                    b'\\' => {
                        let first = bytes.next()?;
                        if first.is_ascii_digit() {
                            let digits = [first, bytes.next()?, bytes.next()?];
                            label.push(std::str::from_utf8(&digits).ok()?.parse().ok()?);
                        } else {
                            label.push(first);
                        }
                    }
                    b' ' | b'\t' | 0x80.. => return None,
                    _ => label.push(byte),
                }
            }
            finish(&mut label)?;
        }
        name.push(&[0])?;
        Some(name)
    }

    /// `labels`, in wire form without the root, below `apex`.
    pub fn below(labels: &[u8], apex: &Self) -> Option<Self> {
        let mut name = Self { len: 0, bytes: [0; MAX_NAME] };
        name.push(labels)?;
        name.push(apex.as_bytes())?;
        Some(name)
    }

    /// A name from its wire form, as this module made it before.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let (name, next) = Self::read(wire, 0)?;
        (next == wire.len()).then_some(name)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub fn is_root(&self) -> bool {
        self.len == 1
    }

    pub fn labels(&self) -> Labels<'_> {
        Labels(self.as_bytes())
    }

    /// What stands before `apex`, if this name is it or below it.
    pub fn under<'a>(&'a self, apex: &Self) -> Option<&'a [u8]> {
        let bytes = self.as_bytes();
        let wanted = bytes.len().checked_sub(apex.as_bytes().len())?;
        if &bytes[wanted..] != apex.as_bytes() {
            return None;
        }
        let mut at = 0;
        while at < wanted {
            at += 1 + usize::from(bytes[at]);
        }
        (at == wanted).then(|| &bytes[..wanted])
    }

    /// The name without its first label; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = 1 + usize::from(self.bytes[0]);
        let mut parent = Self { len: 0, bytes: [0; MAX_NAME] };
        parent.push(&self.as_bytes()[cut..])?;
        Some(parent)
    }
}

/// The labels of a wire name or of a piece of one, without their lengths.
#[derive(Clone)]
pub struct Labels<'a>(pub &'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        let label = rest.get(..usize::from(*length)).filter(|label| !label.is_empty())?;
        self.0 = &rest[label.len()..];
        Some(label)
    }
}

/// Appends a label; `None` if it is none.
pub fn push_label(out: &mut Vec<u8>, label: &[u8]) -> Option<()> {
    if !(1..=MAX_LABEL).contains(&label.len()) {
        return None;
    }
    out.push(u8::try_from(label.len()).ok()?);
    out.extend(label.iter().map(u8::to_ascii_lowercase));
    Some(())
}

/// Labels in wire form, without the root.
pub fn labels_of(labels: &[&[u8]]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    labels.iter().try_for_each(|label| push_label(&mut out, label))?;
    Some(out)
}

impl PartialEq for WireName {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for WireName {}

impl PartialOrd for WireName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The canonical order of RFC 4034: by labels, from the last one on.
impl Ord for WireName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let (mine, theirs): (Vec<_>, Vec<_>) = (self.labels().collect(), other.labels().collect());
        mine.into_iter().rev().cmp(theirs.into_iter().rev())
    }
}

impl fmt::Display for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_agree() {
        for (text, shown) in [
            ("Example.ORG", "example.org."),
            (".", "."),
            ("a\\.b.c.", "a\\.b.c."),
            ("\\065.x", "a.x."),
            ("*.x", "*.x."),
        ] {
            let name = WireName::parse(text).unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(WireName::from_wire(name.as_bytes()), Some(name));
        }
        for bad in ["a..b", ".a", "a b", &"x".repeat(64), &"abcdefg.".repeat(32), "ü.org", "a\\"] {
            assert_eq!(WireName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn below_means_at_a_label() {
        let apex = WireName::parse("cluster.local").unwrap();
        let prefix = |text: &str| WireName::parse(text).unwrap().under(&apex).map(<[u8]>::to_vec);
        assert_eq!(prefix("cluster.local"), Some(vec![]));
        assert_eq!(prefix("svc.cluster.local"), Some(b"\x03svc".to_vec()));
        assert_eq!(prefix("mycluster.local"), None);
        // The length byte of the apex inside a longer label.
        assert_eq!(prefix("x\\007cluster.local"), None);
    }

    #[test]
    fn pointers_lead_backwards_only() {
        let message = b"\x01a\x00\xc0\x00\x01b\xc0\x03\xc0\x0a\xc0\x0c";
        assert_eq!(WireName::read(message, 5).unwrap().0.to_string(), "b.a.");
        assert_eq!(WireName::read(message, 5).unwrap().1, 9);
        assert!(WireName::read(message, 9).is_none(), "to what follows");
        assert!(WireName::read(message, 11).is_none());
    }

    #[test]
    fn order_is_canonical() {
        let mut names: Vec<WireName> = ["z.a.example", "example", "a.example", "zabc.a.example", "yljkjljk.a.example"]
            .iter()
            .map(|text| WireName::parse(text).unwrap())
            .collect();
        names.sort();
        let shown: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["example.", "a.example.", "yljkjljk.a.example.", "z.a.example.", "zabc.a.example."]);
    }
}
