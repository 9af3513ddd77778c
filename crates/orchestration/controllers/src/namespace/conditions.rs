//! What the status of an ending namespace says of what is left in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// What is left, and what went wrong.
#[derive(Debug, Default)]
pub struct Left {
    /// Objects by `resource.group`.
    pub objects: BTreeMap<String, usize>,
    pub finalizers: BTreeMap<String, usize>,
    /// Group versions whose kinds are not known.
    pub undiscovered: Vec<String>,
    pub failures: Vec<String>,
}

impl Left {
    pub fn is_nothing(&self) -> bool {
        self.objects.is_empty() && self.undiscovered.is_empty() && self.failures.is_empty()
    }

    /// Type, reason and text of each condition; those that hold, and what is said of the others.
    fn said(&self) -> [(&'static str, bool, &'static str, String); 5] {
        let list = |all: &BTreeMap<String, usize>, verb: &str| {
            let parts = all.iter().map(|(what, count)| format!("{what} {verb} {count} resource instances"));
            parts.collect::<Vec<_>>().join(", ")
        };
        let pick = |bad: bool, reason: (&'static str, &'static str), good: &str, text: String| {
            if bad { (true, reason.0, text) } else { (false, reason.1, good.to_owned()) }
        };
        let of = |kind, (state, reason, text)| (kind, state, reason, text);
        let removed = "All content successfully removed";
        [
            of(
                "NamespaceDeletionDiscoveryFailure",
                pick(
                    !self.undiscovered.is_empty(),
                    ("DiscoveryFailed", "ResourcesDiscovered"),
                    "All resources successfully discovered",
                    format!(
                        "Discovery failed for some groups, {} failing: {}",
                        self.undiscovered.len(),
                        self.undiscovered.join(", ")
                    ),
                ),
            ),
            of(
                "NamespaceDeletionGroupVersionParsingFailure",
                (false, "ParsedGroupVersions", "All legacy kube types successfully parsed".to_owned()),
            ),
            of(
                "NamespaceDeletionContentFailure",
                pick(
                    !self.failures.is_empty(),
                    ("ContentDeletionFailed", "ContentDeleted"),
                    "All content successfully deleted, may be waiting on finalization",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        self.failures.len(),
                        self.failures.join(", ")
                    ),
                ),
            ),
            of(
                "NamespaceContentRemaining",
                pick(
                    !self.objects.is_empty(),
                    ("SomeResourcesRemain", "ContentRemoved"),
                    removed,
                    format!("Some resources are remaining: {}", list(&self.objects, "has")),
                ),
            ),
            of(
                "NamespaceFinalizersRemaining",
                pick(
                    !self.finalizers.is_empty(),
                    ("SomeFinalizersRemain", "ContentRemoved"),
                    removed,
                    format!("Some content in the namespace has finalizers remaining: {}", list(&self.finalizers, "in")),
                ),
            ),
        ]
    }
}

/// The conditions with what is to be said now. Those of others stay; a time is that of the last change of state.
pub fn conditions(before: &[NamespaceCondition], left: &Left, now: Timestamp) -> Vec<NamespaceCondition> {
    let mut all = before.to_vec();
    for (kind, state, reason, message) in left.said() {
        let state = if state { "True" } else { "False" };
        let known = all.iter().position(|one| one.type_ == kind);
        let since = known.map(|index| &all[index]).filter(|one| one.status == state);
        let made = NamespaceCondition {
            type_: kind.into(),
            status: state.into(),
            last_transition_time: since.map_or(Some(Time(now)), |one| one.last_transition_time.clone()),
            reason: Some(reason.into()),
            message: Some(message),
        };
        match known {
            Some(index) => all[index] = made,
            None => all.push(made),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_and_settled_words_stay() {
        let mut left = Left::default();
        assert!(left.is_nothing());
        left.objects.insert("pods.".into(), 2);
        left.finalizers.insert("example.com/hold".into(), 1);
        let at = |second| Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
        let first = conditions(&[], &left, at(1));
        let find = |all: &[NamespaceCondition], kind: &str| {
            let one = all.iter().find(|one| one.type_ == kind).cloned().unwrap_or_default();
            (one.status, one.reason.unwrap_or_default(), one.message.unwrap_or_default())
        };
        let (state, reason, text) = find(&first, "NamespaceContentRemaining");
        assert_eq!((state.as_str(), reason.as_str()), ("True", "SomeResourcesRemain"));
        assert_eq!(text, "Some resources are remaining: pods. has 2 resource instances");
        let (_, _, text) = find(&first, "NamespaceFinalizersRemaining");
        assert!(text.ends_with("example.com/hold in 1 resource instances"), "{text}");
        assert_eq!(find(&first, "NamespaceDeletionDiscoveryFailure").0, "False");
        assert_eq!(conditions(&first, &left, at(2)), first, "nothing new is said");
        let last = conditions(&first, &Left::default(), at(3));
        assert!(last.iter().all(|one| one.status == "False"), "{last:?}");
    }
}
