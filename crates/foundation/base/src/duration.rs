//! Durations as Go writes them.

/// Seconds of a text such as `1h30m`, `90s` or `1.5h`; `None` for anything else, the empty text included.
pub fn go_seconds(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::go_seconds;

    #[test]
    fn numbers_and_their_units_add_up() {
        for (text, seconds) in [("1h30m", Some(5400.0)), ("1.5s", Some(1.5)), ("250ms", Some(0.25))] {
            assert_eq!(go_seconds(text), seconds);
        }
        for text in ["", "0", "5", "s", "1d", "1h 30m", "-1s"] {
            assert_eq!(go_seconds(text), None, "{text}");
        }
    }
}
