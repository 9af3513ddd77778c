//! ResourceQuota: what a namespace may use in all. Comes last, because it counts what passed everything else.
//!
//! Usage is counted from the objects that are there and the writes that have passed and are not stored yet: of two
//! writes at once, the second counts the first. That holds within one server; several on one store may each let one
//! write too many pass.

mod ledger;
mod status;

use std::sync::Arc;

use dhow_api::quota::{self, Amounts};
use dhow_api::registry::Subresource;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::{Attributes, Operation, in_namespace};
use crate::ApiServer;

pub use ledger::{Held, Quotas};
pub use status::follow;

/// Charges a write to the quotas of its namespace. The answer has to be kept until the write is stored.
pub async fn reserve(server: &ApiServer, attributes: &Attributes<'_>) -> Result<Option<Held>, Status> {
    let kind = attributes.kind;
    let namespace = attributes.namespace.filter(|_| kind.namespaced && kind.stored && is_charged(attributes));
    let Some(namespace) = namespace else { return Ok(None) };
    let quotas = in_namespace(server, "", "resourcequotas", Some(namespace))?;
    let concerned: Vec<&Value> = quotas.iter().filter(|quota| !hard(quota, attributes).is_empty()).collect();
    if concerned.is_empty() {
        return Ok(None);
    }
    let new = quota::charge(kind, &attributes.object);
    let old = attributes.old.map(|old| quota::charge(kind, old)).unwrap_or_default();
    // What others stored is in before this one counts.
    server.store.catch_up().await?;
    let shared = server.quotas.ledger(namespace);
    let mut ledger = shared.lock();
    for quota in concerned.into_iter().filter(|quota| quota::in_scope(quota, &new)) {
        let hard = hard(quota, attributes);
        let name = meta::name(quota);
        if attributes.is("", "Pod")
            && let Some(missing) = quota::unspecified(&attributes.object, hard.keys().map(String::as_str))
        {
            return Err(attributes.forbidden(&format!("failed quota: {name}: {missing}")));
        }
        let before = if quota::in_scope(quota, &old) { &old.amounts } else { &Amounts::new() };
        let requested = growth(&hard, before, &new.amounts);
        if requested.is_empty() {
            continue;
        }
        let used = ledger.used(server, kind, namespace, quota)?;
        let used_of = |name: &String| used.get(name).copied().unwrap_or(quantity_zero());
        let exceeds = |name: &String| hard.get(name).is_some_and(|limit| used_of(name) + requested[name] > *limit);
        let exceeded: Vec<&String> = requested.keys().filter(|name| exceeds(name)).collect();
        if exceeded.is_empty() {
            continue;
        }
        let mask = |amounts: &Amounts| -> String {
            let all =
                exceeded.iter().map(|name| ((*name).clone(), amounts.get(*name).copied().unwrap_or(quantity_zero())));
            quota::text(&all.collect())
        };
        let (requested, used, limited) = (mask(&requested), mask(&used), mask(&hard));
        let why = format!("exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}");
        return Err(attributes.forbidden(&why));
    }
    if attributes.dry_run {
        return Ok(None);
    }
    let key = kind.storage_key(Some(namespace), attributes.name);
    Ok(Some(ledger.hold(&shared, &key, attributes.revision(), new)))
}

fn quantity_zero() -> dhow_api::quantity::Quantity {
    dhow_api::quantity::Quantity::ZERO
}

/// New objects are charged, and those kinds that can come to use more.
fn is_charged(attributes: &Attributes<'_>) -> bool {
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, None) => true,
        (Operation::Update, None) => attributes.is("", "Service") || attributes.is("", "PersistentVolumeClaim"),
        (Operation::Update, Some(subresource)) => subresource == Subresource::Resize,
        _ => false,
    }
}

/// The limits of a quota that the write's kind counts against.
fn hard(quota: &Value, attributes: &Attributes<'_>) -> Amounts {
    let mut hard = quota::amounts(&quota["spec"]["hard"]);
    hard.retain(|name, _| quota::concerns(attributes.kind, name));
    hard
}

/// What a write uses more than before, of what is limited.
fn growth(hard: &Amounts, before: &Amounts, after: &Amounts) -> Amounts {
    let more = |name: &String| {
        let (before, after) = (before.get(name).copied().unwrap_or(quantity_zero()), after.get(name).copied()?);
        (after > before).then(|| (name.clone(), after - before))
    };
    hard.keys().filter_map(more).collect()
}

/// The quota objects of a namespace as they are stored.
fn stored(server: &ApiServer, namespace: &str) -> Vec<Arc<crate::object::Stored>> {
    super::stored_in(server, "", "resourcequotas", namespace)
}
