//! Sets of completion indexes and their text: `1,3-5,7`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub type Indexes = BTreeSet<i32>;

/// Reads the text; what lies beyond `completions` is left out, for the job may have shrunk.
pub fn parse(text: Option<&str>, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..last.saturating_add(1).min(completions));
        }
    }
    indexes
}

/// Writes the text: three in a row or more as first and last. `None` for none.
pub fn format(indexes: &Indexes) -> Option<String> {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let text: Vec<_> = runs
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    (!text.is_empty()).then(|| text.join(","))
}

/// The index a pod works on.
pub fn of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|index: &i32| *index >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_set_say_the_same() {
        let set = parse(Some("1,3-5,7,8"), 100);
        assert_eq!(set, Indexes::from([1, 3, 4, 5, 7, 8]));
        assert_eq!(format(&set).as_deref(), Some("1,3-5,7,8"));
        assert_eq!(parse(Some("1,3-5,7"), 5), Indexes::from([1, 3, 4]));
        assert_eq!(format(&Indexes::new()), None);
        assert_eq!(parse(Some("0-2147483647"), 2).len(), 2);
    }
}
