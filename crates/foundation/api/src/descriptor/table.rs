//! Reads the table's text. A line is a package (`@io.k8s.api.core.v1`) or a message: its name, a mark, its fields.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Field, Form, Label, Message, Presence, Scalar, Type};

static TEXT: &str = include_str!("table.txt");

struct Table {
    messages: Vec<Message>,
    by_definition: HashMap<String, usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(read);

/// All messages; [`Type::Message`] is an index into it.
pub fn messages() -> &'static [Message] {
    &TABLE.messages
}

/// By OpenAPI definition.
pub fn message(definition: &str) -> Option<&'static Message> {
    TABLE.by_definition.get(definition).map(|index| &TABLE.messages[*index])
}

pub(super) fn field(definition: &str, index: usize) -> Option<&'static Field> {
    message(definition)?.fields.get(index)
}

/// By the type header of a document. Options are known in every group.
pub fn message_of(api_version: &str, kind: &str) -> Option<&'static Message> {
    const META: &str = "apimachinery.pkg.apis.meta.v1";
    let (group, version) = crate::header::split_api_version(api_version);
    let package = match group {
        "" => format!("api.core.{version}"),
        "meta.k8s.io" => META.to_owned(),
        "apiextensions.k8s.io" => format!("apiextensions-apiserver.pkg.apis.apiextensions.{version}"),
        "apiregistration.k8s.io" => format!("kube-aggregator.pkg.apis.apiregistration.{version}"),
        _ => format!("api.{}.{version}", group.split('.').next().unwrap_or_default()),
    };
    message(&format!("io.k8s.{package}.{kind}")).or_else(|| message(&format!("io.k8s.{META}.{kind}")))
}

fn read() -> Table {
    let mut rows: Vec<(String, &'static str, &'static str)> = Vec::new();
    let mut package = "";
    for line in TEXT.lines() {
        match line.strip_prefix('@') {
            Some(name) => package = name,
            None => {
                let (head, fields) = line.split_once(' ').unwrap_or((line, ""));
                rows.push((format!("{package}.{}", head.trim_end_matches(['+', '*'])), head, fields));
            }
        }
    }
    let by_definition: HashMap<String, usize> =
        rows.iter().enumerate().map(|(index, (definition, ..))| (definition.clone(), index)).collect();
    let messages = rows
        .into_iter()
        .map(|(definition, head, text)| {
            let package = definition.rsplit_once('.').map_or("", |(package, _)| package).to_owned();
            let mut fields: Vec<Field> =
                text.split_whitespace().filter_map(|text| row(text, &package, &by_definition)).collect();
            // The order of encoding.
            fields.sort_by_key(|field| field.number);
            let by_name = fields
                .iter()
                .enumerate()
                .filter(|(_, field)| field.presence != Presence::Inline)
                .map(|(index, field)| (field.name, index))
                .collect();
            let form = form(&definition, head.ends_with('*'));
            Message { form, typed: head.ends_with('+'), fields, by_name, definition }
        })
        .collect();
    Table { messages, by_definition }
}

fn form(definition: &str, list: bool) -> Form {
    match definition.trim_start_matches("io.k8s.") {
        "apimachinery.pkg.api.resource.Quantity" => Form::Quantity,
        "apimachinery.pkg.util.intstr.IntOrString" => Form::IntOrString,
        "apimachinery.pkg.apis.meta.v1.Time" => Form::Time,
        "apimachinery.pkg.apis.meta.v1.MicroTime" => Form::MicroTime,
        "apimachinery.pkg.apis.meta.v1.FieldsV1"
        | "apimachinery.pkg.runtime.RawExtension"
        | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON" => Form::Raw,
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool" => Form::SchemaOrBool,
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray" => Form::SchemaOrList,
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => Form::SchemaOrStrings,
        _ if list => Form::List,
        _ => Form::Struct,
    }
}

/// `name=number`, marks, type. What cannot be read is left out; the tests compare the table with the schemas.
fn row(text: &'static str, package: &str, known: &HashMap<String, usize>) -> Option<Field> {
    let (name, rest) = text.split_once('=')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    let number = rest[..digits].parse().ok()?;
    let (mut label, mut presence, mut rest) = (Label::One, Presence::Pointer, &rest[digits..]);
    loop {
        match rest.as_bytes().first()? {
            b'*' => label = Label::List,
            b'%' => label = Label::Map,
            b'&' => presence = Presence::Inline,
            b'!' => presence = Presence::Always,
            b'-' => presence = Presence::OmitZero,
            _ => break,
        }
        rest = &rest[1..];
    }
    let kind = match rest {
        "s" => Type::Scalar(Scalar::String),
        "y" => Type::Scalar(Scalar::Bytes),
        "b" => Type::Scalar(Scalar::Bool),
        "i" => Type::Scalar(Scalar::Int32),
        "l" => Type::Scalar(Scalar::Int64),
        "d" => Type::Scalar(Scalar::Double),
        other => {
            let name = other.strip_prefix('.')?;
            let definition = if name.contains('.') { format!("io.k8s.{name}") } else { format!("{package}.{name}") };
            Type::Message(*known.get(&definition)?)
        }
    };
    Some(Field { name, number, label, presence, kind })
}
