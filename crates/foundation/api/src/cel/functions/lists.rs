//! Functions of lists and sets.

use std::cmp::Ordering;

use super::{Result1, int, strings};
use crate::cel::eval::{EvalError, Evaluation, overflow};
use crate::cel::value::{List, Value};

/// Longest list that is made from nothing.
const LONGEST_RANGE: i64 = 100_000;

pub fn call(on: &mut Evaluation, list: &List, name: &str, args: &[Value]) -> Result1 {
    let items = &list.items;
    if name == "join" {
        return match args {
            [] => strings::join(on, items, ""),
            [Value::String(by)] => strings::join(on, items, by),
            _ => Err(EvalError::no_overload()),
        };
    }
    on.meter.charge(items.len())?;
    Ok(match (name, args) {
        ("isSorted", []) => {
            let mut sorted = true;
            for pair in items.windows(2) {
                sorted &= order(on, &pair[0], &pair[1])?.is_le();
            }
            Value::Bool(sorted)
        }
        ("sum", []) => sum(items)?,
        ("min" | "max", []) => {
            let Some(mut best) = items.first() else {
                return Err(EvalError::new(&format!("{name} called on empty list")));
            };
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            for item in items {
                if order(on, item, best)? == wanted {
                    best = item;
                }
            }
            best.clone()
        }
        ("indexOf", [item]) => position(on, items.iter().enumerate(), item)?,
        ("lastIndexOf", [item]) => position(on, items.iter().enumerate().rev(), item)?,
        ("distinct", []) => {
            let mut out: Vec<Value> = Vec::new();
            for item in items {
                let mut seen = false;
                for other in &out {
                    seen = seen || item.equals(other, on.meter)?;
                }
                if !seen {
                    out.push(item.clone());
                }
            }
            Value::list(out)?
        }
        ("flatten", depth) => {
            let depth = match depth {
                [] => 1,
                [Value::Int(depth)] if *depth >= 0 => *depth,
                _ => return Err(EvalError::new("level must be non-negative")),
            };
            let mut out = Vec::new();
            flatten(on, items, depth, &mut out)?;
            Value::list(out)?
        }
        ("reverse", []) => Value::list(items.iter().rev().cloned().collect())?,
        ("slice", [Value::Int(begin), Value::Int(end)]) => {
            let range = usize::try_from(*begin).ok().zip(usize::try_from(*end).ok());
            let part = range.and_then(|(begin, end)| items.get(begin..end));
            let part = part.ok_or_else(|| {
                let length = items.len();
                EvalError::new(&format!("cannot slice({begin}, {end}), list is length {length}"))
            })?;
            Value::list(part.to_vec())?
        }
        ("unwrapOpt", []) => {
            let held = items.iter().map(|item| match item {
                Value::Optional(held) => Ok(held.as_ref().map(|value| (**value).clone())),
                _ => Err(EvalError::no_overload()),
            });
            Value::list(held.filter_map(Result::transpose).collect::<Result<_, _>>()?)?
        }
        ("sort", []) => sorted_by(on, items.clone(), items.clone())?,
        ("first", []) => items.first().map_or(Ok(Value::Optional(None)), |item| Value::some(item.clone()))?,
        ("last", []) => items.last().map_or(Ok(Value::Optional(None)), |item| Value::some(item.clone()))?,
        _ => return Err(EvalError::no_overload()),
    })
}

fn order(on: &mut Evaluation, one: &Value, two: &Value) -> Result<Ordering, EvalError> {
    if let (Value::String(one), Value::String(two)) = (one, two) {
        on.meter.text(one.len().min(two.len()))?;
    }
    on.meter.charge(1)?;
    one.order(two).ok_or_else(EvalError::no_overload)
}

/// The items in the order of their keys.
pub fn sorted_by(on: &mut Evaluation, keys: Vec<Value>, items: Vec<Value>) -> Result1 {
    let steps = keys.len().checked_ilog2().unwrap_or_default() as usize + 1;
    for pair in keys.windows(2) {
        // Once for each step, and it finds keys without an order.
        let text = if let Value::String(text) = &pair[0] { text.len() / 10 } else { 0 };
        on.meter.charge(steps * (1 + text))?;
        order(on, &pair[0], &pair[1])?;
    }
    let mut pairs: Vec<(Value, Value)> = keys.into_iter().zip(items).collect();
    if pairs.iter().any(|(key, _)| matches!(key, Value::Double(number) if number.is_nan())) {
        return Err(EvalError::no_overload());
    }
    pairs.sort_by(|(one, _), (two, _)| one.order(two).unwrap_or(Ordering::Equal));
    Value::list(pairs.into_iter().map(|(_, item)| item).collect())
}

fn sum(items: &[Value]) -> Result1 {
    let mut total = items.first().map_or(Value::Int(0), |first| match first {
        Value::Uint(_) => Value::Uint(0),
        Value::Double(_) => Value::Double(0.0),
        Value::Duration(_) => Value::Duration(0),
        _ => Value::Int(0),
    });
    for item in items {
        total = match (&total, item) {
            (Value::Int(one), Value::Int(two)) => Value::Int(one.checked_add(*two).ok_or_else(overflow)?),
            (Value::Uint(one), Value::Uint(two)) => Value::Uint(one.checked_add(*two).ok_or_else(overflow)?),
            (Value::Duration(one), Value::Duration(two)) => {
                Value::Duration(one.checked_add(*two).ok_or_else(overflow)?)
            }
            (Value::Double(one), Value::Double(two)) => Value::Double(one + two),
            _ => return Err(EvalError::no_overload()),
        };
    }
    Ok(total)
}

fn position<'a>(on: &mut Evaluation, items: impl Iterator<Item = (usize, &'a Value)>, item: &Value) -> Result1 {
    for (index, other) in items {
        if item.equals(other, on.meter)? {
            return Ok(int(index));
        }
    }
    Ok(Value::Int(-1))
}

/// Recursion ends where the list's own nesting does.
fn flatten(on: &mut Evaluation, items: &[Value], depth: i64, out: &mut Vec<Value>) -> Result<(), EvalError> {
    for item in items {
        on.meter.charge(1)?;
        match item {
            Value::List(list) if depth > 0 => flatten(on, &list.items, depth - 1, out)?,
            other => out.push(other.clone()),
        }
    }
    Ok(())
}

/// `lists.range(n)`
pub fn range(on: &mut Evaluation, args: &[Value]) -> Result1 {
    let [Value::Int(count)] = args else { return Err(EvalError::no_overload()) };
    let count = (*count).clamp(0, LONGEST_RANGE);
    on.meter.charge(usize::try_from(count).unwrap_or_default())?;
    Value::list((0..count).map(Value::Int).collect())
}

/// `sets.contains`, `sets.equivalent`, `sets.intersects`
pub fn sets(on: &mut Evaluation, name: &str, args: &[Value]) -> Result1 {
    let [Value::List(one), Value::List(two)] = args else { return Err(EvalError::no_overload()) };
    let mut within = |items: &List, of: &List, any: bool| -> Result<bool, EvalError> {
        let of = Value::list(of.items.clone())?;
        for item in &items.items {
            if matches!(on.contains(item, &of)?, Value::Bool(found) if found == any) {
                return Ok(any);
            }
        }
        Ok(!any)
    };
    Ok(Value::Bool(match name {
        "contains" => within(two, one, false)?,
        "equivalent" => within(two, one, false)? && within(one, two, false)?,
        "intersects" => within(one, two, true)?,
        _ => return Err(EvalError::no_overload()),
    }))
}
