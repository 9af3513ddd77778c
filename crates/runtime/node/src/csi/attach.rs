//! Volumes that have to be brought to the node before they can be mounted: somebody else does that, and says so in the
//! node's status.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::VolumeAttachment;

use super::record::{hash, unique_name};
use super::{Source, bad};
use crate::Error;
use crate::shared::Shared;

/// The waiting reason of a pod that waits for that; no event tells of it.
pub const WAITS: &str = "WaitForAttach";

/// The name of the object that asks for it.
pub fn attachment(source: &Source, node: &str) -> String {
    format!("csi-{}", hash(&format!("{}{}{node}", source.handle, source.driver)))
}

/// What was told when it was attached. An error for as long as it is not.
pub async fn context(shared: &Shared, uid: &str, source: &Source) -> Result<BTreeMap<String, String>, Error> {
    let unique = unique_name(&source.driver, &source.handle);
    // Before looking, so that no change falls between.
    shared.csi.waiting.lock().insert(uid.to_owned());
    let node = shared.node.list().into_iter().next();
    let status = node.as_ref().and_then(|node| node.status.as_ref());
    let attached = status.iter().flat_map(|status| status.volumes_attached.iter().flatten());
    let mut in_use = status.iter().flat_map(|status| status.volumes_in_use.iter().flatten());
    // Until the node's status says that it is used, somebody could still take it away.
    if !attached.into_iter().any(|one| one.name == unique) || !in_use.any(|name| *name == unique) {
        let message = format!("volume {:?} is not attached to node {:?} yet", source.name, shared.config.name);
        return Err(Error::Spec { reason: WAITS, message });
    }
    shared.csi.waiting.lock().remove(uid);
    let name = attachment(source, &shared.config.name);
    let found: VolumeAttachment = shared.config.client.get(None, &name).await.map_err(Error::client(
        "failed to fetch the VolumeAttachment of a volume that the node's status says is attached",
    ))?;
    let status = found.status.unwrap_or_default();
    if !status.attached {
        return Err(bad(format!("volume attachment {name} is not attached")));
    }
    Ok(status.attachment_metadata.unwrap_or_default())
}
