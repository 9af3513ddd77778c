//! Server-side apply and the bookkeeping behind it: who set which field, in `metadata.managedFields`.
//!
//! Pure functions: the caller brings the live object, the new one and the time.

mod managers;
mod set;
mod shape;
mod tree;

use std::sync::LazyLock;

use serde_json::Value;

use crate::registry::Kind;
use crate::status::Cause;
use crate::{Status, meta};
use managers::Managers;
use set::Set;
use shape::Shape;

/// Who writes what.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    pub kind: &'a Kind,
    pub api_version: &'a str,
    pub manager: &'a str,
    /// `status`, `scale` or empty.
    pub subresource: &'a str,
    /// RFC 3339, for the entry's time.
    pub now: &'a str,
    /// Top-level fields that this writer cannot set, whatever it sends.
    pub reset: &'a [&'a str],
}

/// Fields nobody owns: they name the object or are the server's.
const STRIPPED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The manager that gets all fields of an object that nobody managed before.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager for which client-side apply's annotation is taken over.
const KUBECTL: &str = "kubectl";

static STRIPPED_SET: LazyLock<Set> = LazyLock::new(|| {
    let mut set = Set::default();
    for path in STRIPPED {
        let path: Vec<String> = path.iter().map(|name| set::field(name)).collect();
        set.insert(&path.iter().map(String::as_str).collect::<Vec<_>>());
    }
    set
});

impl Writer<'_> {
    fn reset(&self) -> Set {
        let mut set = Set::default();
        self.reset.iter().for_each(|name| set.insert(&[&set::field(name)]));
        set
    }
}

/// `live` with everything of a configuration laid over it, as the kind's lists and maps merge; without a kind lists are
/// replaced. Nobody's fields are recorded, and none is removed.
pub fn overlay(kind: Option<&Kind>, live: &Value, config: &Value) -> Value {
    tree::merge(live, config, kind.map_or(Shape::Free, Shape::of_kind))
}

/// Records in `new` what a create or an update of `live` changed. `live` is `None` for a create.
pub fn update(writer: &Writer<'_>, live: Option<&Value>, new: &mut Value) {
    let given = new["metadata"].as_object_mut().and_then(|metadata| metadata.remove("managedFields"));
    let current = live.and_then(|live| meta::at(live, &["metadata", "managedFields"]));
    // One empty entry asks to forget all managers.
    if given.as_ref().and_then(Value::as_array).is_some_and(|list| matches!(list.as_slice(), [one] if is_blank(one))) {
        return;
    }
    // A client that does not know managed fields may drop them; one that does may set them.
    let given = given.filter(|_| live.is_some() && writer.subresource.is_empty());
    let mut managers = given
        .as_ref()
        .and_then(Managers::decode)
        .filter(|managers| !managers.is_empty())
        .or_else(|| current.and_then(Managers::decode))
        .unwrap_or_default();
    // Somebody reset them: nothing is recorded until the first apply.
    if live.is_some() && managers.is_empty() {
        return;
    }
    let shape = Shape::of_kind(writer.kind);
    let nothing = Value::Object(serde_json::Map::new());
    // That the list of managers is gone from the new one matters to nobody: it is never owned.
    let found = tree::compare(live.unwrap_or(&nothing), new, shape);
    managers.updated(writer, found, &writer.reset(), &STRIPPED_SET);
    managers.write(new);
}

fn is_blank(entry: &Value) -> bool {
    entry.as_object().is_some_and(serde_json::Map::is_empty)
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    meta::metadata_mut(&mut object).remove("managedFields");
    object
}

/// `config` applied to `live`: the new object with its managed fields. `None` as `live` creates the object.
pub fn apply(writer: &Writer<'_>, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
    if config["metadata"].get("managedFields").is_some_and(|list| list.as_array().is_some_and(|list| !list.is_empty()))
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let shape = Shape::of_kind(writer.kind);
    let object = live.cloned().unwrap_or_else(|| blank(config));
    let mut managers = meta::at(&object, &["metadata", "managedFields"]).and_then(Managers::decode).unwrap_or_default();
    let object = without_managers(&object);
    if live.is_some() && managers.is_empty() {
        let blank = Value::Object(serde_json::Map::new());
        let adopted = Writer { manager: BEFORE_FIRST_APPLY, subresource: "", ..*writer };
        managers.updated(&adopted, tree::compare(&blank, &object, shape), &Set::default(), &STRIPPED_SET);
    }
    let failed = |why: String| {
        let name = format!("{}/{}", meta::namespace(config), meta::name(config));
        let kind = config["kind"].as_str().unwrap_or_default();
        Status::internal_plain(format!(
            "failed to create typed patch object ({name}; {}, Kind={kind}): {why}",
            writer.api_version
        ))
    };
    let mut set = tree::fields_of(config, shape).map_err(failed)?;
    set.remove_with_all_below(&writer.reset());
    set.remove(&STRIPPED_SET);
    let mut merged = tree::merge(&object, config, shape);
    let last = managers.applied(writer, set);
    if let Some(last) = last {
        tree::prune(&mut merged, &last, &managers.all(), shape);
    }
    let found = tree::compare(&object, &merged, shape);
    let conflicts = managers.conflicts(writer, &found);
    let allowed = match writer.manager {
        KUBECTL => last_applied(&object, shape),
        _ => Set::default(),
    };
    let refused: Vec<(String, Set)> = conflicts
        .into_iter()
        .map(|(name, set)| (name, set.difference(&allowed)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if !force && !refused.is_empty() {
        return Err(conflict(&refused));
    }
    managers.yielded(writer, &found);
    managers.stamp(writer, live);
    if writer.manager == KUBECTL && meta::at(&object, &["metadata", "annotations", LAST_APPLIED]).is_some() {
        note_last_applied(&mut merged, config);
    }
    managers.write(&mut merged);
    Ok(merged)
}

/// What a new object has before anything is applied: its names.
fn blank(config: &Value) -> Value {
    let mut object = serde_json::json!({"metadata": {}});
    for field in ["apiVersion", "kind"] {
        object[field] = config[field].clone();
    }
    object
}

/// What client-side apply set and nobody changed since: taken over without a conflict.
fn last_applied(live: &Value, shape: Shape<'_>) -> Set {
    let text = meta::text(live, &["metadata", "annotations", LAST_APPLIED]);
    let Ok(last) = serde_json::from_str::<Value>(text) else { return Set::default() };
    let Ok(fields) = tree::fields_of(&last, shape) else { return Set::default() };
    let reverted = tree::compare(live, &tree::merge(live, &last, shape), shape);
    fields.difference(&reverted.modified)
}

/// Keeps the annotation current, so that client-side apply can be used again.
fn note_last_applied(merged: &mut Value, config: &Value) {
    let mut config = config.clone();
    if let Some(metadata) = config["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
    }
    meta::metadata_mut(merged);
    let annotations = meta::child_mut(&mut merged["metadata"], "annotations");
    annotations.insert(LAST_APPLIED.into(), format!("{config}\n").into());
}

/// The refusal, in upstream's words.
fn conflict(conflicts: &[(String, Set)]) -> Status {
    let mut causes = Vec::new();
    let mut parts = Vec::new();
    for (manager, set) in conflicts {
        let paths = set.paths();
        let lines: Vec<String> = paths.iter().map(|path| format!("- {path}")).collect();
        parts.push(format!("conflicts with {manager}:\n{}", lines.join("\n")));
        causes.extend(paths.into_iter().map(|field| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {manager}"),
            field,
        }));
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), parts.join("\n")),
    };
    Status::apply_conflict(message, causes)
}

#[cfg(test)]
mod tests;
