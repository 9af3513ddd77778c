//! The types that kinds declare, for expressions that are checked before there is an object.

use std::collections::{BTreeMap, HashMap};

use super::escaped;
use super::types::{ObjectType, Type};
use crate::custom::rules;
use crate::descriptor::{self, Form, Label, Message, Presence, Scalar};
use crate::registry::Kind;

/// What an object of a kind is, as its schema says; anything where it says nothing.
pub fn of_kind(kind: &Kind) -> Type {
    let mut known = HashMap::new();
    let Some(served) = &kind.custom else {
        return kind.message().map_or(Type::Any, |message| of_message(message, &mut known));
    };
    let Some(metadata) = descriptor::message("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") else {
        return Type::Any;
    };
    match rules::type_of(&served.version.schema, true) {
        Type::Object(object) => {
            let mut fields = object.fields.clone();
            fields.insert("metadata".into(), of_message(metadata, &mut known));
            Type::Object(ObjectType { name: kind.kind.into(), fields }.into())
        }
        other => other,
    }
}

/// `known` has the messages met so far; one within itself may be anything.
fn of_message(message: &'static Message, known: &mut HashMap<&'static str, Type>) -> Type {
    if let Some(known) = known.get(message.definition.as_str()) {
        return known.clone();
    }
    known.insert(&message.definition, Type::Any);
    let found = match message.form {
        Form::Struct => {
            let mut fields = BTreeMap::new();
            if message.typed {
                fields.extend(["apiVersion", "kind"].map(|name| (name.to_owned(), Type::String)));
            }
            collect(message, &mut fields, known);
            Type::Object(ObjectType { name: message.go_name().to_owned(), fields }.into())
        }
        Form::List => match message.fields.first() {
            Some(field) => of_field(field, known),
            None => Type::Any,
        },
        // Numbers or text, times that are text when they are read: seen when there is a value.
        _ => Type::Any,
    };
    known.insert(&message.definition, found.clone());
    found
}

fn collect(message: &'static Message, fields: &mut BTreeMap<String, Type>, known: &mut HashMap<&'static str, Type>) {
    for field in &message.fields {
        match (field.presence, field.kind) {
            (Presence::Inline, descriptor::Type::Message(index)) => {
                collect(&descriptor::messages()[index], fields, known);
            }
            _ => fields.extend(escaped(field.name).map(|name| (name, of_field(field, known)))),
        }
    }
}

fn of_field(field: &'static descriptor::Field, known: &mut HashMap<&'static str, Type>) -> Type {
    let of = match field.kind {
        descriptor::Type::Scalar(scalar) => match scalar {
            Scalar::String => Type::String,
            Scalar::Bool => Type::Bool,
            Scalar::Int32 | Scalar::Int64 => Type::Int,
            Scalar::Double => Type::Double,
            // Text in JSON, bytes by its meaning.
            Scalar::Bytes => Type::Any,
        },
        descriptor::Type::Message(index) => of_message(&descriptor::messages()[index], known),
    };
    match field.label {
        Label::One => of,
        Label::List => Type::List(of.into()),
        Label::Map => Type::Map(of.into()),
    }
}
