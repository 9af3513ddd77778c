//! Policies and bindings as the store has them, read once. What does not compile fails the requests it is about.

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_api::cel::admission::Names;
use dhow_api::cel::{Program, Type};
use dhow_api::meta::{self, items, text};
use serde_json::Value;

use super::matching::Resources;

#[derive(Default)]
pub struct Compiled {
    /// The newest change of each kind that is in here.
    pub revisions: [u64; 4],
    pub validating: Vec<Policy>,
    pub mutating: Vec<Policy>,
}

/// An expression, or why it is none.
pub type Expression = Result<Program, String>;

pub struct Policy {
    pub name: String,
    pub constraints: Resources,
    pub conditions: Vec<(String, Expression)>,
    pub variables: Vec<Variable>,
    /// `apiVersion` and `kind` of the parameters.
    pub param_kind: Option<(String, String)>,
    /// Whether a failure refuses the request.
    pub fail: bool,
    pub bindings: Vec<Binding>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Annotation>,
    pub mutations: Vec<Mutation>,
    /// Whether it runs again when a later policy changed the object.
    pub again: bool,
}

pub struct Variable {
    pub name: Arc<str>,
    pub expression: Expression,
    /// Variables it reads, also through others: positions, lowest first.
    pub needs: Vec<usize>,
}

pub struct Validation {
    pub expression: Expression,
    pub source: String,
    pub message: String,
    pub computed: Option<Expression>,
    pub reason: String,
}

/// What a policy adds to the audit event.
pub struct Annotation {
    pub key: String,
    pub expression: Expression,
    pub source: String,
}

pub struct Mutation {
    pub expression: Expression,
    pub source: String,
    /// A JSON patch; else a configuration that is applied.
    pub patch: bool,
}

pub struct Binding {
    pub name: String,
    /// `paramRef`, as written.
    pub param: Option<Value>,
    pub resources: Option<Resources>,
    pub deny: bool,
    pub warn: bool,
    pub audit: bool,
    /// `validationActions`, as written.
    pub actions: Value,
}

/// Policies that have a binding, by name.
pub fn policies(policies: &[Value], bindings: &[Value], mutating: bool) -> Vec<Policy> {
    let mut by_policy: BTreeMap<&str, Vec<Binding>> = BTreeMap::new();
    for binding in bindings {
        by_policy.entry(text(binding, &["spec", "policyName"])).or_default().push(self::binding(binding));
    }
    let mut compiled: Vec<Policy> = Vec::new();
    for policy in policies {
        let Some(mut bindings) = by_policy.remove(meta::name(policy)) else { continue };
        bindings.sort_by(|one, other| one.name.cmp(&other.name));
        compiled.push(self::policy(policy, bindings, mutating));
    }
    compiled.sort_by(|one, other| one.name.cmp(&other.name));
    compiled
}

fn binding(binding: &Value) -> Binding {
    let spec = &binding["spec"];
    let action = |name: &str| items(spec, &["validationActions"]).iter().any(|action| action == name);
    Binding {
        name: meta::name(binding).to_owned(),
        param: spec.get("paramRef").filter(|reference| !reference.is_null()).cloned(),
        resources: spec.get("matchResources").filter(|resources| !resources.is_null()).map(Resources::parse),
        deny: action("Deny"),
        warn: action("Warn"),
        audit: action("Audit"),
        actions: spec.get("validationActions").cloned().unwrap_or_default(),
    }
}

fn policy(policy: &Value, bindings: Vec<Binding>, mutating: bool) -> Policy {
    let spec = &policy["spec"];
    let kind = spec.get("paramKind").filter(|kind| !kind.is_null());
    let params = kind.is_some();
    let conditions = Names { params, authorizer: true, ..Names::default() };
    let (variables, types) = variables(spec, params);
    let names = Names { params, authorizer: true, mutation: mutating, variables: Some(types) };
    let quiet = Names { authorizer: false, ..names.clone() };
    let source = |value: &Value| text(value, &["expression"]).to_owned();
    Policy {
        name: meta::name(policy).to_owned(),
        constraints: Resources::parse(&spec["matchConstraints"]),
        conditions: items(spec, &["matchConditions"])
            .iter()
            .map(|condition| {
                let name = text(condition, &["name"]).to_owned();
                (name, conditions.compile(text(condition, &["expression"]), &[Type::Bool]))
            })
            .collect(),
        variables,
        param_kind: kind.map(|kind| (text(kind, &["apiVersion"]).to_owned(), text(kind, &["kind"]).to_owned())),
        fail: text(spec, &["failurePolicy"]) != "Ignore",
        bindings,
        validations: items(spec, &["validations"])
            .iter()
            .map(|validation| Validation {
                expression: names.compile(text(validation, &["expression"]), &[Type::Bool]),
                source: source(validation),
                message: text(validation, &["message"]).trim().to_owned(),
                computed: Some(text(validation, &["messageExpression"]))
                    .filter(|expression| !expression.is_empty())
                    .map(|expression| quiet.compile(expression, &[Type::String])),
                reason: text(validation, &["reason"]).to_owned(),
            })
            .collect(),
        annotations: items(spec, &["auditAnnotations"])
            .iter()
            .map(|annotation| {
                let source = text(annotation, &["valueExpression"]);
                let expression = names.compile(source, &[Type::String, Type::Null]);
                Annotation { key: text(annotation, &["key"]).to_owned(), expression, source: source.to_owned() }
            })
            .collect(),
        mutations: items(spec, &["mutations"])
            .iter()
            .map(|mutation| {
                let patch = text(mutation, &["patchType"]) == "JSONPatch";
                let body = &mutation[if patch { "jsonPatch" } else { "applyConfiguration" }];
                Mutation { expression: names.compile(text(body, &["expression"]), &[]), source: source(body), patch }
            })
            .collect(),
        again: text(spec, &["reinvocationPolicy"]) == "IfNeeded",
    }
}

/// Each may read those before it.
fn variables(spec: &Value, params: bool) -> (Vec<Variable>, Vec<(Arc<str>, Type)>) {
    let (mut variables, mut types): (Vec<Variable>, Vec<(Arc<str>, Type)>) = (Vec::new(), Vec::new());
    for variable in items(spec, &["variables"]) {
        let name: Arc<str> = text(variable, &["name"]).into();
        let names = Names { params, authorizer: true, variables: Some(types.clone()), ..Names::default() };
        let expression = names.compile(text(variable, &["expression"]), &[]);
        let mut needs = Vec::new();
        if let Ok(program) = &expression {
            for (index, earlier) in variables.iter().enumerate() {
                if program.reads("variables", &earlier.name) {
                    needs.extend(earlier.needs.iter().copied().chain([index]));
                }
            }
        }
        needs.sort_unstable();
        needs.dedup();
        types.push((name.clone(), expression.as_ref().map_or(Type::Any, |program| program.result().clone())));
        variables.push(Variable { name, expression, needs });
    }
    (variables, types)
}
