//! Bringing a volume into a pod: staged once on the node, then published to the pod.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dhow_plugins::csi;
use dhow_plugins::csi::node_service_capability::rpc::Type as Can;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};

use super::record::{self, Record};
use super::{Source, access_mode, attach, bad, failed};
use crate::Error;
use crate::shared::Shared;
use crate::volumes::{fs_group, mounts_below, ownership, token};

/// A driver that wants to publish again and again is asked to so often.
const REPUBLISH: Duration = Duration::from_secs(60);

/// Whether a volume that was published is still there; after a restart of the machine it is not.
pub fn is_there(target: &Path, block: bool) -> bool {
    if block {
        return crate::volumes::is_block_device(target);
    }
    let real = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    mounts_below(target).contains(&real)
}

/// Publishes a volume to a pod unless it is, and says where and when to look again.
pub async fn prepare(
    shared: &Shared,
    pod: &Pod,
    source: &Source,
    pod_dir: &Path,
) -> Result<(PathBuf, Option<SystemTime>), Error> {
    let lock = shared.csi.lock_of(&source.driver, &source.handle);
    let _held = lock.lock().await;
    let folder = Record::folder(pod_dir, &source.name, source.block);
    let root = &shared.config.root_dir;
    let before = Record::read(&folder);
    let done = before.as_ref().filter(|known| known.published && is_there(&known.target, known.block));
    // A pod that runs needs neither its driver nor the API.
    if let Some(done) = done.filter(|done| !done.republish) {
        return Ok((done.target.clone(), None));
    }
    let driver = shared.csi.driver(&source.driver)?;
    let about = described(shared, source).await?;
    let republish = about.requires_republish == Some(true);
    let again = republish.then(|| (shared.now)() + REPUBLISH);
    let attaches = !source.ephemeral && about.attach_required != Some(false);
    let stages = !source.ephemeral && driver.can(Can::StageUnstageVolume);
    let staging = record::staging(root, &source.driver, &source.handle, &source.name, source.block);
    let mut own = Record {
        name: source.name.clone(),
        volume_handle: source.handle.clone(),
        driver_name: source.driver.clone(),
        node_name: shared.config.name.clone(),
        attachment: if attaches { attach::attachment(source, &shared.config.name) } else { String::new() },
        volume_lifecycle_mode: if source.ephemeral { "Ephemeral" } else { "Persistent" }.into(),
        pod_volume: source.pod_volume.clone(),
        claim: source.claim.clone(),
        block: source.block,
        staging: if stages { staging } else { PathBuf::new() },
        target: record::target(root, pod_dir, &source.name, source.block),
        published: done.is_some(),
        maybe_staged: before.as_ref().is_some_and(|before| before.maybe_staged),
        maybe_published: before.as_ref().is_some_and(|before| before.maybe_published),
        republish,
    };
    own.write(&folder)?;
    shared.csi.count_in_use();
    let publish_context = match attaches {
        true => attach::context(shared, pod.metadata.uid.as_deref().unwrap_or_default(), source).await?,
        false => BTreeMap::new(),
    };
    let publish_context: HashMap<String, String> = publish_context.into_iter().collect();
    let group = fs_group(pod).filter(|_| !source.block);
    let by_driver = group.filter(|_| driver.can(Can::VolumeMountGroup));
    let capability = capability(source, by_driver, access_mode(&source.access_modes, &driver));
    let attributes: HashMap<String, String> = source.attributes.clone().into_iter().collect();
    // Another pod of the node may have it already.
    let staged = record::all(root).iter().any(|(_, other)| {
        let same = other.driver_name == source.driver && other.volume_handle == source.handle;
        same && other.published && is_there(&other.target, other.block)
    });
    let unstaged = !own.maybe_staged;
    own.maybe_staged |= stages;
    own.write(&folder)?;
    if stages && !staged {
        make_folder(&own.staging)?;
        let request = csi::NodeStageVolumeRequest {
            volume_id: source.handle.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: text(&own.staging),
            volume_capability: Some(capability.clone()),
            secrets: secrets(shared, source.stage_secret.as_ref()).await?,
            volume_context: attributes.clone(),
        };
        if let Err(status) = driver.node().node_stage_volume(request).await {
            if unstaged && is_final(&status) {
                own.maybe_staged = false;
                own.write(&folder)?;
            }
            return Err(failed("NodeStageVolume", &status));
        }
    }
    // The driver makes the last part itself.
    if let Some(parent) = own.target.parent() {
        make_folder(parent)?;
    }
    let mut context = attributes;
    context.extend(pod_info(shared, pod, source, &about).await?);
    let request = csi::NodePublishVolumeRequest {
        volume_id: source.handle.clone(),
        publish_context,
        staging_target_path: if stages { text(&own.staging) } else { String::new() },
        target_path: text(&own.target),
        volume_capability: Some(capability),
        readonly: source.read_only,
        secrets: secrets(shared, source.publish_secret.as_ref()).await?,
        volume_context: context,
    };
    let unpublished = !own.maybe_published;
    own.maybe_published = true;
    own.write(&folder)?;
    if let Err(status) = driver.node().node_publish_volume(request).await {
        if unpublished && is_final(&status) {
            own.maybe_published = false;
            own.write(&folder)?;
        }
        return Err(failed("NodePublishVolume", &status));
    }
    if done.is_some() {
        return Ok((own.target, again));
    }
    if let Some(group) = group.filter(|_| by_driver.is_none() && gives_to_group(&about, source)) {
        let policy = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group_change_policy.clone());
        let (root, always) = (own.target.clone(), policy.as_deref() != Some("OnRootMismatch"));
        // A large tree takes long.
        let given = tokio::task::spawn_blocking(move || ownership::give(&root, group, always)).await;
        given.map_err(|error| bad(format!("set the owner of volume {:?}: {error}", source.name)))??;
    }
    own.published = true;
    own.write(&folder)?;
    Ok((own.target, again))
}

