//! cel-go's math extension.

use super::Result1;
use crate::cel::eval::{EvalError, overflow};
use crate::cel::value::Value;

pub fn call(name: &str, args: &[Value]) -> Result1 {
    use Value::{Double, Int, Uint};
    Ok(match (name, args) {
        ("greatest", [Value::List(list)]) => extreme(&list.items, true)?,
        ("least", [Value::List(list)]) => extreme(&list.items, false)?,
        ("greatest", all) => extreme(all, true)?,
        ("least", all) => extreme(all, false)?,
        ("ceil", [Double(value)]) => Double(value.ceil()),
        ("floor", [Double(value)]) => Double(value.floor()),
        ("round", [Double(value)]) => Double(value.round()),
        ("trunc", [Double(value)]) => Double(value.trunc()),
        #[expect(clippy::cast_precision_loss, reason = "a root is a double")]
        ("sqrt", [Int(value)]) => Double((*value as f64).sqrt()),
        #[expect(clippy::cast_precision_loss, reason = "a root is a double")]
        ("sqrt", [Uint(value)]) => Double((*value as f64).sqrt()),
        ("sqrt", [Double(value)]) => Double(value.sqrt()),
        ("abs", [Int(value)]) => Int(value.checked_abs().ok_or_else(overflow)?),
        ("abs", [Uint(value)]) => Uint(*value),
        ("abs", [Double(value)]) => Double(value.abs()),
        ("sign", [Int(value)]) => Int(value.signum()),
        ("sign", [Uint(value)]) => Uint((*value).min(1)),
        ("sign", [Double(value)]) if *value == 0.0 => Double(0.0),
        ("sign", [Double(value)]) => Double(value.signum()),
        ("isNaN", [Double(value)]) => Value::Bool(value.is_nan()),
        ("isInf", [Double(value)]) => Value::Bool(value.is_infinite()),
        ("isFinite", [Double(value)]) => Value::Bool(value.is_finite()),
        ("bitAnd", [Int(one), Int(two)]) => Int(one & two),
        ("bitAnd", [Uint(one), Uint(two)]) => Uint(one & two),
        ("bitOr", [Int(one), Int(two)]) => Int(one | two),
        ("bitOr", [Uint(one), Uint(two)]) => Uint(one | two),
        ("bitXor", [Int(one), Int(two)]) => Int(one ^ two),
        ("bitXor", [Uint(one), Uint(two)]) => Uint(one ^ two),
        ("bitNot", [Int(value)]) => Int(!value),
        ("bitNot", [Uint(value)]) => Uint(!value),
        ("bitShiftLeft" | "bitShiftRight", [_, Int(by)]) if *by < 0 => {
            return Err(EvalError::new(&format!("math.{name}() negative offset: {by}")));
        }
        ("bitShiftLeft", [Int(value), Int(by)]) => Int(shift(*by).and_then(|by| value.checked_shl(by)).unwrap_or(0)),
        ("bitShiftLeft", [Uint(value), Int(by)]) => Uint(shift(*by).and_then(|by| value.checked_shl(by)).unwrap_or(0)),
        ("bitShiftRight", [Int(value), Int(by)]) => {
            // The bits of an int move as those of a uint do.
            let bits = u64::from_ne_bytes(value.to_ne_bytes());
            let moved = shift(*by).and_then(|by| bits.checked_shr(by)).unwrap_or(0);
            Int(i64::from_ne_bytes(moved.to_ne_bytes()))
        }
        ("bitShiftRight", [Uint(value), Int(by)]) => Uint(shift(*by).and_then(|by| value.checked_shr(by)).unwrap_or(0)),
        _ => return Err(EvalError::no_overload()),
    })
}

fn shift(by: i64) -> Option<u32> {
    u32::try_from(by).ok()
}

fn extreme(all: &[Value], greatest: bool) -> Result1 {
    let (mut best, rest) = all.split_first().ok_or_else(EvalError::no_overload)?;
    if !matches!(best, Value::Int(_) | Value::Uint(_) | Value::Double(_)) {
        return Err(EvalError::no_overload());
    }
    for other in rest {
        let order = other.order(best).ok_or_else(EvalError::no_overload)?;
        if if greatest { order.is_gt() } else { order.is_lt() } {
            best = other;
        }
    }
    Ok(best.clone())
}
