//! delete and deletecollection: grace periods, finalizers, propagation.

use std::sync::Arc;

use dhow_api::registry::Kind;
use dhow_api::validation::FieldError;
use dhow_api::{Status, strategy, time};
use dhow_client::Body;
use http::Response;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admission::Attributes;
use crate::encode::{self, Accept};
use crate::info::{Query, ResourceTarget};
use crate::object::Stored;
use crate::pipeline::{Authorized, Request};
use crate::read;
use crate::store::{RETRIES, Written};
use crate::{ApiServer, admission, definitions};

/// `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub preconditions: Preconditions,
    pub dry_run: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// From the body, else from the query.
    fn of(request: &Request<Authorized>) -> Result<Self, Status> {
        let mut options = match request.body.is_empty() {
            true => Self::default(),
            false => {
                let body = crate::body::options(request)?;
                serde_json::from_value(body).map_err(|error| Status::bad_request(error.to_string()))?
            }
        };
        let query: &Query = &request.info.query;
        if let Some(seconds) = query.get("gracePeriodSeconds") {
            let parsed = seconds.parse().map_err(|_| Status::bad_request("invalid gracePeriodSeconds"))?;
            options.grace_period_seconds.get_or_insert(parsed);
        }
        if let Some(policy) = query.get("propagationPolicy") {
            options.propagation_policy.get_or_insert(policy.to_owned());
        }
        if query.get("orphanDependents").is_some() {
            options.orphan_dependents.get_or_insert(query.flag("orphanDependents"));
        }
        if request.dry_run() {
            options.dry_run = vec!["All".into()];
        }
        options.validate()?;
        Ok(options)
    }

    fn validate(&self) -> Result<(), Status> {
        let mut errors = Vec::new();
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some(policy), Some(_)) => errors.push(FieldError::invalid(
                "propagationPolicy",
                policy,
                "orphanDependents and deletionPropagation cannot be both set",
            )),
            (Some("Foreground" | "Background" | "Orphan") | None, _) => {}
            (Some(other), None) => {
                let known = ["Background", "Foreground", "Orphan", ""];
                errors.push(FieldError::not_supported("propagationPolicy", other, &known));
            }
        }
        if let Some(other) = self.dry_run.iter().find(|value| *value != "All") {
            errors.push(FieldError::not_supported("dryRun", other, &["All"]));
        }
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)) }
    }

    /// Adds what was asked for to the document that admission sees.
    pub fn describe(&self, options: &mut Value) {
        if let Some(seconds) = self.grace_period_seconds {
            options["gracePeriodSeconds"] = json!(seconds);
        }
        if let Some(policy) = &self.propagation_policy {
            options["propagationPolicy"] = json!(policy);
        }
        if let Some(orphan) = self.orphan_dependents {
            options["orphanDependents"] = json!(orphan);
        }
        if let Some(uid) = &self.preconditions.uid {
            options["preconditions"]["uid"] = json!(uid);
        }
        if let Some(version) = &self.preconditions.resource_version {
            options["preconditions"]["resourceVersion"] = json!(version);
        }
    }

    /// The finalizer that makes the garbage collector treat dependents as asked.
    fn finalizer(&self) -> Option<&'static str> {
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Foreground"), _) => Some("foregroundDeletion"),
            (Some("Orphan"), _) | (None, Some(true)) => Some("orphan"),
            _ => None,
        }
    }
}

pub async fn one(
    server: &Arc<ApiServer>,
    request: Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let options = DeleteOptions::of(&request)?;
    let kind = &request.target.kind;
    let name = request.target.name.clone().unwrap_or_default();
    let outcome = delete(server, &request.target, &name, &options, Some(&request)).await?;
    match outcome {
        // A finished delete answers with a Status, one that waits with the object.
        Outcome::Gone(last) if kind.kind != "Pod" && kind.kind != "Namespace" => {
            let status = Status::deleted(kind.group, kind.plural, &name, &last.header.uid);
            encode::value(200, &status.to_value(), accept)
        }
        Outcome::Gone(object) | Outcome::Waiting(object) => encode::object(kind, &object, accept, 200),
    }
}

