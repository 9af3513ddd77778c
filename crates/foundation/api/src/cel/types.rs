//! What is known of a value before there is one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Anything: found out when it has a value.
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    /// From text to values of a type.
    Map(Arc<Type>),
    Object(Arc<ObjectType>),
    Optional(Arc<Type>),
    /// A library's own type, by its name.
    Other(&'static str),
}

/// An object whose fields are known.
#[derive(Debug, PartialEq, Default)]
pub struct ObjectType {
    pub name: String,
    /// By the name an expression uses.
    pub fields: BTreeMap<String, Type>,
}

impl Type {
    pub fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }

    /// Whether a value of one can be a value of the other.
    pub fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::List(one), Self::List(two))
            | (Self::Map(one), Self::Map(two))
            | (Self::Optional(one), Self::Optional(two)) => one.fits(two),
            // A literal map may stand for an object.
            (Self::Map(_), Self::Object(_)) | (Self::Object(_), Self::Map(_)) => true,
            // What may be absent is compared with null.
            (Self::Null, other) | (other, Self::Null) => !matches!(
                other,
                Self::Bool | Self::Int | Self::Uint | Self::Double | Self::String | Self::Bytes | Self::List(_)
            ),
            _ => self == other,
        }
    }

    pub fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// The type of both: nothing is known where they differ.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        if self == other { self.clone() } else { Self::Any }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::List(of) => return write!(f, "list({of})"),
            Self::Map(of) => return write!(f, "map(string, {of})"),
            Self::Optional(of) => return write!(f, "optional_type({of})"),
            Self::Object(object) => &object.name,
            Self::Other(name) => name,
        })
    }
}
