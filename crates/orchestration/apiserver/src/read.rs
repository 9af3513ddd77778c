//! get and list.

use std::sync::Arc;

use base64::Engine as _;
use dhow_api::Status;
use dhow_api::selectors::{FieldSelector, FieldTerm, LabelSelector};
use dhow_api::validation::FieldError;
use dhow_client::Body;
use http::Response;
use serde::{Deserialize, Serialize};

use crate::ApiServer;
use crate::cache::Snapshot;
use crate::encode::{self, Accept};
use crate::info::{Query, ResourceTarget};
use crate::object::{Selection, Stored};
use crate::pipeline::{Authorized, Request};

pub async fn get(server: &ApiServer, request: &Request<Authorized>, accept: &Accept) -> Result<Response<Body>, Status> {
    let object = existing(server, &request.target).await?;
    encode::object(&request.target.kind, &object, accept, 200)
}

/// The object a target names.
pub async fn existing(server: &ApiServer, target: &ResourceTarget) -> Result<Arc<Stored>, Status> {
    let name = target.name.as_deref().unwrap_or_default();
    server.store.get(&target.kind, target.namespace.as_deref(), name).await
}

/// Label and field selectors of a request, checked against what the kind offers.
pub fn selection(target: &ResourceTarget, query: &Query) -> Result<Selection, Status> {
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?;
    let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())?;
    fields.check(&target.kind)?;
    let mut fields = fields;
    if let Some(name) = &target.name {
        fields.terms.push(FieldTerm { path: "metadata.name".into(), value: name.clone(), negated: false });
    }
    Ok(Selection { labels, fields })
}

/// Where the next page begins: the revision all pages come from, and the last key of this one.
#[derive(Serialize, Deserialize)]
struct Continue {
    rv: u64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    }

    fn decode(token: &str) -> Result<Self, Status> {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(|| Status::bad_request("invalid continue token: continue key is not valid"))
    }
}

/// One page of a list.
pub struct Page {
    pub revision: u64,
    pub items: Vec<Arc<Stored>>,
    pub continue_token: Option<String>,
    /// How many follow, where that is known: a selector would have to be tried on all of them.
    pub remaining: Option<u64>,
}

pub async fn list(
    server: &ApiServer,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let query = &request.info.query;
    check_options(query, false)?;
    let selection = selection(&request.target, query)?;
    let (snapshot, after) = view(server, &request.target, query).await?;
    let limit = query.number("limit")?.unwrap_or(0);
    convert(server, &snapshot, &request.target, &selection, after.as_deref(), limit).await?;
    let page = page(&snapshot, &request.target, &selection, after.as_deref(), limit);
    if page.continue_token.is_some() {
        server.store.cache.keep(&request.target.kind, snapshot)?;
    }
    encode::list(&request.target.kind, &page, accept)
}

