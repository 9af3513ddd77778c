//! Kubernetes' semantic versions.

pub use semver::Version;

use super::{Result1, compared};
use crate::cel::eval::EvalError;
use crate::cel::value::Value;

/// `semver` and `isSemver`; a normalised text may lack parts, and have a `v` and leading zeros.
pub fn make(name: &str, text: &str, normalize: bool) -> Result1 {
    let parsed = if normalize { Version::parse(&normalized(text)) } else { Version::parse(text) };
    match (parsed, name) {
        (parsed, "isSemver") => Ok(Value::Bool(parsed.is_ok())),
        (Ok(version), _) => Ok(Value::Semver(version.into())),
        (Err(error), _) => Err(EvalError::new(&error.to_string())),
    }
}

fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut parts: Vec<&str> = numbers
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0",
            trimmed => trimmed,
        })
        .collect();
    while parts.len() < 3 {
        parts.push("0");
    }
    format!("{}{rest}", parts.join("."))
}

pub fn call(version: &Version, name: &str, args: &[Value]) -> Result1 {
    let part = |number: u64| Ok(Value::Int(i64::try_from(number).unwrap_or(i64::MAX)));
    match (name, args) {
        ("major", []) => part(version.major),
        ("minor", []) => part(version.minor),
        ("patch", []) => part(version.patch),
        // Build metadata has no say in the order.
        (_, [Value::Semver(other)]) => compared(name, version.cmp_precedence(other)),
        _ => Err(EvalError::no_overload()),
    }
}
