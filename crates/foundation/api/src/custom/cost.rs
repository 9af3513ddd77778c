//! Whether the rules of a schema may cost too much, said when a definition is written, in upstream's words.
//!
//! The cost of a rule is multiplied by how often its place may be in one object. What has no `maxItems`, `maxProperties`
//! or `maxLength` is as large as a request may be.

use std::collections::BTreeMap;

use super::rules::{self, Rule};
use super::schema::{Schema, Type as Kind};
use crate::cel::{Extent, ExtentKind, escaped};
use crate::validation::FieldError;

/// Most that one expression may cost.
const EXPRESSION: u64 = 10_000_000;
/// Most that all expressions of a schema may cost together.
const SCHEMA: u64 = 100_000_000;
/// Bytes of the largest request.
const REQUEST: u64 = 3 << 20;
/// How many of the dearest rules are named when the sum is too large.
const NAMED: usize = 4;

/// What is too expensive in a schema at `path`, which ends in `openAPIV3Schema`.
pub fn problems(schema: &Schema, path: &str) -> Vec<FieldError> {
    let mut walk = Walk { errors: Vec::new(), costs: Vec::new() };
    walk.node(schema, path, true, Some(1));
    let Walk { mut errors, mut costs } = walk;
    let total = costs.iter().fold(0, |sum: u64, (_, cost)| sum.saturating_add(*cost));
    if total > SCHEMA {
        costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        errors.extend(costs.iter().take(NAMED).map(|(path, _)| FieldError::forbidden(path, why)));
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(FieldError::forbidden(path, &exceeds(what, total, SCHEMA)));
    }
    errors
}

struct Walk {
    errors: Vec<FieldError>,
    /// Of each rule, by its place.
    costs: Vec<(String, u64)>,
}

impl Walk {
    /// `count` is how often the node may be in an object; `None` is as often as it fits into a request.
    fn node(&mut self, schema: &Schema, path: &str, root: bool, count: Option<u64>) {
        if !schema.rules.is_empty() {
            let (extent, least) = extent(schema, root);
            let count = count.unwrap_or(REQUEST / (least + 1));
            for (index, rule) in schema.rules.iter().enumerate() {
                // What does not compile is refused for that.
                let Ok(rule) = rules::compile(rule, schema, root) else { continue };
                self.rule(&rule, &format!("{path}.x-kubernetes-validations[{index}]"), &extent, count);
            }
        }
        let times = |most: Option<usize>| Some(count?.saturating_mul(most? as u64));
        for (name, property) in &schema.properties {
            self.node(property, &format!("{path}.properties[{name}]"), false, count);
        }
        if let Some(additional) = &schema.additional {
            let count = times(schema.limits.max_properties);
            self.node(additional, &format!("{path}.additionalProperties"), false, count);
        }
        if let Some(items) = &schema.items {
            self.node(items, &format!("{path}.items"), false, times(schema.limits.max_items));
        }
    }

    fn rule(&mut self, rule: &Rule, path: &str, extent: &Extent, count: u64) {
        let message = rule.computed.as_ref().map(|program| ("messageExpression", program));
        for (field, program) in [("rule", &rule.program)].into_iter().chain(message) {
            let (cost, at) = (program.estimate(extent).saturating_mul(count), format!("{path}.{field}"));
            if cost > EXPRESSION {
                let why = exceeds(&format!("estimated {field} cost"), cost, EXPRESSION);
                self.errors.push(FieldError::forbidden(&at, &why));
            }
            self.costs.push((at, cost));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is a ratio for people to read")]
fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        // So that nobody reads 1.0.
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule(s), or adding maxItems, maxProperties, \
         and maxLength where arrays, maps, and strings are declared)"
    )
}

/// How large a value may be, and how many bytes of JSON it has at least.
fn extent(schema: &Schema, whole: bool) -> (Extent, u64) {
    let limits = &schema.limits;
    let of = |kind: ExtentKind, most: u64| Extent { most, kind };
    let given = |most: Option<usize>| most.map(|most| most as u64);
    // A character has up to four bytes.
    let characters = || given(limits.max_length).map(|most| most.saturating_mul(4));
    if schema.int_or_string {
        return (of(ExtentKind::Unknown, characters().unwrap_or(REQUEST - 2)), 1);
    }
    let whole = whole || schema.embedded;
    match schema.kind {
        Kind::Any => (of(ExtentKind::Unknown, u64::MAX), 2),
        Kind::Boolean => (of(ExtentKind::Scalar, 0), 4),
        Kind::Integer | Kind::Number => (of(ExtentKind::Scalar, 0), 1),
        Kind::String => match limits.format.as_str() {
            "duration" => (of(ExtentKind::Scalar, 32), 4),
            "date" => (of(ExtentKind::Scalar, 12), 12),
            "date-time" => (of(ExtentKind::Scalar, 36), 21),
            "byte" => (of(ExtentKind::Text, given(limits.max_length).unwrap_or(REQUEST - 2)), 2),
            _ => {
                let longest = limits.allowed.iter().filter_map(|value| Some(value.as_str()?.len() as u64)).max();
                (of(ExtentKind::Text, characters().or(longest).unwrap_or(REQUEST - 2)), 2)
            }
        },
        Kind::Array => {
            let (item, least) = schema.items.as_ref().map_or_else(Default::default, |items| extent(items, false));
            let most = given(limits.max_items).unwrap_or((REQUEST - 2) / (least + 1));
            (of(ExtentKind::List(item.into()), most), 2)
        }
        Kind::Object => match &schema.additional {
            Some(additional) if schema.properties.is_empty() => {
                let (value, least) = extent(additional, false);
                let most = given(limits.max_properties).unwrap_or((REQUEST - 2) / (least + 6));
                (of(ExtentKind::Map(value.into()), most), 2)
            }
            _ => object(schema, whole),
        },
    }
}

