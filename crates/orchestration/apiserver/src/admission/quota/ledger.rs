//! What the objects of a namespace with quotas are charged. A count parses only what has changed since the last one.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_api::quota::{self, Amounts, Charge};
use dhow_api::registry::{KINDS, Kind};
use dhow_api::{Status, meta};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::ApiServer;

/// What the server keeps of quotas.
#[derive(Default)]
pub struct Quotas {
    ledgers: Mutex<HashMap<String, Arc<Ledger>>>,
    /// Namespaces whose usage may have changed.
    touched: Mutex<Vec<String>>,
    wake: Notify,
}

#[derive(Default)]
pub struct Ledger {
    /// By key in the store.
    charges: Mutex<HashMap<Arc<str>, Counted>>,
    /// Held by the write that is being charged and stored.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// What an object was charged at a revision.
struct Counted {
    revision: u64,
    charge: Charge,
}

impl Quotas {
    pub fn ledger(&self, namespace: &str) -> Arc<Ledger> {
        self.ledgers.lock().entry(namespace.to_owned()).or_default().clone()
    }

    /// Drops what is kept of a namespace that has no quota any more.
    pub fn forget(&self, namespace: &str) {
        self.ledgers.lock().remove(namespace);
    }

    /// Something in a namespace with quotas changed: their status follows.
    pub fn touch(&self, server: &ApiServer, kind: &Kind, namespace: Option<&str>) {
        let Some(namespace) = namespace.filter(|_| kind.namespaced) else { return };
        if kind.kind != "ResourceQuota" && super::stored(server, namespace).is_empty() {
            return;
        }
        let mut touched = self.touched.lock();
        if !touched.iter().any(|known| known == namespace) {
            touched.push(namespace.to_owned());
        }
        self.wake.notify_one();
    }

    /// Waits for namespaces that were touched.
    pub async fn touched(&self) -> Vec<String> {
        loop {
            let touched = std::mem::take(&mut *self.touched.lock());
            if !touched.is_empty() {
                return touched;
            }
            self.wake.notified().await;
        }
    }
}

impl Ledger {
    /// What the objects of a kind use of a quota.
    pub fn used(&self, server: &ApiServer, kind: &Kind, namespace: &str, quota: &Value) -> Result<Amounts, Status> {
        let objects = server.store.cache.objects(kind)?;
        let mut charges = self.charges.lock();
        let prefix = format!("{}{namespace}/", kind.storage_prefix());
        let counted_only = !matches!((kind.group, kind.kind), ("", "Pod" | "Service" | "PersistentVolumeClaim"));
        let each = counted_only.then(|| quota::charge(kind, &Value::Null));
        let mut sum = Amounts::new();
        let mut count = |charge: &Charge| {
            if quota::in_scope(quota, charge) {
                quota::add(&mut sum, &charge.amounts);
            }
        };
        let begin: Arc<str> = Arc::from(prefix.as_str());
        for (key, object) in objects.range(begin..).take_while(|(key, _)| key.starts_with(&prefix)) {
            match (&each, charges.get(key)) {
                (Some(each), _) => count(each),
                (None, Some(known)) if known.revision == object.revision => count(&known.charge),
                (None, _) => {
                    let charge = quota::charge(kind, &object.value()?);
                    count(&charge);
                    charges.insert(key.clone(), Counted { revision: object.revision, charge });
                }
            }
        }
        charges.retain(|key, _| !key.starts_with(&prefix) || objects.contains_key(key));
        Ok(sum)
    }

    /// What everything in the namespace uses of what a quota limits, by the limits' names.
    pub fn total(&self, server: &ApiServer, namespace: &str, quota: &Value) -> Result<Amounts, Status> {
        let hard = quota::amounts(&quota["spec"]["hard"]);
        let mut total: Amounts = hard.keys().map(|name| (name.clone(), dhow_api::quantity::Quantity::ZERO)).collect();
        let catalog = server.definitions.catalog();
        let kinds = KINDS.iter().chain(catalog.custom());
        for kind in kinds
            .filter(|kind| kind.namespaced && kind.is_storage())
            .filter(|kind| hard.keys().any(|name| quota::concerns(kind, name)))
        {
            for (name, amount) in self.used(server, kind, namespace, quota)? {
                if quota::concerns(kind, &name)
                    && let Some(known) = total.get_mut(&name)
                {
                    *known = amount;
                }
            }
        }
        Ok(total)
    }
}

/// The name under which messages and logs know a quota.
pub fn title(quota: &Value) -> String {
    format!("{}/{}", meta::namespace(quota), meta::name(quota))
}
