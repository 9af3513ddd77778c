//! What an object uses of a namespace's quota, and which quotas speak of it. Amounts of pods are for limit ranges too.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::meta;
use crate::quantity::Quantity;
use crate::registry::Kind;
use crate::selectors::{LabelSelector, Operator, Requirement};
use crate::status::qualified;
use crate::strategy::qos_class;

/// Quantities by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Reads a resource list; the API refuses malformed quantities, so one that gets here counts as nothing.
pub fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), quantity(value)?))).collect()
}

pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

pub fn add(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let sum = to.get(name).copied().unwrap_or(Quantity::ZERO) + *amount;
        to.insert(name.clone(), sum);
    }
}

fn raise_to(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if to.get(name).is_none_or(|known| known < amount) {
            to.insert(name.clone(), *amount);
        }
    }
}

/// `cpu=1,memory=1Gi`, as refusals print amounts.
pub fn text(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    parts.join(",")
}

/// What a pod asks for in sum: `which` is `requests` or `limits`. Init containers run one after the other, except
/// those that restart and stay; the overhead of its runtime comes on top; what the pod itself names wins.
pub fn pod_amounts(pod: &Value, which: &str) -> Amounts {
    let of = |container: &Value| amounts(&container["resources"][which]);
    let mut sum = Amounts::new();
    for container in meta::items(pod, &["spec", "containers"]) {
        add(&mut sum, &of(container));
    }
    let (mut stay, mut peak) = (Amounts::new(), Amounts::new());
    for container in meta::items(pod, &["spec", "initContainers"]) {
        let mut now = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &now);
            add(&mut stay, &now);
            raise_to(&mut peak, &stay);
        } else {
            add(&mut now, &stay);
            raise_to(&mut peak, &now);
        }
    }
    raise_to(&mut sum, &peak);
    for (name, amount) in amounts(&pod["spec"]["resources"][which]) {
        sum.insert(name, amount);
    }
    for (name, amount) in amounts(&pod["spec"]["overhead"]) {
        // A limit that is not there stays no limit.
        if which == "requests" || sum.get(&name).is_some_and(|limit| !limit.is_zero()) {
            add(&mut sum, &Amounts::from([(name, amount)]));
        }
    }
    sum
}

/// What one object uses, and what scopes look at.
#[derive(Debug, Clone, Default)]
pub struct Charge {
    pub amounts: Amounts,
    /// Scopes are about pods only.
    pod: Option<PodFacts>,
}

#[derive(Debug, Clone)]
struct PodFacts {
    terminating: bool,
    best_effort: bool,
    priority_class: String,
    cross_namespace: bool,
}

/// What an object uses. A pod that has ended is counted as an object only.
pub fn charge(kind: &Kind, object: &Value) -> Charge {
    let one = || Quantity::from_units(1);
    let mut amounts = Amounts::from([(count_name(kind), one())]);
    if kind.group.is_empty() && ALSO_BY_NAME.contains(&kind.plural) {
        amounts.insert(kind.plural.into(), one());
    }
    let mut pod = None;
    match (kind.group, kind.kind) {
        ("", "Pod") => {
            pod = Some(facts(object));
            let ended = matches!(meta::text(object, &["status", "phase"]), "Succeeded" | "Failed");
            if !ended {
                amounts.extend(compute(&pod_amounts(object, "requests"), &pod_amounts(object, "limits")));
            }
        }
        ("", "Service") => service(object, &mut amounts),
        ("", "PersistentVolumeClaim") => claim(object, &mut amounts),
        _ => {}
    }
    Charge { amounts, pod }
}

/// Core kinds that a quota may count by their bare name. Pods count so only while they live.
const ALSO_BY_NAME: [&str; 6] =
    ["configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets", "services"];

/// `count/deployments.apps`, `count/pods`.
pub fn count_name(kind: &Kind) -> String {
    format!("count/{}", qualified(kind.group, kind.plural))
}

