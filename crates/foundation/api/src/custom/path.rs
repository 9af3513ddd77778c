//! The JSON paths that columns, scales and selectable fields use: fields, indexes, wildcards and equality filters.

use serde_json::Value;

use crate::error::Error;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Nothing,
    /// `[?(@.type=="Ready")]`.
    Where(Vec<String>, Value),
}

/// A path, parsed once. The default leads nowhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Path(Vec<Step>);

impl Default for Path {
    fn default() -> Self {
        Self(vec![Step::Nothing])
    }
}

impl Path {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = || Error::Schema(format!("{text:?} is no JSON path that is supported"));
        let mut steps = Vec::new();
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after).ok_or_else(bad)?;
                steps.push(bracket(&after[..end]).ok_or_else(bad)?);
                rest = &after[end + 1..];
                continue;
            }
            let after = rest.strip_prefix('.').ok_or_else(bad)?;
            // A backslash keeps a dot in a name: `.metadata.annotations.example\.com/x`.
            let mut name = String::new();
            let mut used = 0;
            let mut letters = after.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' => {
                        let escaped = letters.next().ok_or_else(bad)?;
                        name.push(escaped);
                        used += 1 + escaped.len_utf8();
                    }
                    '.' | '[' => break,
                    other => {
                        name.push(other);
                        used += other.len_utf8();
                    }
                }
            }
            if !name.is_empty() {
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            } else if !after.is_empty() && !after.starts_with('[') {
                return Err(bad());
            }
            rest = &after[used..];
        }
        Ok(Self(steps))
    }

    /// Every value the path leads to.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![object];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.follow(value)).collect();
        }
        found
    }

    /// The first value, unless it is null.
    pub fn first<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.find(object).into_iter().next().filter(|value| !value.is_null())
    }

    /// The names of a path of fields only.
    pub fn fields(&self) -> Option<Vec<&str>> {
        let name = |step: &'_ Step| -> Option<String> {
            match step {
                Step::Field(name) => Some(name.clone()),
                _ => None,
            }
        };
        self.0.iter().all(|step| name(step).is_some()).then(|| {
            self.0
                .iter()
                .filter_map(|step| match step {
                    Step::Field(name) => Some(name.as_str()),
                    _ => None,
                })
                .collect()
        })
    }
}

/// Where a bracket ends; quotes may hold brackets.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (index, letter) in text.char_indices() {
        match (quote, letter) {
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            (None, ']') => return Some(index),
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<&str> {
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"'))
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquoted(text) {
        return Some(Step::Field(name.to_owned()));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        let (left, right) = filter.split_once("==")?;
        let path = left.trim().strip_prefix("@.")?;
        let right = right.trim();
        let value = match unquoted(right) {
            Some(text) => Value::from(text),
            None => serde_json::from_str(right).ok()?,
        };
        return Some(Step::Where(path.split('.').map(str::to_owned).collect(), value));
    }
    text.parse().ok().map(Step::Index)
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(index) => {
                let Some(list) = value.as_array() else { return Vec::new() };
                let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let at = if *index < 0 { length + index } else { *index };
                usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect()
            }
            Self::All => match value {
                Value::Array(list) => list.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Self::Where(path, wanted) => {
                let holds = |item: &&Value| path.iter().try_fold(*item, |value, name| value.get(name)) == Some(wanted);
                value.as_array().into_iter().flatten().filter(holds).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_they_say() {
        let object = json!({"spec": {"size": 3, "a.b": 1, "list": [{"n": 1}, {"n": 2}]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        for (path, wanted) in [
            (".spec.size", json!([3])),
            ("$.spec.size", json!([3])),
            (".spec['a.b']", json!([1])),
            (".spec.a\\.b", json!([1])),
            (".spec.list[*].n", json!([1, 2])),
            (".spec.list[-1].n", json!([2])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='None')].status", json!([])),
            (".spec.absent.deep", json!([])),
        ] {
            let found: Vec<Value> = Path::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(Value::from(found), wanted, "{path}");
        }
        for bad in ["spec", ".a[", ".a[x]", ".a..b", ".a[?(@.b>1)]"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Path::parse(".spec.size").unwrap().fields().unwrap(), ["spec", "size"]);
    }
}
