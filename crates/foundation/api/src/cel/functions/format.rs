//! `'%s'.format([x])`, as cel-go's strings extension has it.

use super::{Result1, convert};
use crate::cel::eval::{EvalError, Evaluation};
use crate::cel::value::Value;

/// Most digits behind a point.
const MOST_DIGITS: usize = 1000;

pub fn format(on: &mut Evaluation, text: &str, args: &[Value]) -> Result1 {
    let mut out = String::new();
    let mut args = args.iter().enumerate();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let digits_end = after.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(after.len());
        let (precision, after) = after.split_at(digits_end);
        let digits = match precision.strip_prefix('.') {
            None if precision.is_empty() => None,
            Some(digits) => digits.parse().ok().filter(|digits| *digits <= MOST_DIGITS),
            None => return Err(problem("unrecognized formatting clause")),
        };
        let Some(verb) = after.chars().next() else { return Err(problem("unexpected end of string")) };
        let Some((index, arg)) = args.next() else {
            return Err(problem(&format!("index {} out of range", text.matches('%').count() - 1)));
        };
        let clause = one(verb, digits, arg, on)?.ok_or_else(|| {
            let kind = arg.type_name();
            problem(&format!("{} clause: argument {index} of type {kind} is not supported", verb_name(verb)))
        })?;
        on.meter.text(clause.len())?;
        out.push_str(&clause);
        rest = &after[verb.len_utf8()..];
    }
    out.push_str(rest);
    on.meter.text(out.len())?;
    Ok(Value::text(&out))
}

fn problem(why: &str) -> EvalError {
    EvalError::new(&format!("could not parse formatting clause: {why}"))
}

fn verb_name(verb: char) -> String {
    match verb {
        's' => "string".into(),
        'd' => "decimal".into(),
        'f' => "fixed-point".into(),
        'e' => "scientific".into(),
        'b' => "binary".into(),
        'x' | 'X' => "hex".into(),
        'o' => "octal".into(),
        other => format!("unrecognized formatting clause \"{other}\","),
    }
}

fn one(verb: char, digits: Option<usize>, arg: &Value, on: &mut Evaluation) -> Result<Option<String>, EvalError> {
    let digits = digits.unwrap_or(6);
    let sign = |value: i64| if value < 0 { "-" } else { "" };
    Ok(Some(match (verb, arg) {
        ('s', value) => return shown(value, on).map(Some),
        ('d', Value::Int(_) | Value::Uint(_)) => super::shown(arg),
        ('f', Value::Double(value)) if value.is_finite() => format!("{value:.digits$}"),
        ('e', Value::Double(value)) if value.is_finite() => convert::exponent_text(&format!("{value:.digits$e}")),
        ('d' | 'f' | 'e', Value::Double(value)) if !value.is_finite() => match () {
            () if value.is_nan() => "NaN".into(),
            () if *value > 0.0 => "Infinity".into(),
            () => "-Infinity".into(),
        },
        ('b', Value::Bool(value)) => u8::from(*value).to_string(),
        ('b', Value::Int(value)) => format!("{}{:b}", sign(*value), value.unsigned_abs()),
        ('b', Value::Uint(value)) => format!("{value:b}"),
        ('o', Value::Int(value)) => format!("{}{:o}", sign(*value), value.unsigned_abs()),
        ('o', Value::Uint(value)) => format!("{value:o}"),
        ('x' | 'X', value) => {
            let hex = match value {
                Value::Int(value) => format!("{}{:x}", sign(*value), value.unsigned_abs()),
                Value::Uint(value) => format!("{value:x}"),
                Value::String(text) => hex(text.as_bytes(), on)?,
                Value::Bytes(bytes) => hex(bytes, on)?,
                _ => return Ok(None),
            };
            if verb == 'X' { hex.to_uppercase() } else { hex }
        }
        _ => return Ok(None),
    }))
}

fn hex(bytes: &[u8], on: &mut Evaluation) -> Result<String, EvalError> {
    on.meter.text(bytes.len() * 2)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Any value, lists and maps too.
fn shown(value: &Value, on: &mut Evaluation) -> Result<String, EvalError> {
    on.meter.charge(1)?;
    Ok(match value {
        Value::String(text) => {
            on.meter.text(text.len())?;
            text.to_string()
        }
        Value::Null => "null".into(),
        Value::List(list) => {
            let items: Vec<String> = list.items.iter().map(|item| shown(item, on)).collect::<Result<_, _>>()?;
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for (key, value) in &map.entries {
                entries.push(format!("{}: {}", shown(&key.value(), on)?, shown(value, on)?));
            }
            format!("{{{}}}", entries.join(", "))
        }
        Value::Type(name) => (*name).to_owned(),
        other => match convert::call(on, "string", other)? {
            Value::String(text) => text.to_string(),
            _ => return Err(EvalError::no_overload()),
        },
    })
}
