//! Rows of the registry that definitions make at run time.

use std::sync::Arc;

use serde_json::{Value, json};

use super::definition::{Definition, Version};
use super::intern;
use super::path::Path;
use crate::cel::Pace;
use crate::descriptor::{self, TypeError};
use crate::registry::{Kind, KindRef, Subresource};
use crate::validation::FieldError;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What a row has whose kind a definition describes.
#[derive(Debug)]
pub struct Served {
    pub definition: Arc<Definition>,
    pub version: Arc<Version>,
    /// `example.com/v1`.
    pub api_version: String,
}

impl Served {
    /// Turns an object of this version into the form that is stored. What only a webhook could convert stays as it is.
    pub fn to_storage(&self, object: &mut Value) {
        if let Some(version) = self.definition.storage().filter(|_| self.definition.webhook.is_none()) {
            self.definition.relabel(object, &version.name);
        }
    }

    /// Turns an object of any version into one of this: what this version does not know goes, its defaults come.
    ///
    /// What only a webhook could convert stays as it is.
    pub fn from_storage(&self, object: &mut Value) {
        if self.definition.webhook.is_some() && object["apiVersion"] != self.api_version {
            return;
        }
        object["apiVersion"] = json!(self.api_version);
        self.version.settle(object);
    }

    /// Takes away what an incoming object should not have, and says what that was.
    pub fn settle(&self, object: &mut Value) -> Result<Vec<String>, TypeError> {
        let mut unknown = Vec::new();
        if let (Some(message), Some(metadata)) =
            (descriptor::message(OBJECT_META), object.get_mut("metadata").filter(|metadata| !metadata.is_null()))
        {
            let odd = descriptor::settle(message, metadata)?;
            unknown.extend(odd.iter().map(|path| format!("metadata.{path}")));
        }
        unknown.extend(self.version.schema.prune(object));
        Ok(unknown)
    }

    /// Everything wrong with a new object of this version.
    pub fn validate(&self, object: &Value, pace: Option<&Pace>) -> Vec<FieldError> {
        self.judge(self.by_schema(object), None, object, pace)
    }

    fn by_schema(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = self.version.validate(object);
        let replicas = self.version.scale.as_ref().and_then(|scale| {
            let replicas = scale.spec_replicas.first(object)?.as_i64()?;
            Some((scale.spec_replicas.fields()?.join("."), replicas))
        });
        if let Some((field, replicas)) = replicas.filter(|(_, replicas)| *replicas < 0) {
            let head = format!("Invalid value: {replicas}");
            errors.push(FieldError::new("FieldValueInvalid", &field, &head, "should be a non-negative integer"));
        }
        errors
    }

    /// What is wrong with a changed object; a value that was wrong before and stays is let be.
    pub fn validate_update(&self, new: &Value, old: &Value, pace: Option<&Pace>) -> Vec<FieldError> {
        let mut errors = self.by_schema(new);
        errors.retain(|error| {
            // What several schemas ask for together names its place in the text.
            let place = error.message.strip_prefix("Invalid value: \"\": \"").filter(|_| error.field == "<nil>");
            let place = place.and_then(|text| text.split('"').next()).unwrap_or(&error.field);
            !unchanged(place, error.reason == "FieldValueRequired", new, old)
        });
        self.judge(errors, Some(old), new, pace)
    }

    /// Adds what the schema's rules say; of an object whose form is wrong they are not asked.
    fn judge(
        &self,
        mut errors: Vec<FieldError>,
        old: Option<&Value>,
        new: &Value,
        pace: Option<&Pace>,
    ) -> Vec<FieldError> {
        const BLOCKING: [&str; 4] =
            ["FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"];
        let blocked = errors.iter().any(|error| BLOCKING.contains(&error.reason));
        if !blocked {
            errors.extend(self.version.rules().validate(old, new, pace));
        } else if !self.version.rules().is_empty() {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                       complete validation";
            errors.push(FieldError::new("FieldValueInvalid", "<nil>", "Invalid value: \"null\"", why));
        }
        errors
    }

    /// An object's scale: how many it wants, how many there are, and the selector of what is counted.
    pub fn scale(&self, object: &Value) -> Option<(i64, i64, String)> {
        let scale = self.version.scale.as_ref()?;
        let count = |path: &Path| path.first(object).and_then(Value::as_i64).unwrap_or(0);
        let selector = scale.selector.as_ref().and_then(|path| path.first(object)).and_then(Value::as_str);
        let selector = selector.unwrap_or_default().to_owned();
        Some((count(&scale.spec_replicas), count(&scale.status_replicas), selector))
    }

    /// Writes how many are wanted to where the definition says.
    pub fn set_replicas(&self, object: &mut Value, replicas: i64) {
        let Some(fields) = self.version.scale.as_ref().and_then(|scale| scale.spec_replicas.fields()) else { return };
        let mut at = object;
        for field in fields {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[field];
        }
        *at = json!(replicas);
    }

    /// The value of a selectable field as text; empty when absent.
    pub fn field(&self, object: &Value, name: &str) -> String {
        let found = self.version.selectable.iter().find(|field| field.name == name);
        match found.and_then(|field| field.path.first(object)) {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }
}

/// Whether what an error speaks of is as it was: the value, what lacks it, or the first list around it, whose items
/// have no place of their own.
fn unchanged(field: &str, lacking: bool, new: &Value, old: &Value) -> bool {
    let field = field.split('[').next().unwrap_or_default();
    let field = if lacking { field.rsplit_once('.').map_or("", |(parent, _)| parent) } else { field };
    let pointer = format!("/{}", field.replace('.', "/"));
    !field.is_empty() && new.pointer(&pointer).is_some_and(|value| old.pointer(&pointer) == Some(value))
}

const BOTH: &[Subresource] = &[Subresource::Status, Subresource::Scale];

/// The rows of a definition: one for each version that is served, and for the one that is stored.
pub fn rows(definition: &Arc<Definition>) -> Vec<KindRef> {
    definition.versions.iter().map(|version| KindRef::Custom(Arc::new(row(definition, version)))).collect()
}

fn row(definition: &Arc<Definition>, version: &Arc<Version>) -> Kind {
    let subresources = match (version.status, version.scale.is_some()) {
        (false, false) => &[],
        (true, false) => &BOTH[..1],
        (false, true) => &BOTH[1..],
        (true, true) => BOTH,
    };
    let (group, plural) = (intern::name(&definition.group), intern::name(&definition.plural));
    let (name, kind) = (intern::name(&version.name), intern::name(&definition.kind));
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let selectable: Vec<&str> = version.selectable.iter().map(|field| field.name.as_str()).collect();
    Kind {
        short_names: intern::names(definition.short_names.iter().map(String::as_str)),
        categories: intern::names(definition.categories.iter().map(String::as_str)),
        namespaced: definition.namespaced,
        subresources,
        generation: true,
        selectable_fields: intern::names(selectable),
        unconditional_update: false,
        custom: Some(Arc::new(Served {
            definition: definition.clone(),
            version: version.clone(),
            api_version: format!("{group}/{name}"),
        })),
        ..Kind::plain(
            (group, name, kind),
            intern::name(&definition.list_kind),
            plural,
            intern::name(&definition.singular),
            intern::name(&format!("{}.{name}.{kind}", reversed.join("."))),
        )
    }
}
