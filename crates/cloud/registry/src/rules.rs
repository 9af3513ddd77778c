//! What holds for the repositories of a project: quota, immutable tags, which tags are kept. Pure functions.

use std::time::{Duration, SystemTime};

use dhow_image::Digest;

/// A name with `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(pub String);

impl Pattern {
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let mut last = None;
        for part in parts {
            if let Some(before) = last.replace(part) {
                match rest.find(before) {
                    Some(at) => rest = &rest[at + before.len()..],
                    None => return false,
                }
            }
        }
        last.map_or(rest.is_empty(), |end| rest.ends_with(end))
    }
}

/// Tags that are kept: those that match, and of these the newest so many, or those pushed lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retain {
    pub tags: Pattern,
    /// `None`: any number.
    pub newest: Option<usize>,
    /// `None`: of any age.
    pub younger: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Bytes that the blobs of the project's repositories may take, each repository's counted.
    pub quota: Option<u64>,
    /// Tags that never move to another manifest and are never deleted.
    pub immutable: Vec<Pattern>,
    /// Tags that no rule keeps are deleted; no rules keep all.
    pub retain: Vec<Retain>,
}

/// A tag as rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub name: String,
    pub digest: Digest,
    pub pushed: SystemTime,
}

impl Rules {
    pub fn is_immutable(&self, tag: &str) -> bool {
        self.immutable.iter().any(|pattern| pattern.matches(tag))
    }

    /// The tags that retention takes away now.
    pub fn expired<'a>(&self, tags: &'a [Tag], now: SystemTime) -> Vec<&'a Tag> {
        if self.retain.is_empty() {
            return Vec::new();
        }
        let mut kept = vec![false; tags.len()];
        for rule in &self.retain {
            let mut matching: Vec<usize> =
                (0..tags.len()).filter(|index| rule.tags.matches(&tags[*index].name)).collect();
            // Newest first; of one age, by name, so that every server decides alike.
            matching.sort_by(|a, b| (tags[*b].pushed, &tags[*a].name).cmp(&(tags[*a].pushed, &tags[*b].name)));
            for (rank, index) in matching.into_iter().enumerate() {
                let young = rule.younger.is_none_or(|limit| {
                    now.duration_since(tags[index].pushed).is_ok_and(|age| age < limit) || tags[index].pushed >= now
                });
                kept[index] |= young && rule.newest.is_none_or(|newest| rank < newest);
            }
        }
        let doomed = |(tag, kept): (&'a Tag, bool)| (!kept && !self.is_immutable(&tag.name)).then_some(tag);
        tags.iter().zip(kept).filter_map(doomed).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases = [
            ("v1", "v1", true),
            ("v1", "v10", false),
            ("*", "", true),
            ("*", "anything", true),
            ("v*", "v1.2", true),
            ("v*", "1v", false),
            ("*-rc*", "1.0-rc1", true),
            ("*-rc*", "1.0", false),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Pattern(pattern.to_owned()).matches(name), expected, "{pattern} {name}");
        }
    }

    fn tags(names: &[(&str, u64)]) -> Vec<Tag> {
        let tag = |(name, day): &(&str, u64)| Tag {
            name: (*name).to_owned(),
            digest: Digest::of(name.as_bytes()),
            pushed: SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400),
        };
        names.iter().map(tag).collect()
    }

    fn expired(rules: &Rules, tags: &[Tag], day: u64) -> Vec<String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400);
        rules.expired(tags, now).into_iter().map(|tag| tag.name.clone()).collect()
    }

    #[test]
    fn what_a_rule_keeps_stays() {
        let all = tags(&[("v1", 1), ("v2", 2), ("v3", 3), ("dev-a", 1), ("dev-b", 9), ("latest", 9)]);
        let rule = |tags: &str, newest, younger: Option<u64>| Retain {
            tags: Pattern(tags.to_owned()),
            newest,
            younger: younger.map(|days| Duration::from_secs(days * 86_400)),
        };
        assert!(expired(&Rules::default(), &all, 10).is_empty());
        let newest = Rules { retain: vec![rule("v*", Some(2), None)], ..Rules::default() };
        assert_eq!(expired(&newest, &all, 10), ["v1", "dev-a", "dev-b", "latest"]);
        let both = Rules { retain: vec![rule("v*", Some(1), None), rule("*", None, Some(5))], ..Rules::default() };
        assert_eq!(expired(&both, &all, 10), ["v1", "v2", "dev-a"]);
        let kept = Rules { immutable: vec![Pattern("v1".to_owned())], ..both };
        assert_eq!(expired(&kept, &all, 10), ["v2", "dev-a"]);
        // A clock that went back deletes nothing that is "from the future".
        assert_eq!(expired(&kept, &all, 0), Vec::<String>::new());
    }
}
