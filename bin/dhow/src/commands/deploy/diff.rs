//! `dhow deploy --diff`: what would change, by the server's own word.
#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use similar::TextDiff;

use super::apply::{Applier, what};
use super::source::Deployable;
use super::{project, yaml};

pub async fn run(applier: &mut Applier, wanted: &Deployable, prune: bool) -> Result<()> {
    let mut changes = 0;
    let mut keep = Vec::new();
    // What goes into a namespace that is not there yet cannot be tried.
    let mut missing = BTreeSet::new();
    for (source, manifest) in &wanted.objects {
        let target = applier.target(manifest.clone()).await.with_context(|| format!("plan {source}"))?;
        keep.push(target.path.clone());
        let shown = what(&target.kind, target.namespace.as_deref(), &target.name);
        let (before, after) = if target.namespace.as_ref().is_some_and(|namespace| missing.contains(namespace)) {
            (None, target.manifest.clone())
        } else {
            let applied = applier.apply(manifest.clone(), true).await.with_context(|| format!("plan {source}"))?;
            if applied.kind == "Namespace" && applied.before.is_none() {
                missing.insert(applied.name.clone());
            }
            (applied.before, applied.after)
        };
        changes += usize::from(show(&shown, before.as_ref(), Some(&after))?);
    }
    if prune && let Some(name) = &wanted.project {
        let keep: Vec<&str> = keep.iter().map(String::as_str).collect();
        for found in project::stale(applier, name, wanted, &keep).await? {
            changes += usize::from(show(&found.what(), Some(&found.object), None)?);
        }
    }
    if changes == 0 {
        println!("nothing would change");
    }
    Ok(())
}

/// Prints the difference; whether there is one.
fn show(name: &str, before: Option<&Value>, after: Option<&Value>) -> Result<bool> {
    let (mut old, mut new) = (before.map(settled), after.map(settled));
    hide(old.as_mut(), new.as_mut());
    let text = |object: &Option<Value>| object.as_ref().map_or(Ok(String::new()), yaml);
    let (old, new) = (text(&old)?, text(&new)?);
    if old == new {
        return Ok(false);
    }
    let header = |there: bool, side: &str| if there { format!("{side}/{name}") } else { "/dev/null".to_owned() };
    let (left, right) = (header(before.is_some(), "a"), header(after.is_some(), "b"));
    print!("{}", TextDiff::from_lines(&old, &new).unified_diff().context_radius(3).header(&left, &right));
    Ok(true)
}

/// An object without what the server writes by itself, keys in their order.
pub fn settled(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    sorted(&object)
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            names
                .into_iter()
                .map(|name| (name.clone(), sorted(&fields[name])))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// What a secret holds is not shown, only that it changes.
fn hide<'a>(mut before: Option<&'a mut Value>, mut after: Option<&'a mut Value>) {
    let is_secret = |object: &Option<&mut Value>| object.as_ref().is_some_and(|object| object["kind"] == "Secret");
    if !is_secret(&before) && !is_secret(&after) {
        return;
    }
    for field in ["data", "stringData"] {
        let of =
            |object: &Option<&mut Value>, key: &str| object.as_ref().and_then(|object| object[field].get(key).cloned());
        let keys: BTreeSet<String> = [&before, &after]
            .into_iter()
            .flatten()
            .flat_map(|object| object[field].as_object().into_iter().flat_map(|map| map.keys().cloned()))
            .collect();
        for key in keys {
            let same = of(&before, &key) == of(&after, &key);
            for (object, word) in [(&mut before, "before"), (&mut after, "after")] {
                let Some(object) = object else { continue };
                if let Some(value) = object.get_mut(field).and_then(|held| held.get_mut(&key)) {
                    *value = if same { json!("***") } else { json!(format!("*** ({word})")) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden() {
        let secret = |value: &str| json!({"kind": "Secret", "data": {"a": value, "b": "same"}});
        let (mut old, mut new) = (secret("x"), secret("y"));
        hide(Some(&mut old), Some(&mut new));
        assert_eq!(old["data"], json!({"a": "*** (before)", "b": "***"}));
        assert_eq!(new["data"], json!({"a": "*** (after)", "b": "***"}));
    }

    #[test]
    fn what_the_server_adds_is_no_difference() {
        let object = json!({"kind": "A", "metadata": {"name": "n", "uid": "1", "generation": 2,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "status": {"x": 1}});
        assert_eq!(settled(&object), json!({"kind": "A", "metadata": {"name": "n"}}));
    }
}
