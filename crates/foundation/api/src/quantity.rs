//! Exact resource quantities: `100m`, `1.5Gi`, `2e3`.

use crate::error::Error;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// How a quantity was written, and so how it is written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An exact amount, held in nano-units as upstream rounds to nano.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const DECIMAL: [(&str, i32); 9] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15)];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// Whole units, decimal.
    pub fn from_units(units: i64) -> Self {
        Self { nano: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths, as CPU is counted.
    pub fn from_millis(millis: i64) -> Self {
        Self { nano: i128::from(millis) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: u64) -> Self {
        Self { nano: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Whole units, rounded up.
    pub fn units(&self) -> i64 {
        clamp(ceil_div(self.nano, NANO))
    }

    /// Thousandths, rounded up.
    pub fn millis(&self) -> i64 {
        clamp(ceil_div(self.nano, NANO / 1000))
    }

    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether the amount is whole units.
    pub fn is_integer(&self) -> bool {
        self.nano % NANO == 0
    }

    /// Whether the whole units fit an `i64`.
    pub fn fits(&self) -> bool {
        i64::try_from(self.nano / NANO).is_ok()
    }

    /// The amount as near as a double can be.
    #[expect(clippy::cast_precision_loss, reason = "asked for")]
    pub fn approximate(&self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    pub fn format(&self) -> Format {
        self.format
    }
}

fn ceil_div(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The sum, in the format of the first unless that is zero.
impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }
}

/// The difference, in the format of the first unless that is zero.
impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_sub(other.nano), format }
    }
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Quantity(text.to_owned());
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(bad()),
        };
        let digits_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(bad());
        }
        let (power10, shift, format) = scale(suffix).ok_or_else(bad)?;
        let mut mantissa: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            mantissa =
                mantissa.checked_mul(10).and_then(|m| m.checked_add(i128::from(digit - b'0'))).ok_or_else(bad)?;
        }
        mantissa = mantissa.checked_shl(shift).filter(|m| m >> shift == mantissa).ok_or_else(bad)?;
        // nano = mantissa * 10^(9 + power10 - fraction digits), rounded up as upstream does.
        let exponent = 9 + power10 - i32::try_from(fraction.len()).map_err(|_| bad())?;
        let magnitude = exponent.unsigned_abs();
        let nano = if exponent >= 0 {
            match 10i128.checked_pow(magnitude).and_then(|p| mantissa.checked_mul(p)) {
                Some(nano) => nano,
                None if mantissa == 0 => 0,
                None => return Err(bad()),
            }
        } else {
            match 10i128.checked_pow(magnitude) {
                Some(divisor) => ceil_div(mantissa, divisor),
                None => i128::from(mantissa != 0),
            }
        };
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }
}

fn scale(suffix: &str) -> Option<(i32, u32, Format)> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((*power, 0, Format::DecimalSi));
    }
    if suffix == "E" {
        return Some((18, 0, Format::DecimalSi));
    }
    if let Some(index) = BINARY.iter().position(|name| *name == suffix) {
        return Some((0, 10 * (u32::try_from(index).ok()? + 1), Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let power: i32 = exponent.parse().ok()?;
    (power.abs() <= 40).then_some((power, 0, Format::DecimalExponent))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let sign = if self.nano < 0 { "-" } else { "" };
        let nano = self.nano.abs();
        if self.format == Format::BinarySi && nano % NANO == 0 && nano / NANO >= 1024 {
            let mut units = nano / NANO;
            let mut suffix = "";
            for name in BINARY {
                if units % 1024 != 0 {
                    break;
                }
                units /= 1024;
                suffix = name;
            }
            return write!(f, "{sign}{units}{suffix}");
        }
        let mut amount = nano;
        let mut power = -9;
        while amount % 1000 == 0 && power < 18 {
            amount /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { write!(f, "{sign}{amount}") } else { write!(f, "{sign}{amount}e{power}") };
        }
        let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("E", |(name, _)| name);
        write!(f, "{sign}{amount}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn canonical_forms() {
        for (given, canonical) in [
            ("0", "0"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("2E", "2E"),
            ("12e6", "12e6"),
            ("-1.5", "-1500m"),
            ("100n", "100n"),
            (".5Mi", "512Ki"),
            ("1023Ki", "1023Ki"),
            ("0.1n", "1n"),
            ("1Ei", "1Ei"),
            ("500Ki", "500Ki"),
        ] {
            assert_eq!(q(given).to_string(), canonical, "{given}");
        }
    }

    #[test]
    fn arithmetic_is_exact() {
        assert_eq!(q("0.1") + q("0.2"), q("300m"));
        assert_eq!((q("1Gi") - q("1Mi")).to_string(), "1023Mi");
        assert_eq!(q("1001u").millis(), 2);
        assert_eq!(q("100m").units(), 1);
        assert!(q("1Gi") > q("1G"));
    }

    #[test]
    fn refuses_nonsense() {
        for text in ["", "m", "1.2.3", "1x", "1ki", "--1", "1e", "9999999999999999999999999999999999999999", "1 "] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
