//! Label and field selectors: parsing the query form and the object form, and matching.

use crate::error::Error;
use crate::names;
use crate::registry::Kind;
use crate::sparse;
use serde_json::Value;
use std::collections::BTreeMap;

/// How a requirement compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

/// All requirements must hold. Empty matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches no object, as a missing `spec.selector` does.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Parses the `labelSelector` query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Vec::new();
        let mut parser = Parser { rest: text };
        parser.space();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            parser.space();
            if parser.rest.is_empty() {
                break;
            }
            if !parser.eat(",") {
                return Err(bad(format!("found '{}', expected: ',' or 'end of string'", parser.rest)));
            }
            parser.space();
            if parser.rest.is_empty() {
                return Err(bad("found '', expected: identifier after ','".into()));
            }
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Reads a `metav1.LabelSelector` object; absent or null selects nothing, `{}` everything.
    pub fn from_object(value: Option<&Value>) -> Result<Self, Error> {
        let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Self::nothing()) };
        let mut selector = Self::from_map(value.get("matchLabels"));
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = || -> Vec<String> {
                let values = expression["values"].as_array();
                values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(bad(format!("\"{other}\" is not a valid label selector operator"))),
            };
            selector.requirements.push(Requirement { key, operator });
        }
        Ok(selector)
    }

    /// A plain map of equalities, as Services and ReplicationControllers use.
    pub fn from_map(map: Option<&Value>) -> Self {
        let entries = map.and_then(Value::as_object).into_iter().flatten();
        let requirements = entries
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.as_str().unwrap_or_default().to_owned()]),
            })
            .collect();
        Self { requirements, nothing: false }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Matches the labels of an object.
    pub fn matches_value(&self, object: &Value) -> bool {
        self.matches_with(|key| object["metadata"]["labels"].get(key).and_then(Value::as_str))
    }

    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(bound) => number().is_some_and(|n| n > *bound),
            Operator::LessThan(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Operator::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Operator::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Operator::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Operator::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

fn bad(why: String) -> Error {
    Error::Selector(format!("unable to parse requirement: {why}"))
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        self.space();
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '!' | '(' | ')' | '<' | '>'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn key(&mut self) -> Result<String, Error> {
        let key = self.word();
        match names::qualified_name(key).into_iter().next() {
            Some(problem) => Err(bad(format!("<nil>: Invalid value: \"{key}\": {problem}"))),
            None => Ok(key.to_owned()),
        }
    }

    fn value(&mut self, key: &str) -> Result<String, Error> {
        let value = self.word();
        match names::label_value(value).into_iter().next() {
            Some(problem) => Err(bad(format!("values[0][{key}]: Invalid value: \"{value}\": {problem}"))),
            None => Ok(value.to_owned()),
        }
    }

    fn set(&mut self, key: &str) -> Result<Vec<String>, Error> {
        self.space();
        if !self.eat("(") {
            return Err(bad(format!("found '{}', expected: '('", self.rest)));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value(key)?);
            self.space();
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(bad(format!("found '{}', expected: ',' or ')'", self.rest)));
            }
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, Error> {
        let value = self.value(key)?;
        value.parse().map_err(|_| {
            bad(format!(
                "values[0][{key}]: Invalid value: \"{value}\": for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        if self.eat("!") {
            return Ok(Requirement { key: self.key()?, operator: Operator::DoesNotExist });
        }
        let key = self.key()?;
        self.space();
        let operator = if self.rest.is_empty() || self.rest.starts_with(',') {
            Operator::Exists
        } else if self.eat("!=") {
            Operator::NotIn(vec![self.value(&key)?])
        } else if self.eat("==") || self.eat("=") {
            Operator::In(vec![self.value(&key)?])
        } else if self.eat(">") {
            Operator::GreaterThan(self.number(&key)?)
        } else if self.eat("<") {
            Operator::LessThan(self.number(&key)?)
        } else {
            match self.word() {
                "in" => Operator::In(self.set(&key)?),
                "notin" => Operator::NotIn(self.set(&key)?),
                other => {
                    return Err(bad(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")));
                }
            }
        };
        Ok(Requirement { key, operator })
    }
}

/// One `field=value` term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    pub path: String,
    pub value: String,
    pub negated: bool,
}

/// All terms must hold. Empty matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Parses `a.b=c,d!=e`, with `\` escaping `,`, `=` and itself in values.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let at = part
                .find('=')
                .ok_or_else(|| Error::Selector(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
            let (left, right) = part.split_at(at);
            let negated = left.ends_with('!');
            let path = left.strip_suffix('!').unwrap_or(left);
            let right = if negated { &right[1..] } else { right.strip_prefix("==").unwrap_or(&right[1..]) };
            terms.push(FieldTerm { path: path.trim().to_owned(), value: unescaped(right)?, negated });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Refuses a field the kind does not index, in upstream's words.
    pub fn check(&self, kind: &Kind) -> Result<(), Error> {
        match self.terms.iter().find(|t| !kind.selectable(&t.path)) {
            Some(term) if kind.kind == "Pod" || kind.group.is_empty() && !kind.selectable_fields.is_empty() => {
                Err(Error::Selector(format!("field label not supported: {}", term.path)))
            }
            Some(term) => Err(Error::Selector(format!(
                "\"{}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                term.path
            ))),
            None => Ok(()),
        }
    }

    /// `metadata.name=x`, when that is one of the terms: a list can then be a get.
    pub fn exact_name(&self) -> Option<&str> {
        self.exact("metadata.name")
    }

    /// The value that `path` must have.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.path == path && !t.negated).map(|t| t.value.as_str())
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|t| (field_value(object, &t.path) == t.value) != t.negated)
    }
}

/// The values of selectable fields of a document, as [`field_value`] has them; what is not asked for is not built.
///
/// # Errors
/// Those of a document that is no JSON.
pub fn field_values(document: &[u8], paths: &[&str]) -> serde_json::Result<Vec<String>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    // What `field_value` looks at in their place.
    let elsewhere = paths.iter().any(|path| matches!(*path, "reportingComponent" | "source"));
    let wanted: Vec<&str> = paths.iter().copied().chain(elsewhere.then_some("source.component")).collect();
    let object = sparse::read(document, &wanted)?;
    Ok(paths.iter().map(|path| field_value(&object, path)).collect())
}

/// The value of a selectable field as text; empty when absent.
pub fn field_value(object: &Value, path: &str) -> String {
    // Upstream's labels for Event and Pod fields differ from the JSON in a few places.
    let path = match path {
        "reportingComponent" if object.get("reportingComponent").is_none() => "source.component",
        "source" => "source.component",
        other => other,
    };
    let pointer = format!("/{}", path.replace('.', "/"));
    match object.pointer(&pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => default_field(path),
        Some(other) => other.to_string(),
    }
}

fn default_field(path: &str) -> String {
    match path {
        "spec.unschedulable" | "spec.hostNetwork" => "false".into(),
        "status.successful" => "0".into(),
        _ => String::new(),
    }
}

/// A value without its backslashes. What has a meaning of its own must have one.
fn unescaped(text: &str) -> Result<String, Error> {
    let bad_escape = |c: &str| Error::Selector(format!("invalid field selector: invalid escape sequence: \\{c}"));
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        value.push(match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => c,
                Some(other) => return Err(bad_escape(&other.to_string())),
                None => return Err(bad_escape("")),
            },
            // Upstream shows the character's number.
            ',' | '=' => {
                let why = format!("invalid field selector: unescaped character in value: {}", u32::from(c));
                return Err(Error::Selector(why));
            }
            other => other,
        });
    }
    Ok(value)
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn hits(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        LabelSelector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn label_query_forms() {
        let labels = [("app", "web"), ("n", "5"), ("empty", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("app", true),
            ("!app", false),
            ("x", false),
            ("!x", true),
            ("app in (web, db),n>4", true),
            ("app notin (db)", true),
            ("x notin (db)", true),
            ("n<5", false),
            ("x!=y", true),
            ("empty=", true),
            (" app = web , n = 5 ", true),
            ("app in (db)", false),
        ] {
            assert_eq!(hits(selector, &labels), expected, "{selector}");
        }
        for selector in ["a=b=c", "a in b", "a in (", ",", "a,", "=b", "a~b", "n>x", "-a=b"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
        let printed = LabelSelector::parse("a=b,c in (d,e),!f").unwrap().to_string();
        assert_eq!(printed, "a=b,c in (d,e),!f");
    }

    #[test]
    fn object_form() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]});
        let selector = LabelSelector::from_object(Some(&selector)).unwrap();
        assert!(selector.matches_value(&json!({"metadata": {"labels": {"a": "b", "c": ""}}})));
        assert!(!selector.matches_value(&json!({"metadata": {}})));
        assert!(!LabelSelector::from_object(None).unwrap().matches_value(&json!({})));
        assert!(LabelSelector::from_object(Some(&json!({}))).unwrap().matches_value(&json!({})));
    }

    #[test]
    fn fields() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        for (selector, expected) in [
            ("spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("status.phase!=Failed,metadata.name=p", true),
            ("spec.nodeName==n1", true),
            ("spec.schedulerName=", true),
            ("metadata.name=a\\,b", false),
        ] {
            assert_eq!(FieldSelector::parse(selector).unwrap().matches(&pod), expected, "{selector}");
        }
        assert!(FieldSelector::parse("nonsense").is_err());
        let pods = crate::registry::builtin().get("", "v1", "pods").unwrap();
        assert!(FieldSelector::parse("spec.nodeName=n").unwrap().check(pods).is_ok());
        assert_eq!(
            FieldSelector::parse("spec.foo=n").unwrap().check(pods).unwrap_err().to_string(),
            "field label not supported: spec.foo"
        );
    }
}