const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), Quantity::from_units(1))]);
    for (name, amount) in requests {
        let huge = name.starts_with("hugepages-");
        if COMPUTE.contains(&name.as_str()) || huge {
            used.insert(name.clone(), *amount);
        }
        if COMPUTE.contains(&name.as_str()) || huge || is_extended(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in COMPUTE {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

/// What device plugins and administrators add to nodes.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

fn facts(pod: &Value) -> PodFacts {
    let affinity = &pod["spec"]["affinity"];
    let crosses = |term: &Value| {
        !meta::items(term, &["namespaces"]).is_empty() || meta::at(term, &["namespaceSelector"]).is_some()
    };
    let cross_namespace = ["podAffinity", "podAntiAffinity"].iter().any(|part| {
        let required = meta::items(affinity, &[part, "requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = meta::items(affinity, &[part, "preferredDuringSchedulingIgnoredDuringExecution"]);
        required.iter().any(crosses) || preferred.iter().any(|term| crosses(&term["podAffinityTerm"]))
    });
    PodFacts {
        terminating: pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0),
        best_effort: qos_class(pod) == "BestEffort",
        priority_class: meta::text(pod, &["spec", "priorityClassName"]).into(),
        cross_namespace,
    }
}

fn service(service: &Value, amounts: &mut Amounts) {
    let ports = meta::items(service, &["spec", "ports"]);
    let count = |number: usize| Quantity::from_units(i64::try_from(number).unwrap_or(i64::MAX));
    match meta::text(service, &["spec", "type"]) {
        "NodePort" => {
            amounts.insert("services.nodeports".into(), count(ports.len()));
        }
        "LoadBalancer" => {
            let held = match meta::at(service, &["spec", "allocateLoadBalancerNodePorts"]) {
                Some(Value::Bool(false)) => ports.iter().filter(|port| port["nodePort"].as_i64().is_some()).count(),
                _ => ports.len(),
            };
            amounts.insert("services.nodeports".into(), count(held));
            amounts.insert("services.loadbalancers".into(), count(1));
        }
        _ => {}
    }
}

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";

fn claim(claim: &Value, amounts: &mut Amounts) {
    let class = match meta::text(claim, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]) {
        "" => meta::text(claim, &["spec", "storageClassName"]),
        annotated => annotated,
    };
    let size = meta::at(claim, &["spec", "resources", "requests", "storage"]).and_then(quantity);
    if !class.is_empty() {
        amounts.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), Quantity::from_units(1));
    }
    if let Some(size) = size {
        amounts.insert("requests.storage".into(), size);
        if !class.is_empty() {
            amounts.insert(format!("{class}{STORAGE_CLASS}requests.storage"), size);
        }
    }
}

/// Whether objects of a kind can use up a resource of a quota.
pub fn concerns(kind: &Kind, resource: &str) -> bool {
    if let Some(counted) = resource.strip_prefix("count/") {
        return counted == qualified(kind.group, kind.plural);
    }
    if !kind.group.is_empty() {
        return false;
    }
    match kind.kind {
        "Pod" => {
            let bare = resource.strip_prefix("requests.").unwrap_or(resource);
            let limit = resource.strip_prefix("limits.").is_some_and(|name| COMPUTE.contains(&name));
            resource == "pods"
                || COMPUTE.contains(&bare)
                || limit
                || bare.starts_with("hugepages-")
                || resource.starts_with("requests.") && is_extended(bare)
        }
        "Service" => matches!(resource, "services" | "services.nodeports" | "services.loadbalancers"),
        "PersistentVolumeClaim" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage") || resource.contains(STORAGE_CLASS)
        }
        _ => ALSO_BY_NAME.contains(&kind.plural) && resource == kind.plural,
    }
}

/// Whether a quota's scopes cover an object.
pub fn in_scope(quota: &Value, charge: &Charge) -> bool {
    let scopes = meta::items(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str);
    let selected = meta::items(quota, &["spec", "scopeSelector", "matchExpressions"]);
    let mut all = scopes.map(|scope| (scope, None)).chain(
        selected.iter().map(|expression| (expression["scopeName"].as_str().unwrap_or_default(), Some(expression))),
    );
    all.all(|(scope, expression)| {
        let Some(pod) = &charge.pod else { return false };
        match scope {
            "Terminating" => pod.terminating,
            "NotTerminating" => !pod.terminating,
            "BestEffort" => pod.best_effort,
            "NotBestEffort" => !pod.best_effort,
            "CrossNamespacePodAffinity" => pod.cross_namespace,
            "PriorityClass" => expression.is_none_or(|expression| selects_class(expression, &pod.priority_class)),
            _ => false,
        }
    })
}

