//! CEL: an expression is its value, at its cost, within its budget.

use std::collections::HashMap;

use dhow_api::bounds::measure;
use dhow_api::cel::{CALL_LIMIT, Environment, Meter, Program, Value};
use proptest::prelude::*;
use serde_json::json;

/// The value as JSON, or the error.
fn run(expression: &str) -> Result<serde_json::Value, String> {
    let program = Program::compile(expression, &Environment::of(&["self"])).map_err(|error| error.to_string())?;
    let object = json!({"name": "web", "n": 3, "tags": ["a", "b", "c"], "labels": {"app": "web", "x": "y"}});
    let variables = HashMap::from([("self", Value::from_json(&object))]);
    let mut meter = Meter::new(CALL_LIMIT);
    let value = program.evaluate(&variables, &mut meter).map_err(|error| error.to_string())?;
    value.to_json().map_err(|error| error.to_string())
}

/// Expressions of one type each, of which most have a value.
fn any_number() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0..5i64).prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| format!("({n})")),
        Just("self.n".to_owned()),
        Just("size(self.tags)".to_owned()),
        Just("self.name.size()".to_owned()),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let operator = proptest::sample::select(vec!["+", "-", "*", "/", "%"]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.clone().prop_map(|a| format!("-({a})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} < {b} ? {a} : {b})")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("[{a}, {b}][{a} > {b} ? 0 : 1]")),
        ]
    })
}

fn any_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "[a-z]{0,4}".prop_map(|text| format!("'{text}'")),
        Just("self.name".to_owned()),
        Just("self.labels.app".to_owned()),
        any_number().prop_map(|n| format!("string({n})")),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} + {b})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("{a}.replace({b}, {c})")),
            inner.clone().prop_map(|a| format!("{a}.split('').map(x, x + x).join('')")),
            inner.prop_map(|a| format!("{a}.upperAscii().lowerAscii()")),
        ]
    })
}

fn any_bool() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("true".to_owned()),
        Just("has(self.labels.x)".to_owned()),
        (any_number(), any_number()).prop_map(|(a, b)| format!("({a} < {b})")),
        (any_text(), any_text()).prop_map(|(a, b)| format!("({a} == {b})")),
        any_text().prop_map(|a| format!("self.tags.exists(t, t == {a})")),
        any_text().prop_map(|a| format!("({a} in self.labels)")),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            inner.prop_map(|a| format!("self.tags.all(t, {a})")),
        ]
    })
}

fn any_expression() -> impl Strategy<Value = String> {
    prop_oneof![any_number(), any_text(), any_bool()]
}

proptest! {
    #![proptest_config(crate::generate::cases())]

    #[test]
    fn a_value_is_a_value(expression in any_expression()) {
        let value = run(&expression);
        prop_assert_eq!(run(&expression), value.clone());
        prop_assert_eq!(run(&format!(" ( {expression} ) // end")), value.clone());
        if let Ok(value) = value {
            prop_assert_eq!(run(&format!("({expression}) == ({expression})")), Ok(json!(true)));
            prop_assert_eq!(run(&format!("[{expression}][0]")), Ok(value.clone()));
            prop_assert_eq!(run(&format!("{{'k': {expression}}}.k")), Ok(value.clone()));
            prop_assert_eq!(run(&format!("[1].map(i, {expression})")), Ok(json!([value])));
        }
    }

    #[test]
    fn logic_holds(a in any_bool(), b in any_bool()) {
        let not_both = run(&format!("!({a} && {b})"));
        let either_not = run(&format!("(!{a} || !{b})"));
        // An error may be either side's.
        prop_assert!(not_both == either_not || not_both.is_err() && either_not.is_err(), "{not_both:?} {either_not:?}");
        let swapped = run(&format!("({b} && {a})"));
        let plain = run(&format!("({a} && {b})"));
        prop_assert!(plain == swapped || plain.is_err() && swapped.is_err(), "{plain:?} {swapped:?}");
    }

    #[test]
    fn numbers_are_whole_numbers(a in any::<i64>(), b in any::<i64>()) {
        for (operator, result) in
            [("+", a.checked_add(b)), ("-", a.checked_sub(b)), ("*", a.checked_mul(b)), ("/", a.checked_div(b)), ("%", a.checked_rem(b))]
        {
            prop_assert_eq!(run(&format!("({a}) {operator} ({b})")).ok(), result.map(|n| json!(n)), "{} {} {}", a, operator, b);
        }
        prop_assert_eq!(run(&format!("({a}) < ({b})")), Ok(json!(a < b)));
    }

    /// Whatever doubles stops at the budget, not at the machine's end.
    #[test]
    fn what_doubles_is_stopped(steps in proptest::collection::vec(0..4u8, 1..40)) {
        let mut expression = "['ab', 'cd']".to_owned();
        for step in steps {
            expression = match step {
                0 => format!("({expression}.map(x, x + x))"),
                1 => format!("([{expression}, {expression}].flatten())"),
                2 => format!("({expression}.map(x, x.replace('', x)))"),
                _ => format!("cel.bind(v, {expression}, v + v)"),
            };
            if expression.len() > 5000 {
                break;
            }
        }
        if let Ok(value) = run(&expression) {
            prop_assert!(measure(&value).bytes <= 20 * CALL_LIMIT as usize, "{} bytes", measure(&value).bytes);
        }
    }

    /// Deep nesting is an error, or has a value.
    #[test]
    fn depth_is_no_danger(depth in 1..3000usize, form in 0..6u8) {
        let (open, close) = [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("{'a': ", "}"), ("size([", "])")][usize::from(form)];
        let _ = run(&format!("{}1{}", open.repeat(depth), close.repeat(depth)));
        let _ = run(&format!("true{}", " ? true : true".repeat(depth)));
        let _ = run(&format!("true{}", " && true".repeat(depth)));
        let _ = run(&format!("self{}", ".a".repeat(depth)));
    }
}
