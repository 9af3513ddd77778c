//! Which keys a Compose file may have, and of which shape: a table, checked with places.
//!
//! `schema.txt` has a line for each path of the Compose specification's schema: names and types, nothing else. `*` is any
//! name, `[]` the items of a list, `=x` one of the words that are allowed.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::error::{Error, Result};
use crate::yaml::{Kind, Node};

const TABLE: &str = include_str!("schema.txt");

#[derive(Debug, Default)]
struct Shape {
    types: Vec<&'static str>,
    keys: BTreeMap<&'static str, Shape>,
    any: Option<Box<Shape>>,
    item: Option<Box<Shape>>,
}

static ROOT: LazyLock<Shape> = LazyLock::new(|| {
    let mut root = Shape { types: vec!["map"], ..Shape::default() };
    for line in TABLE.lines() {
        let Some((path, types)) = line.split_once(' ') else { continue };
        let mut at = &mut root;
        for step in steps(path) {
            at = match step {
                "[]" => at.item.get_or_insert_default(),
                "*" => at.any.get_or_insert_default(),
                name => at.keys.entry(name).or_default(),
            };
        }
        at.types = types.split('|').collect();
    }
    root
});

fn steps(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('.')
        .flat_map(|part| match part.strip_suffix("[]") {
            Some(name) => [name, "[]"],
            None => [part, ""],
        })
        .filter(|step| !step.is_empty())
}

/// All paths of the table with their types.
pub fn paths() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().filter_map(|line| line.split_once(' '))
}

/// Refuses keys that no Compose file has and values of another shape.
pub fn check(document: &Node) -> Result<()> {
    walk(document, &ROOT, "")
}

fn walk(node: &Node, shape: &Shape, path: &str) -> Result<()> {
    let invalid = |node: &Node, path: &str, problem: String| {
        let path = if path.is_empty() { "the file" } else { path };
        Err(Error::Invalid { place: node.place.clone(), path: path.to_owned(), problem })
    };
    let allows = |one: &str| shape.types.contains(&one);
    match &node.kind {
        Kind::Map(entries) => {
            if !allows("map") && shape.keys.is_empty() && shape.any.is_none() {
                return invalid(node, path, format!("expected {}, found a map", expected(shape)));
            }
            for (name, value) in entries {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match shape.keys.get(name.as_str()).or(shape.any.as_deref()) {
                    Some(shape) => walk(value, shape, &inner)?,
                    None if name.starts_with("x-") => {}
                    None => return invalid(value, &inner, format!("unknown key{}", similar(name, shape))),
                }
            }
            Ok(())
        }
        Kind::List(items) => {
            let Some(item) = &shape.item else {
                return invalid(node, path, format!("expected {}, found a list", expected(shape)));
            };
            for (index, value) in items.iter().enumerate() {
                walk(value, item, &format!("{path}[{index}]"))?;
            }
            Ok(())
        }
        // An empty value is no value.
        Kind::Scalar { .. } if node.is_null() => Ok(()),
        Kind::Scalar { text, .. } => {
            let words: Vec<&str> = shape.types.iter().filter_map(|one| one.strip_prefix('=')).collect();
            let fits = allows("string")
                || words.contains(&text.as_str())
                || (allows("boolean") && crate::view::boolean(text).is_some())
                || (allows("integer") && text.parse::<i64>().is_ok())
                || (allows("number") && text.parse::<f64>().is_ok());
            if fits { Ok(()) } else { invalid(node, path, format!("expected {}, found {text:?}", expected(shape))) }
        }
    }
}

fn expected(shape: &Shape) -> String {
    let all: Vec<String> = shape
        .types
        .iter()
        .map(|one| one.strip_prefix('=').map_or_else(|| (*one).to_owned(), |word| format!("`{word}`")))
        .collect();
    all.join(" or ")
}

fn similar(name: &str, shape: &Shape) -> String {
    let closest = shape.keys.keys().map(|known| (distance(name, known), known)).min();
    match closest {
        Some((away, known)) if away <= 2 => format!("; did you mean `{known}`?"),
        _ => String::new(),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let kept = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = kept.min(before + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wrong(text: &str) -> String {
        check(&crate::yaml::parse("c.yaml", text).unwrap()[0]).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let text = "services:\n  web:\n    image: a\n    enviroment: {}\n";
        assert_eq!(wrong(text), "c.yaml:4:5: services.web.enviroment: unknown key; did you mean `environment`?");
        let text = "services:\n  web:\n    ports: 80\n";
        assert_eq!(wrong(text), "c.yaml:3:12: services.web.ports: expected list, found \"80\"");
        let text = "services:\n  web:\n    deploy: {update_config: {order: first}}\n";
        assert!(wrong(text).ends_with("expected `start-first` or `stop-first`, found \"first\""));
    }

    #[test]
    fn extensions_are_welcome() {
        let text = "x-a: 1\nservices:\n  web:\n    image: a\n    x-b: [1]\n    tty: yes\n    privileged: ${X}\n";
        check(&crate::yaml::parse("c.yaml", text).unwrap()[0]).unwrap();
    }
}
