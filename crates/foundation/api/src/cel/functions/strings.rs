//! Functions of text: cel-go's strings extension, and Kubernetes' regex library. Positions count characters.

use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use super::{Result1, format, int};
use crate::cel::eval::{EvalError, Evaluation};
use crate::cel::value::Value;

/// Largest program that a pattern may compile to, in bytes.
const PATTERN_SIZE: usize = 1 << 18;

pub fn call(on: &mut Evaluation, text: &Arc<str>, name: &str, args: &[Value]) -> Result1 {
    // Every function here reads its text.
    on.meter.text(text.len())?;
    Ok(match (name, args) {
        ("contains", [Value::String(part)]) => Value::Bool(text.contains(&**part)),
        ("startsWith", [Value::String(part)]) => Value::Bool(text.starts_with(&**part)),
        ("endsWith", [Value::String(part)]) => Value::Bool(text.ends_with(&**part)),
        ("matches", [Value::String(pattern)]) => {
            let pattern = compiled(on, pattern, text)?;
            Value::Bool(pattern.is_match(text))
        }
        ("find", [Value::String(pattern)]) => {
            let pattern = compiled(on, pattern, text)?;
            Value::text(pattern.find(text).map_or("", |found| found.as_str()))
        }
        ("findAll", [Value::String(pattern), limit @ ..]) => {
            let pattern = compiled(on, pattern, text)?;
            let most = match limit {
                [] => usize::MAX,
                [Value::Int(limit)] => usize::try_from(*limit).unwrap_or(usize::MAX),
                _ => return Err(EvalError::no_overload()),
            };
            on.meter.charge(text.len())?;
            Value::list(pattern.find_iter(text).take(most).map(|found| Value::text(found.as_str())).collect())?
        }
        ("charAt", [Value::Int(at)]) => {
            let length = text.chars().count();
            match usize::try_from(*at) {
                Ok(at) if at == length => Value::text(""),
                Ok(at) if at < length => Value::text(slice(text, at, at + 1)),
                _ => return Err(out_of_range(*at)),
            }
        }
        ("indexOf", [Value::String(part), from @ ..]) => index_of(text, part, from)?,
        ("lastIndexOf", [Value::String(part), until @ ..]) => last_index_of(text, part, until)?,
        ("lowerAscii", []) => Value::text(&text.to_ascii_lowercase()),
        ("upperAscii", []) => Value::text(&text.to_ascii_uppercase()),
        ("trim", []) => Value::text(text.trim()),
        ("reverse", []) => Value::text(&text.chars().rev().collect::<String>()),
        ("replace", [Value::String(old), Value::String(new), limit @ ..]) => replace(on, text, old, new, limit)?,
        ("split", [Value::String(by), limit @ ..]) => split(on, text, by, limit)?,
        ("substring", [Value::Int(begin), end @ ..]) => substring(text, *begin, end)?,
        ("format", [Value::List(args)]) => format::format(on, text, &args.items)?,
        _ => return Err(EvalError::no_overload()),
    })
}

/// The pattern, from the expression's own when it is written there.
fn compiled(on: &mut Evaluation, pattern: &str, text: &str) -> Result<Regex, EvalError> {
    on.meter.charge(text.len().div_ceil(10) * pattern.len().div_ceil(4))?;
    if let Some(known) = on.patterns.get(pattern) {
        return Ok(known.clone());
    }
    // Compiling a pattern is dear.
    on.meter.charge(500 + 20 * pattern.len())?;
    compile(pattern).map_err(|error| EvalError::new(&error))
}

/// A pattern of bounded size.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE).nest_limit(50).build();
    built.map_err(|_| format!("error parsing regexp: invalid pattern: `{pattern}`"))
}

fn out_of_range(at: i64) -> EvalError {
    EvalError::new(&format!("index out of range: {at}"))
}

/// Where a character begins, in bytes.
fn offset(text: &str, at: usize) -> usize {
    text.char_indices().nth(at).map_or(text.len(), |(offset, _)| offset)
}

fn slice(text: &str, begin: usize, end: usize) -> &str {
    text.get(offset(text, begin)..offset(text, end)).unwrap_or_default()
}

