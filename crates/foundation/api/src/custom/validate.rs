//! Values against a schema, in the words that clients of custom kinds know.

use serde_json::{Value, json};

use super::format;
use super::schema::{Identity, Limits, Schema, Type};
use crate::validation::field::shown;
use crate::validation::{Errors, FieldError};

impl Schema {
    /// Everything wrong with a whole object. Its header is everyone's and is checked elsewhere.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        check(self, object, "", &mut errors);
        errors.into_vec()
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The name of what a value is.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(schema: &Schema, value: &Value) -> bool {
    match (schema.kind, value) {
        (_, Value::Null) => schema.nullable || schema.kind == Type::Any && !schema.int_or_string,
        (Type::Any, Value::Number(number)) if schema.int_or_string => !number.is_f64(),
        (Type::Any, value) if schema.int_or_string => value.is_string(),
        (Type::Any, _) => true,
        (Type::Object, value) => value.is_object(),
        (Type::Array, value) => value.is_array(),
        (Type::String, value) => value.is_string(),
        (Type::Boolean, value) => value.is_boolean(),
        (Type::Number, value) => value.is_number(),
        (Type::Integer, value) => value.as_f64().is_some_and(|number| number.fract() == 0.0),
    }
}

fn mistyped(path: &str, given: &str, wanted: &str, errors: &mut Errors) {
    let why = format!("{path} in body must be of type {wanted}: {given:?}");
    errors.push(FieldError::new("FieldValueTypeInvalid", path, &format!("Invalid value: {given:?}"), &why));
}

fn bad(path: &str, value: &Value, rule: &str, errors: &mut Errors) {
    errors.bad_value(path, value, &format!("{path} in body {rule}"));
}

fn check(schema: &Schema, value: &Value, path: &str, errors: &mut Errors) {
    if !has_type(schema, value) {
        let wanted = if schema.int_or_string { "integer,string" } else { schema.kind.name() };
        return mistyped(path, type_of(value), wanted, errors);
    }
    if value.is_null() {
        return;
    }
    allowed(&schema.limits, value, path, errors);
    match value {
        Value::Number(_) => number(&schema.limits, value, path, errors),
        Value::String(text) => string(&schema.limits, text, path, errors),
        Value::Array(list) => {
            let limits = &schema.limits;
            if limits.max_items.is_some_and(|most| list.len() > most) {
                too_many(path, list.len(), limits.max_items.unwrap_or_default(), errors);
            }
            if let Some(least) = limits.min_items.filter(|least| list.len() < *least) {
                bad(path, &json!(list.len()), &format!("should have at least {least} items"), errors);
            }
            for (index, item) in list.iter().enumerate() {
                if let Some(items) = &schema.items {
                    check(items, item, &format!("{path}[{index}]"), errors);
                }
            }
            identity(&schema.identity, list, path, errors);
        }
        Value::Object(map) => {
            let limits = &schema.limits;
            for name in limits.required.iter().filter(|name| !map.contains_key(name.as_str())) {
                errors.push(FieldError::required(&join(path, name), ""));
            }
            if let Some(most) = limits.max_properties.filter(|most| map.len() > *most) {
                too_many(path, map.len(), most, errors);
            }
            if let Some(least) = limits.min_properties.filter(|least| map.len() < *least) {
                bad(path, &json!(map.len()), &format!("should have at least {least} properties"), errors);
            }
            for (name, value) in map {
                if path.is_empty() && name == "metadata" {
                    continue;
                }
                if let Some(child) = schema.properties.get(name).or(schema.additional.as_deref()) {
                    check(child, value, &join(path, name), errors);
                }
            }
        }
        _ => {}
    }
    junctions(&schema.limits, value, path, errors);
}

fn allowed(limits: &Limits, value: &Value, path: &str, errors: &mut Errors) {
    if limits.allowed.is_empty() || limits.allowed.contains(value) {
        return;
    }
    let known: Vec<String> = limits.allowed.iter().map(shown).collect();
    let why = format!("supported values: {}", known.join(", "));
    let head = format!("Unsupported value: {}", shown(value));
    errors.push(FieldError::new("FieldValueNotSupported", path, &head, &why));
}

fn too_many(path: &str, count: usize, most: usize, errors: &mut Errors) {
    let why = format!("must have at most {most} items");
    errors.push(FieldError::new("FieldValueTooMany", path, &format!("Too many: {count}"), &why));
}

/// A number as it is written in a schema: without a fraction that says nothing.
fn plain(number: f64) -> String {
    format!("{number}")
}

fn number(limits: &Limits, value: &Value, path: &str, errors: &mut Errors) {
    let Some(given) = value.as_f64() else { return };
    if let Some(least) = limits.minimum {
        if limits.above_minimum && given <= least {
            bad(path, value, &format!("should be greater than {}", plain(least)), errors);
        } else if given < least {
            bad(path, value, &format!("should be greater than or equal to {}", plain(least)), errors);
        }
    }
    if let Some(most) = limits.maximum {
        if limits.below_maximum && given >= most {
            bad(path, value, &format!("should be less than {}", plain(most)), errors);
        } else if given > most {
            bad(path, value, &format!("should be less than or equal to {}", plain(most)), errors);
        }
    }
    if let Some(step) = limits.multiple_of.filter(|step| *step > 0.0 && (given / step).fract() != 0.0) {
        bad(path, value, &format!("should be a multiple of {}", plain(step)), errors);
    }
    let fits = match limits.format.as_str() {
        "int32" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        "int64" => value.is_i64() || !value.is_number(),
        _ => true,
    };
    if !fits {
        mistyped(path, &value.to_string(), &limits.format, errors);
    }
}

fn string(limits: &Limits, text: &str, path: &str, errors: &mut Errors) {
    let length = text.chars().count();
    if let Some(most) = limits.max_length.filter(|most| length > *most) {
        errors.too_long(path, most);
    }
    if let Some(least) = limits.min_length.filter(|least| length < *least) {
        bad(path, &json!(text), &format!("should be at least {least} chars long"), errors);
    }
    if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
        bad(path, &json!(text), &format!("should match '{pattern}'"), errors);
    }
    if !limits.format.is_empty() && !format::fits(&limits.format, text) {
        mistyped(path, text, &limits.format, errors);
    }
}

