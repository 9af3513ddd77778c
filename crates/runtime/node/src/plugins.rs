//! Plugins that present themselves by a socket in a folder: CSI drivers, device plugins and drivers of dynamic resource
//! allocation.
//!
//! A socket `<root>/plugins_registry/….sock` answers who its plugin is and is told whether that was taken in. When the
//! socket goes, so does the plugin.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dhow_base::directory::DirectoryWatch;
use dhow_plugins::registration::registration_client::RegistrationClient;
use dhow_plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;
use crate::{Error, devices, dra};

/// A plugin that did not answer is asked again after this long, and each time twice as long.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// A plugin gets so long to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What tells a socket from a later one of the same name.
type Identity = (u64, i64, i64);

struct Known {
    identity: Identity,
    /// `None` for one that is not taken in.
    plugin: Option<PluginInfo>,
    pause: Duration,
    again: Option<tokio::time::Instant>,
}

fn sockets(folder: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(|meta| meta.file_type().is_socket())?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        (!hidden).then(|| (entry.path(), (meta.ino(), meta.ctime(), meta.ctime_nsec())))
    });
    found.collect()
}

/// Follows the folder until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) -> Result<(), Error> {
    let folder = shared.config.root_dir.join("plugins_registry");
    std::fs::create_dir_all(&folder).map_err(Error::io(format!("create {}", folder.display())))?;
    let watch = DirectoryWatch::new(&folder).map_err(Error::io(format!("watch {}", folder.display())))?;
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    loop {
        let found = sockets(&folder);
        let gone: Vec<PathBuf> = known
            .iter()
            .filter(|(path, one)| found.get(*path) != Some(&one.identity))
            .map(|(p, _)| p.clone())
            .collect();
        for path in gone {
            if let Some(plugin) = known.remove(&path).and_then(|one| one.plugin) {
                leave(&shared, &plugin, &shutdown).await;
            }
        }
        let now = tokio::time::Instant::now();
        for (path, identity) in found {
            let one =
                known.entry(path.clone()).or_insert(Known { identity, plugin: None, pause: RETRY, again: Some(now) });
            if one.plugin.is_some() || one.again.is_none_or(|again| again > now) {
                continue;
            }
            match present(&shared, &path, &shutdown).await {
                Ok(plugin) => (one.plugin, one.again) = (Some(plugin), None),
                Err(error) => {
                    tracing::warn!(socket = %path.display(), error, "cannot take a plugin in");
                    one.again = Some(now + one.pause);
                    one.pause = (one.pause * 2).min(RETRY_LIMIT);
                }
            }
        }
        let next = known.values().filter_map(|one| one.again).min();
        let retry = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = retry => {}
            changed = watch.changed() => changed.map_err(Error::io(format!("watch {}", folder.display())))?,
        }
    }
}

/// Asks who is there, takes it in, and tells it so.
async fn present(shared: &Arc<Shared>, socket: &Path, shutdown: &CancellationToken) -> Result<PluginInfo, String> {
    let channel = dhow_plugins::connect(socket, Some(ANSWER)).await.map_err(|error| dhow_base::chain(&error))?;
    let mut client = RegistrationClient::new(channel);
    let mut info = client.get_info(InfoRequest {}).await.map_err(|status| status.message().to_owned())?.into_inner();
    if info.endpoint.is_empty() {
        info.endpoint = socket.to_string_lossy().into_owned();
    }
    let taken = take(shared, &info, shutdown).await;
    let error = taken.as_ref().err().cloned().unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: taken.is_ok(), error };
    let told = client.notify_registration_status(status).await;
    taken?;
    told.map_err(|status| status.message().to_owned())?;
    tracing::info!(kind = info.r#type, name = info.name, "a plugin was taken in");
    Ok(info)
}

async fn take(shared: &Arc<Shared>, info: &PluginInfo, shutdown: &CancellationToken) -> Result<(), String> {
    let endpoint = PathBuf::from(&info.endpoint);
    let speaks = |version: &dyn Fn(&str) -> bool| info.supported_versions.iter().any(|own| version(own));
    match info.r#type.as_str() {
        "CSIPlugin" => {
            if !speaks(&|own| own.trim_start_matches('v').split('.').next() == Some("1")) {
                return Err(format!("none of the CSI versions reported by this driver are supported: {}", info.name));
            }
            let taken = shared.csi.register(&shared.config, &info.name, &endpoint).await;
            taken.map_err(|error| error.to_string())?;
            // Pods may wait for it.
            shared.wake_all();
            Ok(())
        }
        "DevicePlugin" => {
            if !speaks(&|own| own == devices::VERSION) {
                return Err(format!("none of the versions of device plugin {} is supported", info.name));
            }
            devices::follow(&shared.devices, &info.name, endpoint, None, shutdown).await
        }
        "DRAPlugin" => {
            shared.dra.drivers.add(&info.name, &endpoint, &info.supported_versions).await?;
            // Pods may wait for it.
            shared.wake_all();
            Ok(())
        }
        other => Err(format!("plugins of type {other:?} are not supported")),
    }
}

async fn leave(shared: &Shared, plugin: &PluginInfo, shutdown: &CancellationToken) {
    tracing::info!(kind = plugin.r#type, name = plugin.name, "a plugin went away");
    if plugin.r#type == "DRAPlugin" {
        let (config, endpoint) = (&shared.config, Path::new(&plugin.endpoint));
        dra::leave(&shared.dra, &config.client, &config.name, &plugin.name, endpoint, shutdown);
    }
    if plugin.r#type == "CSIPlugin"
        && let Err(error) = shared.csi.deregister(&shared.config, &plugin.name).await
    {
        tracing::warn!(%error, driver = plugin.name, "cannot tell the cluster that a CSI driver went away");
    }
}
