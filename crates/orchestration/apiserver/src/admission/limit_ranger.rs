//! LimitRanger: what a namespace's limit ranges give containers that name nothing, and what they refuse.

use dhow_api::quantity::Quantity;
use dhow_api::quota::{Amounts, amounts, pod_amounts};
use dhow_api::registry::Subresource;
use dhow_api::{Status, meta};
use serde_json::{Map, Value, json};

use super::{Attributes, Operation, in_namespace};
use crate::ApiServer;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Gives containers the defaults of the namespace's ranges, and says in an annotation what was given.
pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    let creates_pod = attributes.operation == Operation::Create && attributes.subresource.is_none();
    if !creates_pod || !attributes.is("", "Pod") {
        return Ok(());
    }
    for range in in_namespace(server, "", "limitranges", attributes.namespace)? {
        let given = fill(&mut attributes.object, &range);
        if !given.is_empty() {
            let text = format!("LimitRanger plugin set: {}", given.join("; "));
            meta::metadata_mut(&mut attributes.object);
            let annotations = meta::child_mut(&mut attributes.object["metadata"], "annotations");
            annotations.insert(ANNOTATION.into(), json!(text));
        }
    }
    Ok(())
}

/// Returns what was given to which container.
fn fill(pod: &mut Value, range: &Value) -> Vec<String> {
    let mut given = Vec::new();
    let items = meta::items(range, &["spec", "limits"]);
    let merged = |field: &str| -> Map<String, Value> {
        let of_containers = items.iter().filter(|item| item["type"] == "Container");
        of_containers.filter_map(|item| item[field].as_object()).flat_map(Map::clone).collect()
    };
    let (limits, requests) = (merged("default"), merged("defaultRequest"));
    let spec = meta::child_mut(pod, "spec");
    for (list, title) in [("containers", "container"), ("initContainers", "init container")] {
        for container in meta::each_mut(spec, list) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (which, defaults, what) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let resources = container.entry("resources").or_insert_with(|| json!({}));
                let has = |resource: &String| meta::at(resources, &[which, resource]).is_some();
                let mut missing: Vec<&String> = defaults.keys().filter(|resource| !has(resource)).collect();
                if missing.is_empty() {
                    continue;
                }
                missing.sort();
                let own = meta::child_mut(resources, which);
                for resource in &missing {
                    own.insert((*resource).clone(), defaults[*resource].clone());
                }
                let names = missing.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                given.push(format!("{names} {what} for {title} {name}"));
            }
        }
    }
    given
}

/// Refuses pods, resizes of pods and claims beyond the ranges.
pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let concerned = match (attributes.operation, attributes.subresource) {
        (Operation::Create, None) => attributes.is("", "Pod") || attributes.is("", "PersistentVolumeClaim"),
        (Operation::Update, None) => attributes.is("", "PersistentVolumeClaim"),
        (Operation::Update, Some(Subresource::Resize)) => true,
        _ => false,
    };
    if !concerned || attributes.operation == Operation::Update && meta::deletion_timestamp(&attributes.object).is_some()
    {
        return Ok(());
    }
    for range in in_namespace(server, "", "limitranges", attributes.namespace)? {
        let mut errors = Vec::new();
        for item in meta::items(&range, &["spec", "limits"]) {
            check(attributes, item, &mut errors);
        }
        match errors.as_slice() {
            [] => {}
            [one] => return Err(attributes.forbidden(one)),
            many => return Err(attributes.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

fn check(attributes: &Attributes<'_>, item: &Value, errors: &mut Vec<String>) {
    let object = &attributes.object;
    let scope = item["type"].as_str().unwrap_or_default();
    match (attributes.kind.kind, scope) {
        ("Pod", "Container") => {
            for list in ["containers", "initContainers"] {
                for container in meta::items(object, &["spec", list]) {
                    let resources = &container["resources"];
                    within(item, scope, &amounts(&resources["requests"]), &amounts(&resources["limits"]), errors);
                }
            }
        }
        ("Pod", "Pod") => within(item, scope, &pod_amounts(object, "requests"), &pod_amounts(object, "limits"), errors),
        ("PersistentVolumeClaim", "PersistentVolumeClaim") => {
            let requests = amounts(&object["spec"]["resources"]["requests"]);
            for (name, least) in amounts(&item["min"]) {
                errors.extend(at_least(&name, scope, &least, requests.get(&name), None));
            }
            for (name, most) in amounts(&item["max"]) {
                let head = format!("maximum {name} usage per {scope} is {most}");
                match requests.get(&name) {
                    None => errors.push(format!("{head}.  No request is specified")),
                    Some(asked) if *asked > most => errors.push(format!("{head}, but request is {asked}")),
                    Some(_) => {}
                }
            }
        }
        _ => {}
    }
}

fn within(item: &Value, scope: &str, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (name, least) in amounts(&item["min"]) {
        errors.extend(at_least(&name, scope, &least, requests.get(&name), limits.get(&name)));
    }
    for (name, most) in amounts(&item["max"]) {
        errors.extend(at_most(&name, scope, &most, requests.get(&name), limits.get(&name)));
    }
    for (name, ratio) in amounts(&item["maxLimitRequestRatio"]) {
        errors.extend(in_ratio(&name, scope, &ratio, requests.get(&name), limits.get(&name)));
    }
}

fn at_least(
    name: &str,
    scope: &str,
    least: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("minimum {name} usage per {scope} is {least}");
    match (request, limit) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if request < least => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if limit < least => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

fn at_most(
    name: &str,
    scope: &str,
    most: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("maximum {name} usage per {scope} is {most}");
    match (request, limit) {
        (_, None) => Some(format!("{head}.  No limit is specified")),
        (_, Some(limit)) if limit > most => Some(format!("{head}, but limit is {limit}")),
        (Some(request), _) if request > most => Some(format!("{head}, but request is {request}")),
        _ => None,
    }
}

fn in_ratio(
    name: &str,
    scope: &str,
    most: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {scope} is {most}");
    let Some(request) = request.filter(|request| !request.is_zero()) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|limit| !limit.is_zero()) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    // Thousandths, unless they are more than fit.
    let number = |quantity: &Quantity| match quantity.millis() {
        i64::MAX => quantity.units() as f64 * 1000.0,
        millis => millis as f64,
    };
    let ratio = number(limit) / number(request);
    (ratio > number(most) / 1000.0).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
}
