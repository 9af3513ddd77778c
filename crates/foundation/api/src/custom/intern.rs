//! Names that rows of the registry hold for ever. Few and short: a definition's names and versions, never its schemas.

use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::Mutex;

type Lists = HashMap<Vec<&'static str>, &'static [&'static str]>;

static NAMES: LazyLock<Mutex<HashMap<String, &'static str>>> = LazyLock::new(Mutex::default);
static LISTS: LazyLock<Mutex<Lists>> = LazyLock::new(Mutex::default);

/// The one copy of a name.
pub(crate) fn name(text: &str) -> &'static str {
    let mut names = NAMES.lock();
    if let Some(known) = names.get(text) {
        return known;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    names.insert(text.to_owned(), kept);
    kept
}

/// The one copy of a list of names.
pub(super) fn names<'a>(texts: impl IntoIterator<Item = &'a str>) -> &'static [&'static str] {
    let list: Vec<&'static str> = texts.into_iter().map(name).collect();
    let mut lists = LISTS.lock();
    if let Some(known) = lists.get(&list) {
        return known;
    }
    let kept: &'static [&'static str] = Box::leak(list.clone().into_boxed_slice());
    lists.insert(list, kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once() {
        assert!(std::ptr::eq(name("crontabs"), name(&String::from("crontabs"))));
        assert!(std::ptr::eq(names(["ct", "all"]), names(["ct", "all"])));
        assert_eq!(names([]), <&[&str]>::default());
    }
}
