//! Between the forms of kinds that share storage: autoscaling v1 and v2, events of both groups.
//!
//! Each direction is a table of renamed fields. What the older form has no field for is kept in annotations, under
//! upstream's names, so that nothing is lost on the way there and back.

use serde_json::{Map, Value, json};

use crate::meta::{at, child_mut, text};
use crate::registry::Conversion;

/// `events.k8s.io/v1` kept as `v1`.
pub const EVENT: Conversion = Conversion { to_storage: event_to_core, from_storage: event_from_core };

/// `autoscaling/v1` kept as `autoscaling/v2`.
pub const AUTOSCALER_V1: Conversion = Conversion { to_storage: autoscaler_to_v2, from_storage: autoscaler_from_v2 };

/// Fields of an event: in `events.k8s.io`, in the core group.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn event_to_core(event: &mut Value) {
    rename(event, EVENT_FIELDS);
    event["apiVersion"] = json!("v1");
}

fn event_from_core(event: &mut Value) {
    rename(event, EVENT_FIELDS.map(|(new, old)| (old, new)));
    event["apiVersion"] = json!("events.k8s.io/v1");
}

fn rename<const N: usize>(object: &mut Value, fields: [(&str, &str); N]) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The percentage that an autoscaler without any metric aims at.
const CPU_TARGET: i64 = 80;

/// A field of a metric: its name in v1, where `%` stands for `target` or `current`, and its path in v2, where `%`
/// is the object of that name.
type Field = (&'static str, &'static [&'static str]);

const UTILIZATION: Field = ("%AverageUtilization", &["%", "averageUtilization"]);
const AVERAGE: Field = ("%AverageValue", &["%", "averageValue"]);
const VALUE: Field = ("%Value", &["%", "value"]);
const METRIC_NAME: Field = ("metricName", &["metric", "name"]);

const SOURCES: [(&str, &[Field]); 5] = [
    ("resource", &[("name", &["name"]), UTILIZATION, AVERAGE]),
    ("containerResource", &[("name", &["name"]), ("container", &["container"]), UTILIZATION, AVERAGE]),
    ("pods", &[METRIC_NAME, ("selector", &["metric", "selector"]), AVERAGE]),
    (
        "object",
        &[
            ("target", &["describedObject"]),
            METRIC_NAME,
            ("selector", &["metric", "selector"]),
            VALUE,
            ("averageValue", &["%", "averageValue"]),
        ],
    ),
    ("external", &[METRIC_NAME, ("metricSelector", &["metric", "selector"]), VALUE, AVERAGE]),
];

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Spec,
    Status,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Self::Spec => "target",
            Self::Status => "current",
        }
    }

    fn name_in_v1(self, name: &str) -> String {
        match name.strip_prefix('%') {
            Some(rest) => format!("{}{rest}", self.word()),
            None => name.to_owned(),
        }
    }

    fn path_in_v2(self, path: &[&'static str]) -> Vec<&'static str> {
        path.iter().map(|step| if *step == "%" { self.word() } else { step }).collect()
    }
}

fn metric_to_v2(metric: &Value, part: Part) -> Value {
    let mut new = json!({"type": metric["type"]});
    for (source, fields) in SOURCES {
        let Some(old) = at(metric, &[source]) else { continue };
        new[source] = json!({});
        for (name, path) in fields {
            if let Some(value) = at(old, &[&part.name_in_v1(name)]) {
                set(&mut new[source], &part.path_in_v2(path), value.clone());
            }
        }
        if part == Part::Spec {
            classify(&mut new[source]);
        }
    }
    new
}

/// Names the type of a target, which v1 leaves to be seen from what is set.
fn classify(source: &mut Value) {
    let target = child_mut(source, "target");
    let kind = if target.contains_key("averageUtilization") {
        "Utilization"
    } else if target.contains_key("averageValue") {
        // v1 writes a zero beside the average, because its field is not optional.
        target.retain(|key, value| key != "value" || value != "0");
        "AverageValue"
    } else {
        "Value"
    };
    target.insert("type".into(), json!(kind));
}

fn metric_from_v2(metric: &Value, part: Part) -> Value {
    let mut old = json!({"type": metric["type"]});
    for (source, fields) in SOURCES {
        let Some(new) = at(metric, &[source]) else { continue };
        old[source] = json!({});
        for (name, path) in fields {
            if let Some(value) = at(new, &part.path_in_v2(path)) {
                old[source][part.name_in_v1(name)] = value.clone();
            }
        }
    }
    old
}

fn set(object: &mut Value, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => object[*last] = value,
        [first, rest @ ..] => {
            child_mut(object, first);
            set(&mut object[*first], rest, value);
        }
    }
}