pub async fn collection(
    server: &Arc<ApiServer>,
    request: Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let options = DeleteOptions::of(&request)?;
    let selection = read::selection(&request.target, &request.info.query)?;
    let snapshot = server.store.snapshot(&request.target.kind).await?;
    read::convert(server, &snapshot, &request.target, &selection, None, 0).await?;
    let found: Vec<Arc<Stored>> = read::select(&snapshot, &request.target, &selection, None).collect();
    let mut items = Vec::with_capacity(found.len());
    for object in found {
        let target = ResourceTarget {
            namespace: Some(object.header.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            ..request.target.clone()
        };
        match delete(server, &target, &object.header.name, &options, Some(&request)).await {
            Ok(Outcome::Gone(last) | Outcome::Waiting(last)) => items.push(last),
            // Somebody else was faster.
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let page = read::Page { revision: snapshot.revision, items, continue_token: None, remaining: None };
    encode::list(&request.target.kind, &page, accept)
}

pub enum Outcome {
    Gone(Arc<Stored>),
    /// A finalizer or grace period holds the object.
    Waiting(Arc<Stored>),
}

/// Deletes, or marks as being deleted. Admission is asked about the delete of `request`; an eviction was admitted
/// as such.
pub async fn delete(
    server: &Arc<ApiServer>,
    target: &ResourceTarget,
    name: &str,
    options: &DeleteOptions,
    request: Option<&Request<Authorized>>,
) -> Result<Outcome, Status> {
    let kind = &target.kind;
    for _ in 0..RETRIES {
        let old = server.store.get(kind, target.namespace.as_deref(), name).await?;
        check(kind, name, &old, &options.preconditions)?;
        let value = old.value()?;
        if let Some(request) = request {
            admission::admit(server, &mut Attributes::delete(request, target, name, &value, options)).await?;
        }
        let marked = mark(kind, &value, options);
        let done = gone(kind, &marked);
        if !options.dry_run.is_empty() {
            return Ok(if done { Outcome::Gone(old) } else { Outcome::Waiting(old) });
        }
        let written = if done {
            server.store.delete(kind, &old).await?
        } else if marked == value {
            return Ok(Outcome::Waiting(old));
        } else {
            server.store.update(kind, &old, &marked).await?
        };
        if let Written::Done(stored) = written {
            server.quotas.touch(server, kind, target.namespace.as_deref());
            return Ok(if done { Outcome::Gone(stored) } else { Outcome::Waiting(stored) });
        }
    }
    Err(Status::conflict(kind.group, kind.plural, name))
}

fn check(kind: &Kind, name: &str, old: &Stored, wanted: &Preconditions) -> Result<(), Status> {
    match (&wanted.uid, &wanted.resource_version) {
        (Some(uid), _) if *uid != old.header.uid => {
            Err(Status::uid_precondition(kind.group, kind.plural, name, uid, &old.header.uid))
        }
        (_, Some(version)) if *version != old.revision.to_string() => {
            let found = &old.revision.to_string();
            Err(Status::version_precondition(kind.group, kind.plural, name, version, found))
        }
        _ => Ok(()),
    }
}

/// The object with deletion begun, or continued with a shorter grace period.
fn mark(kind: &Kind, old: &Value, options: &DeleteOptions) -> Value {
    let mut object = old.clone();
    if let Some(finalizer) = options.finalizer() {
        let metadata = dhow_api::meta::metadata_mut(&mut object);
        let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|entry| entry == finalizer)
        {
            list.push(json!(finalizer));
        }
    }
    let grace = strategy::grace_seconds(kind, old, options.grace_period_seconds);
    let running = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let begun = dhow_api::meta::deletion_timestamp(old).is_some();
    if !begun || running.is_some_and(|running| grace < running) {
        let end = Timestamp::now() + SignedDuration::from_secs(grace);
        strategy::begin_deletion(kind, &mut object, &time::rfc3339(end), grace);
    }
    if !begun && kind.kind == definitions::KIND && kind.group == definitions::GROUP {
        definitions::hold(&mut object);
    }
    if kind.kind == "Namespace" && kind.group.is_empty() {
        dhow_api::meta::child_mut(&mut object, "status").insert("phase".into(), json!("Terminating"));
    }
    object
}

/// Whether nothing holds the object any more.
fn gone(kind: &Kind, object: &Value) -> bool {
    dhow_api::meta::items(object, &["metadata", "finalizers"]).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && namespace_is_final(kind, object)
}

/// A namespace also waits for its own kind of finalizers.
pub fn namespace_is_final(kind: &Kind, object: &Value) -> bool {
    kind.kind != "Namespace" || dhow_api::meta::items(object, &["spec", "finalizers"]).is_empty()
}
