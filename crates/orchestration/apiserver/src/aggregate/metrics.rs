//! `metrics.k8s.io`: what nodes and pods use now, asked of the node agents when somebody asks. An APIService that leads
//! the group version to a server of one's own takes its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_api::registry::builtin;
use dhow_api::selectors::LabelSelector;
use dhow_api::{Status, meta};
use dhow_client::{Body, full};
use http::{HeaderValue, Method, Response, header, request};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::info::{ExtensionTarget, RequestInfo, Target};
use crate::{ApiServer, stream};

pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";
/// A node is asked again when what it said is this old.
const FRESH: Duration = Duration::from_secs(15);
/// What a node gets to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the numbers are about, as the API wants it said: the time between two measurements on a node is its matter.
const WINDOW: &str = "15s";

type Summary = Arc<Value>;

/// What nodes said last.
#[derive(Default)]
pub struct Summaries {
    known: Mutex<BTreeMap<String, (Instant, Summary)>>,
}

/// The group version's `APIResourceList`.
pub fn resources() -> Value {
    let of = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [of("nodes", "NodeMetrics", false), of("pods", "PodMetrics", true)],
    })
}

/// Answers a request that was allowed.
pub async fn answer(server: &Arc<ApiServer>, parts: &request::Parts) -> Result<Response<Body>, Status> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let info = RequestInfo::of_extension(&parts.method, &parts.uri)?;
    let document = match &info.target {
        Target::Extension(target) if info.verb != "watch" && target.subresource.is_empty() => {
            let labels = LabelSelector::parse(info.query.get("labelSelector").unwrap_or_default())?;
            match target.resource.as_str() {
                "nodes" if target.namespace.is_empty() => nodes(server, target, &labels).await?,
                "pods" => pods(server, target, &labels).await?,
                _ => return Err(Status::no_such_resource()),
            }
        }
        Target::Extension(_) => return Err(Status::method_not_allowed()),
        _ => resources(),
    };
    let mut response = Response::new(full(document.to_string().into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn missing(resource: &str, name: &str) -> Status {
    Status::not_found(GROUP, resource, name)
}

/// The objects of a core kind that the request is about.
fn objects(
    server: &ApiServer,
    plural: &str,
    target: &ExtensionTarget,
    labels: &LabelSelector,
) -> Result<Vec<Value>, Status> {
    let kind = builtin().get("", "v1", plural).ok_or_else(Status::no_such_resource)?;
    let all = server.store.cache.objects(kind)?;
    let wanted = all.values().filter(|stored| {
        let header = &stored.header;
        (target.name.is_empty() || header.name == target.name)
            && (target.namespace.is_empty() || header.namespace == target.namespace)
            && labels.matches_with(|key| header.labels.get(key))
    });
    let found: Vec<Value> = wanted.filter_map(|stored| stored.value().ok()).collect();
    if found.is_empty() && !target.name.is_empty() {
        return Err(missing(plural, &target.name));
    }
    Ok(found)
}

async fn nodes(server: &Arc<ApiServer>, target: &ExtensionTarget, labels: &LabelSelector) -> Result<Value, Status> {
    let nodes = objects(server, "nodes", target, labels)?;
    let names = nodes.iter().map(|node| meta::name(node).to_owned()).collect();
    let summaries = summaries(server, names).await;
    let items = nodes.iter().filter_map(|node| {
        let said = &summaries.get(meta::name(node))?["node"];
        Some(object("NodeMetrics", node, &said["cpu"]["time"], json!({"usage": usage(said)?})))
    });
    finish("NodeMetricsList", "nodes", target, items.collect())
}

async fn pods(server: &Arc<ApiServer>, target: &ExtensionTarget, labels: &LabelSelector) -> Result<Value, Status> {
    let mut pods = objects(server, "pods", target, labels)?;
    pods.retain(|pod| meta::text(pod, &["status", "phase"]) == "Running");
    let names = pods.iter().map(|pod| meta::text(pod, &["spec", "nodeName"]).to_owned()).collect();
    let summaries = summaries(server, names).await;
    let items = pods.iter().filter_map(|pod| {
        let summary = summaries.get(meta::text(pod, &["spec", "nodeName"]))?;
        let said = meta::items(summary, &["pods"]).iter().find(|said| said["podRef"]["uid"] == meta::uid(pod))?;
        let containers = meta::items(said, &["containers"]).iter();
        let containers: Vec<Value> =
            containers.filter_map(|own| Some(json!({"name": own["name"], "usage": usage(own)?}))).collect();
        Some(object("PodMetrics", pod, &said["cpu"]["time"], json!({"containers": containers})))
    });
    finish("PodMetricsList", "pods", target, items.collect())
}

/// One object or a list, as was asked.
fn finish(kind: &str, plural: &str, target: &ExtensionTarget, mut items: Vec<Value>) -> Result<Value, Status> {
    if !target.name.is_empty() {
        return items.pop().ok_or_else(|| missing(plural, &target.name));
    }
    Ok(json!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items}))
}

