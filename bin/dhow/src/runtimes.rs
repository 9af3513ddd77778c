//! Which container runtime a cloud uses, and how it is opened.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dhow_cri::cri_client::{CniFolders, CriConfig, CriRuntime};
use dhow_cri::docker::{DockerConfig, DockerRuntime};
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime};
use dhow_cri::runtime::SandboxState;
use dhow_cri::{PodNetwork, Runtime, cgroups, cni};
use dhow_image::PullOptions;
use dhow_net::Net;
use dhow_net::cni::{CniConfig, CniNetwork};
use dhow_oci::client::Program;
use tokio_util::task::AbortOnDropHandle;

use crate::builtins::Images;
use crate::place::Place;
use crate::settings::Settings;

/// How long a runtime may take for one answer, killing and unmounting included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who runs the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeChoice {
    Embedded,
    /// containerd, by its socket.
    Containerd(PathBuf),
    /// CRI-O.
    Crio(PathBuf),
    Docker(PathBuf),
}

impl RuntimeChoice {
    /// The socket of a runtime that is not ours.
    pub fn socket(&self) -> Option<&PathBuf> {
        match self {
            Self::Embedded => None,
            Self::Containerd(socket) | Self::Crio(socket) | Self::Docker(socket) => Some(socket),
        }
    }

    /// The command that removes what this runtime has of a cloud.
    pub fn cleaning(&self, cloud: &str) -> String {
        let label = format!("{}={cloud}", dhow_cri::CLOUD);
        match self {
            Self::Embedded => String::new(),
            Self::Containerd(socket) | Self::Crio(socket) => {
                let crictl = format!("crictl --runtime-endpoint unix://{}", socket.display());
                format!("{crictl} pods --label {label} --quiet | xargs -r {crictl} rmp --force")
            }
            Self::Docker(socket) => {
                let docker = format!("docker --host unix://{}", socket.display());
                format!("{docker} ps --all --quiet --filter label={label} | xargs -r {docker} rm --force")
            }
        }
    }
}

impl fmt::Display for RuntimeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => write!(f, "embedded"),
            Self::Containerd(socket) => write!(f, "containerd://{}", socket.display()),
            Self::Crio(socket) => write!(f, "crio://{}", socket.display()),
            Self::Docker(socket) => write!(f, "docker://{}", socket.display()),
        }
    }
}

impl FromStr for RuntimeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const KINDS: &str = "embedded, containerd://SOCKET, crio://SOCKET or docker://SOCKET";
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let Some((kind, socket)) = text.split_once("://") else { return Err(format!("it is {KINDS}")) };
        if !socket.starts_with('/') {
            return Err(format!("{socket:?} is no absolute path of a socket, such as /run/containerd/containerd.sock"));
        }
        match kind {
            "containerd" => Ok(Self::Containerd(socket.into())),
            "crio" => Ok(Self::Crio(socket.into())),
            "docker" => Ok(Self::Docker(socket.into())),
            other => Err(format!("{other:?} is no runtime; it is {KINDS}")),
        }
    }
}

