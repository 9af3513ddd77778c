//! OpenAPI v2 as a protobuf message (gnostic's `openapi.v2.Document`), which older clients insist on.

use serde_json::{Map, Value};

use crate::protobuf::Writer;

/// Fields of `Schema` that are written as they are: JSON name and number, by type.
const TEXTS: [(&str, u32); 5] = [("$ref", 1), ("format", 2), ("title", 3), ("description", 4), ("pattern", 13)];
const NUMBERS: [(&str, u32); 3] = [("multipleOf", 6), ("maximum", 7), ("minimum", 9)];
const COUNTS: [(&str, u32); 6] = [
    ("maxLength", 11),
    ("minLength", 12),
    ("maxItems", 14),
    ("minItems", 15),
    ("maxProperties", 17),
    ("minProperties", 18),
];
const FLAGS: [(&str, u32); 4] =
    [("exclusiveMaximum", 8), ("exclusiveMinimum", 10), ("uniqueItems", 16), ("readOnly", 27)];
/// Methods of a path, by number.
const METHODS: [(&str, u32); 5] = [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)];

/// The encoded document.
pub fn gnostic(document: &Value) -> Vec<u8> {
    let mut info = Writer::default();
    info.string(1, text(&document["info"], "title"));
    info.string(2, text(&document["info"], "version"));
    let mut paths = Writer::default();
    for (path, item) in entries(document, "paths") {
        paths.bytes(2, &named(path, &path_item(item)));
    }
    let mut definitions = Writer::default();
    for (name, definition) in entries(document, "definitions") {
        definitions.bytes(1, &named(name, &schema(definition)));
    }
    let mut whole = Writer::default();
    whole.string(1, text(document, "swagger"));
    whole.bytes(2, &info.finish());
    whole.bytes(8, &paths.finish());
    whole.bytes(9, &definitions.finish());
    whole.finish()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn entries<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value[field].as_object().into_iter().flat_map(Map::iter)
}

/// A name and a message.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.string(1, name);
    writer.bytes(2, value);
    writer.finish()
}

/// Free-form JSON, which is YAML too.
fn any(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.string(2, &format!("{value}\n"));
    writer.finish()
}

/// `x-` fields as `NamedAny`.
fn extensions(writer: &mut Writer, number: u32, value: &Value) {
    for (name, extension) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        writer.bytes(number, &named(name, &any(extension)));
    }
}

fn path_item(item: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    for (method, number) in METHODS {
        if let Some(operation) = item.get(method) {
            writer.bytes(number, &self::operation(operation));
        }
    }
    writer.finish()
}

fn operation(operation: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    // Only those of the query are looked for in this form.
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    for parameter in parameters.filter(|parameter| parameter["in"] == "query") {
        let mut query = Writer::default();
        query.string(2, text(parameter, "in"));
        query.string(4, text(parameter, "name"));
        query.string(6, text(parameter, "type"));
        // ParametersItem > Parameter > NonBodyParameter > QueryParameterSubSchema.
        let wrapped = [3, 2, 1].into_iter().fold(query.finish(), |inner, number| {
            let mut outer = Writer::default();
            outer.bytes(number, &inner);
            outer.finish()
        });
        writer.bytes(8, &wrapped);
    }
    extensions(&mut writer, 13, operation);
    writer.finish()
}

fn schema(schema: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    for (name, number) in TEXTS {
        if let Some(text) = schema[name].as_str() {
            writer.string(number, text);
        }
    }
    if let Some(default) = schema.get("default") {
        writer.bytes(5, &any(default));
    }
    for (name, number) in NUMBERS {
        if let Some(amount) = schema[name].as_f64() {
            writer.double(number, amount);
        }
    }
    for (name, number) in COUNTS {
        if let Some(count) = schema[name].as_i64() {
            writer.number(number, count);
        }
    }
    for (name, number) in FLAGS {
        if let Some(flag) = schema[name].as_bool() {
            writer.number(number, flag.into());
        }
    }
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        writer.string(19, required);
    }
    for value in schema["enum"].as_array().into_iter().flatten() {
        writer.bytes(20, &any(value));
    }
    match &schema["additionalProperties"] {
        Value::Bool(flag) => {
            let mut item = Writer::default();
            item.number(2, (*flag).into());
            writer.bytes(21, &item.finish());
        }
        one @ Value::Object(_) => writer.bytes(21, &wrapped(one)),
        _ => {}
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() {
        let mut item = Writer::default();
        types.iter().for_each(|one| item.string(1, one));
        writer.bytes(22, &item.finish());
    }
    if schema["items"].is_object() {
        writer.bytes(23, &wrapped(&schema["items"]));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        writer.bytes(24, &self::schema(part));
    }
    if schema["properties"].is_object() {
        let mut properties = Writer::default();
        for (name, property) in entries(schema, "properties") {
            properties.bytes(1, &named(name, &self::schema(property)));
        }
        writer.bytes(25, &properties.finish());
    }
    extensions(&mut writer, 31, schema);
    writer.finish()
}

/// A message whose first field is a schema.
fn wrapped(value: &Value) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes(1, &schema(value));
    writer.finish()
}
