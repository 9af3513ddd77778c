//! Docker behind the `Runtime` trait, by its Engine API.
//!
//! A sandbox is a container that holds namespaces (see [`crate::pause`]), others join it. What exists is known by Docker; labels of
//! ours carry what it would not give back, so a daemon that comes back finds everything again. Docker keeps what
//! containers write in its own format; [`logs`] follows that into the pods' logs.

mod answer;
mod api;
mod events;
mod forward;
mod images;
mod logs;
mod request;
mod runtime;
mod sandbox;
mod streams;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use forward::{COMMAND as FORWARD_COMMAND, main as forward_main};

use crate::cgroups::CgroupDriver;
use crate::runtime::{ContainerStatus, RuntimeEvent};
use crate::{Error, PodNetwork, look};
use api::Api;
use logs::Logs;
use request::Groups;

/// Events a slow listener may fall behind before it has to list again.
const EVENT_BACKLOG: usize = 1024;

/// What the adapter is told once, at start.
pub struct DockerConfig {
    pub socket: PathBuf,
    /// Top control group of all pods, such as `dhow`; tells this cloud's containers from others, too.
    pub cgroup_root: String,
    pub network: Arc<dyn PodNetwork>,
}

/// Runs containers in Docker on this machine.
#[derive(Clone)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
    /// Ends the following of events and logs with the last clone.
    _end: Arc<DropGuard>,
}

struct Inner {
    config: DockerConfig,
    api: Api,
    version: String,
    cgroup_driver: CgroupDriver,
    /// Addresses of sandboxes, which Docker does not know.
    addresses: Mutex<HashMap<String, Vec<IpAddr>>>,
    /// Statuses that hold for as long as the state they tell of.
    statuses: Mutex<HashMap<String, ContainerStatus>>,
    logs: Logs,
    events: broadcast::Sender<RuntimeEvent>,
}

impl DockerRuntime {
    /// Connects, and takes over what runs already.
    pub async fn open(config: DockerConfig) -> Result<Arc<Self>, Error> {
        let (api, about) = Api::connect(&config.socket).await?;
        let info = api.get("/info").await.map_err(|failure| failure.on("daemon", "docker"))?;
        let cgroup_driver = match info["CgroupDriver"].as_str() {
            Some("systemd") => CgroupDriver::Systemd,
            _ => CgroupDriver::Cgroupfs,
        };
        images::ensure_pause(&api).await?;
        let end = CancellationToken::new();
        let inner = Arc::new(Inner {
            logs: Logs::new(api.clone(), end.clone()),
            config,
            api,
            version: about["Version"].as_str().unwrap_or_default().to_owned(),
            cgroup_driver,
            addresses: Mutex::default(),
            statuses: Mutex::default(),
            events: broadcast::channel(EVENT_BACKLOG).0,
        });
        sandbox::adopt_all(&inner).await?;
        look::follow(&inner, end.clone()).await?;
        Ok(Arc::new(Self { inner, _end: Arc::new(end.drop_guard()) }))
    }
}

impl Inner {
    fn groups(&self) -> Groups<'_> {
        Groups { driver: self.cgroup_driver, root: &self.config.cgroup_root }
    }

    /// This cloud's containers that carry a label, running or not, as `GET /containers/json` has them.
    async fn list(&self, label: &str) -> Result<Vec<Value>, Error> {
        let labels = [format!("{}={}", request::CLOUD, self.config.cgroup_root), label.to_owned()];
        let filters = serde_json::json!({ "label": labels }).to_string();
        let path = format!("/containers/json?all=true&filters={}", api::escape(&filters));
        let list = self.api.get(&path).await.map_err(|failure| failure.on("container", ""))?;
        match list {
            Value::Array(list) => Ok(list),
            _ => Ok(Vec::new()),
        }
    }

    /// `GET /containers/{id}/json`, of a container of this cloud that carries the label.
    async fn inspect(&self, kind: &'static str, label: &str, id: &str) -> Result<Value, Error> {
        let path = format!("/containers/{}/json", api::escape(id));
        let found = self.api.get(&path).await.map_err(|failure| failure.on(kind, id))?;
        let labels = &found["Config"]["Labels"];
        if labels[request::CLOUD] != self.config.cgroup_root.as_str() || labels[label].is_null() {
            return Err(Error::NotFound { kind, id: id.to_owned() });
        }
        Ok(found)
    }
}
