//! Match conditions: expressions that narrow down which writes a webhook is asked about.

use std::collections::HashMap;

use dhow_api::cel::admission::Names;
use dhow_api::cel::{CONDITIONS_BUDGET, EvalError, Meter, Pace, Program, Type, Value as Cel, Variables};
use dhow_api::meta;
use serde_json::Value;

use crate::admission::Attributes;
use crate::{ApiServer, offload, policy};

/// One condition: compiled, or why it is none.
pub struct Condition(Result<Program, String>);

pub fn read(hook: &Value) -> Vec<Condition> {
    let names = Names { authorizer: true, ..Names::default() };
    let compile = |condition: &Value| {
        let source = condition["expression"].as_str().unwrap_or_default();
        Condition(names.compile(source, &[Type::Bool]).map_err(|error| format!("compilation error: {error}")))
    };
    meta::items(hook, &["matchConditions"]).iter().map(compile).collect()
}

/// What conditions may name.
struct Subjects<'a> {
    server: &'a ApiServer,
    attributes: &'a Attributes<'a>,
    documents: HashMap<&'static str, Cel>,
}

impl Variables for Subjects<'_> {
    fn get(&self, name: &str) -> Option<Cel> {
        match name {
            "authorizer" => Some(policy::authorizer(self.server, self.attributes, false)),
            // As upstream: it may be named, and webhooks are not told.
            "namespaceObject" => Some(Cel::Null),
            name => self.documents.get(name).cloned(),
        }
    }

    fn member(&self, variable: &str, field: &str, _meter: &mut Meter) -> Option<Result<Cel, EvalError>> {
        let resource = (variable, field) == ("authorizer", "requestResource");
        resource.then(|| Ok(policy::authorizer(self.server, self.attributes, true)))
    }
}

/// Whether all conditions hold for the request of a review. One that does not settles it, whatever failed beside it.
pub fn hold(
    server: &ApiServer,
    attributes: &Attributes<'_>,
    conditions: &[Condition],
    request: &Value,
) -> Result<bool, String> {
    if conditions.is_empty() {
        return Ok(true);
    }
    let mut rest = request.clone();
    let part = |rest: &mut Value, field: &str| {
        let part = rest.as_object_mut().and_then(|map| map.remove(field)).unwrap_or_default();
        Cel::from_json(&part)
    };
    let (object, old) = (part(&mut rest, "object"), part(&mut rest, "oldObject"));
    let documents = HashMap::from([("object", object), ("oldObject", old), ("request", Cel::from_json(&rest))]);
    let subjects = Subjects { server, attributes, documents };
    offload::evaluate(|pace| all(conditions, &subjects, pace))
}

fn all(conditions: &[Condition], subjects: &Subjects<'_>, pace: Option<&Pace>) -> Result<bool, String> {
    let mut meter = Meter::new(CONDITIONS_BUDGET).at(pace);
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
        match program.evaluate(subjects, &mut meter) {
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
