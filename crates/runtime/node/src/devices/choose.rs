//! Which of the free devices a container gets.

use std::collections::BTreeSet;

/// `count` of the free ones: those it must have, then those the plugin would like it to have, then the first.
pub fn choose(
    free: &BTreeSet<String>,
    must: &BTreeSet<String>,
    count: usize,
    preferred: Option<Vec<String>>,
) -> BTreeSet<String> {
    let mut chosen: BTreeSet<String> = must.iter().take(count).cloned().collect();
    let liked = preferred.into_iter().flatten().filter(|id| free.contains(id));
    for id in liked.chain(free.iter().cloned()) {
        if chosen.len() >= count {
            break;
        }
        chosen.insert(id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn what_must_be_then_what_is_liked_then_the_first() {
        let free = set(&["a", "b", "c", "d"]);
        assert_eq!(choose(&free, &set(&[]), 2, None), set(&["a", "b"]));
        assert_eq!(choose(&free, &set(&["d"]), 2, None), set(&["a", "d"]));
        assert_eq!(choose(&free, &set(&["d"]), 2, Some(vec!["c".into(), "b".into()])), set(&["c", "d"]));
        // A plugin cannot give what is not free.
        assert_eq!(choose(&free, &set(&[]), 1, Some(vec!["x".into()])), set(&["a"]));
    }
}