fn selects_class(expression: &Value, class: &str) -> bool {
    const KEY: &str = "PriorityClass";
    let values = meta::items(expression, &["values"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let operator = match expression["operator"].as_str().unwrap_or_default() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "DoesNotExist" => Operator::DoesNotExist,
        _ => Operator::Exists,
    };
    let mut selector = LabelSelector::default();
    selector.requirements.push(Requirement { key: KEY.into(), operator });
    selector.matches_with(|_| Some(class).filter(|class| !class.is_empty()))
}

/// Why a pod cannot be charged to a quota on these resources: each of its containers has to name what is limited.
pub fn unspecified<'a>(pod: &Value, resources: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for resource in resources {
        let (which, name) = resource.split_once('.').unwrap_or(("requests", resource));
        if !matches!((which, name), ("requests" | "limits", "cpu" | "memory")) {
            continue;
        }
        for list in ["containers", "initContainers"] {
            for container in meta::items(pod, &["spec", list]) {
                if meta::at(container, &["resources", which, name]).is_none() {
                    missing.entry(resource).or_default().insert(container["name"].as_str().unwrap_or_default());
                }
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(resource, containers)| {
            format!("{resource} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
        })
        .collect();
    Some(format!("must specify {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_charged_its_peak() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let pod = json!({"spec": {
            "initContainers": [
                {"name": "stays", "restartPolicy": "Always", "resources": cpu("100m")},
                {"name": "once", "resources": cpu("2")},
            ],
            "containers": [{"name": "a", "resources": cpu("500m")}, {"name": "b", "resources": cpu("500m")}],
            "overhead": {"cpu": "50m"},
        }});
        assert_eq!(text(&pod_amounts(&pod, "requests")), "cpu=2150m");
        assert_eq!(text(&pod_amounts(&pod, "limits")), "");
        let kind = crate::registry::builtin().get("", "v1", "pods").unwrap();
        let used = charge(kind, &pod);
        assert_eq!(text(&used.amounts), "count/pods=1,cpu=2150m,pods=1,requests.cpu=2150m");
        let ended = charge(kind, &json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}}));
        assert_eq!(text(&ended.amounts), "count/pods=1");
    }

    #[test]
    fn scopes_choose_pods() {
        let kind = crate::registry::builtin().get("", "v1", "pods").unwrap();
        let charge = charge(kind, &json!({"spec": {"priorityClassName": "high", "containers": [{"name": "a"}]}}));
        let scoped =
            |scope: Value| in_scope(&json!({"spec": {"scopeSelector": {"matchExpressions": [scope]}}}), &charge);
        let class = |operator: &str, values: Value| json!({"scopeName": "PriorityClass", "operator": operator, "values": values});
        assert!(scoped(class("In", json!(["high"]))) && !scoped(class("NotIn", json!(["high"]))));
        assert!(!scoped(class("In", json!(["low"]))) && scoped(class("Exists", json!([]))));
        assert!(in_scope(&json!({"spec": {"scopes": ["BestEffort", "NotTerminating"]}}), &charge));
        assert!(!in_scope(&json!({"spec": {"scopes": ["NotBestEffort"]}}), &charge));
        assert!(!in_scope(&json!({"spec": {"scopes": ["BestEffort"]}}), &Charge::default()), "not a pod");
    }

    #[test]
    fn quotas_concern_the_kinds_they_name() {
        let kind = |group, plural| crate::registry::builtin().get(group, "v1", plural).unwrap();
        assert!(concerns(kind("apps", "deployments"), "count/deployments.apps"));
        assert!(!concerns(kind("", "pods"), "count/deployments.apps"));
        assert!(concerns(kind("", "pods"), "requests.example.com/gpu"));
        assert!(!concerns(kind("", "pods"), "requests.storage"));
        assert!(concerns(kind("", "persistentvolumeclaims"), "fast.storageclass.storage.k8s.io/requests.storage"));
    }
}
