//! What is remembered of sandboxes and containers, and where.
//!
//! ```text
//! <root>/sandboxes/<id>/meta.json            ours: the request, addresses; absent until the sandbox is whole
//!                      /sandbox.json         the shim's
//!                      /resolv.conf, hostname
//!                      /containers/<id>/meta.json, spec.json, state.json (the shim's), upper, work, root
//! <run_dir>/<id>.sock                        the shim's socket
//! ```

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dhow_oci::client::Shim;
use dhow_oci::spec::{IdRange, State, Status};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::EmbeddedConfig;
use crate::Error;
use crate::runtime::{ContainerConfig, ContainerState, ContainerStatus, SandboxConfig, SandboxState, SandboxStatus};

#[derive(Debug, Clone)]
pub struct Sandbox {
    pub meta: SandboxMeta,
    pub state: SandboxState,
    pub shim: Shim,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxMeta {
    pub id: String,
    pub config: SandboxConfig,
    pub created_at: SystemTime,
    pub ips: Vec<IpAddr>,
    /// What the pod's own user ids are on the host.
    #[serde(default)]
    pub users: Option<IdRange>,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub meta: ContainerMeta,
    pub state: State,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerMeta {
    pub id: String,
    pub sandbox_id: String,
    pub config: ContainerConfig,
    /// Content-addressed id of the image.
    pub image_ref: String,
    /// By number.
    pub stop_signal: i32,
    pub log_path: PathBuf,
    pub cgroup: String,
}

impl Sandbox {
    pub fn status(&self) -> SandboxStatus {
        SandboxStatus {
            id: self.meta.id.clone(),
            pod: self.meta.config.pod.clone(),
            state: self.state,
            created_at: self.meta.created_at,
            ips: self.meta.ips.clone(),
            labels: self.meta.config.labels.clone(),
            annotations: self.meta.config.annotations.clone(),
        }
    }
}

impl Container {
    pub fn status(&self) -> ContainerStatus {
        let (meta, state) = (&self.meta, &self.state);
        let config = &meta.config;
        ContainerStatus {
            id: meta.id.clone(),
            sandbox_id: meta.sandbox_id.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: match state.status {
                Status::Created => ContainerState::Created,
                Status::Running => ContainerState::Running,
                Status::Stopped => ContainerState::Exited,
            },
            created_at: time(state.created_at),
            started_at: state.started_at.map(time),
            finished_at: state.finished_at.map(time),
            exit_code: state.exit_code,
            reason: reason(state).into(),
            message: state.error.clone().unwrap_or_default(),
            image: config.image.clone(),
            image_ref: meta.image_ref.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: meta.log_path.clone(),
            user: state.user.clone(),
        }
    }

    /// Ends it in our books, for when its shim can no longer say how.
    pub fn lost(&mut self) {
        if self.state.status != Status::Stopped {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.state.status = Status::Stopped;
            self.state.pid = 0;
            // What containerd says when it does not know.
            self.state.exit_code = 255;
            self.state.finished_at = Some(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX));
        }
    }
}

fn reason(state: &State) -> &'static str {
    match state.status {
        Status::Created | Status::Running => "",
        Status::Stopped if state.oom_killed => "OOMKilled",
        Status::Stopped if state.error.is_some() => "StartError",
        Status::Stopped if state.exit_code == 0 => "Completed",
        Status::Stopped if state.exit_code == 255 && state.pid == 0 && state.started_at.is_some() => "Unknown",
        Status::Stopped => "Error",
    }
}

fn time(nanos: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

impl EmbeddedConfig {
    pub fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.root.join("sandboxes").join(id)
    }

    pub fn container_dir(&self, sandbox: &str, id: &str) -> PathBuf {
        self.sandbox_dir(sandbox).join("containers").join(id)
    }

    pub fn socket(&self, sandbox: &str) -> PathBuf {
        self.run_dir.join(format!("{sandbox}.sock"))
    }
}

/// A folder that only root can enter: it holds file systems with other people's set-id programs.
pub fn make_private_folder(path: &Path) -> Result<(), Error> {
    let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)));
    made.map_err(|error| Error::internal(format!("create {}", path.display()), error))
}

/// Writes JSON by renaming a finished file into place.
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::internal(format!("write {}", path.display()), error);
    let text = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    let fresh = path.with_extension("new");
    fs::File::create(&fresh).and_then(|mut file| file.write_all(&text)).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)
}

/// `None` if the file is missing or not whole.
pub fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot read a record"))
        .ok()
}

/// Removes a folder with everything in it; one that is gone is fine.
pub fn remove_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// An id as containers have it: 64 hex digits.
pub fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}
