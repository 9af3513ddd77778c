//! YAML as a tree in which each node knows where it is written, and whether somebody has read it.
//!
//! Scalars stay text until a reader asks for a type: `1.10` is a version here and a number there, and what a variable
//! stands for has no type at all.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Number, Value, json};

use crate::error::{Error, Place, Result};

/// More nodes than any file means; aliases of aliases would make them without end.
const MOST_NODES: usize = 200_000;
const DEEPEST: usize = 128;

#[derive(Debug, Clone)]
pub enum Kind {
    Scalar { text: String, plain: bool },
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// How a node of a further file meets what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// `!reset`: take it away.
    Reset,
    /// `!override`: do not merge.
    Override,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    pub place: Place,
    pub tag: Option<Tag>,
    /// What nobody reads is told to the user.
    pub read: Cell<bool>,
}

impl Node {
    pub fn new(kind: Kind, place: Place) -> Self {
        Self { kind, place, tag: None, read: Cell::new(false) }
    }

    pub fn text(text: impl Into<String>, place: &Place) -> Self {
        Self::new(Kind::Scalar { text: text.into(), plain: false }, place.clone())
    }

    pub fn map(place: &Place) -> Self {
        Self::new(Kind::Map(Vec::new()), place.clone())
    }

    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub fn entries(&self) -> &[(String, Node)] {
        if let Kind::Map(entries) = &self.kind { entries } else { &[] }
    }

    pub fn items(&self) -> &[Node] {
        if let Kind::List(items) = &self.kind { items } else { &[] }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    pub fn set(&mut self, key: &str, node: Node) {
        let Kind::Map(entries) = &mut self.kind else { return };
        match entries.iter_mut().find(|(name, _)| name == key) {
            Some((_, known)) => *known = node,
            None => entries.push((key.to_owned(), node)),
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Node> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        let index = entries.iter().position(|(name, _)| name == key)?;
        Some(entries.remove(index).1)
    }

    pub fn scalar(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// As JSON, plain scalars by YAML's core schema.
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::List(items) => items.iter().map(Node::to_json).collect(),
            Kind::Map(entries) => entries.iter().map(|(name, node)| (name.clone(), node.to_json())).collect(),
            Kind::Scalar { .. } if self.is_null() => Value::Null,
            Kind::Scalar { text, plain: false } => json!(text),
            Kind::Scalar { text, plain: true } => match text.as_str() {
                "true" | "True" | "TRUE" => json!(true),
                "false" | "False" | "FALSE" => json!(false),
                _ => number(text).map_or_else(|| json!(text), Value::Number),
            },
        }
    }
}

fn number(text: &str) -> Option<Number> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    let digits = text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+' | '.'));
    digits.then(|| text.parse().ok().and_then(Number::from_f64)).flatten()
}

/// All documents of a text; empty ones are left out.
pub fn parse(file: &str, text: &str) -> Result<Vec<Node>> {
    let file: Arc<str> = file.into();
    let mut reader = Reader { file: file.clone(), anchors: HashMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    let mut events = Parser::new_from_str(text);
    while let Some(next) = events.next_event() {
        let (event, span) = next.map_err(|error| reader.scan(&error))?;
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Comment(..) => {}
            event => {
                let node = reader.node(event, span, &mut events, 0)?;
                if !node.is_null() {
                    documents.push(node);
                }
            }
        }
    }
    Ok(documents)
}

struct Reader {
    file: Arc<str>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

type Events<'a> = Parser<'a, granit_parser::StrInput<'a>>;

impl Reader {
    fn scan(&self, error: &granit_parser::ScanError) -> Error {
        let place = Place { file: self.file.clone(), line: error.marker().line(), column: error.marker().col() + 1 };
        Error::Syntax { place, problem: error.to_string() }
    }

    fn place(&self, span: Span) -> Place {
        Place { file: self.file.clone(), line: span.start.line(), column: span.start.col() + 1 }
    }

