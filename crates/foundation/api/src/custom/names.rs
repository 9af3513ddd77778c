//! Which definition holds which names of a group, and what its status says of it.

use serde_json::{Value, json};

use crate::meta::{items, text};

/// Names of a definition that others of its group must leave alone.
pub fn held(definition: &Value) -> impl Iterator<Item = String> {
    told(&definition["status"]["acceptedNames"])
}

/// Names that a definition asks for, as [`held`] gives them.
pub fn wanted(definition: &Value) -> impl Iterator<Item = String> {
    told(&definition["spec"]["names"])
}

fn told(names: &Value) -> impl Iterator<Item = String> + use<> {
    let one = |name: &str| text(names, &[name]).to_owned();
    let short = items(names, &["shortNames"]).iter().filter_map(Value::as_str).map(str::to_owned);
    // Kinds and resources are looked up apart, so they may be alike.
    let resources = [one("plural"), one("singular")].into_iter().chain(short).map(|name| format!("resource {name}"));
    let kinds = [one("kind"), one("listKind")].into_iter().map(|name| format!("kind {name}"));
    resources.chain(kinds).filter(|name| !name.ends_with(' ')).collect::<Vec<_>>().into_iter()
}

/// The status of a definition among the others: its names are accepted unless another of its group holds them, and
/// once they were, it is established.
pub fn status<'a>(definition: &Value, others: impl IntoIterator<Item = &'a Value>, now: &str) -> Value {
    let group = text(definition, &["spec", "group"]);
    let own = crate::meta::name(definition);
    let taken: Vec<String> = others
        .into_iter()
        .filter(|other| text(other, &["spec", "group"]) == group && crate::meta::name(other) != own)
        .flat_map(held)
        .collect();
    let mut status = definition["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let mut conflicts = Vec::new();
    let mut accepted = status["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let wanted = &definition["spec"]["names"];
    for (field, sort) in [("plural", "resource"), ("singular", "resource"), ("kind", "kind"), ("listKind", "kind")] {
        let name = text(wanted, &[field]);
        if taken.contains(&format!("{sort} {name}")) {
            conflicts.push((field, format!("{name:?} is already in use")));
        } else if !name.is_empty() {
            accepted[field] = json!(name);
        }
    }
    let short = items(wanted, &["shortNames"]);
    let clash: Vec<String> = short
        .iter()
        .filter_map(Value::as_str)
        .filter(|name| taken.contains(&format!("resource {name}")))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    if clash.is_empty() {
        copy(&mut accepted, wanted, "shortNames");
    } else {
        conflicts.push(("shortNames", clash.join(", ")));
    }
    copy(&mut accepted, wanted, "categories");
    status["acceptedNames"] = accepted;
    let (state, reason, message) = match conflicts.first() {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((field, message)) => ("False", reason(field), message.clone()),
    };
    set_condition(&mut status, "NamesAccepted", state, reason, &message, now);
    let established = holds(&status, "Established");
    if state == "True" && !established {
        let message = "the initial names have been accepted";
        set_condition(&mut status, "Established", "True", "InitialNamesAccepted", message, now);
    } else if !established {
        set_condition(&mut status, "Established", "False", "NotAccepted", "not all names are accepted", now);
    }
    status
}

/// Notes in the status of a definition that it is being deleted, and its objects with it.
pub fn ending(status: &mut Value, now: &str) {
    let message = "CustomResource deletion is in progress";
    set_condition(status, "Terminating", "True", "InstanceDeletionInProgress", message, now);
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) if !value.is_null() => to[field] = value.clone(),
        _ => {
            to.as_object_mut().map(|fields| fields.remove(field));
        }
    }
}

fn reason(field: &str) -> &'static str {
    match field {
        "plural" => "PluralConflict",
        "singular" => "SingularConflict",
        "kind" => "KindConflict",
        "listKind" => "ListKindConflict",
        _ => "ShortNamesConflict",
    }
}

pub fn holds(status: &Value, kind: &str) -> bool {
    items(status, &["conditions"]).iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// Sets a condition; its time moves only with its state.
fn set_condition(status: &mut Value, kind: &str, state: &str, reason: &str, message: &str, now: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let found = conditions.iter().position(|condition| condition["type"] == kind);
    let since = found
        .filter(|index| conditions[*index]["status"] == state)
        .map(|index| conditions[index]["lastTransitionTime"].clone())
        .unwrap_or_else(|| json!(now));
    let condition =
        json!({"type": kind, "status": state, "lastTransitionTime": since, "reason": reason, "message": message});
    match found {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, plural: &str, kind: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"group": "g.io", "names": {"plural": plural, "singular": kind.to_lowercase(),
            "kind": kind, "listKind": format!("{kind}List"), "shortNames": ["t"]}}})
    }

    #[test]
    fn names_belong_to_who_came_first() {
        let mut first = definition("things.g.io", "things", "Thing");
        first["status"] = status(&first, [], "1");
        assert!(holds(&first["status"], "NamesAccepted") && holds(&first["status"], "Established"));
        assert_eq!(first["status"]["acceptedNames"]["plural"], "things");
        let second = definition("others.g.io", "others", "Other");
        let found = status(&second, [&first], "2");
        assert!(!holds(&found, "NamesAccepted") && !holds(&found, "Established"));
        let condition = &found["conditions"][0];
        assert_eq!(
            (&condition["reason"], &condition["message"]),
            (&json!("ShortNamesConflict"), &json!("\"t\" is already in use"))
        );
        // The same again changes nothing, not even a time.
        assert_eq!(status(&first, [&second], "3"), first["status"]);
    }
}
