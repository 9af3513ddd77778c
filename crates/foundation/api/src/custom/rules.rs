//! `x-kubernetes-validations`: rules that a schema's author wrote as expressions.
//!
//! Compiled once with the definition; evaluated on objects that the schema itself has accepted. All rules of one
//! object share one cost budget.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use serde_json::Value as Json;

use super::schema::{Identity, Schema, Type as Kind};
use crate::cel::{
    self, BUDGET, Environment, EvalError, Key, Meter, ObjectType, Pace, Program, Type, Value, Variables, escaped,
    parse_duration,
};
use crate::meta::text;
use crate::validation::FieldError;

/// The compiled rules of a schema: only the nodes that lead to one.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    root: Option<Arc<Node>>,
}

#[derive(Debug, Default)]
struct Node {
    schema: Schema,
    rules: Vec<Result<Rule, String>>,
    properties: BTreeMap<String, Node>,
    additional: Option<Box<Node>>,
    items: Option<Box<Node>>,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub program: Program,
    message: String,
    pub computed: Option<Program>,
    reason: String,
    /// Where the error is shown, below the rule's own place.
    path: String,
    /// Compares with the object that was.
    transition: bool,
    optional_old: bool,
}

/// Reasons that a rule may name.
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

impl Rules {
    /// Compiles the rules of a schema. What does not compile fails every object that it is asked about.
    pub fn compile(schema: &Schema) -> Self {
        Self { root: node(schema, true).map(Arc::new) }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// What is wrong with an object; with `old`, what is wrong with the change. Once the pace is over, that says nothing.
    pub fn validate(&self, old: Option<&Json>, new: &Json, pace: Option<&Pace>) -> Vec<FieldError> {
        let Some(root) = &self.root else { return Vec::new() };
        let mut check = Check { meter: Meter::new(BUDGET).at(pace), errors: Vec::new(), stopped: false };
        check.node(root, "", old, new, true);
        check.errors
    }
}

/// What is wrong with the rules of a schema at `path`, for whoever writes a definition.
pub fn problems(schema: &Schema, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    explain(schema, path, true, None, &mut errors);
    errors
}

fn node(schema: &Schema, root: bool) -> Option<Node> {
    let rules: Vec<_> = schema.rules.iter().map(|rule| compile(rule, schema, root)).collect();
    let properties: BTreeMap<String, Node> =
        schema.properties.iter().filter_map(|(name, schema)| Some((name.clone(), node(schema, false)?))).collect();
    let additional = schema.additional.as_deref().and_then(|schema| node(schema, false)).map(Box::new);
    let items = schema.items.as_deref().and_then(|schema| node(schema, false)).map(Box::new);
    if rules.is_empty() && properties.is_empty() && additional.is_none() && items.is_none() {
        return None;
    }
    Some(Node { schema: schema.clone(), rules, properties, additional, items })
}

fn environment(schema: &Schema, root: bool, optional_old: bool) -> Environment {
    let of = type_of(schema, root);
    let old = if optional_old { Type::Optional(of.clone().into()) } else { of.clone() };
    Environment::default().with("self", of).with("oldSelf", old)
}

pub(super) fn compile(rule: &Json, schema: &Schema, root: bool) -> Result<Rule, String> {
    let optional_old = rule["optionalOldSelf"] == true;
    let environment = environment(schema, root, optional_old);
    let failed = |error: cel::CompileError| format!("compilation failed: {error}");
    let program = Program::compile(text(rule, &["rule"]), &environment).map_err(failed)?;
    if !program.gives_bool() {
        return Err("cel expression must evaluate to a bool".into());
    }
    let computed = match text(rule, &["messageExpression"]) {
        "" => None,
        expression => Some(computed(expression, &environment)?),
    };
    Ok(Rule {
        transition: program.uses("oldSelf"),
        program,
        message: text(rule, &["message"]).trim().to_owned(),
        computed,
        reason: text(rule, &["reason"]).to_owned(),
        path: text(rule, &["fieldPath"]).replace("['", "[").replace("']", "]"),
        optional_old,
    })
}

fn computed(expression: &str, environment: &Environment) -> Result<Program, String> {
    let failed = |error| format!("messageExpression compilation failed: {error}");
    let program = Program::compile(expression, environment).map_err(failed)?;
    if program.gives_string() { Ok(program) } else { Err("messageExpression must evaluate to a string".into()) }
}

/// `uncorrelated` names the list that has no identity, once the walk is within one.
fn explain(schema: &Schema, path: &str, root: bool, uncorrelated: Option<&str>, errors: &mut Vec<FieldError>) {
    for (index, rule) in schema.rules.iter().enumerate() {
        let at = |field: &str| format!("{path}.x-kubernetes-validations[{index}].{field}");
        let invalid = |field: &str, why: &str| {
            FieldError::new("FieldValueInvalid", &at(field), &format!("Invalid value: {rule}"), why)
        };
        if text(rule, &["rule"]).trim().is_empty() {
            errors.push(FieldError::required(&at("rule"), "rule is not specified"));
            continue;
        }
        let reason = text(rule, &["reason"]);
        if !reason.is_empty() && !REASONS.contains(&reason) {
            errors.push(FieldError::not_supported(&at("reason"), reason, &REASONS));
        }
        let message = text(rule, &["message"]);
        if !message.is_empty() && message.trim().is_empty() {
            let why = "message must be non-empty if specified";
            errors.push(FieldError::invalid(&at("message"), message, why));
        } else if message.trim().contains(['\n', '\r']) {
            errors.push(FieldError::invalid(&at("message"), message, "message must not contain line breaks"));
        }
        match compile(rule, schema, root) {
            Err(why) if why.starts_with("messageExpression") => errors.push(invalid("messageExpression", &why)),
            Err(why) => errors.push(invalid("rule", &why)),
            Ok(rule) if !rule.transition && rule.optional_old => {
                let why = "optionalOldSelf may not be set if oldSelf is not used in rule";
                errors.push(FieldError::new("FieldValueInvalid", &at("optionalOldSelf"), "Invalid value: true", why));
            }
            Ok(rule) => {
                if let Some(list) = uncorrelated.filter(|_| rule.transition) {
                    let why =
                        format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
                    errors.push(invalid("rule", &why));
                }
            }
        }
    }
    for (name, schema) in &schema.properties {
        explain(schema, &format!("{path}.properties[{name}]"), false, uncorrelated, errors);
    }
    if let Some(additional) = &schema.additional {
        explain(additional, &format!("{path}.additionalProperties"), false, uncorrelated, errors);
    }
    if let Some(items) = &schema.items {
        let lost = uncorrelated.or(if matches!(schema.identity, Identity::Keys(_)) { None } else { Some(path) });
        explain(items, &format!("{path}.items"), false, lost, errors);
    }
}

/// What an expression may know of a value before there is one.
pub(crate) fn type_of(schema: &Schema, whole: bool) -> Type {
    if schema.int_or_string || schema.nullable {
        return Type::Any;
    }
    let whole = whole || schema.embedded;
    match schema.kind {
        Kind::Any => Type::Any,
        Kind::Boolean => Type::Bool,
        Kind::Integer => Type::Int,
        Kind::Number => Type::Double,
        Kind::String => match schema.limits.format.as_str() {
            "date-time" | "date" => Type::Timestamp,
            "duration" => Type::Duration,
            "byte" => Type::Bytes,
            _ => Type::String,
        },
        Kind::Array => Type::List(schema.items.as_ref().map_or(Type::Any, |items| type_of(items, false)).into()),
        Kind::Object => match &schema.additional {
            Some(additional) if schema.properties.is_empty() => Type::Map(type_of(additional, false).into()),
            _ if schema.properties.is_empty() && schema.preserve_unknown && !whole => Type::Any,
            _ => Type::Object(object_type(schema, whole).into()),
        },
    }
}

fn object_type(schema: &Schema, whole: bool) -> ObjectType {
    let mut fields = BTreeMap::new();
    for (name, schema) in &schema.properties {
        fields.extend(escaped(name).map(|name| (name, type_of(schema, false))));
    }
    if whole {
        let names = ["name", "generateName"].map(|name| (name.to_owned(), Type::String));
        let metadata = ObjectType { name: "metadata".into(), fields: names.into() };
        fields.insert("apiVersion".into(), Type::String);
        fields.insert("kind".into(), Type::String);
        fields.insert("metadata".into(), Type::Object(metadata.into()));
    }
    ObjectType { name: "object".into(), fields }
}

/// A value as its schema says it is. What does not fit is left as it is.
fn value_of(schema: &Schema, json: &Json) -> Result<Value, EvalError> {
    Ok(match json {
        Json::Number(number) if schema.kind == Kind::Number => Value::Double(number.as_f64().unwrap_or_default()),
        #[expect(clippy::cast_possible_truncation, reason = "the schema has made sure that it is whole")]
        Json::Number(number) if schema.kind == Kind::Integer && number.is_f64() => {
            Value::Int(number.as_f64().unwrap_or_default() as i64)
        }
        Json::String(text) => formatted(&schema.limits.format, text).unwrap_or_else(|| Value::text(text)),
        Json::Array(items) => match &schema.items {
            Some(of) => Value::list(items.iter().map(|item| value_of(of, item)).collect::<Result<_, _>>()?)?,
            None => Value::from_json(json),
        },
        Json::Object(map) => {
            let mut entries = BTreeMap::new();
            for (name, value) in map {
                let (name, value) = match (schema.properties.get(name), &schema.additional) {
                    // Without a value it is absent, unless null is one.
                    (Some(of), _) if value.is_null() && !of.nullable => continue,
                    (Some(of), _) => match escaped(name) {
                        Some(name) => (Cow::Owned(name), value_of(of, value)?),
                        None => continue,
                    },
                    (None, Some(of)) => (Cow::Borrowed(name.as_str()), value_of(of, value)?),
                    (None, None) => (Cow::Borrowed(name.as_str()), Value::from_json(value)),
                };
                entries.insert(Key::String(name.into()), value);
            }
            Value::map(entries, None)?
        }
        other => Value::from_json(other),
    })
}

fn formatted(format: &str, text: &str) -> Option<Value> {
    match format {
        "date-time" => crate::time::parse(text).ok().map(Value::Timestamp),
        "date" => crate::time::parse(&format!("{text}T00:00:00Z")).ok().map(Value::Timestamp),
        "duration" => parse_duration(text).map(Value::Duration),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Value::Bytes(bytes.into())),
        _ => None,
    }
}

