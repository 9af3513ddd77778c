//! Subresources that read or write objects: status, scale, binding, eviction, token, finalize and their like.

use std::sync::Arc;

use dhow_api::registry::{Kind, Subresource};
use dhow_api::{Status, meta, patch as patches, time};
use dhow_client::Body;
use http::{Method, Response};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::admission::{Attributes, Operation};
use crate::encode::{self, Accept};
use crate::pipeline::{Authorized, Request};
use crate::write::{self, Part};
use crate::{ApiServer, admission, body, eviction, read, token_request};

pub async fn handle(
    server: &Arc<ApiServer>,
    request: Request<Authorized>,
    method: &Method,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let Some(subresource) = request.target.subresource else { return Err(Status::no_such_resource()) };
    if !subresource.verbs().contains(&request.info.verb) {
        return Err(Status::method_not_allowed());
    }
    match subresource {
        Subresource::Status => part(server, &request, method, Part::Status, accept).await,
        Subresource::EphemeralContainers => part(server, &request, method, Part::EphemeralContainers, accept).await,
        Subresource::Resize => part(server, &request, method, Part::Resize, accept).await,
        Subresource::Approval => part(server, &request, method, Part::Approval, accept).await,
        Subresource::Finalize => finalize(server, &request, accept).await,
        Subresource::Scale => scale(server, &request, method, accept).await,
        Subresource::Binding => bind(server, &request, accept).await,
        Subresource::Eviction => eviction::evict(server, &request, accept).await,
        Subresource::Token => token_request::create(server, &request, accept).await,
        // These are streams; they never come here by way of the server's own listener.
        Subresource::Log | Subresource::Exec | Subresource::Attach | Subresource::PortForward | Subresource::Proxy => {
            Err(Status::bad_request("this subresource is a stream and needs a connection to the server"))
        }
    }
}

/// Reads the object, or writes the part of it that the subresource is about.
async fn part(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    method: &Method,
    part: Part,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let kind = &request.target.kind;
    let stored = match *method {
        Method::GET => read::existing(server, &request.target).await?,
        Method::PATCH => write::change(server, request, part, |old| write::patched(request, part, old)).await?,
        _ => {
            let object = body::object(request)?;
            write::change(server, request, part, |_| Ok(object.clone())).await?
        }
    };
    encode::object(kind, &stored, accept, 200)
}

/// Sets `spec.finalizers` of a namespace; the last one gone lets it end.
async fn finalize(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let wanted = body::object(request)?;
    let stored = write::change(server, request, Part::Finalize, |old| {
        let mut object = old.clone();
        meta::child_mut(&mut object, "spec").insert("finalizers".into(), wanted["spec"]["finalizers"].clone());
        Ok(object)
    })
    .await?;
    encode::object(&request.target.kind, &stored, accept, 200)
}

async fn scale(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    method: &Method,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let kind = &request.target.kind;
    let stored = match *method {
        Method::GET => read::existing(server, &request.target).await?,
        Method::PATCH => {
            write::change(server, request, Part::Main, |old| {
                if write::is_apply(request) {
                    return apply_scale(request, old);
                }
                let mut scale = scale_of(kind, old);
                let (patch, _) = dhow_api::strict_json::parse(&request.body)
                    .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
                match body::media_type(&request.headers) {
                    "application/json-patch+json" => patches::json(&mut scale, &patch)?,
                    // Without lists, a strategic merge is a merge.
                    "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                        patches::merge(&mut scale, &patch)?;
                    }
                    _ => return Err(Status::unsupported_media_type(SCALE_PATCHES)),
                }
                with_scale(kind, old, &scale)
            })
            .await?
        }
        _ => {
            let scale = body::decode(request)?;
            write::change(server, request, Part::Main, |old| with_scale(kind, old, &scale)).await?
        }
    };
    encode::value(200, &scale_of(kind, &stored.value()?), accept)
}