/// Refuses options that contradict each other, in upstream's words.
pub fn check_options(query: &Query, watching: bool) -> Result<(), Status> {
    const MATCH: &str = "resourceVersionMatch";
    let initial = query.get("sendInitialEvents");
    let mut errors = Vec::new();
    let mut forbid = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
    match (query.get(MATCH), watching) {
        (None, true) | (Some("Exact"), true) if initial.is_some() => {
            forbid(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        (Some(_), true) if initial.is_none() => {
            forbid(MATCH, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        (Some(_), false) if query.get("resourceVersion").is_none() => {
            forbid(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        (Some(_), false) if query.get("continue").is_some() => {
            forbid(MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
        (Some("Exact"), false) if query.get("resourceVersion") == Some("0") => {
            forbid(MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        (Some("Exact" | "NotOlderThan") | None, _) => {}
        (Some(other), _) => {
            errors.push(FieldError::not_supported(MATCH, other, &["Exact", "NotOlderThan", ""]));
        }
    }
    if initial.is_some() && !watching {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

/// The snapshot a list reads: of the first page's revision if this is a later page.
async fn view(
    server: &ApiServer,
    target: &ResourceTarget,
    query: &Query,
) -> Result<(Snapshot, Option<String>), Status> {
    let wanted = query.resource_version()?.unwrap_or(0);
    if let Some(token) = query.get("continue") {
        if wanted > 0 {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let place = Continue::decode(token)?;
        return match server.store.snapshot_at(&target.kind, place.rv).await? {
            Some(snapshot) => Ok((snapshot, Some(place.after))),
            None => {
                let fresh = server.store.snapshot(&target.kind).await?;
                let token = Continue { rv: fresh.revision, after: place.after }.encode();
                Err(Status::continue_expired(token))
            }
        };
    }
    if query.get("resourceVersionMatch") == Some("Exact") {
        server.store.catch_up().await?;
        let expired = || Status::expired(format!("The resourceVersion for the provided list is too old: {wanted}"));
        return Ok((server.store.snapshot_at(&target.kind, wanted).await?.ok_or_else(expired)?, None));
    }
    let snapshot = server.store.snapshot(&target.kind).await?;
    if wanted > snapshot.revision {
        return Err(Status::too_large_resource_version(wanted, snapshot.revision));
    }
    Ok((snapshot, None))
}

/// Has webhooks convert what [`select`] will look at: of a page of everything, no more than the page.
pub async fn convert(
    server: &ApiServer,
    snapshot: &Snapshot,
    target: &ResourceTarget,
    selection: &Selection,
    after: Option<&str>,
    limit: u64,
) -> Result<(), Status> {
    let within = within(snapshot, target, after);
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 && selection.is_empty() => server.store.convert(&target.kind, within.take(limit)).await,
        _ => match &target.name {
            Some(name) => server.store.convert(&target.kind, within.filter(|object| object.header.name == *name)).await,
            None => server.store.convert(&target.kind, within).await,
        },
    }
}

/// The objects of a target, in key order and in its kind's form.
pub fn select<'a>(
    snapshot: &'a Snapshot,
    target: &ResourceTarget,
    selection: &Selection,
    after: Option<&str>,
) -> impl Iterator<Item = Arc<Stored>> + use<'a> {
    let (kind, selection) = (target.kind.clone(), selection.clone());
    within(snapshot, target, after)
        .map(move |object| match &kind.custom {
            // Others are in that form already.
            None => object.clone(),
            Some(_) => object.in_form(&kind),
        })
        .filter(move |object| object.matches(&selection))
}

/// The objects under a target's keys, as they come out of the snapshot.
fn within<'a>(
    snapshot: &'a Snapshot,
    target: &ResourceTarget,
    after: Option<&str>,
) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a> {
    let kind = &target.kind;
    let prefix = match &target.namespace {
        Some(namespace) if kind.namespaced => format!("{}{namespace}/", kind.storage_prefix()),
        _ => kind.storage_prefix(),
    };
    let skip = after.map(str::to_owned);
    let begin: Arc<str> = Arc::from(skip.as_deref().unwrap_or(&prefix));
    snapshot
        .objects
        .range(begin..)
        .skip_while(move |(key, _)| skip.as_deref() == Some(key.as_ref()))
        .take_while(move |(key, _)| key.starts_with(&prefix))
        .map(|(_, object)| object)
}

fn page(snapshot: &Snapshot, target: &ResourceTarget, selection: &Selection, after: Option<&str>, limit: u64) -> Page {
    let mut found = select(snapshot, target, selection, after);
    let limit = if limit == 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) };
    let taken: Vec<Arc<Stored>> = found.by_ref().take(limit).collect();
    let remaining = found.count() as u64;
    let last = taken.last().filter(|_| remaining > 0);
    let continue_token = last.map(|last| Continue { rv: snapshot.revision, after: last.key.to_string() }.encode());
    Page {
        revision: snapshot.revision,
        items: taken,
        continue_token,
        remaining: selection.is_empty().then_some(remaining),
    }
}
