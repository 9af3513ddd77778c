//! Dynamic resource allocation on the node: drivers prepare the devices of pods' claims before their containers are made, and
//! undo it when no pod of the node uses the claim any more. Containers get devices by their CDI names.
//!
//! Invariant: before a driver is asked to prepare a claim, the claim is written down with its pod.

mod checkpoint;
mod drivers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_api::resource_claims;
use dhow_client::Client as Api;
use dhow_cri::runtime::ContainerConfig;
use dhow_plugins::dra;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::Error;
use checkpoint::{Claim, Claims, Prepared};
pub use drivers::Drivers;

pub struct Dra {
    folder: PathBuf,
    pub drivers: Drivers,
    /// Claims are prepared and undone one after another: `None` until the file was read.
    claims: Mutex<Option<Claims>>,
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

/// The drivers of a claim's devices; those that are only looked after too.
fn drivers_of(claim: &ResourceClaim) -> Result<BTreeSet<String>, String> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let allocation = allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    Ok(results.map(|result| result.driver.clone()).collect())
}

impl Dra {
    pub fn new(root: &Path) -> Self {
        Self { folder: root.to_owned(), drivers: Drivers::default(), claims: Mutex::default() }
    }

    /// The pods that claims are prepared for, by uid.
    pub async fn pods(&self) -> Result<BTreeSet<String>, Error> {
        let mut held = self.claims.lock().await;
        let claims = self.loaded(&mut held)?;
        Ok(claims.claims.iter().flat_map(|claim| claim.pods.iter().cloned()).collect())
    }

    fn loaded<'a>(&self, held: &'a mut Option<Claims>) -> Result<&'a mut Claims, Error> {
        if held.is_none() {
            *held = Some(Claims::read(&self.folder)?);
        }
        Ok(held.get_or_insert_default())
    }

    /// Has the devices of all of a pod's claims prepared; again only those that are not yet.
    ///
    /// # Errors
    /// For the pod's events, in upstream's words.
    pub async fn prepare(&self, api: &Api, pod: &Pod) -> Result<(), String> {
        if resource_claims::entries(pod).is_empty() {
            return Ok(());
        }
        self.prepare_all(api, pod).await.map_err(|error| format!("prepare dynamic resources: {error}"))
    }

    async fn prepare_all(&self, api: &Api, pod: &Pod) -> Result<(), String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = text(pod.metadata.uid.as_ref());
        // All is looked at before anything is written down: a pod that cannot have its devices is let go easily.
        let mut wanted = Vec::new();
        for entry in resource_claims::entries(pod) {
            let Some((name, own)) = resource_claims::name(pod, entry)? else { continue };
            let claim: Result<ResourceClaim, _> = api.get(Some(namespace), name).await;
            let claim = claim.map_err(|error| format!("fetch ResourceClaim {name}: {error}"))?;
            check(pod, &claim, own)?;
            let mut drivers = BTreeMap::new();
            for driver in drivers_of(&claim)? {
                drivers.insert(driver.clone(), self.drivers.get(&driver)?);
            }
            wanted.push((claim, drivers));
        }
        let mut held = self.claims.lock().await;
        let told = |error: Error| format!("checkpoint ResourceClaim cache: {error}");
        let claims = self.loaded(&mut held).map_err(told)?;
        let mut batches: BTreeMap<String, Vec<dra::Claim>> = BTreeMap::new();
        let mut clients = BTreeMap::new();
        for (claim, drivers) in wanted {
            let (name, claim_uid) = (text(claim.metadata.name.as_ref()), text(claim.metadata.uid.as_ref()));
            if claims.find(namespace, &name).is_none() {
                let devices = drivers.keys().map(|driver| (driver.clone(), Vec::new())).collect();
                claims.claims.push(Claim {
                    uid: claim_uid.clone(),
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                    devices,
                    ..Claim::default()
                });
            }
            let Some(known) = claims.find_mut(namespace, &name) else { continue };
            if known.uid != claim_uid {
                return Err(format!(
                    "old ResourceClaim with same name {name} and different UID {} still exists (previous pod force-deleted?!)",
                    known.uid
                ));
            }
            known.pods.insert(uid.clone());
            if !known.prepared {
                let asked = dra::Claim { namespace: namespace.to_owned(), uid: claim_uid, name };
                for driver in drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(asked.clone());
                }
            }
            clients.extend(drivers);
        }
        claims.write(&self.folder).map_err(told)?;
        let mut done: BTreeSet<String> = BTreeSet::new();
        for (driver, asked) in batches {
            let Some(client) = clients.get(&driver) else { continue };
            let request = dra::NodePrepareResourcesRequest { claims: asked.clone() };
            let answer = client.prepare(request).await;
            let answer = answer.map_err(|status| format!("NodePrepareResources: {}", status.message()))?;
            for (claim_uid, result) in &answer.claims {
                let Some(claim) = asked.iter().find(|claim| claim.uid == *claim_uid) else {
                    return Err(format!("NodePrepareResources returned result for unknown claim UID {claim_uid}"));
                };
                if !result.error.is_empty() {
                    return Err(format!(
                        "NodePrepareResources failed for ResourceClaim {}: {}",
                        claim.name, result.error
                    ));
                }
                if let Some(known) = claims.find_mut(&claim.namespace, &claim.name) {
                    known.devices.insert(driver.clone(), result.devices.iter().map(prepared).collect());
                }
            }
            let skipped = asked.len().saturating_sub(answer.claims.len());
            if skipped > 0 {
                return Err(format!("NodePrepareResources skipped {skipped} ResourceClaims"));
            }
            done.extend(asked.into_iter().map(|claim| claim.uid));
        }
        for claim in claims.claims.iter_mut().filter(|claim| done.contains(&claim.uid)) {
            claim.prepared = true;
        }
        claims.write(&self.folder).map_err(told)
    }

    /// Adds to a container what it needs for the devices of its claims.
    pub async fn equip(&self, pod: &Pod, container: &Container, config: &mut ContainerConfig) -> Result<(), Error> {
        let asked = container.resources.iter().flat_map(|own| own.claims.iter().flatten()).collect::<Vec<_>>();
        if asked.is_empty() {
            return Ok(());
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut held = self.claims.lock().await;
        let claims = self.loaded(&mut held)?;
        for asked in asked {
            let Some(entry) = resource_claims::entries(pod).iter().find(|entry| entry.name == asked.name) else {
                continue;
            };
            let Some((name, _)) = resource_claims::name(pod, entry).map_err(Error::config)? else { continue };
            let known = claims.find(namespace, name).filter(|claim| claim.prepared).ok_or_else(|| {
                Error::config(format!("unable to get claim info for ResourceClaim {name} in namespace {namespace}"))
            })?;
            for device in known.cdi(asked.request.as_deref().unwrap_or_default()) {
                if !config.cdi_devices.contains(device) {
                    config.cdi_devices.push(device.clone());
                }
            }
        }
        Ok(())
    }

    /// Has undone what was prepared for a pod that is over, unless another pod uses it.
    pub async fn unprepare(&self, uid: &str) -> Result<(), Error> {
        let mut held = self.claims.lock().await;
        let claims = self.loaded(&mut held)?;
        if claims.of_pod(uid).next().is_none() {
            return Ok(());
        }
        let failed = |error: String| Error::Spec {
            reason: "FailedUnprepareDynamicResources",
            message: format!("unprepare dynamic resources: {error}"),
        };
        let mut batches: BTreeMap<String, Vec<dra::Claim>> = BTreeMap::new();
        for claim in claims.of_pod(uid).filter(|claim| claim.pods.len() == 1) {
            let asked =
                dra::Claim { namespace: claim.namespace.clone(), uid: claim.uid.clone(), name: claim.name.clone() };
            for driver in claim.devices.keys() {
                batches.entry(driver.clone()).or_default().push(asked.clone());
            }
        }
        for (driver, asked) in batches {
            let client = self.drivers.get(&driver).map_err(failed)?;
            let request = dra::NodeUnprepareResourcesRequest { claims: asked.clone() };
            let answer = client.unprepare(request).await;
            let answer = answer.map_err(|status| failed(format!("NodeUnprepareResources: {}", status.message())))?;
            for claim in &asked {
                match answer.claims.get(&claim.uid) {
                    Some(result) if result.error.is_empty() => {}
                    Some(result) => {
                        let why =
                            format!("NodeUnprepareResources failed for ResourceClaim {}: {}", claim.name, result.error);
                        return Err(failed(why));
                    }
                    None => return Err(failed("NodeUnprepareResources skipped 1 ResourceClaims".into())),
                }
            }
        }
        for claim in &mut claims.claims {
            claim.pods.remove(uid);
        }
        claims.claims.retain(|claim| !claim.pods.is_empty());
        claims.write(&self.folder)
    }
}

