//! What is asked of builds and runs besides objects: a run's log, a run of what is sent, and what webhooks say. These are
//! subresources, so that roles decide about them; all webhooks may speak, and prove themselves by their Build's secret.
//!
//! | request below `/apis/build.dhow.io/v1alpha1/namespaces/NS` | right |
//! |---|---|
//! | `GET /buildruns/NAME/log?follow=&tailLines=&timestamps=` | `get buildruns/log` |
//! | `POST /builds/NAME/upload` with an archive | `create builds/upload` |
//! | `POST /builds/NAME/webhooks/HOOK` | `create builds/webhooks` |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::{Body, Client, Error, Extension, Informer, Key, ListParams, Patch, full};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::{Node, Secret};
use ring::digest;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::builds::new_run;
use super::hooks::{self, Said};
use super::kinds::{Build, BuildRun, Cause, CauseKind, GROUP, RunSpec, Upload, VERSION, Webhook};
use super::turn::{self, Place};

/// Largest delivery; GitHub's own limit is above what a push ever takes.
const MOST: usize = 5 << 20;
/// For a delivery to arrive.
const PATIENCE: Duration = Duration::from_secs(15);
/// How many deliveries are remembered by each build.
const REMEMBERED: usize = 100;
/// Attempts at writing down a delivery beside others.
const ATTEMPTS: usize = 8;

/// Answers on one server, as a user whose rights are those of its parts.
pub struct Door {
    client: Client,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Log { namespace: &'a str, run: &'a str },
    Upload { namespace: &'a str, build: &'a str },
    Webhook { namespace: &'a str, build: &'a str, hook: &'a str },
}

fn asked(path: &str) -> Option<Asked<'_>> {
    // Names need no escapes; so that roles and we see the same.
    let rest = path.strip_prefix("/apis/").filter(|path| !path.contains('%'))?;
    let parts: Vec<&str> = rest.split('/').collect();
    let [GROUP, VERSION, "namespaces", namespace, rest @ ..] = parts.as_slice() else { return None };
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    match rest {
        ["buildruns", run, "log"] => Some(Asked::Log { namespace, run }),
        ["builds", build, "upload"] => Some(Asked::Upload { namespace, build }),
        ["builds", build, "webhooks", hook] => Some(Asked::Webhook { namespace, build, hook }),
        _ => None,
    }
}

#[async_trait::async_trait]
impl Extension for Door {
    fn claims(&self, path: &str) -> bool {
        asked(path).is_some()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let done = match (asked(&path), request.method()) {
            (Some(Asked::Log { namespace, run }), &Method::GET) => {
                self.log(namespace, run, request.uri().query().unwrap_or_default()).await
            }
            (Some(Asked::Upload { namespace, build }), &Method::POST) => {
                self.upload(namespace, build, request.into_body()).await
            }
            (Some(Asked::Webhook { namespace, build, hook }), &Method::POST) => {
                let (parts, body) = request.into_parts();
                self.webhook(namespace, build, hook, &parts.headers, body).await
            }
            (Some(_), _) => Err(Status::method_not_allowed()),
            (None, _) => Err(Status::no_such_resource()),
        };
        done.unwrap_or_else(|status| document(status.code, &status.to_value()))
    }
}

