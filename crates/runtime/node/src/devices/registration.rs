//! The socket at which device plugins present themselves, and following each of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_plugins::device::registration_server::{Registration, RegistrationServer};
use dhow_plugins::device::{DevicePluginOptions, Empty, RegisterRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::Devices;
use super::plugin::Plugin;
use crate::Error;

/// The version of the plugins' protocol.
pub const VERSION: &str = "v1beta1";
const SOCKET: &str = "kubelet.sock";

struct Service {
    devices: Arc<Devices>,
    shutdown: CancellationToken,
}

/// Listens for plugins until `shutdown`.
pub async fn run(devices: Arc<Devices>, shutdown: CancellationToken) -> Result<(), Error> {
    let folder = devices.folder.clone();
    std::fs::create_dir_all(&folder).map_err(Error::io(format!("create {}", folder.display())))?;
    clear(&folder);
    let path = folder.join(SOCKET);
    let listener = UnixListener::bind(&path).map_err(Error::io(format!("listen at {}", path.display())))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).map_err(Error::io(format!("protect {}", path.display())))?;
    let service = Arc::new(Service { devices, shutdown: shutdown.clone() });
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a device plugin");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let serve = TowerToHyperService::new(RegistrationServer::from_arc(Arc::clone(&service)));
        let connection = async move {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            if let Err(error) = http.serve_connection(TokioIo::new(stream), serve).await {
                tracing::debug!(%error, "a device plugin's connection ended");
            }
        };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(connection));
    }
}

/// Takes the sockets of an earlier run away: that is how plugins learn that they have to present themselves again.
fn clear(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        use std::os::unix::fs::FileTypeExt;
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Whether a plugin may bring a resource of that name.
fn is_extended(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    !domain.is_empty() && !rest.is_empty() && !rest.contains('/') && !own && !name.starts_with("requests.")
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let RegisterRequest { version, endpoint, resource_name, options } = request.into_inner();
        if version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]"
            )));
        }
        if endpoint.is_empty() || !crate::volumes::is_inside(&endpoint) {
            return Err(Status::unknown(format!("endpoint {endpoint:?} is no name of a socket")));
        }
        let socket = self.devices.folder.join(endpoint);
        follow(&self.devices, &resource_name, socket, options, &self.shutdown).await.map_err(Status::unknown)?;
        Ok(Response::new(Empty {}))
    }
}

/// Connects to a plugin and listens to it from then on.
pub async fn follow(
    devices: &Arc<Devices>,
    resource: &str,
    socket: PathBuf,
    options: Option<DevicePluginOptions>,
    shutdown: &CancellationToken,
) -> Result<(), String> {
    if !is_extended(resource) {
        return Err(format!("the ResourceName {resource:?} is invalid"));
    }
    let plugin = Arc::new(Plugin::open(&socket, options).await?);
    devices.connect(resource, &plugin);
    let (devices, resource) = (Arc::clone(devices), resource.to_owned());
    let listen = async move {
        match plugin.watch().await {
            Ok(mut stream) => {
                while let Ok(Some(list)) = stream.message().await {
                    devices.update(&resource, &plugin, list.devices);
                }
                tracing::info!(resource, "a device plugin went away");
            }
            Err(error) => tracing::warn!(resource, error, "a device plugin does not tell of its devices"),
        }
        devices.lost(&resource, &plugin).await;
    };
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(listen));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_bring_only_resources_of_their_own() {
        for (name, fits) in [
            ("example.com/gpu", true),
            ("cpu", false),
            ("kubernetes.io/x", false),
            ("a.kubernetes.io/x", false),
            ("requests.example.com/x", false),
            ("example.com/", false),
        ] {
            assert_eq!(is_extended(name), fits, "{name}");
        }
    }
}