fn prepared(device: &dra::Device) -> Prepared {
    Prepared {
        requests: device.request_names.clone(),
        pool: device.pool_name.clone(),
        device: device.device_name.clone(),
        cdi: device.cdi_device_ids.clone(),
    }
}

/// Whether the pod may use the claim.
fn check(pod: &Pod, claim: &ResourceClaim, own: bool) -> Result<(), String> {
    let (name, uid) = (text(pod.metadata.name.as_ref()), text(pod.metadata.uid.as_ref()));
    let (claim_name, claim_uid) = (text(claim.metadata.name.as_ref()), text(claim.metadata.uid.as_ref()));
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    if own && !owners.iter().any(|owner| owner.uid == uid) {
        let namespace = text(pod.metadata.namespace.as_ref());
        return Err(format!(
            "ResourceClaim {namespace}/{claim_name} was not created for Pod {namespace}/{name} (Pod is not owner)"
        ));
    }
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !reserved.into_iter().any(|by| by.uid == uid) {
        return Err(format!("pod {name} ({uid}) is not allowed to use ResourceClaim {claim_name} ({claim_uid})"));
    }
    Ok(())
}

/// Removes what drivers that did not come back had announced while the agent was away.
pub fn clean_up(dra: &Arc<Dra>, api: &Api, node: &str, shutdown: &CancellationToken) {
    let (dra, api, node) = (Arc::clone(dra), api.clone(), node.to_owned());
    let work = async move { drivers::remove_slices(&api, &node, |driver| !dra.drivers.is_there(driver)).await };
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(work));
}

/// Takes note of a driver that went, and removes what it had announced unless it comes back.
pub fn leave(dra: &Arc<Dra>, api: &Api, node: &str, name: &str, endpoint: &Path, shutdown: &CancellationToken) {
    if !dra.drivers.remove(name, endpoint) {
        return;
    }
    let (dra, api, node, name) = (Arc::clone(dra), api.clone(), node.to_owned(), name.to_owned());
    let work = async move {
        drivers::remove_slices(&api, &node, |driver| driver == name && !dra.drivers.is_there(driver)).await;
    };
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(work));
}
