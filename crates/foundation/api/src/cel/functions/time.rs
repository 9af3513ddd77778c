//! Timestamps and durations.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::Result1;
use crate::cel::eval::{EvalError, overflow};
use crate::cel::value::Value;

const SECOND: i64 = 1_000_000_000;

/// `duration('1h')` and `timestamp('2024-01-01T00:00:00Z')`
pub fn make(name: &str, of: &Value) -> Result1 {
    Ok(match (name, of) {
        ("duration", Value::Duration(_)) | ("timestamp", Value::Timestamp(_)) => of.clone(),
        ("duration", Value::String(text)) => Value::Duration(
            parse_duration(text).ok_or_else(|| EvalError::new(&format!("time: invalid duration {:?}", &**text)))?,
        ),
        ("duration", Value::Int(nanos)) => Value::Duration(*nanos),
        ("timestamp", Value::String(text)) => Value::Timestamp(
            crate::time::parse(text)
                .map_err(|_| EvalError::new(&format!("parsing time {:?}: cannot parse", &**text)))?,
        ),
        ("timestamp", Value::Int(seconds)) => Value::Timestamp(Timestamp::from_second(*seconds).map_err(|_| range())?),
        _ => return Err(EvalError::no_overload()),
    })
}

fn range() -> EvalError {
    EvalError::new("timestamp overflow")
}

/// Go's form of a duration, in nanoseconds: `1h30m`, `-1.5s`, `0`.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 38 {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let digits = &fraction[..fraction.len().min(18)];
        if !digits.is_empty() {
            let power = 10i128.checked_pow(u32::try_from(digits.len()).ok()?)?;
            total = total.checked_add(digits.parse::<i128>().ok()?.checked_mul(unit)? / power)?;
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// In seconds, as the language writes durations.
pub fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let size = nanos.unsigned_abs();
    let (seconds, rest) = (size / 1_000_000_000, size % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

pub fn moved(at: Timestamp, by: i64) -> Result1 {
    at.checked_add(SignedDuration::from_nanos(by)).map(Value::Timestamp).map_err(|_| range())
}

pub fn between(one: Timestamp, two: Timestamp) -> Result1 {
    let nanos = one.duration_since(two).as_nanos();
    i64::try_from(nanos).map(Value::Duration).map_err(|_| overflow())
}

fn zone(args: &[Value]) -> Result<TimeZone, EvalError> {
    let name = match args {
        [] => return Ok(TimeZone::UTC),
        [Value::String(name)] => name,
        _ => return Err(EvalError::no_overload()),
    };
    let offset = || {
        let (sign, rest) = match name.as_bytes().first()? {
            b'-' => (-1, &name[1..]),
            b'+' => (1, &name[1..]),
            _ => (1, &**name),
        };
        let (hours, minutes) = rest.split_once(':')?;
        let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
        let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
        Offset::from_seconds(sign * seconds).ok().map(TimeZone::fixed)
    };
    match &**name {
        "UTC" | "" => Ok(TimeZone::UTC),
        _ => offset()
            .or_else(|| TimeZone::get(name).ok())
            .ok_or_else(|| EvalError::new(&format!("unknown time zone {name}"))),
    }
}

pub fn call(target: &Value, name: &str, args: &[Value]) -> Result1 {
    Ok(Value::Int(match target {
        Value::Duration(nanos) if args.is_empty() => match name {
            "getHours" => nanos / (3600 * SECOND),
            "getMinutes" => nanos / (60 * SECOND),
            "getSeconds" => nanos / SECOND,
            "getMilliseconds" => nanos / 1_000_000,
            _ => return Err(EvalError::no_overload()),
        },
        Value::Timestamp(at) => {
            let at = at.to_zoned(zone(args)?);
            match name {
                "getFullYear" => at.year().into(),
                "getMonth" => i64::from(at.month()) - 1,
                "getDate" => at.day().into(),
                "getDayOfMonth" => i64::from(at.day()) - 1,
                "getDayOfWeek" => at.weekday().to_sunday_zero_offset().into(),
                "getDayOfYear" => i64::from(at.day_of_year()) - 1,
                "getHours" => at.hour().into(),
                "getMinutes" => at.minute().into(),
                "getSeconds" => at.second().into(),
                "getMilliseconds" => at.millisecond().into(),
                _ => return Err(EvalError::no_overload()),
            }
        }
        _ => return Err(EvalError::no_overload()),
    }))
}