fn object(schema: &Schema, whole: bool) -> (Extent, u64) {
    let mut fields = BTreeMap::new();
    let mut least = 2;
    for (name, property) in &schema.properties {
        let (field, bytes) = extent(property, false);
        if schema.limits.required.contains(name) && property.default.is_none() {
            least += name.len() as u64 + bytes + 4;
        }
        fields.extend(escaped(name).map(|name| (name, field)));
    }
    if whole {
        let text = || Extent { most: REQUEST - 2, kind: ExtentKind::Text };
        let names = ["name", "generateName"].map(|name| (name.to_owned(), text()));
        fields.insert("apiVersion".into(), text());
        fields.insert("kind".into(), text());
        fields.insert("metadata".into(), Extent { most: 0, kind: ExtentKind::Object(names.into()) });
    }
    (Extent { most: 0, kind: ExtentKind::Object(fields) }, least)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    /// What is said of a schema whose `spec` has these properties, in which there are rules.
    fn said(properties: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}});
        problems(&Schema::parse(&schema).unwrap(), "s").iter().map(FieldError::to_string).collect()
    }

    fn list(most: Option<u32>, item: Value, rule: &str) -> Value {
        let mut list = json!({"type": "array", "items": item, "x-kubernetes-validations": [{"rule": rule}]});
        if let Some(most) = most {
            list["maxItems"] = json!(most);
        }
        json!({"l": list})
    }

    #[test]
    fn limits_make_rules_cheap_enough() {
        let nested = "self.all(x, self.all(y, x == y || x != y))";
        for (most, item, rule, factor) in [
            (None, json!({"type": "integer"}), "self.all(x, x > 0)", None),
            (None, json!({"type": "integer"}), nested, Some("more than 100x")),
            (Some(100), json!({"type": "integer"}), nested, None),
            (Some(2000), json!({"type": "integer"}), nested, Some("2.8x")),
            (
                None,
                json!({"type": "string"}),
                "self.all(x, x.contains('abcdefghijklmnopqrstuvwxyz'))",
                Some("more than 100x"),
            ),
            (Some(10), json!({"type": "string", "maxLength": 100}), "self.all(x, x.contains('abcdefghijk'))", None),
            (Some(1000), json!({"type": "string", "maxLength": 1000}), "self.all(x, x.matches('^[a-z0-9]+$'))", None),
            (
                Some(100_000),
                json!({"type": "string", "maxLength": 1000}),
                "self.all(x, x.matches('^[a-z0-9]+$'))",
                Some("12"),
            ),
            (
                Some(10),
                json!({"type": "object", "properties": {"a": {"type": "string", "enum": ["x", "yy"]}}}),
                "self.map(x, x.a).join(',').split(',').all(p, p in ['x', 'yy'])",
                None,
            ),
        ] {
            let found = said(list(most, item.clone(), rule));
            match factor {
                None => assert_eq!(found, [""; 0], "{rule} over {most:?} {item}"),
                Some(factor) => {
                    let expected = format!(
                        "s.properties[spec].properties[l].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost \
                         exceeds budget by factor of {factor}"
                    );
                    assert!(found.first().is_some_and(|first| first.starts_with(&expected)), "{rule}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_rule_counts_as_often_as_its_place_may_be_there() {
        let item = json!({"type": "string", "maxLength": 1000, "x-kubernetes-validations": [{"rule": "self.matches('^[a-z0-9.]{1,20}$')"}]});
        // Once for each item that fits into a request.
        let found = said(json!({"l": {"type": "array", "items": item}}));
        assert!(
            found[0].contains("items.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost"),
            "{found:?}"
        );
        assert_eq!(said(json!({"l": {"type": "array", "items": item, "maxItems": 100}})), [""; 0]);
        assert!(!said(json!({"m": {"type": "object", "additionalProperties": item}})).is_empty());
        assert_eq!(said(json!({"m": {"type": "object", "additionalProperties": item, "maxProperties": 100}})), [""; 0]);
    }

    #[test]
    fn many_rules_together_may_be_too_much() {
        let rule = json!({"rule": "self.all(x, self.all(y, x == y))"});
        let list = json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1200, "x-kubernetes-validations": [rule]});
        let lists: serde_json::Map<String, Value> = (0..20).map(|i| (format!("l{i:02}"), list.clone())).collect();
        let found = said(lists.into());
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(
            found[0]
                .ends_with("contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema")
        );
        let total = "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget";
        assert!(found[4].starts_with(total), "{found:?}");
    }
}
