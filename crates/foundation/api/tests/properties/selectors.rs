//! Label and field selectors: what is printed reads the same.

use std::collections::BTreeMap;

use dhow_api::selectors::{FieldSelector, FieldTerm, LabelSelector, Operator, Requirement};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

const KEY: &str = "([a-z]{1,4}(\\.[a-z]{1,3}){0,2}/)?[A-Za-z0-9]([A-Za-z0-9_.\\-]{0,4}[A-Za-z0-9])?";
const LABEL: &str = "([A-Za-z0-9]([A-Za-z0-9_.\\-]{0,4}[A-Za-z0-9])?)?";

fn any_requirement() -> impl Strategy<Value = Requirement> {
    let operator = prop_oneof![
        vec(LABEL, 1..4).prop_map(Operator::In),
        vec(LABEL, 1..4).prop_map(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
        (0..i64::MAX).prop_map(Operator::GreaterThan),
        (0..i64::MAX).prop_map(Operator::LessThan),
    ];
    (KEY, operator).prop_map(|(key, operator)| Requirement { key, operator })
}

fn any_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map("[a-c]", prop_oneof![Just(String::new()), "[a-c]", "[0-9]{1,2}"], 0..4)
}

fn escaped(value: &str) -> String {
    value.chars().flat_map(|c| if matches!(c, '\\' | ',' | '=') { vec!['\\', c] } else { vec![c] }).collect()
}

proptest! {
    #![proptest_config(crate::generate::cases())]

    #[test]
    fn labels_read_as_they_are_printed(requirements in vec(any_requirement(), 0..5)) {
        let text = {
            let mut selector = LabelSelector::default();
            selector.requirements.clone_from(&requirements);
            selector.to_string()
        };
        prop_assert_eq!(LabelSelector::parse(&text).unwrap().requirements, requirements, "{}", text);
    }

    /// Whatever it is that reads: spaces mean nothing, and printing keeps the meaning.
    #[test]
    fn label_noise_means_the_same_when_printed(text in "[a-c0-9!=<>(), .in\\-/_ot]{0,24}", labels in any_labels()) {
        if let Ok(selector) = LabelSelector::parse(&text) {
            let printed = selector.to_string();
            let again = LabelSelector::parse(&printed).unwrap();
            prop_assert_eq!(&again, &selector, "{} printed as {}", text, printed);
            prop_assert_eq!(again.matches(&labels), selector.matches(&labels));
        }
    }

    /// A requirement and its opposite never agree where they have a word on it.
    #[test]
    fn opposites_differ(key in "[a-c]", values in vec("[a-c]", 1..3), labels in any_labels()) {
        let matches = |text: String| LabelSelector::parse(&text).unwrap().matches(&labels);
        let set = values.join(",");
        prop_assert_ne!(matches(format!("{key} in ({set})")), matches(format!("{key} notin ({set})")));
        prop_assert_ne!(matches(key.clone()), matches(format!("!{key}")));
        prop_assert_eq!(matches(format!("{key}={}", values[0])), matches(format!("{key} in ({})", values[0])));
        prop_assert_ne!(matches(format!("{key}={}", values[0])), matches(format!("{key}!={}", values[0])));
    }

    #[test]
    fn fields_read_as_they_are_written(terms in vec(("[a-z.]{1,8}", "\\PC{0,8}", any::<bool>()), 0..4)) {
        let text: Vec<String> = terms
            .iter()
            .map(|(path, value, negated)| format!("{path}{}{}", if *negated { "!=" } else { "=" }, escaped(value)))
            .collect();
        let terms: Vec<FieldTerm> =
            terms.into_iter().map(|(path, value, negated)| FieldTerm { path, value, negated }).collect();
        prop_assert_eq!(FieldSelector::parse(&text.join(",")).unwrap().terms, terms);
    }

    #[test]
    fn field_noise_is_an_error_or_escaped(text in "[a-c.!=,\\\\ü]{0,16}") {
        if let Ok(selector) = FieldSelector::parse(&text) {
            let again: Vec<String> = selector
                .terms
                .iter()
                .map(|term| format!("{}{}{}", term.path, if term.negated { "!=" } else { "=" }, escaped(&term.value)))
                .collect();
            prop_assert_eq!(FieldSelector::parse(&again.join(",")).unwrap(), selector);
        }
    }
}
