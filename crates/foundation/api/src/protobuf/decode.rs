//! Wire format to JSON trees.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::Error;
use super::wire::Reader;
use crate::bounds::MAX_DEPTH;
use crate::descriptor::{Field, Form, Label, Message, Presence, Scalar, Type, is_zero, messages};
use crate::time;

/// Bounds what a small document can make of itself: an empty message takes two bytes on the wire.
const MAX_VALUES: usize = 500_000;

/// One encoded message as a tree.
pub fn message(message: &'static Message, raw: &[u8]) -> Result<Value, Error> {
    Walk { depth: 0, values: 0 }.message(message, raw)
}

struct Walk {
    depth: usize,
    values: usize,
}

impl Walk {
    fn message(&mut self, message: &'static Message, raw: &[u8]) -> Result<Value, Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        self.depth += 1;
        let value = match message.form {
            Form::Struct => {
                let mut map = Map::new();
                self.fields(message, raw, &mut map)?;
                Value::Object(map)
            }
            form => self.special(message, form, raw)?,
        };
        self.depth -= 1;
        Ok(value)
    }

    fn count(&mut self) -> Result<(), Error> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(Error::TooMany) } else { Ok(()) }
    }

    fn fields(&mut self, message: &'static Message, raw: &[u8], into: &mut Map<String, Value>) -> Result<(), Error> {
        let mut reader = Reader::new(raw, message.short());
        while let Some((number, wire)) = reader.tag()? {
            let Some(field) = message.field_numbered(number) else {
                reader.skip(wire)?;
                continue;
            };
            self.count()?;
            match (field.label, field.kind) {
                (Label::One, Type::Message(index)) if field.presence == Presence::Inline => {
                    let raw = reader.bytes(wire, field.name)?;
                    if self.depth == MAX_DEPTH {
                        return Err(Error::TooDeep);
                    }
                    self.depth += 1;
                    self.fields(&messages()[index], raw, into)?;
                    self.depth -= 1;
                }
                (Label::One, _) => {
                    let value = self.value(&mut reader, wire, field)?;
                    if value.is_null() || field.presence == Presence::OmitZero && is_zero(&value) {
                        continue;
                    }
                    into.insert(field.name.into(), value);
                }
                (Label::List, _) => {
                    let value = self.value(&mut reader, wire, field)?;
                    let list = into.entry(field.name).or_insert_with(|| json!([]));
                    if let Some(list) = list.as_array_mut() {
                        list.push(value);
                    }
                }
                (Label::Map, _) => {
                    let (key, value) = self.entry(reader.bytes(wire, field.name)?, field)?;
                    let map = into.entry(field.name).or_insert_with(|| json!({}));
                    if let Some(map) = map.as_object_mut() {
                        map.insert(key, value);
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, raw: &[u8], field: &Field) -> Result<(String, Value), Error> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(raw, field.name);
        while let Some((number, wire)) = reader.tag()? {
            match number {
                1 => key = reader.string(wire, field.name)?,
                2 => value = Some(self.value(&mut reader, wire, field)?),
                _ => reader.skip(wire)?,
            }
        }
        let value = match (value, field.kind) {
            (Some(value), _) => value,
            (None, Type::Scalar(Scalar::String | Scalar::Bytes)) => json!(""),
            (None, Type::Scalar(Scalar::Bool)) => json!(false),
            (None, Type::Scalar(_)) => json!(0),
            (None, Type::Message(index)) => self.message(&messages()[index], &[])?,
        };
        Ok((key, value))
    }

    fn value(&mut self, reader: &mut Reader<'_>, wire: u8, field: &Field) -> Result<Value, Error> {
        Ok(match field.kind {
            Type::Scalar(Scalar::String) => reader.string(wire, field.name)?.into(),
            Type::Scalar(Scalar::Bytes) => BASE64.encode(reader.bytes(wire, field.name)?).into(),
            Type::Scalar(Scalar::Bool) => (reader.number(wire, field.name)? != 0).into(),
            // Go keeps the low half of what does not fit.
            Type::Scalar(Scalar::Int32) => (reader.number(wire, field.name)? as i32).into(),
            Type::Scalar(Scalar::Int64) => reader.number(wire, field.name)?.into(),
            Type::Scalar(Scalar::Double) => json!(reader.double(wire, field.name)?),
            Type::Message(index) => self.message(&messages()[index], reader.bytes(wire, field.name)?)?,
        })
    }

    fn special(&mut self, message: &'static Message, form: Form, raw: &[u8]) -> Result<Value, Error> {
        let mut plain = Map::new();
        self.fields(message, raw, &mut plain)?;
        let number = |name: &str| plain.get(name).and_then(Value::as_i64).unwrap_or_default();
        Ok(match form {
            Form::Struct => Value::Object(plain),
            Form::List => {
                message.fields.first().and_then(|field| plain.remove(field.name)).unwrap_or_else(|| json!([]))
            }
            Form::Quantity => match plain.remove("string") {
                Some(Value::String(text)) if !text.is_empty() => Value::String(text),
                _ => json!("0"),
            },
            Form::IntOrString if number("type") == 0 => json!(number("intVal")),
            Form::IntOrString => plain.remove("strVal").unwrap_or_else(|| json!("")),
            // The zero time has no bytes.
            Form::Time | Form::MicroTime if raw.is_empty() => Value::Null,
            Form::Time | Form::MicroTime => {
                let nanos = i32::try_from(number("nanos")).unwrap_or_default();
                let instant = jiff::Timestamp::new(number("seconds"), nanos)
                    .map_err(|_| Error::Value("a time is out of range".into()))?;
                json!(if form == Form::Time { time::rfc3339(instant) } else { time::micro(instant) })
            }
            Form::Raw => raw_json(&plain, message)?,
            Form::SchemaOrBool => match plain.remove("schema") {
                Some(schema) => schema,
                None => json!(plain.get("allows").and_then(Value::as_bool).unwrap_or_default()),
            },
            Form::SchemaOrList | Form::SchemaOrStrings => {
                let field = |label: Label| message.fields.iter().find(|field| field.label == label);
                match field(Label::One).and_then(|field| plain.remove(field.name)) {
                    Some(schema) => schema,
                    None => field(Label::List).and_then(|field| plain.remove(field.name)).unwrap_or_else(|| json!([])),
                }
            }
        })
    }
}

/// Free-form JSON that travels as bytes.
fn raw_json(plain: &Map<String, Value>, message: &Message) -> Result<Value, Error> {
    let text = message.fields.first().and_then(|field| plain.get(field.name)).and_then(Value::as_str);
    let bytes = BASE64.decode(text.unwrap_or_default()).unwrap_or_default();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::Value(format!("{}: {error}", message.short())))
}
