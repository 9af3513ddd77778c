//! From one type to another.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::{Result1, time};
use crate::cel::eval::{EvalError, Evaluation};
use crate::cel::value::Value;

pub fn call(on: &mut Evaluation, name: &str, of: &Value) -> Result1 {
    if let Value::String(text) = of {
        on.meter.text(text.len())?;
    }
    let bad = || EvalError::new(&format!("type conversion error from '{}' to '{name}'", of.type_name()));
    Ok(match name {
        "dyn" => of.clone(),
        "type" => Value::Type(of.type_name()),
        "string" => match of {
            Value::String(_) => of.clone(),
            Value::Bool(value) => Value::text(&value.to_string()),
            Value::Int(_) | Value::Uint(_) | Value::Double(_) => Value::text(&super::shown(of)),
            Value::Bytes(bytes) => {
                on.meter.text(bytes.len())?;
                let text = std::str::from_utf8(bytes);
                Value::text(text.map_err(|_| EvalError::new("invalid UTF-8 in bytes, cannot convert to string"))?)
            }
            Value::Timestamp(at) => Value::text(&at.to_string()),
            Value::Duration(nanos) => Value::text(&time::duration_text(*nanos)),
            Value::Ip(ip) => Value::text(&ip.to_string()),
            Value::Cidr(cidr) => Value::text(&cidr.to_string()),
            _ => return Err(bad()),
        },
        "int" => int(of).ok_or_else(|| unconvertible(of, bad))?,
        "uint" => uint(of).ok_or_else(|| unconvertible(of, bad))?,
        "double" => match of {
            Value::Double(_) => of.clone(),
            #[expect(clippy::cast_precision_loss, reason = "as the specification converts")]
            Value::Int(value) => Value::Double(*value as f64),
            #[expect(clippy::cast_precision_loss, reason = "as the specification converts")]
            Value::Uint(value) => Value::Double(*value as f64),
            Value::String(text) => Value::Double(text.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        },
        "bool" => match of {
            Value::Bool(_) => of.clone(),
            Value::String(text) => Value::Bool(match &**text {
                "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
                "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
                _ => return Err(bad()),
            }),
            _ => return Err(bad()),
        },
        "bytes" => match of {
            Value::Bytes(_) => of.clone(),
            Value::String(text) => Value::Bytes(text.as_bytes().into()),
            _ => return Err(bad()),
        },
        _ => return Err(EvalError::no_overload()),
    })
}

/// A number out of range is an overflow, anything else has no such conversion.
fn unconvertible(of: &Value, bad: impl Fn() -> EvalError) -> EvalError {
    match of {
        Value::Int(_) | Value::Uint(_) | Value::Double(_) => crate::cel::eval::overflow(),
        _ => bad(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
fn int(of: &Value) -> Option<Value> {
    Some(Value::Int(match of {
        Value::Int(value) => *value,
        Value::Uint(value) => i64::try_from(*value).ok()?,
        Value::Double(value) => Some(*value).filter(|value| value.abs() < 9_223_372_036_854_775_807.0)? as i64,
        Value::String(text) => text.parse().ok()?,
        Value::Timestamp(at) => at.as_second(),
        Value::Duration(nanos) => *nanos,
        _ => return None,
    }))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn uint(of: &Value) -> Option<Value> {
    Some(Value::Uint(match of {
        Value::Uint(value) => *value,
        Value::Int(value) => u64::try_from(*value).ok()?,
        Value::Double(value) => {
            Some(*value).filter(|value| (0.0..18_446_744_073_709_551_615.0).contains(value))? as u64
        }
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    }))
}

/// The shortest text of a double, with an exponent where Go's `%g` has one.
pub fn double_text(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    if size == 0.0 || (1e-4..1e21).contains(&size) {
        return format!("{value}");
    }
    exponent_text(&format!("{value:e}"))
}

/// `1e5` as Go writes it: `1e+05`.
pub fn exponent_text(text: &str) -> String {
    let Some((digits, exponent)) = text.split_once('e') else { return text.to_owned() };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

pub fn base64(on: &mut Evaluation, name: &str, args: &[Value]) -> Result1 {
    match (name, args) {
        ("encode", [Value::Bytes(bytes)]) => {
            on.meter.text(bytes.len() * 2)?;
            Ok(Value::text(&STANDARD.encode(bytes)))
        }
        ("decode", [Value::String(text)]) => {
            on.meter.text(text.len())?;
            let bytes = STANDARD.decode(&**text).or_else(|_| STANDARD_NO_PAD.decode(&**text));
            let bytes = bytes.map_err(|error| EvalError::new(&format!("illegal base64 data: {error}")))?;
            Ok(Value::Bytes(bytes.into()))
        }
        _ => Err(EvalError::no_overload()),
    }
}
