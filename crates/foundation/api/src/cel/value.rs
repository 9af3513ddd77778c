//! Values of expressions.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use jiff::Timestamp;
use serde_json::Value as Json;

use super::eval::{EvalError, Meter};
use super::functions::authorizer::Authorizer;
use super::functions::ip::Cidr;
use super::functions::semver::Version;
use super::functions::url::Url;
use crate::quantity::Quantity;

/// Deepest nesting of lists and maps that an expression may build, so that recursion over a value always ends well.
const DEEPEST: u32 = 300;

#[derive(Debug, Clone)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<List>),
    Map(Arc<Map>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    /// The type of a value, by its name.
    Type(&'static str),
    Optional(Option<Arc<Value>>),
    Quantity(Quantity),
    Ip(IpAddr),
    Cidr(Cidr),
    Url(Arc<Url>),
    Semver(Arc<Version>),
    /// A named format, such as `dns1123Label`.
    Format(&'static str),
    Authorizer(Arc<Authorizer>),
}

#[derive(Debug)]
pub struct List {
    pub items: Vec<Value>,
    depth: u32,
}

#[derive(Debug)]
pub struct Map {
    pub entries: BTreeMap<Key, Value>,
    /// The name of the message it was written as, such as `Object.spec`.
    pub message: Option<Arc<str>>,
    depth: u32,
}

/// A key of a map. Whole numbers are equal whatever their type.
#[derive(Debug, Clone)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

impl Key {
    pub fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::Int(*value),
            Value::Uint(value) => Self::Uint(*value),
            Value::String(value) => Self::String(value.clone()),
            // As a key to look up, a whole double is the same number.
            #[expect(clippy::cast_possible_truncation, reason = "the value is whole and within 2^53")]
            Value::Double(value) if value.fract() == 0.0 && value.abs() < 9e15 => Self::Int(*value as i64),
            _ => return None,
        })
    }

    pub fn value(&self) -> Value {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::String(value) => Value::String(value.clone()),
        }
    }

    fn number(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some((*value).into()),
            Self::Uint(value) => Some((*value).into()),
            _ => None,
        }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |key: &Self| match key {
            Self::Bool(_) => 0,
            Self::Int(_) | Self::Uint(_) => 1,
            Self::String(_) => 2,
        };
        match (self, other) {
            (Self::Bool(one), Self::Bool(two)) => one.cmp(two),
            (Self::String(one), Self::String(two)) => one.cmp(two),
            _ => rank(self).cmp(&rank(other)).then_with(|| self.number().cmp(&other.number())),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

impl Value {
    pub fn text(text: &str) -> Self {
        Self::String(text.into())
    }

    pub fn list(items: Vec<Self>) -> Result<Self, EvalError> {
        let depth = items.iter().map(Self::depth).max().unwrap_or_default() + 1;
        if depth > DEEPEST {
            return Err(EvalError::new("value nests too deep"));
        }
        Ok(Self::List(Arc::new(List { items, depth })))
    }

    pub fn map(entries: BTreeMap<Key, Self>, message: Option<Arc<str>>) -> Result<Self, EvalError> {
        let depth = entries.values().map(Self::depth).max().unwrap_or_default() + 1;
        if depth > DEEPEST {
            return Err(EvalError::new("value nests too deep"));
        }
        Ok(Self::Map(Arc::new(Map { entries, message, depth })))
    }

    pub fn some(value: Self) -> Result<Self, EvalError> {
        // An optional counts as a level: a list of one is as deep.
        if value.depth() >= DEEPEST {
            return Err(EvalError::new("value nests too deep"));
        }
        Ok(Self::Optional(Some(Arc::new(value))))
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(list) => list.depth,
            Self::Map(map) => map.depth,
            Self::Optional(Some(value)) => value.depth() + 1,
            _ => 0,
        }
    }

    /// A JSON document as an expression sees it when no schema says more.
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Self::Int(value),
                (None, Some(value)) => Self::Uint(value),
                (None, None) => Self::Double(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Self::text(text),
            // JSON that was read nests no deeper than its parser allows.
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect()).unwrap_or(Self::Null),
            Json::Object(map) => {
                let entries =
                    map.iter().map(|(name, value)| (Key::String(name.as_str().into()), Self::from_json(value)));
                Self::map(entries.collect(), None).unwrap_or(Self::Null)
            }
        }
    }

    /// The value as JSON: what a mutation writes into an object.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        Ok(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Uint(value) => (*value).into(),
            Self::Double(value) => (*value).into(),
            Self::String(text) => Json::String(text.to_string()),
            Self::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            Self::List(list) => Json::Array(list.items.iter().map(Self::to_json).collect::<Result<_, _>>()?),
            Self::Map(map) => {
                let mut object = serde_json::Map::new();
                for (key, value) in &map.entries {
                    let Key::String(name) = key else {
                        return Err(EvalError::new("unsupported conversion: map keys must be strings"));
                    };
                    object.insert(name.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Timestamp(time) => time.to_string().into(),
            Self::Duration(nanos) => super::functions::time::duration_text(*nanos).into(),
            Self::Quantity(quantity) => quantity.to_string().into(),
            Self::Optional(Some(value)) => value.to_json()?,
            other => {
                return Err(EvalError::new(&format!("type conversion error from '{}' to JSON", other.type_name())));
            }
        })
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Authorizer(_) => "kubernetes.authorization.Authorizer",
        }
    }

    /// Equality of any two values; different types are not equal, except numbers.
    pub fn equals(&self, other: &Self, meter: &mut Meter) -> Result<bool, EvalError> {
        meter.charge(1)?;
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(one), Self::Bool(two)) => one == two,
            (Self::String(one), Self::String(two)) => {
                meter.text(one.len().min(two.len()))?;
                one == two
            }
            (Self::Bytes(one), Self::Bytes(two)) => {
                meter.text(one.len().min(two.len()))?;
                one == two
            }
            (Self::List(one), Self::List(two)) => {
                if one.items.len() != two.items.len() {
                    return Ok(false);
                }
                for (one, two) in one.items.iter().zip(&two.items) {
                    if !one.equals(two, meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Map(one), Self::Map(two)) => {
                if one.entries.len() != two.entries.len() {
                    return Ok(false);
                }
                for ((name, one), (other, two)) in one.entries.iter().zip(&two.entries) {
                    if name != other || !one.equals(two, meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Optional(Some(one)), Self::Optional(Some(two))) => one.equals(two, meter)?,
            (Self::Optional(None), Self::Optional(None)) => true,
            (Self::Type(one), Self::Type(two)) => one == two,
            (Self::Ip(one), Self::Ip(two)) => one == two,
            (Self::Cidr(one), Self::Cidr(two)) => one == two,
            (Self::Url(one), Self::Url(two)) => one == two,
            (Self::Semver(one), Self::Semver(two)) => one == two,
            (Self::Format(one), Self::Format(two)) => one == two,
            _ => self.order(other) == Some(Ordering::Equal),
        })
    }

    /// The order of two values that have one.
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Bool(one), Self::Bool(two)) => one.cmp(two),
            (Self::String(one), Self::String(two)) => one.cmp(two),
            (Self::Bytes(one), Self::Bytes(two)) => one.cmp(two),
            (Self::Timestamp(one), Self::Timestamp(two)) => one.cmp(two),
            (Self::Duration(one), Self::Duration(two)) => one.cmp(two),
            (Self::Quantity(one), Self::Quantity(two)) => one.cmp(two),
            (Self::Semver(one), Self::Semver(two)) => one.cmp(two),
            _ => match (self.whole(), other.whole()) {
                (Some(one), Some(two)) => one.cmp(&two),
                _ => self.number()?.partial_cmp(&other.number()?)?,
            },
        })
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some((*value).into()),
            Self::Uint(value) => Some((*value).into()),
            _ => None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "as the specification compares mixed numbers")]
    fn number(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Uint(value) => Some(*value as f64),
            Self::Double(value) => Some(*value),
            _ => None,
        }
    }
}
