//! The status of quotas follows what is used: one task, woken by the writes that may change it.

use std::sync::Arc;

use dhow_api::{Status, meta, quota};
use serde_json::{Value, json};

use super::ledger::title;
use super::stored;
use crate::ApiServer;
use crate::store::{RETRIES, Written};

/// Runs until the server shuts down.
pub async fn follow(server: Arc<ApiServer>) {
    if let Ok(quotas) = super::super::all(&server, "", "resourcequotas") {
        for quota in quotas {
            if let Some(kind) = dhow_api::registry::builtin().get("", "v1", "resourcequotas") {
                server.quotas.touch(&server, kind, Some(meta::namespace(&quota)));
            }
        }
    }
    loop {
        let namespaces = tokio::select! {
            namespaces = server.quotas.touched() => namespaces,
            () = server.shutdown.cancelled() => return,
        };
        for namespace in namespaces {
            if let Err(status) = refresh(&server, &namespace).await {
                tracing::warn!(namespace, message = status.message, "cannot write the status of quotas");
            }
        }
    }
}

async fn refresh(server: &ApiServer, namespace: &str) -> Result<(), Status> {
    let Some(kind) = dhow_api::registry::builtin().get("", "v1", "resourcequotas") else { return Ok(()) };
    let quotas = stored(server, namespace);
    if quotas.is_empty() {
        server.quotas.forget(namespace);
        return Ok(());
    }
    for name in quotas.iter().map(|quota| quota.header.name.clone()) {
        for _ in 0..RETRIES {
            // It may have gone, or may be another by now.
            let Some(found) = server.store.cache.get(kind, &kind.storage_key(Some(namespace), &name)) else { break };
            let mut object = found.value()?;
            let ledger = server.quotas.ledger(namespace);
            let used = ledger.total(server, namespace, &object)?;
            let wanted = json!({"hard": object["spec"]["hard"], "used": written(&used)});
            if object["status"] == wanted {
                break;
            }
            object["status"] = wanted;
            if let Written::Done(_) = server.store.update(kind, &found, &object).await? {
                tracing::trace!(quota = title(&object), "usage written");
                break;
            }
        }
    }
    Ok(())
}

fn written(amounts: &quota::Amounts) -> Value {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), json!(amount.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
