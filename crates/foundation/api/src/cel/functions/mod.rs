//! The functions of expressions: one table says what there is, one dispatch finds it by name.

pub mod authorizer;
mod convert;
mod format;
pub mod ip;
pub mod lists;
mod math;
mod named;
pub mod semver;
mod strings;
mod table;
pub mod time;
pub mod url;

use std::borrow::Cow;

pub use strings::compile as strings_compile;
pub use table::{is_qualified, signatures};

use super::eval::{EvalError, Evaluation};
use super::is_keyword;
use super::value::Value;

pub(super) type Result1 = Result<Value, EvalError>;

/// Calls a function. A global one has no target; `x.f(y)` has `x`.
pub fn call(on: &mut Evaluation, target: Option<&Value>, name: &str, args: &[Value]) -> Result1 {
    if let Some((space, name)) = name.split_once('.') {
        return match space {
            "math" => math::call(name, args),
            "sets" => lists::sets(on, name, args),
            "lists" => lists::range(on, args),
            "format" => named::make(name, args),
            "optional" => optional(on, name, args),
            "base64" => convert::base64(on, name, args),
            "strings" => strings::quote(on, args),
            "ip" => ip::canonical(args),
            "jsonpatch" => strings::escape_key(on, args),
            _ => Err(EvalError::no_overload()),
        };
    }
    let Some(target) = target else { return global(on, name, args) };
    match target {
        Value::String(text) if name != "size" => strings::call(on, text, name, args),
        Value::List(list) if name != "size" => lists::call(on, list, name, args),
        Value::Timestamp(_) | Value::Duration(_) => time::call(target, name, args),
        Value::Url(url) => url::call(url, name),
        Value::Ip(_) | Value::Cidr(_) => ip::call(target, name, args),
        Value::Quantity(quantity) => quantity_call(quantity, name, args),
        Value::Semver(version) => semver::call(version, name, args),
        Value::Format(format) => named::validate(on, format, args),
        Value::Authorizer(authorizer) => authorizer::call(on, authorizer, name, args),
        Value::Optional(value) => match (name, value) {
            ("hasValue", value) => Ok(Value::Bool(value.is_some())),
            ("value", Some(value)) => Ok((**value).clone()),
            ("value", None) => Err(EvalError::new("optional.none() dereference")),
            _ => Err(EvalError::no_overload()),
        },
        _ if name == "size" => size(on, target),
        _ => Err(EvalError::no_overload()),
    }
}

