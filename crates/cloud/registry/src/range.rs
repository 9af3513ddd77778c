//! `Range` of a download and `Content-Range` of a chunk.

use std::ops::Range;

/// What a `Range` header asks of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Everything: no range, or one that may be ignored.
    All,
    Part(Range<u64>),
    /// Nothing of it is there.
    Unsatisfiable,
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
}

impl Wanted {
    /// Of an object of `size` bytes. More than one range, another unit and nonsense are answered with everything, as the
    /// protocol allows; but a range that ends before it begins is refused, as registries do.
    pub fn parse(header: Option<&str>, size: u64) -> Self {
        let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else { return Wanted::All };
        let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::All };
        match (number(first.trim()), number(last.trim())) {
            (Some(from), None) if last.trim().is_empty() => Self::part(from, size),
            (Some(from), Some(to)) if from <= to => Self::part(from, size.min(to.saturating_add(1))),
            (Some(_), Some(_)) => Wanted::Unsatisfiable,
            (None, Some(0)) if first.trim().is_empty() => Wanted::Unsatisfiable,
            (None, Some(suffix)) if first.trim().is_empty() => Self::part(size.saturating_sub(suffix), size),
            _ => Wanted::All,
        }
    }

    fn part(from: u64, to: u64) -> Self {
        if from < to { Wanted::Part(from..to) } else { Wanted::Unsatisfiable }
    }
}

/// Where a chunk belongs; both ends are part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    pub first: u64,
    pub last: u64,
}

impl ContentRange {
    /// `0-1023`, as the distribution protocol has it, and `bytes 0-1023/4096`, as HTTP has it.
    pub fn parse(header: &str) -> Option<Self> {
        let text = header.trim();
        let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
        let text = text.split('/').next()?;
        let (first, last) = text.split_once('-')?;
        let range = Self { first: number(first)?, last: number(last)? };
        (range.first <= range.last && range.last < u64::MAX).then_some(range)
    }

    pub fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges() {
        let cases = [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=500-1499", Wanted::Part(500..1499 + 1)),
            ("bytes=500-", Wanted::Part(500..2048)),
            ("bytes=-500", Wanted::Part(1548..2048)),
            ("bytes=-5000", Wanted::Part(0..2048)),
            ("bytes=2000-5000", Wanted::Part(2000..2048)),
            ("bytes=2048-", Wanted::Unsatisfiable),
            ("bytes=500-0", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5000-10000", Wanted::Unsatisfiable),
            ("bytes=0-1,5-6", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("bytes=x-y", Wanted::All),
            ("bytes=", Wanted::All),
            ("bytes=-", Wanted::All),
            ("", Wanted::All),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..2048)),
        ];
        for (header, expected) in cases {
            assert_eq!(Wanted::parse(Some(header), 2048), expected, "{header}");
        }
        assert_eq!(Wanted::parse(None, 5), Wanted::All);
        assert_eq!(Wanted::parse(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn content_ranges() {
        assert_eq!(ContentRange::parse("0-9"), Some(ContentRange { first: 0, last: 9 }));
        assert_eq!(ContentRange::parse("bytes 5-9/10").unwrap().length(), 5);
        for bad in ["", "-", "1", "5-4", "a-b", "0-", "-5", "0-18446744073709551615", "+1-2"] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_inside(header in "(bytes=)?[0-9]{0,22}-?[0-9]{0,22}", size: u64) {
            if let Wanted::Part(part) = Wanted::parse(Some(&header), size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }

        #[test]
        fn any_text_is_read_without_harm(text: String, size: u64) {
            let _ = Wanted::parse(Some(&text), size);
            if let Some(range) = ContentRange::parse(&text) {
                prop_assert!(range.length() > 0);
            }
        }
    }
}
