//! Reading the tree: a node with its path, which remembers that it was read and complains with its place.

use std::cell::RefCell;
use std::fmt;

use crate::error::{Error, Place, Result};
use crate::units;
use crate::yaml::{Kind, Node};

/// Something that a Compose file asks for and that is not kept, or not as it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    pub place: Place,
    /// `services.web.cpuset`
    pub path: String,
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.path, self.message)
    }
}

#[derive(Debug, Default)]
pub struct Notes(RefCell<Vec<Warning>>);

impl Notes {
    pub fn add(&self, warning: Warning) {
        let mut all = self.0.borrow_mut();
        if !all.contains(&warning) {
            all.push(warning);
        }
    }

    /// In the order of the files.
    pub fn sorted(&self) -> Vec<Warning> {
        let mut all = self.0.borrow().clone();
        all.sort();
        all
    }

    /// Tells of each part of the tree that nobody has read.
    pub fn unread(&self, node: &Node, path: &str) {
        if node.read.get() && node.items().is_empty() && node.entries().is_empty() {
            return;
        }
        if !any_read(node) {
            return self.add(Warning {
                place: node.place.clone(),
                path: path.to_owned(),
                message: "is not kept".into(),
            });
        }
        for (name, inner) in node.entries().iter().filter(|(name, _)| !name.starts_with("x-")) {
            self.unread(inner, &format!("{path}.{name}"));
        }
        for (index, inner) in node.items().iter().enumerate() {
            self.unread(inner, &format!("{path}[{index}]"));
        }
    }
}

fn any_read(node: &Node) -> bool {
    let inner = node.entries().iter().map(|(_, node)| node).chain(node.items());
    node.read.get() || inner.into_iter().any(any_read)
}

/// What people write for yes and no.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// A node, and how it is called.
#[derive(Clone)]
pub struct View<'a> {
    pub node: &'a Node,
    pub path: String,
    pub notes: &'a Notes,
}

impl<'a> View<'a> {
    pub fn new(node: &'a Node, path: impl Into<String>, notes: &'a Notes) -> Self {
        node.read.set(true);
        Self { node, path: path.into(), notes }
    }

    /// The value under a key, unless it is empty.
    pub fn get(&self, key: &str) -> Option<View<'a>> {
        let node = self.node.get(key)?;
        node.read.set(true);
        (!node.is_null()).then(|| View::new(node, format!("{}.{key}", self.path), self.notes))
    }

    pub fn has(&self, key: &str) -> bool {
        self.node.get(key).is_some_and(|node| !node.is_null())
    }

    pub fn entries(&self) -> impl Iterator<Item = (&'a str, View<'a>)> {
        let (path, notes) = (self.path.clone(), self.notes);
        self.node
            .entries()
            .iter()
            .filter(|(name, _)| !name.starts_with("x-"))
            .map(move |(name, node)| (name.as_str(), View::new(node, format!("{path}.{name}"), notes)))
    }

    pub fn items(&self) -> impl Iterator<Item = View<'a>> {
        let (path, notes) = (self.path.clone(), self.notes);
        self.node
            .items()
            .iter()
            .enumerate()
            .map(move |(index, node)| View::new(node, format!("{path}[{index}]"), notes))
    }

    pub fn is_map(&self) -> bool {
        matches!(self.node.kind, Kind::Map(_))
    }

    pub fn is_list(&self) -> bool {
        matches!(self.node.kind, Kind::List(_))
    }

    pub fn invalid(&self, problem: impl Into<String>) -> Error {
        Error::Invalid { place: self.node.place.clone(), path: self.path.clone(), problem: problem.into() }
    }

    /// Not kept, and why; nothing below is read any more.
    pub fn warn(&self, message: impl Into<String>) {
        all_read(self.node);
        self.notes.add(Warning { place: self.node.place.clone(), path: self.path.clone(), message: message.into() });
    }

    pub fn text(&self) -> Result<&'a str> {
        self.node.scalar().ok_or_else(|| self.invalid("expected text"))
    }

    pub fn bool(&self) -> Result<bool> {
        let text = self.text()?;
        boolean(text).ok_or_else(|| self.invalid(format!("expected true or false, found {text:?}")))
    }

    pub fn int(&self) -> Result<i64> {
        let text = self.text()?;
        text.trim().parse().map_err(|_| self.invalid(format!("expected a whole number, found {text:?}")))
    }

    pub fn float(&self) -> Result<f64> {
        let text = self.text()?;
        text.trim().parse().map_err(|_| self.invalid(format!("expected a number, found {text:?}")))
    }

    /// Milliseconds.
    pub fn duration(&self) -> Result<u64> {
        let text = self.text()?;
        let problem = || self.invalid(format!("expected a duration such as `1m30s`, found {text:?}"));
        units::duration(text).ok_or_else(problem)
    }

    /// Whole seconds for Kubernetes, at least `least`; a fraction is rounded up, and that is told.
    pub fn seconds(&self, least: u64) -> Result<u64> {
        let exact = self.duration()?;
        let seconds = exact.div_ceil(1000).max(least);
        if exact % 1000 != 0 {
            self.warn(format!("Kubernetes counts whole seconds: {seconds} s"));
        }
        Ok(seconds)
    }

    pub fn bytes(&self) -> Result<u64> {
        let text = self.text()?;
        units::bytes(text).ok_or_else(|| self.invalid(format!("expected a size such as `64m`, found {text:?}")))
    }

    /// A file's mode: octal where it starts with 0, as YAML 1.1 had it.
    pub fn mode(&self) -> Result<u32> {
        let text = self.text()?;
        let octal = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
        let mode = match octal {
            Some("") => Some(0),
            Some(digits) => u32::from_str_radix(digits, 8).ok(),
            // Quoted, it is always octal.
            None if matches!(self.node.kind, Kind::Scalar { plain: false, .. }) => u32::from_str_radix(text, 8).ok(),
            None => text.parse().ok(),
        };
        mode.filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| self.invalid(format!("expected a mode such as 0440, found {text:?}")))
    }

    /// One text or a list of them.
    pub fn strings(&self) -> Result<Vec<(String, View<'a>)>> {
        match &self.node.kind {
            Kind::List(_) => self.items().map(|item| Ok((item.text()?.to_owned(), item))).collect(),
            _ => Ok(vec![(self.text()?.to_owned(), self.clone())]),
        }
    }

    /// A map, or a list of `key=value`; `None` is a key without a value.
    pub fn pairs(&self) -> Result<Vec<(String, Option<String>, View<'a>)>> {
        match &self.node.kind {
            Kind::Map(_) => self
                .entries()
                .map(|(name, value)| Ok((name.to_owned(), value.node.scalar().map(str::to_owned), value)))
                .collect(),
            Kind::List(_) => self
                .items()
                .map(|item| {
                    let text = item.text()?;
                    Ok(match text.split_once('=') {
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned()), item),
                        None => (text.to_owned(), None, item),
                    })
                })
                .collect(),
            Kind::Scalar { .. } => Err(self.invalid("expected a map or a list")),
        }
    }

    /// A command: a list of words, or a line that is split as a shell would.
    pub fn words(&self) -> Result<Vec<String>> {
        if self.is_list() {
            return self.items().map(|item| Ok(item.node.scalar().unwrap_or_default().to_owned())).collect();
        }
        shlex::split(self.text()?).ok_or_else(|| self.invalid("a quote is not closed"))
    }
}

fn all_read(node: &Node) {
    node.read.set(true);
    node.entries().iter().map(|(_, node)| node).chain(node.items()).for_each(all_read);
}