fn document(code: u16, value: &Value) -> Response<Body> {
    let mut answer = Response::new(full(Bytes::from(value.to_string())));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

fn refused(error: Error) -> Status {
    match error {
        Error::Api { code, message, .. } => Status::of_backend(code, message),
        other => Status::service_unavailable(other.to_string()),
    }
}

impl Door {
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client })
    }

    async fn log(&self, namespace: &str, name: &str, query: &str) -> Result<Response<Body>, Status> {
        let follow = query.split('&').any(|pair| pair == "follow=true");
        let run = match follow {
            true => self.begun(namespace, name).await?,
            false => self.client.get::<BuildRun>(Some(namespace), name).await.map_err(refused)?,
        };
        let status = run.status.clone().unwrap_or_default();
        let Some(node) = status.node_name else {
            // It waits, or failed before there was anything to run.
            let said = match status.message.as_str() {
                "" => format!("the run is {:?}; it has no log yet\n", status.phase),
                why => format!("the run is {:?}, {}: {why}\n", status.phase, status.reason),
            };
            let mut answer = Response::new(full(Bytes::from(said)));
            let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, plain);
            return Ok(answer);
        };
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let path = format!("/api/v1/nodes/{node}/proxy{}/logs/{}{query}", crate::api::PATH, run.uid());
        let request =
            Request::get(path).body(full(Bytes::new())).map_err(|error| Status::bad_request(error.to_string()))?;
        self.client.upload(request).await.map_err(refused)
    }

    /// The run once it is on a node, or over.
    async fn begun(&self, namespace: &str, name: &str) -> Result<BuildRun, Status> {
        let first = self.client.get::<BuildRun>(Some(namespace), name).await.map_err(refused)?;
        let is_begun = |run: &BuildRun| {
            run.phase().is_over() || run.status.as_ref().is_some_and(|status| status.node_name.is_some())
        };
        if is_begun(&first) {
            return Ok(first);
        }
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        let changed = Arc::new(Notify::new());
        let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
        let runs = Informer::<BuildRun>::start(self.client.clone(), scope, Some(namespace), stop);
        let told = Arc::clone(&changed);
        runs.on_change(move |_| told.notify_one());
        runs.synced().await;
        let key = Key::new(Some(namespace), name);
        loop {
            match runs.get(&key) {
                Some(run) if is_begun(&run) => return Ok((*run).clone()),
                Some(_) => changed.notified().await,
                None => return Err(Status::not_found(GROUP, "buildruns", name)),
            }
        }
    }

    async fn upload(&self, namespace: &str, name: &str, body: Body) -> Result<Response<Body>, Status> {
        let build = self.client.get::<Build>(Some(namespace), name).await.map_err(refused)?;
        if build.spec.source.upload.is_none() {
            let message =
                format!("the Build {name} is not built from what is sent: its source is {}", build.spec.source.shown());
            return Err(Status::bad_request(message));
        }
        let nodes = self.client.list::<Node>(None, &ListParams::default()).await.map_err(refused)?;
        let places: Vec<Place> = nodes.items.iter().filter_map(Place::of).collect();
        let node = turn::place(&places, &[], &build.spec.node_selector, None, usize::MAX);
        let node = node.map_err(Status::service_unavailable)?;
        let id = uuid::Uuid::new_v4().to_string();
        let path = format!("/api/v1/nodes/{node}/proxy{}/uploads/{namespace}/{id}", crate::api::PATH);
        let request = Request::put(&path).body(body).map_err(|error| Status::bad_request(error.to_string()))?;
        let answer = self.client.upload(request).await.map_err(refused)?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        let spec = RunSpec {
            build: name.to_owned(),
            upload: Some(Upload { node, id }),
            cause: Some(Cause { kind: CauseKind::Upload, ..Cause::default() }),
            ..RunSpec::default()
        };
        match self.client.create(&new_run(&build, &format!("{name}-"), spec)).await {
            Ok(run) => {
                let run = serde_json::to_value(&run).map_err(|error| Status::internal(error.to_string()))?;
                let mut shown = json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "BuildRun"});
                if let (Some(shown), Some(run)) = (shown.as_object_mut(), run.as_object()) {
                    shown.extend(run.clone());
                }
                Ok(document(201, &shown))
            }
            Err(error) => {
                // Nobody will build it.
                if let Ok(request) = Request::delete(&path).body(Bytes::new()) {
                    let _ = self.client.request(request).await;
                }
                Err(refused(error))
            }
        }
    }

    async fn webhook(
        &self,
        namespace: &str,
        name: &str,
        hook: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let read = tokio::time::timeout(PATIENCE, Limited::new(body, MOST).collect()).await;
        let read = read.map_err(|_| Status::timeout("the delivery did not arrive in time", None))?;
        let body = read.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
            true => Status::too_large(MOST),
            false => Status::bad_request("the delivery broke off"),
        })?;
        let body = body.to_bytes();
        // The same words for all: nobody learns what there is.
        let Some((build, hook)) = self.proven(namespace, name, hook, headers, &body).await? else {
            return Err(Status::of_backend(403, "there is no such webhook, or the secret is another one"));
        };
        let nothing = |why: &str| Ok(document(200, &json!({"message": format!("nothing is built: {why}")})));
        let push = match hooks::read(hook.kind, headers, &body).map_err(Status::bad_request)? {
            Said::Push(push) => push,
            Said::Nothing(why) => return nothing(why),
        };
        if build.spec.suspend {
            return nothing("the Build is suspended");
        }
        if build.spec.source.upload.is_some() {
            return nothing("the Build is built from what is sent");
        }
        let own = build.spec.source.git.as_ref().map(|git| git.reference.as_str()).unwrap_or_default();
        if !hooks::is_wanted(&hook.refs, own, &push) {
            return nothing("the branch or tag is not one that counts");
        }
        // A plain request to build means: once more. All others are one push each, however often they are told.
        let told = (!body.trim_ascii().is_empty()).then(|| hex(digest::digest(&digest::SHA256, &body).as_ref()));
        let known = build.status.iter().flat_map(|status| &status.deliveries);
        if told.as_ref().is_some_and(|told| known.into_iter().any(|known| known == told)) {
            return nothing("it was told before");
        }
        let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let revision =
            build.spec.source.git.as_ref().and_then(|_| said(&push.commit).or_else(|| said(&push.reference)));
        let cause = Cause {
            kind: CauseKind::Webhook,
            webhook: hook.name.clone(),
            reference: push.reference.clone(),
            commit: push.commit.clone(),
            message: push.subject.clone(),
            ..Cause::default()
        };
        let revision = revision.map(|text| text.strip_prefix("tags/").map(str::to_owned).unwrap_or(text));
        let spec = RunSpec { build: name.to_owned(), revision, cause: Some(cause), ..RunSpec::default() };
        let called = match &told {
            Some(told) => format!("{name}-{}", &told[..10]),
            None => format!("{name}-"),
        };
        let made = match self.client.create(&new_run(&build, &called, spec)).await {
            Ok(run) => run,
            Err(error) if error.is_already_exists() => return nothing("it was told before"),
            Err(error) => return Err(refused(error)),
        };
        if let Some(told) = told {
            self.remember(namespace, name, &told).await?;
        }
        Ok(document(201, &json!({"message": "a run was made", "buildRun": made.name()})))
    }

    /// The build and its hook, if the sender knows the hook's secret.
    async fn proven(
        &self,
        namespace: &str,
        name: &str,
        hook: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Option<(Build, Webhook)>, Status> {
        let found = |error: Error| if error.is_not_found() { Ok(None) } else { Err(refused(error)) };
        let build = match self.client.get::<Build>(Some(namespace), name).await {
            Ok(build) => build,
            Err(error) => return found(error),
        };
        let Some(hook) = build.spec.triggers.webhooks.iter().find(|one| one.name == hook).cloned() else {
            return Ok(None);
        };
        let secret = match self.client.get::<Secret>(Some(namespace), &hook.secret).await {
            Ok(secret) => secret,
            Err(error) => return found(error),
        };
        let key = if hook.key.is_empty() { "token" } else { &hook.key };
        let secret = secret.data.and_then(|mut data| data.remove(key)).map(|bytes| bytes.0).unwrap_or_default();
        Ok(hooks::is_proven(hook.kind, &secret, headers, body).then_some((build, hook)))
    }

    /// So that the same delivery makes no second run once the first is forgotten.
    async fn remember(&self, namespace: &str, name: &str, told: &str) -> Result<(), Status> {
        for _ in 0..ATTEMPTS {
            let build = self.client.get::<Build>(Some(namespace), name).await.map_err(refused)?;
            let mut deliveries = build.status.unwrap_or_default().deliveries;
            deliveries.push(told.to_owned());
            let over = deliveries.len().saturating_sub(REMEMBERED);
            deliveries.drain(..over);
            let seen = json!({"resourceVersion": build.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": seen, "status": {"deliveries": deliveries}}));
            match self.client.patch::<Build>(Some(namespace), name, patch, Some("status")).await {
                Err(error) if error.is_conflict() => {}
                other => return other.map(drop).map_err(refused),
            }
        }
        Err(Status::service_unavailable("the Build is changed too often to write down the delivery"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_that_roles_see() {
        let root = "/apis/build.dhow.io/v1alpha1/namespaces/team";
        let of = |rest: &str| asked(&format!("{root}/{rest}")).is_some();
        assert!(of("buildruns/a/log") && of("builds/a/upload") && of("builds/a/webhooks/github"));
        for rest in [
            "builds/a",
            "builds/a/webhooks",
            "builds//upload",
            "buildruns/a/log/",
            "buildruns/%61/log",
            "buildruns/a/log/x",
        ] {
            assert!(!of(rest), "{rest}");
        }
        assert!(asked("/apis/build.dhow.io/v1/namespaces/team/builds/a/upload").is_none());
        assert!(asked("/apis/build.dhow.io/v1alpha1/builds/a/upload").is_none());
    }
}