fn object(kind: &str, of: &Value, time: &Value, body: Value) -> Value {
    let mut metadata = json!({"name": meta::name(of), "creationTimestamp": time});
    for field in ["namespace", "labels"] {
        if let Some(value) = of["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut object = json!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata,
        "timestamp": time, "window": WINDOW});
    if let (Some(object), Value::Object(body)) = (object.as_object_mut(), body) {
        object.extend(body);
    }
    object
}

/// Processors in billionths and memory in kibibytes; `None` until a speed is known.
fn usage(said: &Value) -> Option<Value> {
    let cpu = said["cpu"]["usageNanoCores"].as_u64()?;
    let memory = said["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory >> 10)}))
}

/// What these nodes say; those that do not answer are left out.
async fn summaries(server: &Arc<ApiServer>, names: std::collections::BTreeSet<String>) -> BTreeMap<String, Summary> {
    let asked = names.into_iter().map(|name| async move {
        let told = |status: &Status| tracing::debug!(node = name, message = status.message, "no numbers of a node");
        let summary = summary(server, &name).await.inspect_err(told).ok()?;
        Some((name, summary))
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

async fn summary(server: &Arc<ApiServer>, node: &str) -> Result<Summary, Status> {
    let known = &server.aggregator.summaries.known;
    if let Some((at, summary)) = known.lock().get(node)
        && at.elapsed() < FRESH
    {
        return Ok(summary.clone());
    }
    let asked = tokio::time::timeout(PATIENCE, stream::ask(server, node, "/stats/summary")).await;
    let late = |_| Status::service_unavailable(format!("node {node} did not answer"));
    let text = asked.map_err(late)??;
    let summary: Value = serde_json::from_slice(&text)
        .map_err(|error| Status::service_unavailable(format!("node {node} answered no summary: {error}")))?;
    let summary = Arc::new(summary);
    let mut known = known.lock();
    known.retain(|_, (at, _)| at.elapsed() < FRESH);
    known.insert(node.to_owned(), (Instant::now(), summary.clone()));
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_told_once_a_speed_is_known() {
        let said = json!({"cpu": {"usageNanoCores": 1500}, "memory": {"workingSetBytes": 4096}});
        assert_eq!(usage(&said), Some(json!({"cpu": "1500n", "memory": "4Ki"})));
        assert_eq!(usage(&json!({"cpu": {"usageNanoCores": null}, "memory": {"workingSetBytes": 1}})), None);
    }

    #[test]
    fn objects_carry_names_labels_and_time() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}}});
        let got = object("PodMetrics", &pod, &json!("2026-01-01T00:00:00Z"), json!({"containers": []}));
        assert_eq!(got["metadata"]["labels"]["a"], "b");
        assert_eq!((&got["timestamp"], &got["window"]), (&json!("2026-01-01T00:00:00Z"), &json!("15s")));
        assert!(got["containers"].is_array());
    }
}
