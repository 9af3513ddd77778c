//! What an expression sees of a request. Values are made when first asked for, variables evaluated once.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dhow_api::cel::{
    Answer, Ask, Authorizer, CONDITIONS_BUDGET, EvalError, Meter, Pace, Program, Question, Value as Cel, Variables,
};
use dhow_api::registry::Kind;
use serde_json::{Value, json};

use super::compile::{Expression, Policy, Variable};
use super::{Invocation, matching};
use crate::ApiServer;
use crate::admission::Attributes;
use crate::identity::UserInfo;
use crate::rbac;

/// The values of one invocation.
pub struct Input<'a> {
    server: &'a ApiServer,
    attributes: &'a Attributes<'a>,
    policy: &'a Policy,
    row: matching::Row<'a>,
    documents: Rc<Documents>,
    params: Cel,
    pace: Option<Pace>,
    variables: RefCell<HashMap<usize, Result<Cel, EvalError>>>,
}

/// What all policies see alike, as long as they see the object in the same form and nobody changes it.
#[derive(Default)]
pub struct Documents {
    object: OnceCell<Cel>,
    old: OnceCell<Cel>,
    request: OnceCell<Cel>,
    namespace: OnceCell<Cel>,
}

/// What ends an evaluation, in upstream's words.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

impl<'a> Input<'a> {
    pub fn new(
        server: &'a ApiServer,
        attributes: &'a Attributes<'a>,
        invocation: &Invocation<'a>,
        documents: Rc<Documents>,
        pace: Option<&Pace>,
    ) -> Self {
        Self {
            documents,
            pace: pace.cloned(),
            server,
            attributes,
            policy: invocation.policy,
            row: invocation.row.clone(),
            params: invocation.params.as_ref().map_or(Cel::Null, Cel::from_json),
            variables: RefCell::default(),
        }
    }

    pub fn meter(&self, budget: u64) -> Meter {
        Meter::new(budget).at(self.pace.as_ref())
    }

    /// Evaluates one expression.
    pub fn evaluate(&self, expression: &Expression, source: &str, meter: &mut Meter) -> Result<Cel, String> {
        let program: &Program = expression.as_ref().map_err(|why| format!("compilation error: {why}"))?;
        if !meter.begin() {
            return Err(OUT_OF_BUDGET.into());
        }
        let result = program.evaluate(self, meter);
        result.map_err(|error| match meter.is_empty() {
            true => OUT_OF_BUDGET.into(),
            false => format!("expression '{source}' resulted in error: {error}"),
        })
    }

    /// Whether the policy's conditions all hold. One that does not settles it, whatever failed beside it.
    pub fn conditions(&self) -> Result<bool, String> {
        let mut meter = self.meter(CONDITIONS_BUDGET);
        let mut failed = Vec::new();
        for (_, condition) in &self.policy.conditions {
            let source = condition.as_ref().map_or("", |program| program.source());
            match self.evaluate(condition, source, &mut meter) {
                Ok(Cel::Bool(false)) => return Ok(false),
                Ok(_) => {}
                Err(why) => failed.push(why),
            }
        }
        match failed.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    /// An object in the form the policy is about.
    fn converted(&self, object: &Value) -> Cel {
        let matching::Row::Other(row) = self.row else { return Cel::from_json(object) };
        let mut object = object.clone();
        self.attributes.kind.to_storage(&mut object);
        row.from_storage(&mut object);
        Cel::from_json(&object)
    }

    fn variable(&self, index: usize, variable: &Variable, meter: &mut Meter) -> Result<Cel, EvalError> {
        if let Some(known) = self.variables.borrow().get(&index) {
            return known.clone();
        }
        let result = match &variable.expression {
            Ok(program) => program.evaluate(self, meter),
            Err(why) => Err(EvalError::new(why)),
        };
        let failed = |error: EvalError| match error.is_spent() {
            true => error,
            false => EvalError::new(&format!("composited variable {:?} fails to evaluate: {error}", &*variable.name)),
        };
        let result = result.map_err(failed);
        self.variables.borrow_mut().insert(index, result.clone());
        result
    }

    fn namespace_object(&self) -> Cel {
        let attributes = self.attributes;
        let Some(name) = attributes.namespace.filter(|_| attributes.kind.namespaced) else { return Cel::Null };
        let found = crate::admission::cached(self.server, "", "namespaces", None, name);
        let Some(mut namespace) = found.and_then(|found| found.value().ok()) else { return Cel::Null };
        if let Some(metadata) = namespace["metadata"].as_object_mut() {
            metadata.retain(|field, _| field != "managedFields" && field != "ownerReferences");
        }
        Cel::from_json(&namespace)
    }
}

/// `authorizer`; with `resource`, `authorizer.requestResource`.
pub fn authorizer(server: &ApiServer, attributes: &Attributes<'_>, resource: bool) -> Cel {
    let ask = UserAsks { authorizer: server.authorizer.clone(), user: attributes.user.clone() };
    let mut question = Question::default();
    if resource {
        question.group = attributes.kind.group.into();
        question.resource = attributes.kind.plural.into();
        question.subresource = attributes.subresource.map_or("", |subresource| subresource.name()).into();
        question.namespace = attributes.namespace.unwrap_or_default().into();
        question.name = attributes.name.into();
    }
    Cel::Authorizer(Authorizer::new(Arc::new(ask), question).into())
}

impl Variables for Input<'_> {
    fn get(&self, name: &str) -> Option<Cel> {
        Some(match name {
            "object" if self.attributes.object.is_null() => Cel::Null,
            "object" => self.documents.object.get_or_init(|| self.converted(&self.attributes.object)).clone(),
            "oldObject" => self
                .documents
                .old
                .get_or_init(|| self.attributes.old.map_or(Cel::Null, |object| self.converted(object)))
                .clone(),
            "request" => self
                .documents
                .request
                .get_or_init(|| Cel::from_json(&request(self.attributes, self.row.kind())))
                .clone(),
            "namespaceObject" => self.documents.namespace.get_or_init(|| self.namespace_object()).clone(),
            "params" => self.params.clone(),
            "authorizer" => authorizer(self.server, self.attributes, false),
            _ => return None,
        })
    }

