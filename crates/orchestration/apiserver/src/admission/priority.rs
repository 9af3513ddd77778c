//! Priority: the number behind a pod's priority class; and one default class at most.

use dhow_api::{Status, meta};
use serde_json::{Value, json};

use super::{Attributes, Operation, all_stored, cached};
use crate::ApiServer;

const GROUP: &str = "scheduling.k8s.io";

/// Resolves the priority class of a new pod, or takes the default one; a changed pod keeps what it was given.
pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    if !attributes.is("", "Pod") || attributes.subresource.is_some() {
        return Ok(());
    }
    match (attributes.operation, attributes.old) {
        (Operation::Create, _) => resolve(server, attributes),
        (Operation::Update, Some(old)) => {
            let spec = meta::child_mut(&mut attributes.object, "spec");
            for field in ["priority", "preemptionPolicy"] {
                if let Some(kept) = meta::at(old, &["spec", field]) {
                    meta::default_to(spec, field, kept.clone());
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn resolve(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    let named = meta::text(&attributes.object, &["spec", "priorityClassName"]);
    let class = if named.is_empty() {
        default_class(server)?
    } else {
        let missing = || attributes.forbidden(&format!("no PriorityClass with name {named} was found"));
        Some(cached(server, GROUP, "priorityclasses", None, named).ok_or_else(missing)?.value()?)
    };
    let (value, policy) = match &class {
        Some(class) => (meta::int(class, &["value"]), meta::text(class, &["preemptionPolicy"])),
        None => (0, ""),
    };
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let spec = &attributes.object["spec"];
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != value) {
        return Err(attributes.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        return Err(attributes.forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        )));
    }
    let spec = meta::child_mut(&mut attributes.object, "spec");
    if let Some(class) = &class {
        spec.insert("priorityClassName".into(), json!(meta::name(class)));
    }
    spec.insert("priority".into(), json!(value));
    spec.insert("preemptionPolicy".into(), json!(policy));
    Ok(())
}

/// If there should be several, the lowest.
fn default_class(server: &ApiServer) -> Result<Option<Value>, Status> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Class {
        global_default: Option<bool>,
        value: Option<i64>,
    }
    let mut lowest = None;
    for stored in all_stored(server, GROUP, "priorityclasses")? {
        let class: Class = stored.read()?;
        if class.global_default == Some(true) && lowest.as_ref().is_none_or(|(value, _)| class.value < *value) {
            lowest = Some((class.value, stored));
        }
    }
    lowest.map(|(_, stored)| stored.value()).transpose()
}

pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let written = matches!(attributes.operation, Operation::Create | Operation::Update);
    if !written || !attributes.is(GROUP, "PriorityClass") || attributes.object["globalDefault"] != true {
        return Ok(());
    }
    match default_class(server)? {
        Some(other) if meta::name(&other) != meta::name(&attributes.object) => {
            let name = meta::name(&other);
            let why = format!("PriorityClass {name} is already marked as default. Only one default can exist");
            Err(attributes.forbidden(&why))
        }
        _ => Ok(()),
    }
}
