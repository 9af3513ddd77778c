//! `kubectl get`'s columns: a `meta.k8s.io/v1` Table of any kind's objects.

pub(crate) mod access;
pub(crate) mod admission;
pub(crate) mod autoscaling;
mod cells;
pub(crate) mod core;
pub(crate) mod networking;
pub(crate) mod pod;
pub(crate) mod resource;
pub(crate) mod storage;
pub(crate) mod system;
pub(crate) mod workloads;

pub use cells::Cell;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::registry::Kind;

/// One column: title, whether only `-o wide` shows it, and its cell.
#[derive(Clone, Copy)]
pub struct Column {
    name: &'static str,
    wide: bool,
    cell: Cell,
}

pub(crate) const fn column(name: &'static str, cell: Cell) -> Column {
    Column { name, wide: false, cell }
}

pub(crate) const fn wide(name: &'static str, cell: Cell) -> Column {
    Column { name, wide: true, cell }
}

/// What a row carries of its object beside the cells (`includeObject`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Include {
    Nothing,
    #[default]
    Metadata,
    Object,
}

/// The Table of these objects.
pub fn render(kind: &Kind, objects: &[Value], include: Include, resource_version: &str, now: Timestamp) -> Value {
    let columns = kind.columns;
    if let Some(served) = &kind.custom {
        let version = &served.version;
        let rows = objects.iter().map(|object| row(version.cells(object, now), object, include)).collect();
        return table(version.table_columns(), rows, resource_version);
    }
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.cell.kind(),
                "format": if column.name == "Name" { "name" } else { "" },
                "description": "",
                "priority": i32::from(column.wide),
            })
        })
        .collect();
    let cells = |object| columns.iter().map(|column| column.cell.render(object, now)).collect();
    table(definitions, objects.iter().map(|object| row(cells(object), object, include)).collect(), resource_version)
}

fn table(definitions: Vec<Value>, rows: Vec<Value>, resource_version: &str) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": resource_version},
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn row(cells: Vec<Value>, object: &Value, include: Include) -> Value {
    let object = match include {
        Include::Nothing => return json!({"cells": cells}),
        Include::Object => object.clone(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
    };
    json!({"cells": cells, "object": object})
}

/// What upstream prints of a kind that has no columns of its own.
pub(crate) const DEFAULT: &[Column] = &[column("Name", Cell::Name), column("Created At", Cell::Created)];

pub(crate) const NAME_AND_AGE: &[Column] = &[column("Name", Cell::Name), column("Age", Cell::Age)];

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::builtin;

    fn cells(group: &str, plural: &str, object: &Value) -> Vec<Value> {
        let kind = builtin().get(group, "v1", plural).unwrap();
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let table = render(kind, std::slice::from_ref(object), Include::default(), "1", now);
        assert_eq!(
            table["columnDefinitions"].as_array().unwrap().len(),
            table["rows"][0]["cells"].as_array().unwrap().len()
        );
        table["rows"][0]["cells"].as_array().unwrap().clone()
    }

    fn pod(status: Value) -> Value {
        json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]},
            "status": status,
        })
    }

    #[test]
    fn a_pod_shows_what_holds_it() {
        let initialised = json!([{"name": "i", "state": {"terminated": {"exitCode": 0}}}]);
        let running = pod(
            json!({"phase": "Running", "podIP": "10.0.0.1", "initContainerStatuses": initialised, "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "b", "ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:57:00Z"}}},
            ]}),
        );
        let shown = cells("", "pods", &running);
        assert_eq!(
            shown[..6],
            [json!("p"), json!("1/2"), json!("CrashLoopBackOff"), json!("2 (3m ago)"), json!("60m"), json!("10.0.0.1")]
        );
        let starting = pod(json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"running": {}}},
        ]}));
        assert_eq!(cells("", "pods", &starting)[2], "Init:0/1");
        let mut ending = pod(json!({"phase": "Running", "initContainerStatuses": initialised}));
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
        assert_eq!(cells("", "pods", &ending)[2], "Terminating");
    }

    #[test]
    fn a_service_shows_its_ports() {
        let service = json!({
            "metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "selector": {"a": "b"},
                "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        });
        let shown = cells("", "services", &service);
        assert_eq!(
            shown[1..],
            [
                json!("NodePort"),
                json!("10.43.0.9"),
                json!("<none>"),
                json!("80:30080/TCP,53/UDP"),
                json!("60m"),
                json!("a=b")
            ]
        );
    }
}