    fn member(&self, variable: &str, field: &str, meter: &mut Meter) -> Option<Result<Cel, EvalError>> {
        if (variable, field) == ("authorizer", "requestResource") {
            return Some(Ok(authorizer(self.server, self.attributes, true)));
        }
        if variable != "variables" {
            return None;
        }
        let all = &self.policy.variables;
        let index = all.iter().position(|variable| &*variable.name == field)?;
        // Those it needs come first, so that no evaluation begins within another more than once.
        for &needed in &all[index].needs {
            if let Err(error) = self.variable(needed, &all[needed], meter)
                && error.is_spent()
            {
                return Some(Err(error));
            }
        }
        Some(self.variable(index, &all[index], meter))
    }
}

/// The request as an AdmissionReview has it, but for the objects.
fn request(attributes: &Attributes<'_>, row: &Kind) -> Value {
    let kind = |row: &Kind| {
        let (group, version, kind) = match attributes.subresource {
            Some(subresource) => row.response_kind(subresource),
            None => (row.group, row.version, row.kind),
        };
        json!({"group": group, "version": version, "kind": kind})
    };
    let resource = |row: &Kind| json!({"group": row.group, "version": row.version, "resource": row.plural});
    let subresource = attributes.subresource.map_or("", |subresource| subresource.name());
    let user = attributes.user;
    let namespace = if attributes.is("", "Namespace") { Some(attributes.name) } else { attributes.namespace };
    let mut request = json!({
        "uid": "",
        "kind": kind(row),
        "resource": resource(row),
        "requestKind": kind(attributes.kind),
        "requestResource": resource(attributes.kind),
        "operation": attributes.operation.name(),
        "userInfo": {"username": user.name, "groups": user.groups, "extra": user.extra},
        "dryRun": attributes.dry_run,
        "options": attributes.options(),
    });
    let optional = [
        ("subResource", Some(subresource)),
        ("requestSubResource", Some(subresource)),
        ("name", Some(attributes.name)),
        ("namespace", namespace),
    ];
    for (field, value) in optional {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            request[field] = json!(value);
        }
    }
    if !user.uid.is_empty() {
        request["userInfo"]["uid"] = json!(user.uid);
    }
    request
}

/// Answers what the requesting user, or a service account, may do.
struct UserAsks {
    authorizer: Arc<rbac::Authorizer>,
    user: UserInfo,
}

impl Ask for UserAsks {
    fn ask(&self, question: &Question) -> Answer {
        let verb = question.verb.clone();
        let attributes = match &question.path {
            Some(path) => rbac::Attributes::Path { verb, path: path.clone() },
            None => rbac::Attributes::Resource {
                verb,
                group: question.group.clone(),
                resource: question.resource.clone(),
                subresource: question.subresource.clone(),
                namespace: question.namespace.clone(),
                name: question.name.clone(),
            },
        };
        let decide = |user: &UserInfo| self.authorizer.decide(user, &attributes, &rbac::Selected::default());
        let verdict = match &question.account {
            Some((namespace, name)) => decide(&UserInfo::service_account(namespace, name, "")),
            None => decide(&self.user),
        };
        Answer { allowed: verdict.allowed(), reason: verdict.reason().to_owned() }
    }
}