fn global(on: &mut Evaluation, name: &str, args: &[Value]) -> Result1 {
    match (name, args) {
        ("size", [of]) => size(on, of),
        ("matches", [Value::String(text), pattern]) => strings::call(on, text, name, std::slice::from_ref(pattern)),
        ("string" | "int" | "uint" | "double" | "bool" | "bytes" | "dyn" | "type", [of]) => convert::call(on, name, of),
        ("duration" | "timestamp", [of]) => time::make(name, of),
        ("url" | "isURL", [Value::String(text)]) => {
            on.meter.text(text.len())?;
            url::make(name, text)
        }
        ("ip" | "isIP" | "cidr" | "isCIDR", [Value::String(text)]) => {
            on.meter.text(text.len())?;
            ip::make(name, text)
        }
        ("semver" | "isSemver", [Value::String(text), normalize @ ..]) => {
            on.meter.text(text.len())?;
            semver::make(name, text, matches!(normalize, [Value::Bool(true)]))
        }
        ("quantity" | "isQuantity", [Value::String(text)]) => {
            on.meter.text(text.len())?;
            match (text.parse(), name) {
                (parsed, "isQuantity") => Ok(Value::Bool(parsed.is_ok())),
                (Ok(quantity), _) => Ok(Value::Quantity(quantity)),
                (Err(_), _) => Err(EvalError::new(
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                )),
            }
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn size(on: &mut Evaluation, of: &Value) -> Result1 {
    Ok(int(match of {
        Value::String(text) => {
            on.meter.text(text.len())?;
            text.chars().count()
        }
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => list.items.len(),
        Value::Map(map) => map.entries.len(),
        _ => return Err(EvalError::no_overload()),
    }))
}

/// A count as an int: counts of things in memory fit.
fn int(count: usize) -> Value {
    Value::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

fn optional(on: &mut Evaluation, name: &str, args: &[Value]) -> Result1 {
    let zero = |value: &Value| match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Double(value) => *value == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.items.is_empty(),
        Value::Map(map) => map.entries.is_empty(),
        _ => false,
    };
    match (name, args) {
        ("none", []) => Ok(Value::Optional(None)),
        ("of", [value]) => Value::some(value.clone()),
        ("ofNonZeroValue", [value]) if zero(value) => Ok(Value::Optional(None)),
        ("ofNonZeroValue", [value]) => Value::some(value.clone()),
        ("unwrap", [Value::List(list)]) => lists::call(on, list, "unwrapOpt", &[]),
        _ => Err(EvalError::no_overload()),
    }
}

fn quantity_call(quantity: &crate::quantity::Quantity, name: &str, args: &[Value]) -> Result1 {
    let other = |value: &Value| match value {
        Value::Quantity(other) => Some(*other),
        Value::Int(units) => Some(crate::quantity::Quantity::from_units(*units)),
        _ => None,
    };
    Ok(match (name, args) {
        ("isInteger", []) => Value::Bool(quantity.is_integer() && quantity.fits()),
        ("asInteger", []) if quantity.is_integer() && quantity.fits() => Value::Int(quantity.units()),
        ("asInteger", []) => return Err(EvalError::new("cannot convert value to integer")),
        ("asApproximateFloat", []) => Value::Double(quantity.approximate()),
        ("sign", []) => Value::Int(match (quantity.is_zero(), quantity.is_negative()) {
            (true, _) => 0,
            (_, true) => -1,
            _ => 1,
        }),
        ("add" | "sub", [value]) => {
            let other = other(value).ok_or_else(EvalError::no_overload)?;
            Value::Quantity(if name == "add" { *quantity + other } else { *quantity - other })
        }
        (_, [Value::Quantity(other)]) => return compared(name, quantity.cmp(other)),
        _ => return Err(EvalError::no_overload()),
    })
}

/// `isLessThan`, `isGreaterThan`, `compareTo`.
fn compared(name: &str, order: std::cmp::Ordering) -> Result1 {
    Ok(match name {
        "isLessThan" => Value::Bool(order.is_lt()),
        "isGreaterThan" => Value::Bool(order.is_gt()),
        "compareTo" => Value::Int(order as i64),
        _ => return Err(EvalError::no_overload()),
    })
}

/// A value in an error message.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => convert::double_text(*number),
        Value::Bool(value) => value.to_string(),
        other => other.type_name().to_owned(),
    }
}

/// The value of an identifier that names a type.
pub fn type_named(name: &str) -> Option<Value> {
    const NAMES: [&str; 12] = [
        "bool",
        "bytes",
        "double",
        "int",
        "list",
        "map",
        "null_type",
        "string",
        "type",
        "uint",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
    ];
    NAMES.iter().find(|known| **known == name).map(|name| Value::Type(name))
}

const ESCAPES: [(&str, char); 4] = [("__dot__", '.'), ("__dash__", '-'), ("__slash__", '/'), ("__underscores__", '\0')];

/// How an expression names a field; `None` when it cannot.
pub fn escaped(name: &str) -> Option<String> {
    if is_keyword(name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    if !first.is_ascii_alphabetic() && first != '_' {
        return None;
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__") {
            out.push_str("__underscores__");
            rest = after;
            continue;
        }
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// The field that an expression names.
pub fn unescaped(name: &str) -> Cow<'_, str> {
    if !name.contains("__") {
        return name.into();
    }
    let inner = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"));
    if let Some(inner) = inner.filter(|inner| is_keyword(inner)) {
        return inner.to_owned().into();
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some((escape, plain)) = ESCAPES.iter().find(|(escape, _)| rest.starts_with(escape)) {
            if *plain == '\0' {
                out.push_str("__");
            } else {
                out.push(*plain);
            }
            rest = &rest[escape.len()..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out.into()
}