const SCALE_PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    write::APPLY,
];

/// The one field that a Scale can set is the workload's own, and who applied it owns it there.
fn apply_scale(request: &Request<Authorized>, old: &Value) -> Result<Value, Status> {
    let kind = &request.target.kind;
    let scale = body::apply_scale(request)?;
    let mut config = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": {"name": meta::name(old), "namespace": old["metadata"]["namespace"]},
    });
    let version = meta::resource_version(&scale);
    if !version.is_empty() {
        config["metadata"]["resourceVersion"] = json!(version);
    }
    if scale["spec"]["replicas"].is_number() {
        config = with_scale(kind, &config, &scale)?;
    }
    write::applied(request, Part::Main, old, &config)
}

/// `autoscaling/v1` Scale of a workload.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let (wanted, there, selector) =
        kind.custom.as_ref().and_then(|served| served.scale(object)).unwrap_or_else(|| workload_scale(object));
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": wanted},
        "status": {"replicas": there, "selector": selector},
    })
}

fn workload_scale(object: &Value) -> (i64, i64, String) {
    let labels = meta::object(object, &["spec", "selector", "matchLabels"]);
    let selector: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let replicas = |part: &str| meta::int(object, &[part, "replicas"]);
    (replicas("spec"), replicas("status"), selector.join(","))
}

/// A workload with the replicas of a Scale.
pub fn with_scale(kind: &Kind, old: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = meta::int(scale, &["spec", "replicas"]);
    if replicas < 0 {
        let error = dhow_api::validation::FieldError::invalid(
            "spec.replicas",
            &replicas.to_string(),
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid("autoscaling", "Scale", meta::name(old), &[error]));
    }
    let mut object = old.clone();
    let version = meta::resource_version(scale);
    let metadata = meta::metadata_mut(&mut object);
    if version.is_empty() {
        metadata.remove("resourceVersion")
    } else {
        metadata.insert("resourceVersion".into(), json!(version))
    };
    match &kind.custom {
        Some(served) => served.set_replicas(&mut object, replicas),
        None => {
            meta::child_mut(&mut object, "spec").insert("replicas".into(), json!(replicas));
        }
    }
    Ok(object)
}

/// Assigns a pod to a node, once.
async fn bind(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let binding = body::decode(request)?;
    let node = meta::text(&binding, &["target", "name"]).to_owned();
    if node.is_empty() {
        return Err(Status::bad_request("target.name: Required value"));
    }
    let name = request.target.name.clone().unwrap_or_default();
    let mut asked = Attributes::of(request, Operation::Create, &name, binding, None);
    admission::admit(server, &mut asked).await?;
    let binding = asked.object;
    write::change(server, request, Part::Binding, |old| {
        let conflict = |why: &str| Status::conflict_because("", "pods/binding", &name, why);
        if meta::deletion_timestamp(old).is_some() {
            return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let held = meta::text(old, &["spec", "nodeName"]);
        if !held.is_empty() {
            return Err(conflict(&format!("pod {name} is already assigned to node {held:?}")));
        }
        let mut pod = old.clone();
        meta::child_mut(&mut pod, "spec").insert("nodeName".into(), json!(node));
        for field in ["annotations", "labels"] {
            for (key, value) in meta::object(&binding, &["metadata", field]).into_iter().flatten() {
                meta::child_mut(meta_value(&mut pod), field).insert(key.clone(), value.clone());
            }
        }
        set_condition(&mut pod, "PodScheduled");
        Ok(pod)
    })
    .await?;
    encode::value(201, &Status::success().to_value(), accept)
}

fn meta_value(object: &mut Value) -> &mut Value {
    meta::metadata_mut(object);
    &mut object["metadata"]
}

fn set_condition(pod: &mut Value, kind: &str) {
    let status = meta::child_mut(pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|condition| condition["type"] != kind);
        let now = time::rfc3339(Timestamp::now());
        list.push(json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
    }
}