fn identity(identity: &Identity, list: &[Value], path: &str, errors: &mut Errors) {
    let keys: Vec<Value> = match identity {
        Identity::None => return,
        Identity::Set => list.to_vec(),
        Identity::Keys(names) => {
            list.iter().map(|item| names.iter().map(|name| (name.clone(), item[name].clone())).collect()).collect()
        }
    };
    for (index, key) in keys.iter().enumerate() {
        if keys[..index].contains(key) {
            let head = format!("Duplicate value: {}", shown(key));
            errors.push(FieldError::new("FieldValueDuplicate", &format!("{path}[{index}]"), &head, ""));
        }
    }
}

/// What several schemas together ask for. These errors name no field; the path is in their text.
fn junctions(limits: &Limits, value: &Value, path: &str, errors: &mut Errors) {
    let tried = |schema: &Schema| {
        let mut found = Errors::default();
        check(schema, value, path, &mut found);
        found.into_vec()
    };
    let refuse = |rule: &str, errors: &mut Errors| {
        let why = format!("{path:?} must {rule}");
        errors.push(FieldError::new("FieldValueInvalid", "<nil>", "Invalid value: \"\"", &why));
    };
    // Of what does not fit, the nearest says what is missing.
    let nearest = |failed: Vec<Vec<FieldError>>, errors: &mut Errors| {
        let best = failed.into_iter().min_by_key(Vec::len);
        best.into_iter().flatten().for_each(|error| errors.push(error));
    };
    if !limits.any_of.is_empty() {
        let failed: Vec<_> = limits.any_of.iter().map(tried).take_while(|found| !found.is_empty()).collect();
        if failed.len() == limits.any_of.len() {
            refuse("validate at least one schema (anyOf)", errors);
            nearest(failed, errors);
        }
    }
    if !limits.one_of.is_empty() {
        let failed: Vec<_> = limits.one_of.iter().map(tried).filter(|found| !found.is_empty()).collect();
        match limits.one_of.len() - failed.len() {
            0 => {
                refuse("validate one and only one schema (oneOf). Found none valid", errors);
                nearest(failed, errors);
            }
            1 => {}
            count => {
                let rule = format!("validate one and only one schema (oneOf). Found {count} valid alternatives");
                refuse(&rule, errors);
            }
        }
    }
    if !limits.all_of.is_empty() {
        let failed: Vec<_> = limits.all_of.iter().map(tried).filter(|found| !found.is_empty()).collect();
        if !failed.is_empty() {
            let none = if failed.len() == limits.all_of.len() { ". None validated" } else { "" };
            failed.into_iter().flatten().for_each(|error| errors.push(error));
            refuse(&format!("validate all the schemas (allOf){none}"), errors);
        }
    }
    if limits.not.as_ref().is_some_and(|schema| tried(schema).is_empty()) {
        refuse("not validate the schema (not)", errors);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let schema = Schema::parse(&json!({"type": "object", "required": ["spec"], "properties": {"spec": {
        "type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "port": {"x-kubernetes-int-or-string": true},
            "when": {"type": "string", "format": "date-time"},
            "tags": {"type": "array", "maxItems": 2, "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "maybe": {"type": "string", "nullable": true},
            "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        }}}}))
        .unwrap();
        schema
            .validate(&json!({"apiVersion": "g/v1", "kind": "T", "metadata": {"name": 1}, "spec": spec}))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_fits_is_accepted() {
        let fine = json!({"name": "abc", "size": 5, "mode": "a", "port": "http", "when": "2026-01-01T00:00:00Z",
            "tags": ["x", "y"], "parts": [{"k": "1"}, {"k": "2"}], "maybe": null, "either": {"a": "1"}});
        assert!(errors(fine.clone()).is_empty(), "{:?}", errors(fine));
        assert!(errors(json!({"name": "abc", "port": 80, "size": 5.0})).is_empty());
    }

    #[test]
    fn what_does_not_is_refused_in_known_words() {
        for (spec, wanted) in [
            (json!({}), "spec.name: Required value"),
            (
                json!({"name": 1}),
                "spec.name: Invalid value: \"integer\": spec.name in body must be of type string: \"integer\"",
            ),
            (
                json!({"name": "a"}),
                "spec.name: Invalid value: \"a\": spec.name in body should be at least 2 chars long",
            ),
            (json!({"name": "abcde"}), "spec.name: Too long: may not be more than 4 bytes"),
            (json!({"name": "AB"}), "spec.name: Invalid value: \"AB\": spec.name in body should match '^[a-z]+$'"),
            (
                json!({"name": "ab", "size": 11}),
                "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
            ),
            (
                json!({"name": "ab", "size": 1.5}),
                "spec.size: Invalid value: \"number\": spec.size in body must be of type integer: \"number\"",
            ),
            (json!({"name": "ab", "mode": "c"}), "spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""),
            (
                json!({"name": "ab", "port": true}),
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"name": "ab", "when": "now"}),
                "spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\"",
            ),
            (json!({"name": "ab", "tags": ["x", "x"]}), "spec.tags[1]: Duplicate value: \"x\""),
            (json!({"name": "ab", "tags": ["x", "y", "z"]}), "spec.tags: Too many: 3: must have at most 2 items"),
            (json!({"name": "ab", "parts": [{"k": "1"}, {"k": "1"}]}), "spec.parts[1]: Duplicate value: {\"k\":\"1\"}"),
            (
                json!({"name": "ab", "either": {}}),
                "<nil>: Invalid value: \"\": \"spec.either\" must validate one and only one schema (oneOf). Found none valid",
            ),
            (json!({"name": "ab", "either": {}}), "spec.either.a: Required value"),
            (
                json!({"name": "ab", "either": {"a": "", "b": ""}}),
                "<nil>: Invalid value: \"\": \"spec.either\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ),
            (
                json!({"name": "ab", "size": null}),
                "spec.size: Invalid value: \"null\": spec.size in body must be of type integer: \"null\"",
            ),
        ] {
            let found = errors(spec);
            assert!(found.contains(&wanted.to_owned()), "wanted {wanted}, got {found:#?}");
        }
    }
}
