//! Match conditions: expressions that narrow down which writes a webhook is asked about.

use std::collections::HashMap;

use dhow_api::cel::{CONDITIONS_BUDGET, Environment, Meter, Program, Value as Cel};
use dhow_api::meta;
use serde_json::Value;

/// One condition: compiled, or why it is none.
pub struct Condition(Result<Program, String>);

/// What conditions may name.
const NAMES: [&str; 3] = ["object", "oldObject", "request"];

pub fn read(hook: &Value) -> Vec<Condition> {
    let environment = Environment::of(&NAMES);
    let compile = |condition: &Value| {
        let source = condition["expression"].as_str().unwrap_or_default();
        Condition(Program::compile(source, &environment).map_err(|error| format!("compilation error: {error}")))
    };
    meta::items(hook, &["matchConditions"]).iter().map(compile).collect()
}

/// Whether all conditions hold for the request of a review. One that does not settles it, whatever failed beside it.
pub fn hold(conditions: &[Condition], request: &Value) -> Result<bool, String> {
    if conditions.is_empty() {
        return Ok(true);
    }
    let mut rest = request.clone();
    let part = |rest: &mut Value, field: &str| {
        let part = rest.as_object_mut().and_then(|map| map.remove(field)).unwrap_or_default();
        Cel::from_json(&part)
    };
    let (object, old) = (part(&mut rest, "object"), part(&mut rest, "oldObject"));
    let variables = HashMap::from([("object", object), ("oldObject", old), ("request", Cel::from_json(&rest))]);
    let mut meter = Meter::new(CONDITIONS_BUDGET);
    let mut failed = Vec::new();
    for Condition(program) in conditions {
        let program = match program {
            Ok(program) => program,
            Err(why) => {
                failed.push(why.clone());
                continue;
            }
        };
        meter.begin();
        match program.evaluate(&variables, &mut meter) {
            Ok(Cel::Bool(true)) => {}
            Ok(Cel::Bool(false)) => return Ok(false),
            Ok(_) => failed.push(format!("expression '{}' did not give a bool", program.source())),
            Err(error) => failed.push(format!("expression '{}' resulted in error: {error}", program.source())),
        }
    }
    match failed.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}