fn cpu_target(percent: i64) -> Value {
    json!({
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
    })
}

/// Whether v1 has a field for the metric: processor use in percent.
fn is_cpu(metric: &Value, part: Part) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"][part.word()]["averageUtilization"].is_i64()
}

fn autoscaler_to_v2(object: &mut Value) {
    object["apiVersion"] = json!("autoscaling/v2");
    let kept = take_annotations(object);
    let list = |name: &str| kept.get(name).and_then(Value::as_array).cloned();

    let spec = child_mut(object, "spec");
    let mut metrics: Vec<Value> =
        list(METRICS).unwrap_or_default().iter().map(|metric| metric_to_v2(metric, Part::Spec)).collect();
    let percent = spec.remove("targetCPUUtilizationPercentage").and_then(|value| value.as_i64());
    match percent {
        Some(percent) => metrics.push(cpu_target(percent)),
        None if metrics.is_empty() => metrics.push(cpu_target(CPU_TARGET)),
        None => {}
    }
    spec.insert("metrics".into(), json!(metrics));
    if let Some(behavior) = kept.get(BEHAVIOR) {
        spec.insert("behavior".into(), recase(behavior, |first| first.to_ascii_lowercase()));
    }

    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else { return };
    let percent = status.remove("currentCPUUtilizationPercentage").and_then(|value| value.as_i64());
    let current: Option<Vec<Value>> = match (list(CURRENT_METRICS), percent) {
        (Some(kept), _) => Some(kept.iter().map(|metric| metric_to_v2(metric, Part::Status)).collect()),
        (None, Some(percent)) => Some(vec![json!({
            "type": "Resource",
            "resource": {"name": "cpu", "current": {"averageUtilization": percent}},
        })]),
        (None, None) => None,
    };
    if let Some(current) = current {
        status.insert("currentMetrics".into(), json!(current));
    }
    if let Some(conditions) = list(CONDITIONS) {
        status.insert("conditions".into(), json!(conditions));
    }
}

fn autoscaler_from_v2(object: &mut Value) {
    object["apiVersion"] = json!("autoscaling/v1");
    let mut kept = Map::new();
    let mut keep = |name: &str, value: Value| kept.insert(name.to_owned(), json!(value.to_string()));

    let spec = child_mut(object, "spec");
    let (cpu, others): (Vec<Value>, Vec<Value>) = match spec.remove("metrics") {
        Some(Value::Array(metrics)) => metrics.into_iter().partition(|metric| is_cpu(metric, Part::Spec)),
        _ => Default::default(),
    };
    if let Some(percent) = cpu.last().map(|metric| &metric["resource"]["target"]["averageUtilization"]) {
        spec.insert("targetCPUUtilizationPercentage".into(), percent.clone());
    }
    if !others.is_empty() {
        keep(METRICS, others.iter().map(|metric| metric_from_v2(metric, Part::Spec)).collect());
    }
    if let Some(behavior) = spec.remove("behavior") {
        keep(BEHAVIOR, recase(&behavior, |first| first.to_ascii_uppercase()));
    }

    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let current = status.remove("currentMetrics").unwrap_or_default();
        let current = current.as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(cpu) = current.iter().find(|metric| is_cpu(metric, Part::Status)) {
            let percent = cpu["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
        if !current.is_empty() {
            keep(CURRENT_METRICS, current.iter().map(|metric| metric_from_v2(metric, Part::Status)).collect());
        }
        if let Some(conditions @ Value::Array(_)) = status.remove("conditions") {
            keep(CONDITIONS, conditions);
        }
    }
    if !kept.is_empty() {
        child_mut(object, "metadata");
        child_mut(&mut object["metadata"], "annotations").extend(kept);
    }
}

/// Takes the annotations that hold parts of the newer form. One that cannot be read stays an annotation.
fn take_annotations(object: &mut Value) -> Map<String, Value> {
    let mut taken = Map::new();
    for name in [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR] {
        if let Ok(value) = serde_json::from_str(text(object, &["metadata", "annotations", name])) {
            taken.insert(name.to_owned(), value);
        }
    }
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return taken };
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| !taken.contains_key(name));
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    taken
}

