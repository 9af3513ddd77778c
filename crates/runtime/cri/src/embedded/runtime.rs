//! The `Runtime` trait, method by method.

use std::time::Duration;

use dhow_oci::protocol::Request;
use dhow_oci::spec::Status;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::{EmbeddedRuntime, blocking, container, images, sandbox, streams};
use crate::runtime::{
    ContainerConfig, ContainerStats, ContainerStatus, DiskUsage, Duplex, ExecRequest, ExecResult, ImageAuth,
    ImageFsInfo, ImageInfo, Reader, Resources, RuntimeEvent, RuntimeHandler, RuntimeVersion, SandboxConfig,
    SandboxStatus, Streams,
};
use crate::{Error, Runtime};

#[async_trait::async_trait]
impl Runtime for EmbeddedRuntime {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        Ok(RuntimeVersion { name: "dhow".into(), version: env!("CARGO_PKG_VERSION").into() })
    }

    async fn handlers(&self) -> Result<Vec<RuntimeHandler>, Error> {
        let own = RuntimeHandler {
            name: String::new(),
            user_namespaces: true,
            recursive_readonly_mounts: true,
            image_volumes: true,
        };
        let named = |name: &String| RuntimeHandler { name: name.clone(), ..RuntimeHandler::default() };
        Ok(std::iter::once(own).chain(self.inner.config.handlers.keys().map(named)).collect())
    }

    fn network_problem(&self) -> Option<tokio::sync::watch::Receiver<Option<String>>> {
        self.inner.config.network.problem()
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<String, Error> {
        sandbox::run(&self.inner, config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        sandbox::stop(&self.inner, id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        sandbox::remove(&self.inner, id).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus, Error> {
        Ok(self.inner.sandbox(id)?.status())
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        Ok(self.inner.sandboxes.lock().values().map(|sandbox| sandbox.status()).collect())
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<String, Error> {
        container::create(&self.inner, sandbox, config).await
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        container::start(&self.inner, id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        container::stop(&self.inner, id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<(), Error> {
        container::remove(&self.inner, id).await
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus, Error> {
        Ok(self.inner.container(id)?.status())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        Ok(self.inner.containers.lock().values().map(|container| container.status()).collect())
    }

    async fn update_container_resources(&self, id: &str, resources: Resources) -> Result<(), Error> {
        container::update(&self.inner, id, resources).await
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats, Error> {
        container::stats(&self.inner, id)
    }

    async fn sandbox_process(&self, id: &str) -> Result<Option<u32>, Error> {
        sandbox::process(&self.inner, id).await
    }

    /// The shims.
    async fn processes(&self) -> Vec<u32> {
        let ids: Vec<String> = self.inner.sandboxes.lock().keys().cloned().collect();
        let processes = ids.iter().map(|id| sandbox::process(&self.inner, id));
        futures::future::join_all(processes).await.into_iter().filter_map(|process| process.ok().flatten()).collect()
    }

    async fn writable_layer(&self, id: &str) -> Result<Option<DiskUsage>, Error> {
        let container = self.inner.container(id)?;
        let layer = self.inner.config.container_dir(&container.meta.sandbox_id, id).join("upper");
        blocking(move || {
            let usage = dhow_image::disk_usage(&layer);
            Ok(Some(DiskUsage { bytes: usage.bytes, inodes: usage.inodes }))
        })
        .await
    }

    async fn sandbox_config(&self, id: &str) -> Result<Option<SandboxConfig>, Error> {
        Ok(Some(self.inner.sandbox(id)?.meta.config))
    }

    async fn container_config(&self, id: &str) -> Result<Option<ContainerConfig>, Error> {
        Ok(Some(self.inner.container(id)?.meta.config))
    }

    async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let container = self.inner.container(id)?;
        if container.state.status != Status::Running {
            return Err(Error::FailedPrecondition(format!("container {id} is not running")));
        }
        let shim = self.inner.sandbox(&container.meta.sandbox_id)?.shim;
        let request = Request::ReopenLog { id: id.to_owned() };
        blocking(move || Ok(shim.tell(&request)?)).await
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<ExecResult, Error> {
        streams::exec_sync(&self.inner, id, command, timeout).await
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Streams, Error> {
        streams::exec(&self.inner, id, request).await
    }

    async fn attach(&self, id: &str, stdin: bool) -> Result<Streams, Error> {
        streams::attach(&self.inner, id, stdin).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        streams::port_forward(&self.inner, sandbox, port).await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.inner.events.subscribe();
        // Ends at a gap, so that the listener lists again.
        futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await.ok()?, receiver))).boxed()
    }

    async fn pull_image(&self, reference: &str, auth: Option<ImageAuth>) -> Result<String, Error> {
        images::pull(&self.inner, reference, auth).await
    }

    async fn image_status(&self, reference: &str) -> Result<Option<ImageInfo>, Error> {
        Ok(self.inner.config.images.get(reference).map(images::info))
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>, Error> {
        Ok(self.inner.config.images.list().into_iter().map(images::info).collect())
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        images::remove(&self.inner, reference).await
    }

    async fn import_image(&self, archive: Reader) -> Result<Vec<String>, Error> {
        images::import(&self.inner, archive).await
    }

    async fn image_fs_info(&self) -> Result<ImageFsInfo, Error> {
        images::fs_info(&self.inner).await
    }

    async fn garbage_collect_images(&self, want_bytes: u64, minimum_age: Duration) -> Result<u64, Error> {
        images::collect_garbage(&self.inner, want_bytes, minimum_age).await
    }
}