/// The runtime that was asked for, or the one that this cloud has had so far. Containers must not be left behind in
/// another one, so a cloud keeps its runtime.
pub fn choose(place: &Place) -> Result<RuntimeChoice> {
    let path = record(place);
    let recorded = match fs::read_to_string(&path) {
        Ok(text) => Some(
            text.trim().parse::<RuntimeChoice>().map_err(anyhow::Error::msg).context("read the runtime's record")?,
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    match (&place.runtime, recorded) {
        (Some(asked), Some(recorded)) if *asked != recorded => bail!(
            "the containers of this cloud are in {recorded}, not in {asked}; go on with --runtime {recorded}, or remove \
             the cloud with `dhow down --purge` first"
        ),
        (Some(asked), _) => Ok(asked.clone()),
        (None, Some(recorded)) => Ok(recorded),
        (None, None) => Ok(RuntimeChoice::Embedded),
    }
}

fn record(place: &Place) -> PathBuf {
    place.data_dir.join("container-runtime")
}

/// Whether pods get their network from plugins. A cloud keeps it so: plugins undo what they made, and nobody else.
pub fn uses_plugins(place: &Place) -> Result<bool> {
    let asked = Settings::load(&place.config)?.cni.is_some();
    let path = plugins_record(place);
    let recorded = path.exists();
    // Until it has a runtime, a cloud has no pods.
    if asked != recorded && record(place).exists() {
        bail!(
            "the pods of this cloud are connected by {}; change `cni` in the settings back, remove the cloud with `dhow down \
             --purge`, then change it",
            if recorded { "CNI plugins" } else { "Dhow itself" }
        );
    }
    Ok(asked)
}

fn plugins_record(place: &Place) -> PathBuf {
    place.data_dir.join("net/plugins")
}

/// The network that plugins make, where the settings say so.
fn open_plugins(place: &Place, images: &Images, net: &Arc<Net>) -> Result<Option<Arc<CniNetwork>>> {
    let Some(cni) = &images.settings.cni else { return Ok(None) };
    let config = CniConfig {
        conf_dir: cni.conf_dir.clone(),
        bin_dirs: cni.bin_dirs.clone(),
        state_dir: plugins_record(place),
        netns_dir: place.run_dir.join("netns"),
    };
    CniNetwork::open(Arc::clone(net), config).context("open the network of the CNI plugins").map(Some)
}

/// An open runtime, and what answers it while it is.
pub enum Opened {
    Embedded(Arc<EmbeddedRuntime>),
    Cri { runtime: Arc<CriRuntime>, _cni: AbortOnDropHandle<()> },
    Docker(Arc<DockerRuntime>),
}

impl Opened {
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Self::Embedded(runtime) => Arc::clone(runtime) as _,
            Self::Cri { runtime, .. } => Arc::clone(runtime) as _,
            Self::Docker(runtime) => Arc::clone(runtime) as _,
        }
    }

    /// Where it looks for certificates of registries when it pulls by itself.
    pub async fn certs_folder(&self) -> Result<Option<PathBuf>> {
        match self {
            Self::Embedded(_) => Ok(None),
            Self::Docker(_) => Ok(Some("/etc/docker/certs.d".into())),
            Self::Cri { runtime, .. } => {
                let folder =
                    runtime.certs_folders().await.context("ask the runtime where certificates of registries are")?;
                if folder.is_none() {
                    tracing::warn!(
                        "the container runtime has no folder for certificates of registries (config_path of its registry \
                         settings), so it cannot pull from the cluster's own"
                    );
                }
                Ok(folder)
            }
        }
    }

    /// Stops all of the cloud's sandboxes, and with `remove` forgets them; returns how many there were.
    pub async fn stop_all(&self, place: &Place, remove: bool) -> Result<usize> {
        if let Self::Embedded(runtime) = self {
            return if remove {
                runtime.remove_all().await.context("remove the containers")
            } else {
                runtime.stop_all().await.context("stop the containers")
            };
        }
        let runtime = self.runtime();
        let sandboxes = answered(runtime.list_sandboxes()).await.context("list the pod sandboxes")?;
        let mut failed = None;
        for sandbox in &sandboxes {
            let done = if remove {
                answered(runtime.remove_sandbox(&sandbox.id)).await.context("remove a pod sandbox")
            } else {
                answered(runtime.stop_sandbox(&sandbox.id)).await.context("stop a pod sandbox")
            };
            // One that does not go holds up none of the others.
            failed = failed.or(done.err());
        }
        if remove {
            cgroups::remove_all(&place.cgroup());
        }
        failed.map_or(Ok(sandboxes.len()), Err)
    }

    /// Takes back what was put into a runtime's configuration.
    pub async fn leave(&self) -> Result<()> {
        if let Self::Cri { runtime, .. } = self {
            let folders = runtime.cni_folders().await.context("ask the runtime where CNI is")?;
            cni::uninstall(&folders).context("remove the CNI configuration")?;
        }
        Ok(())
    }
}

/// What a runtime says, if it says it before long.
async fn answered<T, E: Into<anyhow::Error>>(answer: impl Future<Output = Result<T, E>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => bail!("it has not answered for {} s", PATIENCE.as_secs()),
    }
}

/// Takes away what this cloud has outside a runtime that does not answer: the processes of its pods, and what was put
/// into its configuration. Networks, mounts and folders are the caller's.
pub async fn abandon(place: &Place) -> Result<()> {
    let group = place.cgroup();
    let left = tokio::task::spawn_blocking(move || cgroups::end_all(&group, PATIENCE)).await?;
    if left > 0 {
        bail!("{left} processes of pods do not end; they may wait for a device");
    }
    if let Ok(text) = fs::read_to_string(cni_record(place))
        && let [configuration, plugins] = text.lines().collect::<Vec<_>>().as_slice()
    {
        let folders = CniFolders { configuration: configuration.into(), plugins: plugins.into() };
        cni::uninstall(&folders).context("remove the CNI configuration")?;
    }
    Ok(())
}