/// Whether the driver has surely not done what it was asked for. Of others it may still be on the way, and has to be undone.
fn is_final(status: &tonic::Status) -> bool {
    use tonic::Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
    !matches!(status.code(), Cancelled | DeadlineExceeded | Unavailable | ResourceExhausted | Aborted)
}

/// What the cluster says of a driver. Without an object it is one that attaches and knows nothing of pods.
async fn described(shared: &Shared, source: &Source) -> Result<CSIDriverSpec, Error> {
    let name = &source.driver;
    let spec = match shared.config.client.get::<CSIDriver>(None, name).await {
        Ok(driver) => driver.spec,
        Err(error) if error.is_not_found() => CSIDriverSpec::default(),
        Err(error) => return Err(Error::client("get CSIDriver")(error)),
    };
    let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    let wanted = if source.ephemeral { "Ephemeral" } else { "Persistent" };
    let fits = modes.iter().any(|mode| mode == wanted) || (modes.is_empty() && !source.ephemeral);
    if !fits {
        let only = if modes.is_empty() { "Persistent".to_owned() } else { modes.join(", ") };
        return Err(bad(format!("volume mode {wanted:?} not supported by driver {name} (only supports [{only}])")));
    }
    Ok(spec)
}

pub fn capability(source: &Source, group: Option<u32>, mode: i32) -> csi::VolumeCapability {
    use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    let access_type = match source.block {
        true => AccessType::Block(BlockVolume {}),
        false => AccessType::Mount(MountVolume {
            fs_type: source.fs_type.clone(),
            mount_flags: source.mount_flags.clone(),
            volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
        }),
    };
    csi::VolumeCapability { access_mode: Some(AccessMode { mode }), access_type: Some(access_type) }
}

/// Whether the files are given to the pod's group, by the driver's `fsGroupPolicy`.
fn gives_to_group(about: &CSIDriverSpec, source: &Source) -> bool {
    if source.read_only {
        return false;
    }
    match about.fs_group_policy.as_deref().unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => true,
        _ => {
            let once = source.access_modes.iter().any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
            !source.fs_type.is_empty() && once
        }
    }
}

/// Of the pod, what its driver wants to know.
async fn pod_info(
    shared: &Shared,
    pod: &Pod,
    source: &Source,
    about: &CSIDriverSpec,
) -> Result<HashMap<String, String>, Error> {
    let mut info = HashMap::new();
    let mut set = |name: &str, value: &str| info.insert(format!("csi.storage.k8s.io/{name}"), value.to_owned());
    if about.pod_info_on_mount == Some(true) {
        let of = |value: &Option<String>| value.clone().unwrap_or_default();
        set("pod.name", &of(&pod.metadata.name));
        set("pod.namespace", &of(&pod.metadata.namespace));
        set("pod.uid", &of(&pod.metadata.uid));
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        set("serviceAccount.name", account.unwrap_or("default"));
        set("ephemeral", if source.ephemeral { "true" } else { "false" });
    }
    let asked = about.token_requests.as_deref().unwrap_or_default();
    if !asked.is_empty() {
        let mut tokens = serde_json::Map::new();
        for one in asked {
            let audience = Some(one.audience.clone()).filter(|audience| !audience.is_empty());
            let (text, expires) = token::request(&shared.config.client, pod, audience, one.expiration_seconds).await?;
            tokens.insert(one.audience.clone(), serde_json::json!({"token": text, "expirationTimestamp": expires}));
        }
        set("serviceAccount.tokens", &serde_json::Value::Object(tokens).to_string());
    }
    Ok(info)
}

/// What is in a Secret, by namespace and name. Never printed.
pub async fn secrets(shared: &Shared, named: Option<&(String, String)>) -> Result<HashMap<String, String>, Error> {
    let Some((namespace, name)) = named else { return Ok(HashMap::new()) };
    let found: Secret =
        shared.config.client.get(Some(namespace), name).await.map_err(Error::client("get a volume's secret"))?;
    let data = found.data.unwrap_or_default().into_iter();
    Ok(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
}

fn make_folder(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::io(format!("create {}", path.display())))
}

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_given_to_the_group_as_the_driver_says() {
        let source = |fs_type: &str, mode: &str, read_only| Source {
            fs_type: fs_type.into(),
            access_modes: vec![mode.into()],
            read_only,
            ..Source::default()
        };
        let policy =
            |name: Option<&str>| CSIDriverSpec { fs_group_policy: name.map(Into::into), ..CSIDriverSpec::default() };
        for (about, source, given) in [
            (policy(None), source("ext4", "ReadWriteOnce", false), true),
            (policy(None), source("", "ReadWriteOnce", false), false),
            (policy(None), source("ext4", "ReadWriteMany", false), false),
            (policy(Some("File")), source("", "ReadWriteMany", false), true),
            (policy(Some("File")), source("", "ReadWriteMany", true), false),
            (policy(Some("None")), source("ext4", "ReadWriteOnce", false), false),
        ] {
            assert_eq!(gives_to_group(&about, &source), given, "{about:?} {source:?}");
        }
    }
}