    fn next<'a>(&self, events: &mut Events<'a>) -> Result<(Event<'a>, Span)> {
        loop {
            match events.next_event() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(next)) => return Ok(next),
                Some(Err(error)) => return Err(self.scan(&error)),
                None => {
                    let place = Place { file: self.file.clone(), line: 0, column: 0 };
                    return Err(Error::Syntax { place, problem: "the file ends too early".into() });
                }
            }
        }
    }

    fn node(&mut self, event: Event<'_>, span: Span, events: &mut Events<'_>, depth: usize) -> Result<Node> {
        let place = self.place(span);
        self.nodes += 1;
        if self.nodes > MOST_NODES || depth > DEEPEST {
            return Err(Error::Syntax { place, problem: "too many nodes, or too deep".into() });
        }
        let (kind, anchor, tag) = match event {
            Event::Alias(id) => {
                let Some(known) = self.anchors.get(&id) else {
                    return Err(Error::Syntax { place, problem: "an alias of something that is not finished".into() });
                };
                self.nodes += count(known);
                return Ok(known.clone());
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(std::borrow::Cow::into_owned);
                // `!!str 1` is text; `!reset null` and the like stay what they are.
                let plain =
                    style == ScalarStyle::Plain && tag.as_ref().and_then(|tag| tag.core_suffix()) != Some("str");
                (Kind::Scalar { text: text.into_owned(), plain }, anchor, tag)
            }
            Event::SequenceStart(_, anchor, tag) => {
                let tag = tag.map(std::borrow::Cow::into_owned);
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next(events)?;
                    if event == Event::SequenceEnd {
                        break;
                    }
                    items.push(self.node(event, span, events, depth + 1)?);
                }
                (Kind::List(items), anchor, tag)
            }
            Event::MappingStart(_, anchor, tag) => {
                let tag = tag.map(std::borrow::Cow::into_owned);
                (Kind::Map(self.mapping(events, depth)?), anchor, tag)
            }
            other => {
                return Err(Error::Syntax { place, problem: format!("unexpected {other:?}") });
            }
        };
        let tag = match tag {
            Some(tag) if tag.suffix() == "reset" => Some(Tag::Reset),
            Some(tag) if tag.suffix() == "override" => Some(Tag::Override),
            Some(tag) if !tag.is_yaml_core_schema() => {
                return Err(Error::Syntax { place, problem: format!("unknown tag {}", tag.original()) });
            }
            _ => None,
        };
        let node = Node { kind, place, tag, read: Cell::new(false) };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn mapping(&mut self, events: &mut Events<'_>, depth: usize) -> Result<Vec<(String, Node)>> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next(events)?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, span, events, depth + 1)?;
            let Kind::Scalar { text: name, plain } = key.kind else {
                return Err(Error::Syntax { place: key.place, problem: "a key must be text".into() });
            };
            let (event, span) = self.next(events)?;
            let mut value = self.node(event, span, events, depth + 1)?;
            // What a person looks for is the key.
            if !matches!(value.kind, Kind::Scalar { .. }) || value.is_null() {
                value.place = key.place.clone();
            }
            if name == "<<" && plain {
                merged.push(value);
            } else if entries.iter().any(|(known, _)| *known == name) {
                return Err(Error::Syntax { place: key.place, problem: format!("the key {name:?} is there twice") });
            } else {
                entries.push((name, value));
            }
        }
        for value in merged {
            let place = value.place.clone();
            let sources = match value.kind {
                Kind::List(items) => items,
                _ => vec![value],
            };
            for source in sources {
                let Kind::Map(inherited) = source.kind else {
                    return Err(Error::Syntax { place, problem: "`<<` takes a map or a list of maps".into() });
                };
                for (name, node) in inherited {
                    if entries.iter().all(|(known, _)| *known != name) {
                        entries.push((name, node));
                    }
                }
            }
        }
        Ok(entries)
    }
}

fn count(node: &Node) -> usize {
    1 + node.items().iter().map(count).sum::<usize>()
        + node.entries().iter().map(|(_, node)| count(node)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn one(text: &str) -> Node {
        parse("x.yaml", text).unwrap().remove(0)
    }

    #[test]
    fn merge_keys_anchors_and_places() {
        let node = one("x-a: &a {b: 1, c: [2]}\nd:\n  <<: *a\n  b: 3\ne:\n  <<: [*a, {f: yes}]\n");
        assert_eq!(node.to_json()["d"], json!({"b": 3, "c": [2]}));
        assert_eq!(node.to_json()["e"], json!({"b": 1, "c": [2], "f": "yes"}));
        let place = &node.get("d").unwrap().get("b").unwrap().place;
        assert_eq!(place.to_string(), "x.yaml:4:6");
    }

    #[test]
    fn tags_and_scalars() {
        let node = one("a: !reset null\nb: !override [1]\nc: \"012\"\nd: 1.10\ne: ~\n");
        assert_eq!(node.get("a").unwrap().tag, Some(Tag::Reset));
        assert_eq!(node.get("b").unwrap().tag, Some(Tag::Override));
        assert_eq!(node.get("d").unwrap().scalar(), Some("1.10"));
        assert!(node.get("e").unwrap().is_null());
    }

    #[test]
    fn bombs_and_broken_files_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..8 {
            let below = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(parse("x", &bomb).unwrap_err().to_string().contains("too many nodes"));
        let error = parse("x.yaml", "a: [1\nb: 2\n").unwrap_err().to_string();
        assert!(error.starts_with("x.yaml:"), "{error}");
        assert!(parse("x", "a: 1\na: 2\n").unwrap_err().to_string().starts_with("x:2:1: the key \"a\""));
    }
}