/// Changes the first letter of every key: the annotation is written with upstream's internal names.
fn recase(value: &Value, change: fn(&char) -> char) -> Value {
    match value {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| {
                let mut letters = key.chars();
                let first = letters.next().map(|first| change(&first));
                (first.into_iter().chain(letters).collect::<String>(), recase(value, change))
            });
            Value::Object(entries.collect())
        }
        Value::Array(list) => list.iter().map(|value| recase(value, change)).collect(),
        other => other.clone(),
    }
}

/// Whether the object still holds what only the newer form has a field for.
#[cfg(test)]
fn annotated(object: &Value) -> usize {
    let names = crate::meta::object(object, &["metadata", "annotations"]).into_iter().flatten();
    names.filter(|(name, _)| name.starts_with("autoscaling.alpha")).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::builtin;

    fn v2() -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"mine": "x"}},
            "spec": {
                "minReplicas": 1, "maxReplicas": 5,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "hits", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "AverageValue", "averageValue": "10"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"},
                        "metric": {"name": "hits"}, "target": {"type": "Value", "value": "2k"}}},
                    {"type": "External", "external": {"metric": {"name": "queue"},
                        "target": {"type": "AverageValue", "averageValue": "30"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                        "target": {"type": "Utilization", "averageUtilization": 60}}},
                    {"type": "Resource", "resource": {"name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 50}}},
                ],
                "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                    "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}},
            },
            "status": {
                "currentReplicas": 2, "desiredReplicas": 3,
                "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 42, "averageValue": "21m"}}}],
            },
        })
    }

    #[test]
    fn an_autoscaler_survives_the_way_to_v1_and_back() {
        let kind = builtin().get("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let mut object = v2();
        kind.from_storage(&mut object);
        assert_eq!(object["apiVersion"], "autoscaling/v1");
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 42);
        assert!(object["spec"].get("metrics").is_none() && object["spec"].get("behavior").is_none());
        assert_eq!(annotated(&object), 4);
        let metrics: Value =
            serde_json::from_str(object["metadata"]["annotations"][METRICS].as_str().unwrap()).unwrap();
        assert_eq!(
            metrics[0],
            json!({"type": "Pods", "pods": {"metricName": "hits", "selector": {"matchLabels": {"a": "b"}},
                "targetAverageValue": "10"}})
        );
        assert_eq!(metrics[1]["object"]["targetValue"], "2k");
        assert!(object["metadata"]["annotations"][BEHAVIOR].as_str().unwrap().contains("\"ScaleUp\":{"));
        kind.to_storage(&mut object);
        assert_eq!(object, v2());
    }

    #[test]
    fn an_autoscaler_of_v1_survives_storage() {
        let kind = builtin().get("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let v1 = json!({
            "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 70, "scaleTargetRef": {"kind": "Deployment", "name": "d"}},
        });
        let mut object = v1.clone();
        kind.to_storage(&mut object);
        assert_eq!(object["spec"]["metrics"], json!([cpu_target(70)]));
        kind.from_storage(&mut object);
        assert_eq!(object, v1);
        // Without any target there is a default, and it shows.
        let mut bare = v1.clone();
        bare["spec"].as_object_mut().unwrap().remove("targetCPUUtilizationPercentage");
        kind.to_storage(&mut bare);
        kind.from_storage(&mut bare);
        assert_eq!(bare["spec"]["targetCPUUtilizationPercentage"], 80);
    }

    #[test]
    fn events_of_both_groups_are_one() {
        let kind = builtin().get("events.k8s.io", "v1", "events").unwrap();
        let new = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "it ran",
            "reason": "Ran", "type": "Normal", "reportingController": "c", "reportingInstance": "c-1",
            "regarding": {"kind": "Pod", "name": "p"}, "deprecatedCount": 2, "eventTime": "2026-01-01T00:00:00.000000Z",
        });
        let mut object = new.clone();
        kind.to_storage(&mut object);
        assert_eq!(
            object,
            json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "it ran", "reason": "Ran",
                "type": "Normal", "reportingComponent": "c", "reportingInstance": "c-1",
                "involvedObject": {"kind": "Pod", "name": "p"}, "count": 2, "eventTime": "2026-01-01T00:00:00.000000Z",
            })
        );
        kind.from_storage(&mut object);
        assert_eq!(object, new);
    }
}