/// `self` and `oldSelf`.
struct Subjects {
    new: Value,
    old: Option<Value>,
}

impl Variables for Subjects {
    fn get(&self, name: &str) -> Option<Value> {
        match name {
            "self" => Some(self.new.clone()),
            "oldSelf" => self.old.clone(),
            _ => None,
        }
    }
}

struct Check {
    meter: Meter,
    errors: Vec<FieldError>,
    /// The budget is spent: no further rule runs.
    stopped: bool,
}

fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.starts_with('[')) {
        (true, _) => name.trim_start_matches('.').to_owned(),
        (false, true) => format!("{path}{name}"),
        (false, false) => format!("{path}.{}", name.trim_start_matches('.')),
    }
}

impl Check {
    fn node(&mut self, node: &Node, path: &str, old: Option<&Json>, new: &Json, root: bool) {
        if new.is_null() && !root {
            return;
        }
        self.rules(node, path, old, new);
        match new {
            Json::Object(map) => {
                for (name, value) in map {
                    let child = node.properties.get(name);
                    let additional =
                        node.additional.as_deref().filter(|_| !node.schema.properties.contains_key(name.as_str()));
                    let before = old.and_then(|old| old.get(name));
                    if let Some(child) = child {
                        self.node(child, &join(path, name), before, value, false);
                    } else if let Some(child) = additional {
                        self.node(child, &format!("{path}[{name}]"), before, value, false);
                    }
                    if self.stopped {
                        return;
                    }
                }
            }
            Json::Array(list) => {
                let Some(items) = &node.items else { return };
                let before = Earlier::of(&node.schema.identity, old);
                for (index, item) in list.iter().enumerate() {
                    self.node(items, &format!("{path}[{index}]"), before.find(item), item, false);
                    if self.stopped {
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, node: &Node, path: &str, old: Option<&Json>, new: &Json) {
        if node.rules.is_empty() || self.stopped {
            return;
        }
        // What did not change is not judged again, so that a rule that came later does not lock objects.
        let unchanged = old == Some(new);
        let values = value_of(&node.schema, new)
            .and_then(|new| Ok((new, old.map(|old| value_of(&node.schema, old)).transpose()?)));
        let (new, old) = match values {
            Ok(values) => values,
            Err(error) => {
                return self.errors.push(FieldError::invalid(path, node.schema.kind.name(), &error.to_string()));
            }
        };
        let mut subjects = Subjects { new, old: old.clone() };
        for rule in &node.rules {
            let rule = match rule {
                Ok(rule) => rule,
                Err(why) => {
                    let why = format!("rule compile error: {why}");
                    self.errors.push(FieldError::invalid(path, node.schema.kind.name(), &why));
                    continue;
                }
            };
            if rule.transition && !rule.optional_old && old.is_none() || unchanged && !rule.transition {
                continue;
            }
            subjects.old = match (rule.optional_old, &old) {
                (true, old) => Some(Value::Optional(old.clone().map(Arc::new))),
                (false, old) => old.clone(),
            };
            self.rule(rule, &node.schema, path, &subjects);
            if self.stopped {
                return;
            }
        }
    }

    fn rule(&mut self, rule: &Rule, schema: &Schema, path: &str, subjects: &Subjects) {
        let kind = schema.kind.name();
        let spent = "validation failed due to running out of cost budget, no further validation rules will be run";
        if !self.meter.begin() {
            self.stopped = true;
            return self.errors.push(FieldError::invalid(path, kind, spent));
        }
        let named = if rule.message.is_empty() { rule.program.source().trim() } else { &rule.message };
        let why = match rule.program.evaluate(subjects, &mut self.meter) {
            Ok(Value::Bool(true)) => return,
            Ok(Value::Bool(false)) => return self.failed(rule, kind, path, subjects),
            Ok(_) => format!("rule did not evaluate to a bool: {named}"),
            Err(error) if self.meter.is_empty() && error.is_spent() => {
                self.stopped = true;
                spent.to_owned()
            }
            Err(error) if error.is_spent() => {
                self.stopped = true;
                format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {named}"
                )
            }
            Err(error) if error.is_no_overload() => format!(
                "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {named}"
            ),
            Err(error) => format!("{error} evaluating rule: {named}"),
        };
        self.errors.push(FieldError::invalid(path, kind, &why));
    }

    fn failed(&mut self, rule: &Rule, kind: &str, path: &str, subjects: &Subjects) {
        let mut message = None;
        if let Some(computed) = rule.computed.as_ref().filter(|_| self.meter.begin())
            && let Ok(Value::String(text)) = computed.evaluate(subjects, &mut self.meter)
        {
            let text = text.trim();
            message =
                Some(text.to_owned()).filter(|text| !text.is_empty() && !text.contains('\n') && text.len() <= 5 << 10);
        }
        let message = message.unwrap_or_else(|| match rule.message.as_str() {
            "" => format!("failed rule: {}", rule.program.source().trim()),
            message => message.to_owned(),
        });
        let path = if rule.path.is_empty() { path.to_owned() } else { join(path, &rule.path) };
        self.errors.push(match rule.reason.as_str() {
            "FieldValueForbidden" => FieldError::forbidden(&path, &message),
            "FieldValueRequired" => FieldError::required(&path, &message),
            "FieldValueDuplicate" => FieldError::duplicate(&path, kind),
            _ => FieldError::invalid(&path, kind, &message),
        });
    }
}

/// The items of a list that was, found again by their keys.
struct Earlier<'a> {
    names: &'a [String],
    items: BTreeMap<String, &'a Json>,
}

impl<'a> Earlier<'a> {
    fn of(identity: &'a Identity, old: Option<&'a Json>) -> Self {
        let Identity::Keys(names) = identity else { return Self { names: &[], items: BTreeMap::new() } };
        let items = old.and_then(Json::as_array).into_iter().flatten();
        Self { names, items: items.map(|item| (key(names, item), item)).collect() }
    }

    fn find(&self, item: &Json) -> Option<&'a Json> {
        self.items.get(&key(self.names, item)).copied()
    }
}

fn key(names: &[String], item: &Json) -> String {
    names.iter().map(|name| item[name.as_str()].to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn schema(rules: Json) -> Json {
        json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": rules,
        "properties": {
            "replicas": {"type": "integer"}, "limit": {"type": "integer"}, "ratio": {"type": "number"},
            "port": {"x-kubernetes-int-or-string": true},
            "until": {"type": "string", "format": "date-time"}, "wait": {"type": "string", "format": "duration"},
            "namespace": {"type": "string"}, "a-b": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
                    "x-kubernetes-validations": [{"rule": "self.size >= oldSelf.size", "message": "may only grow"}]}},
        }}}})
    }

    fn errors(rules: &Json, old: Option<&Json>, spec: &Json) -> Vec<String> {
        let schema = Schema::parse(&schema(rules.clone())).unwrap();
        assert_eq!(problems(&schema, "x"), []);
        let whole = |spec: &Json| json!({"metadata": {"name": "n"}, "spec": spec});
        let found = Rules::compile(&schema).validate(old.map(whole).as_ref(), &whole(spec), None);
        found.iter().map(FieldError::to_string).collect()
    }

    fn one(rule: &str, old: Option<Json>, spec: Json) -> String {
        errors(&json!([{"rule": rule}]), old.as_ref(), &spec).join("; ")
    }

    #[test]
    fn rules_judge_values_as_their_schema_has_them() {
        let spec = json!({"replicas": 3, "limit": 5, "ratio": 1, "port": "http", "until": "2030-01-01T00:00:00Z",
            "wait": "90s", "namespace": "x", "a-b": "y", "labels": {"a-b": "z"}});
        for rule in [
            "self.replicas <= self.limit",
            "self.ratio < 1.5 && type(self.ratio) == double",
            "self.port == 'http'",
            "self.until > timestamp('2029-01-01T00:00:00Z')",
            "self.wait == duration('1m30s')",
            "self.__namespace__ == 'x' && self.a__dash__b == 'y' && self.labels['a-b'] == 'z'",
            "!has(self.parts)",
        ] {
            assert_eq!(one(rule, None, spec.clone()), "", "{rule}");
        }
        assert_eq!(
            one("self.replicas > self.limit", None, spec.clone()),
            "spec: Invalid value: \"object\": failed rule: self.replicas > self.limit"
        );
        assert_eq!(
            one("self.limit / 0 == 1", None, spec),
            "spec: Invalid value: \"object\": division by zero evaluating rule: self.limit / 0 == 1"
        );
    }

    #[test]
    fn messages_reasons_and_paths() {
        let rules = json!([
            {"rule": "self.replicas < 3", "message": "too many", "messageExpression": "'got %d'.format([self.replicas])",
             "fieldPath": ".replicas"},
            {"rule": "has(self.limit)", "message": "say how many", "reason": "FieldValueRequired", "fieldPath": ".limit"},
            {"rule": "false", "messageExpression": "''", "message": "never", "reason": "FieldValueForbidden"},
        ]);
        assert_eq!(
            errors(&rules, None, &json!({"replicas": 3})),
            [
                "spec.replicas: Invalid value: \"object\": got 3",
                "spec.limit: Required value: say how many",
                "spec: Forbidden: never",
            ]
        );
    }

    #[test]
    fn transitions_need_what_was() {
        let grow = "self.replicas >= oldSelf.replicas";
        assert_eq!(one(grow, None, json!({"replicas": 1})), "");
        assert_eq!(one(grow, Some(json!({"replicas": 1})), json!({"replicas": 2})), "");
        assert!(one(grow, Some(json!({"replicas": 3})), json!({"replicas": 2})).contains("failed rule"));
        let optional = json!([{"rule": "oldSelf.hasValue() || self.replicas == 1", "optionalOldSelf": true}]);
        assert_eq!(errors(&optional, None, &json!({"replicas": 2})).len(), 1);
        assert_eq!(errors(&optional, Some(&json!({"replicas": 9})), &json!({"replicas": 2})), [""; 0]);
        // Items are found again by their keys, whatever their place.
        let old = json!({"parts": [{"name": "a", "size": 2}, {"name": "b", "size": 5}]});
        let new = json!({"parts": [{"name": "b", "size": 4}, {"name": "a", "size": 3}, {"name": "c", "size": 0}]});
        assert_eq!(errors(&json!([]), Some(&old), &new), ["spec.parts[0]: Invalid value: \"object\": may only grow"]);
        // What was bad and stays so is not judged again.
        assert_eq!(one("self.replicas > 5", Some(json!({"replicas": 1})), json!({"replicas": 1})), "");
    }

    #[test]
    fn what_a_definition_may_not_say() {
        for (rule, place, why) in [
            (
                json!({"rule": "self.nope == 1"}),
                "rule",
                "compilation failed: ERROR: <input>:1:5: undefined field 'nope'",
            ),
            (json!({"rule": "self.replicas"}), "rule", "cel expression must evaluate to a bool"),
            (
                json!({"rule": "self.replicas == 'a'"}),
                "rule",
                "found no matching overload for '_==_' applied to '(int, string)'",
            ),
            (json!({"rule": "true", "messageExpression": "1"}), "messageExpression", "must evaluate to a string"),
            (json!({"rule": " "}), "rule", "Required value: rule is not specified"),
            (json!({"rule": "true", "reason": "Odd"}), "reason", "Unsupported value: \"Odd\""),
        ] {
            let schema = Schema::parse(&schema(json!([rule]))).unwrap();
            let found = problems(&schema, "s");
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].field, format!("s.properties[spec].x-kubernetes-validations[0].{place}"));
            assert!(found[0].message.contains(why), "{:?}", found[0]);
        }
    }

    #[test]
    fn a_hostile_rule_ends_all_rules() {
        let rules =
            json!([{"rule": "lists.range(90000).all(x, lists.range(90000).all(y, x >= 0))"}, {"rule": "false"}]);
        let found = errors(&rules, None, &json!({}));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("no further validation rules will be run due to call cost exceeds limit"),
            "{found:?}"
        );
    }
}
