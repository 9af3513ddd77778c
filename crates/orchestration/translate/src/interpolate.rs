//! Variables in values: `$V`, `${V}`, `${V:-default}`, `${V-default}`, `${V:?error}`, `${V?error}`, `${V:+other}`, `${V+other}`
//! and `$$` for a dollar. What stands after the operator may hold variables itself.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::view::{Notes, Warning};
use crate::yaml::{Kind, Node};

/// Names and values.
pub type Variables = BTreeMap<String, String>;

/// Replaces the variables in all values of a tree. Keys stay as they are.
pub fn tree(node: &mut Node, variables: &Variables, notes: &Notes, path: &str) -> Result<()> {
    match &mut node.kind {
        Kind::Scalar { text, .. } if text.contains('$') => {
            let mut unset = Vec::new();
            match expand(text, variables, &mut unset) {
                Ok(value) => *text = value,
                Err(problem) => {
                    return Err(Error::Invalid { place: node.place.clone(), path: path.to_owned(), problem });
                }
            }
            for name in unset {
                let message = format!("the variable {name} is not set: it is empty here");
                notes.add(Warning { place: node.place.clone(), path: path.to_owned(), message });
            }
            Ok(())
        }
        Kind::Scalar { .. } => Ok(()),
        Kind::List(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| tree(item, variables, notes, &format!("{path}[{index}]"))),
        Kind::Map(entries) => entries.iter_mut().try_for_each(|(name, value)| {
            let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            tree(value, variables, notes, &inner)
        }),
    }
}

/// The text with its variables replaced; names without a value go to `unset`.
pub fn expand(text: &str, variables: &Variables, unset: &mut Vec<String>) -> std::result::Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| format!("`${{` without its `}}` in {text:?}"))?;
            out.push_str(&braced(&after[..end], variables, unset)?);
            rest = &after[end + 1..];
        } else {
            let end = name_end(rest);
            if end == 0 {
                return Err(format!("a lone `$` in {text:?}: write `$$` for a dollar"));
            }
            out.push_str(&value(&rest[..end], variables, unset));
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn value(name: &str, variables: &Variables, unset: &mut Vec<String>) -> String {
    variables.get(name).cloned().unwrap_or_else(|| {
        unset.push(name.to_owned());
        String::new()
    })
}

fn braced(inner: &str, variables: &Variables, unset: &mut Vec<String>) -> std::result::Result<String, String> {
    let (name, operation) = inner.split_at(name_end(inner));
    if name.is_empty() {
        return Err(format!("`${{{inner}}}` names no variable"));
    }
    let set = variables.get(name);
    let filled = set.filter(|value| !value.is_empty());
    if operation.is_empty() {
        return Ok(value(name, variables, unset));
    }
    let (known, operation) = match operation.strip_prefix(':') {
        Some(strict) => (filled, strict),
        None => (set, operation),
    };
    let mut argument = operation.chars();
    let operator = argument.next();
    let argument = argument.as_str();
    match (operator, known) {
        (Some('-' | '?'), Some(value)) => Ok(value.clone()),
        (Some('-'), None) | (Some('+'), Some(_)) => expand(argument, variables, unset),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => {
            let message = expand(argument, variables, unset)?;
            let told = if message.is_empty() { String::new() } else { format!(": {message}") };
            Err(format!("the variable {name} must be set{told}"))
        }
        _ => Err(format!("`${{{inner}}}` is not understood")),
    }
}

fn name_end(text: &str) -> usize {
    if !text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// Where the brace that is open at the beginning is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        before = c;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> std::result::Result<String, String> {
        let variables = [("A", "a"), ("E", ""), ("B_1", "b")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        expand(text, &variables, &mut Vec::new())
    }

    #[test]
    fn every_form() {
        for (text, expected) in [
            ("$A-$B_1.x", "a-b.x"),
            ("${A}${N}", "a"),
            ("${N:-d}${E:-d}${E-d}${N-d}", "ddd"),
            ("${A:+x}${E:+x}${E+y}${N+z}", "xy"),
            ("${A:?no}${E?no}", "a"),
            ("$$A $${A} 5$$", "$A ${A} 5$"),
            ("${N:-${E:-in}}", "in"),
            ("${N:-${A}/${B_1}}!", "a/b!"),
            ("${N:-http://x:80/?a=b}", "http://x:80/?a=b"),
        ] {
            assert_eq!(all(text).unwrap(), expected, "{text}");
        }
        assert_eq!(all("${N:?say ${A}}").unwrap_err(), "the variable N must be set: say a");
        for wrong in ["${", "$", "${}", "${A!}", "$ x", "${A:}", "${1}"] {
            assert!(all(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[${}:A?+\\-é ]{0,24}") {
            let _ = all(&text);
        }
    }
}
