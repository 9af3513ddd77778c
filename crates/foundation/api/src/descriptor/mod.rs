//! Every built-in message: its fields' JSON names, protobuf numbers and exact types.
//!
//! The table is data (`table.txt`, written by `cargo xtask descriptors`). Strict decoding, type checks and the
//! protobuf codec read it, so that no kind needs code of its own for any of them.

mod check;
mod table;

use std::collections::HashMap;

pub(crate) use check::is_zero;
pub use check::{TypeError, settle};
pub use table::{message, message_of, messages};

/// A value that is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    String,
    /// Base64 in JSON.
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
}

/// What a field's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Scalar(Scalar),
    /// By place in [`messages`].
    Message(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    One,
    List,
    /// Keys are strings.
    Map,
}

/// What a zero value means in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Zero and absent differ.
    Pointer,
    /// Zero is absent.
    OmitZero,
    /// Zero is written out.
    Always,
    /// The message's fields are the holder's own in JSON.
    Inline,
}

#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub number: u32,
    pub label: Label,
    pub presence: Presence,
    pub kind: Type,
}

/// How a message looks in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An object with the fields' names.
    Struct,
    /// A bare list: the one repeated field.
    List,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// Any JSON, carried as bytes.
    Raw,
    /// One of two forms in JSON, told apart by its type: a schema, or else a flag, a list of schemas, or of names.
    SchemaOrBool,
    SchemaOrList,
    SchemaOrStrings,
}

#[derive(Debug)]
pub struct Message {
    /// The OpenAPI definition, `io.k8s.api.core.v1.Pod`.
    pub definition: String,
    pub form: Form,
    /// Whether it carries `apiVersion` and `kind`, which are not fields in protobuf.
    pub typed: bool,
    pub fields: Vec<Field>,
    by_name: HashMap<&'static str, usize>,
}

impl Message {
    /// `Pod`.
    pub fn short(&self) -> &str {
        self.definition.rsplit('.').next().unwrap_or_default()
    }

    /// `v1.Pod`, as Go names it.
    pub fn go_name(&self) -> &str {
        let mut dots = self.definition.rmatch_indices('.').map(|(at, _)| at);
        dots.nth(1).map_or(self.definition.as_str(), |at| &self.definition[at + 1..])
    }

    /// The field of a JSON name, also inside messages that are inlined.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        let own = self.by_name.get(name).and_then(|index| table::field(&self.definition, *index));
        own.or_else(|| self.inlined().find_map(|message| message.field(name)))
    }

    pub fn field_numbered(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    fn inlined(&self) -> impl Iterator<Item = &'static Message> {
        self.fields.iter().filter(|field| field.presence == Presence::Inline).filter_map(|field| match field.kind {
            Type::Message(index) => Some(&messages()[index]),
            Type::Scalar(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::builtin;
    use crate::schema;

    #[test]
    fn every_kind_is_in_the_table() {
        for kind in builtin().iter() {
            assert!(message(kind.definition).is_some(), "{kind:?}");
            assert_eq!(message_of(&kind.api_version(), kind.kind).unwrap().definition, kind.definition);
        }
    }

    /// The table and the typed definitions come from different sources and must tell the same story.
    #[test]
    fn agrees_with_the_schemas() {
        let mut differences = Vec::new();
        for (definition, known) in schema::types().iter() {
            let Some(message) = message(definition) else { continue };
            if message.form != Form::Struct || known.fields.is_empty() {
                continue;
            }
            for field in known.fields.keys() {
                let type_header = message.typed && matches!(field.as_ref(), "apiVersion" | "kind");
                if !type_header && message.field(field).is_none() {
                    differences.push(format!("{definition}.{field} is not in the table"));
                }
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    #[test]
    fn inlined_fields_are_found() {
        let volume = message("io.k8s.api.core.v1.Volume").unwrap();
        assert!(volume.field("emptyDir").is_some());
        assert!(volume.field("volumeSource").is_none());
        assert_eq!(volume.go_name(), "v1.Volume");
    }
}
