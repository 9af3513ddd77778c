//! Durations, sizes and shares of processors, as Compose writes them and as Kubernetes does.

/// `1h5m30s20ms` in milliseconds.
pub fn duration(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..end].parse().ok()?;
        let (unit, after) =
            rest[end..].split_at(rest[end..].find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len() - end));
        total += value
            * match unit {
                "ns" => 1e-6,
                "us" | "µs" => 1e-3,
                "ms" => 1.0,
                "s" => 1000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                "d" => 86_400_000.0,
                "w" => 604_800_000.0,
                _ => return None,
            };
        rest = after;
    }
    whole(total)
}

/// `512m`, `1.5gb`, `1024` in bytes; each step is 1024.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let value: f64 = text[..end].parse().ok()?;
    let factor = match text[end..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    whole(value * factor)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> Option<u64> {
    (value.is_finite() && (0.0..9.0e15).contains(&value)).then(|| value.round() as u64)
}

/// Bytes as a quantity, in the largest unit that divides them.
pub fn memory(bytes: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Processors as a quantity.
pub fn cpus(count: f64) -> Option<String> {
    let milli = whole(count * 1000.0)?;
    Some(if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1m30s"), Some(90_000));
        assert_eq!(duration("1.5s"), Some(1500));
        assert_eq!(duration("100ms"), Some(100));
        assert_eq!(duration("0"), Some(0));
        for wrong in ["", "5", "s", "1x", "1m30"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_and_processors() {
        assert_eq!(bytes("50M").map(memory).as_deref(), Some("50Mi"));
        assert_eq!(bytes("1.5gb").map(memory).as_deref(), Some("1536Mi"));
        assert_eq!(bytes("1000").map(memory).as_deref(), Some("1000"));
        assert_eq!(bytes("5 apples"), None);
        assert_eq!(cpus(0.25).as_deref(), Some("250m"));
        assert_eq!(cpus(2.0).as_deref(), Some("2"));
    }
}
