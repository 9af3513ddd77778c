//! JSON trees to wire format.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use super::Error;
use super::wire::Writer;
use crate::descriptor::{Field, Form, Label, Message, Presence, Scalar, Type, messages};
use crate::time;

/// One tree as an encoded message. Fields the message does not have are left out.
pub fn encode(message: &Message, value: &Value) -> Result<Vec<u8>, Error> {
    let mut writer = Writer::default();
    match (message.form, value) {
        (_, Value::Null) => {}
        (Form::Struct, Value::Object(map)) => return fields(message, map),
        (Form::List, Value::Array(_)) => {
            if let Some(field) = message.fields.first() {
                write(&mut writer, field, value)?;
            }
        }
        (Form::Quantity, Value::String(text)) => writer.string(1, text),
        (Form::Quantity, Value::Number(number)) => writer.string(1, &number.to_string()),
        (Form::IntOrString, Value::String(text)) => {
            writer.number(1, 1);
            writer.number(2, 0);
            writer.string(3, text);
        }
        (Form::IntOrString, Value::Number(number)) => {
            writer.number(1, 0);
            writer.number(2, number.as_i64().unwrap_or_default());
            writer.string(3, "");
        }
        (Form::Time | Form::MicroTime, Value::String(text)) if text.is_empty() => {}
        (Form::Time | Form::MicroTime, Value::String(text)) => {
            let instant = time::parse(text).map_err(|error| Error::Value(error.to_string()))?;
            writer.number(1, instant.as_second());
            let nanos = if message.form == Form::Time { 0 } else { instant.subsec_nanosecond() };
            writer.number(2, nanos.into());
        }
        (Form::Raw, any) => {
            let bytes = serde_json::to_vec(any).map_err(|error| Error::Value(error.to_string()))?;
            writer.bytes(1, &bytes);
        }
        (Form::SchemaOrBool, Value::Bool(allows)) => writer.number(1, (*allows).into()),
        (Form::SchemaOrBool, schema @ Value::Object(_)) => {
            writer.number(1, 1);
            one_of(&mut writer, message, Label::One, schema, Some("schema"))?;
        }
        (Form::SchemaOrList | Form::SchemaOrStrings, schema @ Value::Object(_)) => {
            one_of(&mut writer, message, Label::One, schema, None)?;
        }
        (Form::SchemaOrList | Form::SchemaOrStrings, list @ Value::Array(_)) => {
            one_of(&mut writer, message, Label::List, list, None)?;
        }
        _ => return Err(Error::Value(format!("a {} cannot hold {value}", message.short()))),
    }
    Ok(writer.finish())
}

fn one_of(
    writer: &mut Writer,
    message: &Message,
    label: Label,
    value: &Value,
    name: Option<&str>,
) -> Result<(), Error> {
    let wanted = |field: &&Field| field.label == label && name.is_none_or(|name| field.name == name);
    match message.fields.iter().find(wanted) {
        Some(field) => write(writer, field, value),
        None => Ok(()),
    }
}

fn fields(message: &Message, map: &Map<String, Value>) -> Result<Vec<u8>, Error> {
    let mut writer = Writer::default();
    for field in &message.fields {
        if let (Presence::Inline, Type::Message(index)) = (field.presence, field.kind) {
            writer.bytes(field.number, &fields(&messages()[index], map)?);
        } else if let Some(value) = map.get(field.name).filter(|value| !value.is_null()) {
            write(&mut writer, field, value)?;
        }
    }
    Ok(writer.finish())
}

fn write(writer: &mut Writer, field: &Field, value: &Value) -> Result<(), Error> {
    match (field.label, value) {
        (Label::One, value) => one(writer, field.number, field, value),
        (Label::List, Value::Array(items)) => items.iter().try_for_each(|item| one(writer, field.number, field, item)),
        (Label::Map, Value::Object(entries)) => {
            for (key, value) in entries {
                let mut entry = Writer::default();
                entry.string(1, key);
                one(&mut entry, 2, field, value)?;
                writer.bytes(field.number, &entry.finish());
            }
            Ok(())
        }
        _ => Err(wrong(field, value)),
    }
}

fn wrong(field: &Field, value: &Value) -> Error {
    Error::Value(format!("field {} cannot hold {value}", field.name))
}

fn one(writer: &mut Writer, number: u32, field: &Field, value: &Value) -> Result<(), Error> {
    match (field.kind, value) {
        (Type::Message(index), value) => writer.bytes(number, &encode(&messages()[index], value)?),
        (Type::Scalar(Scalar::String), Value::String(text)) => writer.string(number, text),
        (Type::Scalar(Scalar::Bytes), Value::String(text)) => {
            writer.bytes(number, &BASE64.decode(text).map_err(|_| wrong(field, value))?);
        }
        (Type::Scalar(Scalar::Bool), Value::Bool(flag)) => writer.number(number, (*flag).into()),
        (Type::Scalar(Scalar::Int32 | Scalar::Int64), Value::Number(amount)) => {
            writer.number(number, amount.as_i64().ok_or_else(|| wrong(field, value))?);
        }
        (Type::Scalar(Scalar::Double), Value::Number(amount)) => {
            writer.double(number, amount.as_f64().ok_or_else(|| wrong(field, value))?);
        }
        (Type::Scalar(_), Value::Null) => {}
        _ => return Err(wrong(field, value)),
    }
    Ok(())
}
