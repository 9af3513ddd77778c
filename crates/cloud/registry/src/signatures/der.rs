//! DER as far as time stamps need it: pieces of a tag and a length, one after another.

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const OBJECT: u8 = 0x06;
pub(super) const TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// Tags that depend on where they are.
pub(super) const CONTEXT_0: u8 = 0xa0;

/// One piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    /// With tag and length.
    pub whole: &'a [u8],
}

/// Pieces that follow each other.
#[derive(Clone)]
pub(super) struct Pieces<'a>(&'a [u8]);

impl<'a> Pieces<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next one, which has to have this tag.
    ///
    /// # Errors
    /// When it has another, or there is none.
    pub fn expect(&mut self, tag: u8) -> Result<Piece<'a>, String> {
        self.next().filter(|piece| piece.tag == tag).ok_or_else(|| format!("a piece with the tag {tag:#x} is missing"))
    }

    /// The next one if it has this tag; otherwise it stays.
    pub fn optional(&mut self, tag: u8) -> Option<Piece<'a>> {
        let mut ahead = self.clone();
        let piece = ahead.next().filter(|piece| piece.tag == tag)?;
        *self = ahead;
        Some(piece)
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    /// Ends at what is malformed, as at the end.
    fn next(&mut self) -> Option<Piece<'a>> {
        let (&[tag, short], rest) = self.0.split_first_chunk::<2>()?;
        // Tags of more than one byte are nowhere here, lengths that are not told are not DER.
        if tag & 0x1f == 0x1f || short == 0x80 {
            return None;
        }
        let (length, rest) = match short {
            0..=0x7f => (usize::from(short), rest),
            _ => {
                let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f)).filter(|(b, _)| b.len() <= 4)?;
                (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
        };
        let (content, after) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - after.len()];
        self.0 = after;
        Some(Piece { tag, content, whole })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_are_read_one_after_another() {
        let bytes = [0x02, 1, 5, 0x04, 0x81, 2, 7, 8, 0x30, 0];
        let mut pieces = Pieces::of(&bytes);
        assert_eq!(pieces.expect(INTEGER).unwrap().content, [5]);
        assert_eq!(pieces.optional(SEQUENCE), None);
        assert_eq!(pieces.expect(OCTETS).unwrap().whole, &bytes[3..8]);
        assert!(pieces.next().unwrap().content.is_empty());
        assert!(pieces.next().is_none());
        for bad in [&[0x02][..], &[0x02, 2, 1], &[0x30, 0x80, 0, 0], &[0x1f, 1, 1], &[4, 0x85, 0, 0, 0, 0, 1, 1]] {
            assert!(Pieces::of(bad).next().is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            let whole: usize = Pieces::of(&bytes).map(|piece| piece.whole.len()).sum();
            prop_assert!(whole <= bytes.len());
        }
    }
}
