//! A place in an object: what is there and how errors name it.

use std::collections::HashSet;

use serde_json::Value;

use super::{Errors, FieldError};

/// A value together with its path.
pub(crate) struct Field<'a> {
    pub value: &'a Value,
    pub path: String,
}

impl<'a> Field<'a> {
    /// A field at the top of an object.
    pub fn top(object: &'a Value, name: &str) -> Self {
        Self { value: &object[name], path: name.to_owned() }
    }

    /// The specification.
    pub fn spec(object: &'a Value) -> Self {
        Self::top(object, "spec")
    }

    pub fn at(&self, name: &str) -> Self {
        Self { value: &self.value[name], path: format!("{}.{name}", self.path) }
    }

    /// An entry of a map, as `path[key]`.
    pub fn key(&self, key: &str) -> Self {
        Self { value: &self.value[key], path: format!("{}[{key}]", self.path) }
    }

    /// All items of a list; none when it is no list.
    pub fn items(&self) -> impl Iterator<Item = Self> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(index, value)| Self { value, path: format!("{path}[{index}]") })
    }

    pub fn present(&self) -> bool {
        !self.value.is_null()
    }

    pub fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn is(&self, text: &str) -> bool {
        self.value.as_str() == Some(text)
    }

    pub fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    /// Items of a list or entries of a map.
    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        }
    }

    /// Whether a list holds this text.
    pub fn contains(&self, text: &str) -> bool {
        self.value.as_array().is_some_and(|list| list.iter().any(|item| item == text))
    }
}

/// A value as upstream shows it: text quoted, everything else as JSON.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// Checks of single fields. Each says nothing when the field is absent, unless it is about absence.
impl Errors {
    pub(crate) fn bad(&mut self, field: &Field, why: &str) {
        self.bad_value(&field.path, field.value, why);
    }

    pub(crate) fn bad_value(&mut self, path: &str, value: &Value, why: &str) {
        let head = format!("Invalid value: {}", shown(value));
        self.push(FieldError::new("FieldValueInvalid", path, &head, why));
    }

    /// An error about a value that is not shown.
    pub(crate) fn bad_place(&mut self, path: &str, why: &str) {
        self.push(FieldError::new("FieldValueInvalid", path, "Invalid value", why));
    }

    pub(crate) fn missing(&mut self, field: &Field, why: &str) {
        self.push(FieldError::required(&field.path, why));
    }

    pub(crate) fn deny(&mut self, field: &Field, why: &str) {
        self.push(FieldError::forbidden(&field.path, why));
    }

    pub(crate) fn twice(&mut self, field: &Field) {
        let head = format!("Duplicate value: {}", shown(field.value));
        self.push(FieldError::new("FieldValueDuplicate", &field.path, &head, ""));
    }

    /// Present and not empty.
    pub(crate) fn need(&mut self, field: &Field) -> bool {
        let empty = match field.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if empty {
            self.missing(field, "");
        }
        !empty
    }

    /// Not empty, and in a format of [`crate::names`].
    pub(crate) fn need_name(&mut self, field: &Field, format: fn(&str) -> Vec<String>) {
        if self.need(field) {
            self.name(field, format);
        }
    }

    /// In a format of [`crate::names`], when there is one.
    pub(crate) fn name(&mut self, field: &Field, format: fn(&str) -> Vec<String>) {
        if let Some(text) = field.value.as_str() {
            self.complaints(&field.path, text, format(text));
        }
    }

    /// One of these, when there is one.
    pub(crate) fn known(&mut self, field: &Field, supported: &[&str]) {
        if field.present() && !supported.contains(&field.text()) {
            let known: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
            let head = format!("Unsupported value: {}", shown(field.value));
            let why = format!("supported values: {}", known.join(", "));
            self.push(FieldError::new("FieldValueNotSupported", &field.path, &head, &why));
        }
    }

    /// One of these, and there must be one.
    pub(crate) fn need_known(&mut self, field: &Field, supported: &[&str]) {
        if self.need(field) {
            self.known(field, supported);
        }
    }

    pub(crate) fn not_negative(&mut self, field: &Field) {
        if field.int().is_some_and(|number| number < 0) {
            self.bad(field, NOT_NEGATIVE);
        }
    }

    /// At most so many items.
    pub(crate) fn at_most(&mut self, field: &Field, limit: usize) {
        if field.len() > limit {
            let head = format!("Too many: {}", field.len());
            let why = format!("must have at most {limit} items");
            self.push(FieldError::new("FieldValueTooMany", &field.path, &head, &why));
        }
    }

    /// At most so many bytes.
    pub(crate) fn at_most_bytes(&mut self, field: &Field, limit: usize) {
        if field.text().len() > limit {
            self.too_long(&field.path, limit);
        }
    }

    pub(crate) fn too_long(&mut self, path: &str, limit: usize) {
        let why = format!("may not be more than {limit} bytes");
        self.push(FieldError::new("FieldValueTooLong", path, "Too long", &why));
    }

    /// Every item's field of this name is another one.
    pub(crate) fn distinct(&mut self, list: &Field, name: &str) {
        let mut seen = HashSet::new();
        for item in list.items() {
            let key = item.at(name);
            if !key.text().is_empty() && !seen.insert(key.text()) {
                self.twice(&key);
            }
        }
    }

    /// As it was.
    pub(crate) fn same(&mut self, new: &Field, old: &Field) {
        self.same_as(new, old.value);
    }

    pub(crate) fn same_as(&mut self, new: &Field, old: &Value) {
        if new.value != old {
            self.bad(new, IMMUTABLE);
        }
    }

    /// These fields of the specification are as they were.
    pub(crate) fn fixed(&mut self, new: &Value, old: &Value, names: &[&str]) {
        for name in names {
            self.same_as(&Field::spec(new).at(name), &old["spec"][name]);
        }
    }
}
