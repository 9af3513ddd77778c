//! Cron schedules: five fields, a named interval, or `@every`; times are found in a time zone.
//!
//! Kubernetes' own dialect: in the days of the year that the clock is put forward, what falls into the gap is left
//! out; where it is put back, the hour is there twice.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule without a time in this many years has none.
const YEARS: i16 = 5;

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    Fields(Fields),
    Every(Duration),
}

/// The values that match, as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Of day and weekday one is unrestricted, so both have to match; else either may.
    both: bool,
}

/// Reads a schedule.
///
/// # Errors
/// What is wrong with it, in upstream's words.
pub fn parse(text: &str) -> Result<Schedule, String> {
    let text = text.trim();
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => other,
    };
    if let Some(every) = fields.strip_prefix("@every ") {
        return duration(every).map(Schedule::Every).ok_or_else(|| format!("failed to parse duration {text}"));
    }
    if fields.starts_with('@') {
        return Err(format!("unrecognized descriptor: {text}"));
    }
    let parts: Vec<&str> = fields.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = parts[..] else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    };
    let (minutes, _) = field(minute, 0, 59, &[])?;
    let (hours, _) = field(hour, 0, 23, &[])?;
    let (days, any_day) = field(day, 1, 31, &[])?;
    let (months, _) = field(month, 1, 12, &MONTHS)?;
    let (weekdays, any_weekday) = field(weekday, 0, 6, &DAYS)?;
    Ok(Schedule::Fields(Fields { minutes, hours, days, months, weekdays, both: any_day || any_weekday }))
}

/// The bits of one field, and whether it is unrestricted.
fn field(text: &str, low: u32, high: u32, words: &[&str]) -> Result<(u64, bool), String> {
    let number = |part: &str| -> Result<u32, String> {
        let word = words.iter().position(|word| word.eq_ignore_ascii_case(part));
        match word.and_then(|index| u32::try_from(index).ok()) {
            Some(index) => Ok(index + low),
            None => part.parse().map_err(|_| format!("failed to parse int from {part}")),
        }
    };
    let (mut bits, mut any) = (0, false);
    for range in text.split(',') {
        let (span, step) = match range.split_once('/') {
            Some((span, step)) => (span, Some(number(step)?)),
            None => (range, None),
        };
        let (first, last) = match span.split_once('-') {
            _ if span == "*" || span == "?" => {
                any |= step.is_none_or(|step| step == 1);
                (low, high)
            }
            Some((first, last)) => (number(first)?, number(last)?),
            // `5/15` goes on to the end.
            None => (number(span)?, if step.is_some() { high } else { number(span)? }),
        };
        if first < low || last > high || first > last || step == Some(0) {
            return Err(format!("range is out of bounds: {range}"));
        }
        let stride = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        (first..=last).step_by(stride).for_each(|value| bits |= 1_u64 << value);
    }
    Ok((bits, any))
}

/// A duration as Go writes it, of one second or more: `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let total = crate::duration::go_seconds(text.trim())?;
    let whole = Duration::try_from_secs_f64(total.floor().max(1.0)).ok()?;
    (whole < Duration::from_secs(u64::from(u32::MAX))).then_some(whole)
}

impl Schedule {
    /// The first time after `after`.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(every) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*every).ok(),
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let has = |bits: u64, value: i8| bits >> value & 1 == 1;
        let minute = Timestamp::from_second(after.as_second().div_euclid(60) * 60 + 60).ok()?;
        let mut at = minute.to_zoned(zone.clone());
        let last = at.year().checked_add(YEARS)?;
        while at.year() <= last {
            if !has(self.months, at.month()) {
                let day = at.date().first_of_month().checked_add(1.month()).ok()?;
                at = day.to_zoned(zone.clone()).ok()?;
            } else if !self.day(&at) {
                at = at.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?;
            } else if !has(self.hours, at.hour()) {
                // In real minutes: an hour may be missing or there twice.
                at = at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    fn day(&self, at: &Zoned) -> bool {
        let day = self.days >> at.day() & 1 == 1;
        let weekday = self.weekdays >> at.weekday().to_sunday_zero_offset() & 1 == 1;
        if self.both { day && weekday } else { day || weekday }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn times(schedule: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = parse(schedule).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut at: Timestamp = from.parse().unwrap();
        (0..count)
            .map(|_| {
                at = schedule.next(at, &zone).unwrap();
                at.to_string()
            })
            .collect()
    }

    #[test]
    fn fields_lists_steps_and_names() {
        assert_eq!(
            times("*/20 9-10 * * MON", "UTC", "2026-01-01T00:00:00Z", 4),
            ["2026-01-05T09:00:00Z", "2026-01-05T09:20:00Z", "2026-01-05T09:40:00Z", "2026-01-05T10:00:00Z"]
        );
        assert_eq!(times("5/25 0 1 jan ?", "UTC", "2026-01-01T00:05:00Z", 2)[0], "2026-01-01T00:30:00Z");
        assert_eq!(times("@monthly", "UTC", "2026-01-31T00:00:00Z", 1), ["2026-02-01T00:00:00Z"]);
        assert_eq!(times("@every 1h30m", "UTC", "2026-01-01T00:00:00.5Z", 1), ["2026-01-01T01:30:00Z"]);
        assert_eq!(times("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 1), ["2028-02-29T00:00:00Z"]);
        assert_eq!(parse("0 0 30 2 *").unwrap().next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn day_or_weekday_where_both_are_given() {
        assert_eq!(
            times("0 0 13 * 5", "UTC", "2026-02-01T00:00:00Z", 3),
            ["2026-02-06T00:00:00Z", "2026-02-13T00:00:00Z", "2026-02-20T00:00:00Z"]
        );
    }

    #[test]
    fn clocks_that_are_put_forward_and_back() {
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 2),
            ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 3),
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn what_is_no_schedule() {
        for text in ["", "* * * *", "60 * * * *", "* * * * 7", "*/0 * * * *", "@often", "@every x", "5-1 * * * *"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
