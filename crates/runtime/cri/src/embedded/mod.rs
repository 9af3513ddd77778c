//! The embedded runtime: our own shims, image store and pod network behind the `Runtime` trait.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dhow_image::ImageStore;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::runtime::{
    ContainerConfig, ContainerStats, ContainerStatus, Duplex, ExecRequest, ExecResult, ImageAuth, ImageInfo, Reader,
    Resources, RuntimeEvent, RuntimeVersion, SandboxConfig, SandboxStatus, Streams,
};
use crate::{Error, PodNetwork, Runtime};

/// What the embedded runtime is told once, at start.
pub struct EmbeddedConfig {
    /// Sandboxes and containers, kept across restarts of the daemon.
    pub root: PathBuf,
    /// Sockets of the shims.
    pub run_dir: PathBuf,
    /// Top control group of everything it runs, such as `dhow`.
    pub cgroup_root: String,
    pub images: ImageStore,
    pub network: Arc<dyn PodNetwork>,
}

/// Runs containers in shims of our own. Dropping it leaves them running.
pub struct EmbeddedRuntime {}

impl EmbeddedRuntime {
    /// Finds again what runs already.
    pub async fn open(_config: EmbeddedConfig) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {}))
    }

    /// Stops every sandbox and frees what it holds; returns how many there were.
    pub async fn stop_all(&self) -> Result<usize, Error> {
        Ok(0)
    }
}

fn missing<T>() -> Result<T, Error> {
    Err(Error::FailedPrecondition("the embedded runtime cannot run containers yet".into()))
}

#[async_trait::async_trait]
impl Runtime for EmbeddedRuntime {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        Ok(RuntimeVersion { name: "dhow".into(), version: env!("CARGO_PKG_VERSION").into() })
    }
    async fn run_sandbox(&self, _: SandboxConfig) -> Result<String, Error> {
        missing()
    }
    async fn stop_sandbox(&self, _: &str) -> Result<(), Error> {
        missing()
    }
    async fn remove_sandbox(&self, _: &str) -> Result<(), Error> {
        missing()
    }
    async fn sandbox_status(&self, _: &str) -> Result<SandboxStatus, Error> {
        missing()
    }
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        Ok(Vec::new())
    }
    async fn create_container(&self, _: &str, _: ContainerConfig) -> Result<String, Error> {
        missing()
    }
    async fn start_container(&self, _: &str) -> Result<(), Error> {
        missing()
    }
    async fn stop_container(&self, _: &str, _: Duration) -> Result<(), Error> {
        missing()
    }
    async fn remove_container(&self, _: &str) -> Result<(), Error> {
        missing()
    }
    async fn container_status(&self, _: &str) -> Result<ContainerStatus, Error> {
        missing()
    }
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        Ok(Vec::new())
    }
    async fn update_container_resources(&self, _: &str, _: Resources) -> Result<(), Error> {
        missing()
    }
    async fn container_stats(&self, _: &str) -> Result<ContainerStats, Error> {
        missing()
    }
    async fn reopen_container_log(&self, _: &str) -> Result<(), Error> {
        missing()
    }
    async fn exec_sync(&self, _: &str, _: &[String], _: Option<Duration>) -> Result<ExecResult, Error> {
        missing()
    }
    async fn exec(&self, _: &str, _: ExecRequest) -> Result<Streams, Error> {
        missing()
    }
    async fn attach(&self, _: &str) -> Result<Streams, Error> {
        missing()
    }
    async fn port_forward(&self, _: &str, _: u16) -> Result<Box<dyn Duplex>, Error> {
        missing()
    }
    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        futures::stream::pending().boxed()
    }
    async fn pull_image(&self, _: &str, _: Option<ImageAuth>) -> Result<String, Error> {
        missing()
    }
    async fn image_status(&self, _: &str) -> Result<Option<ImageInfo>, Error> {
        Ok(None)
    }
    async fn list_images(&self) -> Result<Vec<ImageInfo>, Error> {
        Ok(Vec::new())
    }
    async fn remove_image(&self, _: &str) -> Result<(), Error> {
        missing()
    }
    async fn import_image(&self, _: Reader) -> Result<Vec<String>, Error> {
        missing()
    }
}
