//! Structural schemas: OpenAPI schemas in which every field has one place, so that pruning and defaulting have one
//! meaning.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use crate::error::Error;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    /// Anything: below a junction, or where unknown fields are kept.
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" => Self::Any,
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// How items of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Identity {
    #[default]
    None,
    /// No item comes twice.
    Set,
    /// By the values of these fields.
    Keys(Vec<String>),
}

/// One node of a schema.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    pub kind: Type,
    pub nullable: bool,
    pub int_or_string: bool,
    /// Fields that no property names are kept.
    pub preserve_unknown: bool,
    /// Holds a whole object with its own type header and metadata.
    pub embedded: bool,
    /// Its fields have one owner together.
    pub atomic: bool,
    pub properties: BTreeMap<String, Schema>,
    /// Values under names that are no properties.
    pub additional: Option<Box<Schema>>,
    pub items: Option<Box<Schema>>,
    pub default: Option<Value>,
    pub identity: Identity,
    pub limits: Limits,
    /// `x-kubernetes-validations`, as written; whoever evaluates expressions compiles them.
    pub rules: Vec<Value>,
}

/// What a value of the right type must be like.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub required: Vec<String>,
    pub allowed: Vec<Value>,
    pub minimum: Option<f64>,
    pub above_minimum: bool,
    pub maximum: Option<f64>,
    pub below_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<usize>,
    pub max_length: Option<usize>,
    pub min_items: Option<usize>,
    pub max_items: Option<usize>,
    pub min_properties: Option<usize>,
    pub max_properties: Option<usize>,
    pub pattern: Option<Regex>,
    pub format: String,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
}

/// Deepest nesting that is read: deeper ones are refused rather than followed.
const DEEPEST: usize = 100;

impl Schema {
    /// Reads an `openAPIV3Schema`.
    pub fn parse(schema: &Value) -> Result<Self, Error> {
        parse(schema, DEEPEST)
    }
}

fn parse(schema: &Value, depth: usize) -> Result<Schema, Error> {
    if depth == 0 {
        return Err(Error::Schema(format!("schemas nest at most {DEEPEST} levels deep")));
    }
    let flag = |name: &str| schema[name] == true;
    let text = |name: &str| schema[name].as_str().unwrap_or_default();
    let child = |value: &Value| parse(value, depth - 1);
    let list = |name: &str| -> Result<Vec<Schema>, Error> {
        schema[name].as_array().into_iter().flatten().map(child).collect()
    };
    let boxed = |value: &Value| child(value).map(Box::new);
    let object = |name: &str| Some(&schema[name]).filter(|value| value.is_object());
    let count = |name: &str| schema[name].as_u64().and_then(|number| usize::try_from(number).ok());
    let words = |name: &str| -> Vec<String> {
        schema[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let kind = Type::parse(text("type"))
        .ok_or_else(|| Error::Schema(format!("{:?} is no type that a schema may have", text("type"))))?;
    let pattern = match text("pattern") {
        "" => None,
        pattern => Some(Regex::new(pattern).map_err(|error| Error::Schema(format!("pattern {pattern:?}: {error}")))?),
    };
    let properties = schema["properties"].as_object().into_iter().flatten();
    let limits = Limits {
        required: words("required"),
        allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
        minimum: schema["minimum"].as_f64(),
        above_minimum: flag("exclusiveMinimum"),
        maximum: schema["maximum"].as_f64(),
        below_maximum: flag("exclusiveMaximum"),
        multiple_of: schema["multipleOf"].as_f64(),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        pattern,
        format: text("format").to_owned(),
        all_of: list("allOf")?,
        any_of: list("anyOf")?,
        one_of: list("oneOf")?,
        not: object("not").map(boxed).transpose()?,
    };
    Ok(Schema {
        kind,
        nullable: flag("nullable"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        embedded: flag("x-kubernetes-embedded-resource"),
        atomic: text("x-kubernetes-map-type") == "atomic",
        properties: properties
            .map(|(name, schema)| Ok((name.clone(), child(schema)?)))
            .collect::<Result<_, Error>>()?,
        additional: match &schema["additionalProperties"] {
            Value::Bool(true) => Some(Box::new(Schema { preserve_unknown: true, ..Schema::default() })),
            value @ Value::Object(_) => Some(boxed(value)?),
            _ => None,
        },
        items: object("items").map(boxed).transpose()?,
        default: schema.get("default").filter(|default| !default.is_null()).cloned(),
        identity: match text("x-kubernetes-list-type") {
            "set" => Identity::Set,
            "map" => Identity::Keys(words("x-kubernetes-list-map-keys")),
            _ => Identity::None,
        },
        limits,
        rules: schema["x-kubernetes-validations"].as_array().cloned().unwrap_or_default(),
    })
}
