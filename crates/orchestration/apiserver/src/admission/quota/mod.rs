//! ResourceQuota: what a namespace may use in all. Comes last, because it counts what passed everything else.
//!
//! Usage is counted from the objects that are there. A write that uses more changes the status of the quotas it is
//! charged to, in the same transaction and only if they are as they were when it was counted: so of two writes at once,
//! on whichever servers of a store, the second counts the first.

mod ledger;
mod status;

use std::sync::Arc;

use dhow_api::quota::{self, Amounts};
use dhow_api::registry::{self, Subresource};
use dhow_api::{Status, meta};
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::{Attributes, Operation};
use crate::ApiServer;
use crate::object::Stored;
use crate::store::Guard;

pub use ledger::Quotas;
pub use status::follow;

/// What a write is charged to. Kept until the write is stored or has failed: the next of the namespace waits for it
/// instead of failing by it.
#[must_use]
#[derive(Default)]
pub struct Charged {
    pub guards: Vec<Guard>,
    _turn: Option<OwnedMutexGuard<()>>,
}

/// Charges a write to the quotas of its namespace.
pub async fn charge(server: &ApiServer, attributes: &Attributes<'_>) -> Result<Charged, Status> {
    let kind = attributes.kind;
    let namespace = attributes.namespace.filter(|_| kind.namespaced && kind.stored && is_charged(attributes));
    let Some(namespace) = namespace else { return Ok(Charged::default()) };
    let concerned = || -> Result<Vec<(Arc<Stored>, Value)>, Status> {
        let quotas = stored(server, namespace).into_iter().map(|quota| Ok((quota.value()?, quota)));
        let quotas = quotas.collect::<Result<Vec<_>, Status>>()?.into_iter();
        Ok(quotas
            .filter(|(value, _)| !hard(value, attributes).is_empty())
            .map(|(value, quota)| (quota, value))
            .collect())
    };
    if concerned()?.is_empty() {
        return Ok(Charged::default());
    }
    let new = quota::charge(kind, &attributes.object);
    let old = attributes.old.map(|old| quota::charge(kind, old)).unwrap_or_default();
    let ledger = server.quotas.ledger(namespace);
    let turn = ledger.turn.clone().lock_owned().await;
    // What others stored is in before this one counts.
    server.store.catch_up().await?;
    let quotas = concerned()?;
    // First the quotas, then what is used: so whatever is not counted yet has changed a quota since.
    for (quota, _) in &quotas {
        server.store.cache.wait_for(quota.revision).await;
    }
    let mut charged = Charged { guards: Vec::new(), _turn: Some(turn) };
    for (stored, quota) in quotas.iter().filter(|(_, quota)| quota::in_scope(quota, &new)) {
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
            let after = requested.iter().map(|(name, more)| (name.clone(), used_of(name) + *more)).collect();
            charged.guards.push(guard(server, stored, quota, &after)?);
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
    Ok(charged)
}

/// The quota with these amounts used, if it is still as it is.
fn guard(server: &ApiServer, stored: &Stored, quota: &Value, used: &Amounts) -> Result<Guard, Status> {
    let kind = registry::builtin().get("", "v1", "resourcequotas").ok_or_else(Status::no_such_resource)?;
    let mut after = quota.clone();
    let status = meta::child_mut(&mut after, "status");
    status.insert("hard".into(), quota["spec"]["hard"].clone());
    let all = status.entry("used").or_insert_with(|| json!({}));
    for (name, amount) in used {
        all[name] = json!(amount.to_string());
    }
    server.store.guard(kind, stored, &after)
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
fn stored(server: &ApiServer, namespace: &str) -> Vec<Arc<Stored>> {
    super::stored_in(server, "", "resourcequotas", namespace)
}