/// Where a runtime looks for CNI, for when it cannot be asked any more.
fn cni_record(place: &Place) -> PathBuf {
    place.data_dir.join("cni-folders")
}

/// Opens the cloud's runtime; everything that runs already is found again.
pub async fn open(place: &Place, images: &Images, net: Arc<Net>) -> Result<Opened> {
    let choice = choose(place)?;
    if images.settings.cni.is_some() && choice != RuntimeChoice::Embedded {
        bail!("`cni` in the settings is for the embedded runtime; {choice} finds its network by itself");
    }
    let opened = match &choice {
        RuntimeChoice::Embedded => open_embedded(place, images, net).await?,
        RuntimeChoice::Containerd(socket) | RuntimeChoice::Crio(socket) => open_cri(place, socket, net).await?,
        RuntimeChoice::Docker(socket) => {
            let config = DockerConfig { socket: socket.clone(), cgroup_root: place.cgroup(), network: net };
            Opened::Docker(answered(DockerRuntime::open(config)).await.context("open Docker")?)
        }
    };
    let path = record(place);
    fs::write(&path, format!("{choice}\n")).with_context(|| format!("write {}", path.display()))?;
    Ok(opened)
}

/// Where the embedded runtime keeps sandboxes and containers.
pub fn embedded_dir(place: &Place) -> PathBuf {
    place.data_dir.join("runtime")
}

async fn open_embedded(place: &Place, images: &Images, net: Arc<Net>) -> Result<Opened> {
    let (root, run_dir) = (embedded_dir(place), place.run_dir.join("shims"));
    for folder in [&root, &run_dir] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let plugins = open_plugins(place, images, &net)?;
    let config = EmbeddedConfig {
        root,
        run_dir,
        cgroup_root: place.cgroup(),
        program: Program::own().context("prepare the shims' program")?,
        images: images.store.clone(),
        pull: PullOptions { registries: Arc::clone(&images.registries), ..PullOptions::default() },
        network: plugins.map_or_else(|| net as Arc<dyn PodNetwork>, |plugins| plugins as _),
        tuning: images.settings.tuning(place.slots)?,
        handlers: images.settings.runtime_handlers.clone(),
    };
    Ok(Opened::Embedded(EmbeddedRuntime::open(config).await.context("open the container runtime")?))
}

/// Such runtimes ask for the pods' network by CNI: who answers comes first, then where to ask.
async fn open_cri(place: &Place, socket: &std::path::Path, net: Arc<Net>) -> Result<Opened> {
    let cni_socket = place.run_dir.join("cni.sock");
    let server = cni::Server::bind(&cni_socket, Arc::clone(&net) as Arc<dyn PodNetwork>).context("answer CNI")?;
    let cni = AbortOnDropHandle::new(tokio::spawn(server.run()));
    let config = CriConfig { socket: socket.to_owned(), cgroup_root: place.cgroup() };
    let opened = answered(CriRuntime::open(config)).await;
    let runtime = opened.with_context(|| format!("open the runtime at {}", socket.display()))?;
    let folders = runtime.cni_folders().await.context("ask the runtime where CNI is")?;
    let program = std::env::current_exe().context("find this program")?;
    let record = cni_record(place);
    let text = format!("{}\n{}\n", folders.configuration.display(), folders.plugins.display());
    fs::write(&record, text).with_context(|| format!("write {}", record.display()))?;
    cni::install(&folders, &program, &cni_socket).context("write the CNI configuration")?;
    let sandboxes = runtime.list_sandboxes().await.context("list the pod sandboxes")?;
    let live: Vec<String> =
        sandboxes.into_iter().filter(|s| s.state == SandboxState::Ready).map(|sandbox| sandbox.id).collect();
    net.retain(&live).await.context("free networks of pods that are gone")?;
    Ok(Opened::Cri { runtime, _cni: cni })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn runtimes_by_name() {
        for text in ["embedded", "containerd:///run/containerd/containerd.sock", "crio:///x", "docker:///y"] {
            assert_eq!(text.parse::<RuntimeChoice>().unwrap().to_string(), text);
        }
        for text in ["", "podman", "podman:///x", "docker://relative"] {
            assert!(text.parse::<RuntimeChoice>().is_err(), "{text}");
        }
    }
}
