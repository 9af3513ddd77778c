//! The drivers that are there. A driver may be there more than once while it is being replaced: the latest is called.
//!
//! The slices of a driver that goes are removed after a while, so that no pod is sent to devices that nobody prepares; so are
//! those of drivers that do not come back when the agent was away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_client::{Client as Api, DeleteParams, ListParams};
use dhow_plugins::dra_client::{Client, Version};
use k8s_openapi::api::resource::v1::ResourceSlice;
use parking_lot::Mutex;

/// A driver has so long to come back before its slices go.
pub const AWAY: Duration = Duration::from_secs(30);
/// A driver gets so long for one call.
const CALL: Duration = Duration::from_secs(45);
const RETRY: Duration = Duration::from_secs(1);
const RETRY_LIMIT: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Drivers {
    /// By name, the latest last.
    known: Mutex<BTreeMap<String, Vec<(PathBuf, Client)>>>,
}

impl Drivers {
    pub fn get(&self, name: &str) -> Result<Client, String> {
        let known = self.known.lock();
        let latest = known.get(name).and_then(|all| all.last()).map(|(_, client)| client.clone());
        latest.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.known.lock().contains_key(name)
    }

    /// Takes a driver in.
    pub async fn add(&self, name: &str, endpoint: &Path, supported: &[String]) -> Result<(), String> {
        let Some(version) = Version::of(supported) else {
            let ours = Version::ALL.map(|(name, _)| name).join(", ");
            return Err(format!(
                "invalid supported gRPC versions of DRA driver plugin {name} at endpoint {}: none of {} is supported, only {ours}",
                endpoint.display(),
                supported.join(", ")
            ));
        };
        let channel = dhow_plugins::connect(endpoint, Some(CALL)).await.map_err(|error| dhow_base::chain(&error))?;
        let mut known = self.known.lock();
        let all = known.entry(name.to_owned()).or_default();
        all.retain(|(other, _)| other != endpoint);
        all.push((endpoint.to_owned(), Client::new(channel, version)));
        Ok(())
    }

    /// Whether the driver is gone with it.
    pub fn remove(&self, name: &str, endpoint: &Path) -> bool {
        let mut known = self.known.lock();
        let Some(all) = known.get_mut(name) else { return false };
        all.retain(|(other, _)| other != endpoint);
        let gone = all.is_empty();
        if gone {
            known.remove(name);
        }
        gone
    }
}

/// Removes the node's slices of drivers for which `absent` holds after a while; tried until it works.
pub async fn remove_slices(api: &Api, node: &str, absent: impl Fn(&str) -> bool) {
    tokio::time::sleep(AWAY).await;
    let mut pause = RETRY;
    loop {
        match try_remove(api, node, &absent).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cannot remove the resource slices of a driver that is away"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LIMIT);
    }
}

async fn try_remove(api: &Api, node: &str, absent: &impl Fn(&str) -> bool) -> Result<(), dhow_client::Error> {
    let own = ListParams { field_selector: Some(format!("spec.nodeName={node}")), ..ListParams::default() };
    let slices = api.list::<ResourceSlice>(None, &own).await?;
    for slice in slices.items.iter().filter(|slice| absent(&slice.spec.driver)) {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        let params = DeleteParams { uid: slice.metadata.uid.clone(), ..DeleteParams::default() };
        match api.delete::<ResourceSlice>(None, name, &params).await {
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            other => other?,
        }
        tracing::info!(slice = name, driver = slice.spec.driver, "removed the resource slice of a driver that is away");
    }
    Ok(())
}
