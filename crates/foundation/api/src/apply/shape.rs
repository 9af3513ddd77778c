//! How a value merges, from its type and the list-semantics table.

use std::collections::BTreeMap;

use serde_json::Value;

use super::set;
use crate::custom::schema::{Identity, Schema, Type as SchemaType};
use crate::descriptor::{self, Form, Label, Message, Presence, Type, messages};
use crate::list_semantics::{self, ListType};
use crate::registry::Kind;

/// How values at one place merge.
#[derive(Debug, Clone, Copy)]
pub enum Shape<'a> {
    /// As a whole: scalars, atomic lists and maps.
    Leaf,
    /// Field by field.
    Struct(&'static Message),
    /// Entry by entry, all of one type.
    Map(Type),
    /// A list of distinct scalars.
    Set,
    /// A list of items told apart by some of their fields.
    Keyed(Type, &'static [&'static str]),
    /// Nothing is known: maps merge by entry, lists as a whole.
    Free,
    /// Field by field, as a custom kind's schema says.
    Object(&'a Schema),
    /// A whole object of a custom kind.
    Whole(&'a Schema),
    /// A keyed list in a custom kind.
    Items(&'a Schema, &'a [String]),
}

impl<'a> Shape<'a> {
    /// The shape of a whole object.
    pub fn of(definition: &str) -> Self {
        descriptor::message(definition).map_or(Self::Free, Self::Struct)
    }

    /// The shape of a kind's objects.
    pub fn of_kind(kind: &'a Kind) -> Self {
        match &kind.custom {
            Some(served) => Self::Whole(&served.version.schema),
            None => Self::of(kind.definition),
        }
    }

    /// Whether maps merge by their fields or entries.
    pub fn has_fields(self) -> bool {
        matches!(self, Self::Struct(_) | Self::Map(_) | Self::Free | Self::Object(_) | Self::Whole(_))
    }

    /// Whether lists merge by their items.
    pub fn has_items(self) -> bool {
        matches!(self, Self::Set | Self::Keyed(..) | Self::Items(..))
    }

    fn of_schema(schema: &'a Schema) -> Self {
        match (schema.kind, &schema.identity, &schema.items) {
            (SchemaType::Object, ..) if schema.atomic => Self::Leaf,
            (SchemaType::Object, ..) if schema.embedded => Self::Whole(schema),
            (SchemaType::Object, ..) => Self::Object(schema),
            (SchemaType::Array, Identity::Set, _) => Self::Set,
            (SchemaType::Array, Identity::Keys(keys), Some(items)) => Self::Items(items, keys),
            (SchemaType::Any, ..) if schema.preserve_unknown => Self::Free,
            _ => Self::Leaf,
        }
    }

    fn of_type(kind: Type) -> Self {
        let Type::Message(index) = kind else { return Self::Leaf };
        let message = &messages()[index];
        let atomic = list_semantics::get(&message.definition, "").is_some_and(|s| s.list_type == ListType::AtomicMap);
        if message.form != Form::Struct || atomic { Self::Leaf } else { Self::Struct(message) }
    }

    /// The shape of a struct's field or of a map's entry; `None` if there is no such field.
    pub fn field(self, name: &str) -> Option<Self> {
        match self {
            Self::Struct(message) => {
                if message.typed && matches!(name, "apiVersion" | "kind") {
                    return Some(Self::Leaf);
                }
                let field = message.field(name)?;
                let list_type = semantics(message, name);
                Some(match (field.label, list_type) {
                    (_, ListType::AtomicMap) => Self::Leaf,
                    (Label::One, _) => Self::of_type(field.kind),
                    (Label::Map, _) => Self::Map(field.kind),
                    (Label::List, ListType::Set) => Self::Set,
                    (Label::List, ListType::Map(keys)) => Self::Keyed(field.kind, keys),
                    (Label::List, _) => Self::Leaf,
                })
            }
            Self::Map(kind) => Some(Self::of_type(kind)),
            Self::Free => Some(Self::Free),
            Self::Whole(_) if matches!(name, "apiVersion" | "kind") => Some(Self::Leaf),
            Self::Whole(_) if name == "metadata" => Some(Self::of(OBJECT_META)),
            Self::Object(schema) | Self::Whole(schema) => {
                let known = schema.properties.get(name).or(schema.additional.as_deref());
                known.map(Self::of_schema).or(schema.preserve_unknown.then_some(Self::Free))
            }
            Self::Leaf | Self::Set | Self::Keyed(..) | Self::Items(..) => None,
        }
    }

    /// Whether a field of this struct is there even when nobody set it: a struct that is no pointer.
    pub fn always_there(self, name: &str) -> bool {
        let Self::Struct(message) = self else { return false };
        message.field(name).is_some_and(|field| {
            let structure = matches!(field.kind, Type::Message(index) if messages()[index].form == Form::Struct);
            field.label == Label::One && structure && field.presence != Presence::Pointer
        })
    }

    /// Whether a name is declared, as opposed to being an entry's key.
    pub fn declares(self, name: &str) -> bool {
        match self {
            Self::Struct(_) => self.field(name).is_some(),
            Self::Object(schema) => schema.properties.contains_key(name),
            Self::Whole(schema) => {
                schema.properties.contains_key(name) || matches!(name, "apiVersion" | "kind" | "metadata")
            }
            _ => false,
        }
    }

    /// The shape of a list's items.
    pub fn item(self) -> Self {
        match self {
            Self::Keyed(kind, _) => Self::of_type(kind),
            Self::Items(schema, _) => Self::of_schema(schema),
            _ => Self::Leaf,
        }
    }

    /// The path element of a list's item.
    pub fn element(self, item: &Value) -> Result<String, String> {
        match self {
            Self::Keyed(_, names) => keyed(item, names.iter().copied(), default_of_key),
            Self::Items(schema, names) => keyed(item, names.iter().map(String::as_str), |name| {
                schema.properties.get(name).and_then(|property| property.default.clone())
            }),
            _ => Ok(set::value(item)),
        }
    }
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn keyed<'n>(
    item: &Value,
    names: impl Iterator<Item = &'n str> + Clone,
    default: impl Fn(&str) -> Option<Value>,
) -> Result<String, String> {
    let mut keys = BTreeMap::new();
    for name in names.clone() {
        let value = item.get(name).filter(|value| !value.is_null()).cloned().or_else(|| default(name));
        if let Some(value) = value {
            keys.insert(name.to_owned(), value);
        }
    }
    if keys.is_empty() {
        return Err(format!(
            "associative list with keys has an element that omits key field {:?} (and doesn't have default value)",
            names.clone().next().unwrap_or_default()
        ));
    }
    Ok(set::key(&keys))
}

/// What an item's key field is when it is left out.
fn default_of_key(name: &str) -> Option<Value> {
    (name == "protocol").then(|| "TCP".into())
}

/// The row of a field, also of a field that a message inlined into this one has.
fn semantics(message: &'static Message, name: &str) -> ListType {
    if let Some(row) = list_semantics::get(&message.definition, name) {
        return row.list_type;
    }
    for field in message.fields.iter().filter(|field| field.presence == Presence::Inline) {
        if let Type::Message(index) = field.kind
            && messages()[index].field(name).is_some()
        {
            return semantics(&messages()[index], name);
        }
    }
    ListType::Unset
}
