//! RFC 3339 times as the API writes them, and durations as kubectl prints them.

use crate::error::Error;
use jiff::Timestamp;

/// `metav1.Time`: whole seconds, UTC.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: six fractional digits, UTC.
pub fn micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads either form, with any offset.
pub fn parse(text: &str) -> Result<Timestamp, Error> {
    text.parse().map_err(|_| Error::Time(text.to_owned()))
}

/// Whole seconds from `earlier` to `now`.
pub fn seconds_between(earlier: Timestamp, now: Timestamp) -> i64 {
    now.as_second() - earlier.as_second()
}

/// The AGE column: `<unknown>` when absent or unreadable.
pub fn age(text: Option<&str>, now: Timestamp) -> String {
    match text.filter(|t| !t.is_empty()).map(parse) {
        Some(Ok(time)) => human_duration(seconds_between(time, now)),
        _ => "<unknown>".into(),
    }
}

/// kubectl's `HumanDuration`: two units at most, and fewer as the span grows.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    if seconds < 0 {
        return "0s".into();
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |a: i64, au: &str, b: i64, bu: &str| {
        if b == 0 { format!("{a}{au}") } else { format!("{a}{au}{b}{bu}") }
    };
    match seconds {
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => pair(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => pair(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 8 * 365 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// kubectl's `ShortHumanDuration`, the LAST SCHEDULE style: one unit.
pub fn short_duration(seconds: i64) -> String {
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m", s / 60),
        s if s < 86_400 => format!("{}h", s / 3600),
        s if s < 86_400 * 365 => format!("{}d", s / 86_400),
        s => format!("{}y", s / (86_400 * 365)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_like_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_071_999, "729d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
            (-1, "0s"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn times_round_trip() {
        let time = parse("2024-01-02T03:04:05.678901+01:00").unwrap();
        assert_eq!(rfc3339(time), "2024-01-02T02:04:05Z");
        assert_eq!(micro(time), "2024-01-02T02:04:05.678901Z");
        assert!(parse("yesterday").is_err());
    }
}
