//! Work on custom kinds, done while the API serves them.

use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Client, Informer, Key, ListParams};

/// Calls `start` whenever `version` of all these definitions (by their names) begins to be served; what it is given is
/// cancelled when one is served no longer. Returns at `shutdown`.
pub async fn while_served(
    client: &Client,
    definitions: &[&str],
    version: &str,
    shutdown: &CancellationToken,
    start: impl Fn(CancellationToken),
) {
    let changed = Arc::new(Notify::new());
    let watch = |name: &&str| {
        let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
        let informer = Informer::<CustomResourceDefinition>::start(client.clone(), scope, None, shutdown.child_token());
        let told = changed.clone();
        informer.on_change(move |_| told.notify_one());
        (Key::new(None, name), informer)
    };
    let watched: Vec<_> = definitions.iter().map(watch).collect();
    let mut running: Option<CancellationToken> = None;
    loop {
        let is_there =
            watched.iter().all(|(key, all)| all.get(key).is_some_and(|definition| is_served(&definition, version)));
        match &running {
            None if is_there => {
                let stop = shutdown.child_token();
                start(stop.clone());
                running = Some(stop);
            }
            Some(stop) if !is_there => {
                stop.cancel();
                running = None;
            }
            _ => {}
        }
        tokio::select! { () = changed.notified() => {}, () = shutdown.cancelled() => return }
    }
}

fn is_served(definition: &CustomResourceDefinition, version: &str) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let established = conditions.into_iter().any(|one| one.type_ == "Established" && one.status == "True");
    established && definition.spec.versions.iter().any(|one| one.name == version && one.served)
}