fn found(text: &str, offset: Option<usize>) -> Value {
    offset.map_or(Value::Int(-1), |offset| int(text[..offset].chars().count()))
}

fn index_of(text: &str, part: &str, from: &[Value]) -> Result1 {
    let from = match from {
        [] => 0,
        [Value::Int(from)] => usize::try_from(*from)
            .ok()
            .filter(|from| *from <= text.chars().count())
            .ok_or_else(|| out_of_range(*from))?,
        _ => return Err(EvalError::no_overload()),
    };
    let begin = offset(text, from);
    Ok(found(text, text[begin..].find(part).map(|at| begin + at)))
}

fn last_index_of(text: &str, part: &str, until: &[Value]) -> Result1 {
    let length = text.chars().count();
    let until = match until {
        [] => return Ok(found(text, text.rfind(part))),
        [Value::Int(until)] => {
            usize::try_from(*until).ok().filter(|until| *until <= length).ok_or_else(|| out_of_range(*until))?
        }
        _ => return Err(EvalError::no_overload()),
    };
    // The last match that begins at or before `until`.
    let end = offset(text, until.saturating_add(part.chars().count()).min(length));
    Ok(found(text, text[..end].rfind(part)))
}

fn substring(text: &str, begin: i64, end: &[Value]) -> Result1 {
    let length = text.chars().count();
    let at = |at: i64| usize::try_from(at).ok().filter(|at| *at <= length).ok_or_else(|| out_of_range(at));
    let first = at(begin)?;
    let last = match end {
        [] => length,
        [Value::Int(end)] => at(*end)?,
        _ => return Err(EvalError::no_overload()),
    };
    if first > last {
        return Err(EvalError::new(&format!("invalid substring range. start: {first}, end: {last}")));
    }
    Ok(Value::text(slice(text, first, last)))
}

/// The limit of `split` and `replace`: negative is none.
fn limit(limit: &[Value]) -> Result<usize, EvalError> {
    match limit {
        [] => Ok(usize::MAX),
        [Value::Int(limit)] => Ok(usize::try_from(*limit).unwrap_or(usize::MAX)),
        _ => Err(EvalError::no_overload()),
    }
}

fn replace(on: &mut Evaluation, text: &str, old: &str, new: &str, most: &[Value]) -> Result1 {
    let most = limit(most)?;
    // Counted first: the result may be far longer than the text.
    let count = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let count = count.min(most);
    on.meter.text(text.len() + count.saturating_mul(new.len()))?;
    Ok(Value::text(&text.replacen(old, new, count)))
}

fn split(on: &mut Evaluation, text: &str, by: &str, most: &[Value]) -> Result1 {
    let most = limit(most)?;
    let parts: Vec<&str> = match (most, by.is_empty()) {
        (0, _) => Vec::new(),
        (_, true) => {
            let mut parts: Vec<&str> = text.split("").filter(|part| !part.is_empty()).collect();
            if parts.len() > most {
                parts.truncate(most - 1);
                parts.push(slice(text, most - 1, usize::MAX));
            }
            parts
        }
        _ => text.splitn(most, by).collect(),
    };
    on.meter.charge(parts.len())?;
    Value::list(parts.into_iter().map(Value::text).collect())
}

/// The texts of a list, joined.
pub fn join(on: &mut Evaluation, items: &[Value], by: &str) -> Result1 {
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        let Value::String(text) = item else { return Err(EvalError::no_overload()) };
        on.meter.text(text.len() + by.len())?;
        if index > 0 {
            out.push_str(by);
        }
        out.push_str(text);
    }
    Ok(Value::text(&out))
}

/// `strings.quote`
pub fn quote(on: &mut Evaluation, args: &[Value]) -> Result1 {
    let [Value::String(text)] = args else { return Err(EvalError::no_overload()) };
    on.meter.text(text.len() * 2)?;
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(Value::text(&out))
}

/// `jsonpatch.escapeKey` (RFC 6901, 3).
pub fn escape_key(on: &mut Evaluation, args: &[Value]) -> Result1 {
    let [Value::String(text)] = args else { return Err(EvalError::no_overload()) };
    on.meter.text(text.len() * 2)?;
    Ok(Value::text(&text.replace('~', "~0").replace('/', "~1")))
}
