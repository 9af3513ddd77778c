//! The `Runtime` trait, method by method.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use http::StatusCode;
use serde_json::Value;

use super::request::{CONTAINER, SANDBOX};
use super::{DockerRuntime, Inner, answer, api, images, request, sandbox, streams};
use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatus, Duplex, ExecRequest, ExecResult, ImageAuth,
    ImageInfo, Reader, Resources, RuntimeEvent, RuntimeHandler, RuntimeVersion, SandboxConfig, SandboxState,
    SandboxStatus, Streams,
};
use crate::{Error, Runtime, socket};

impl Inner {
    async fn status(&self, id: &str) -> Result<ContainerStatus, Error> {
        let inspected = self.inspect("container", CONTAINER, id).await?;
        let status = answer::container(&inspected)?;
        if status.state == ContainerState::Exited {
            self.logs.finished(id).await;
        }
        Ok(status)
    }

    /// The statuses of this cloud's containers. What was known of one holds until its state changes.
    async fn statuses(&self) -> Result<Vec<ContainerStatus>, Error> {
        let listed = self.list(CONTAINER).await?;
        self.statuses.lock().retain(|id, _| listed.iter().any(|container| container["Id"] == id.as_str()));
        let mut all = Vec::with_capacity(listed.len());
        for container in listed {
            let id = container["Id"].as_str().unwrap_or_default();
            let state = answer::container_state(container["State"].as_str().unwrap_or_default());
            let known = self.statuses.lock().get(id).filter(|known| known.state == state).cloned();
            match known {
                Some(known) => all.push(known),
                None => match self.status(id).await {
                    Ok(status) => {
                        if matches!(status.state, ContainerState::Running | ContainerState::Exited) {
                            self.statuses.lock().insert(id.to_owned(), status.clone());
                        }
                        all.push(status);
                    }
                    // Removed since it was listed.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(all)
    }

    async fn start(&self, id: &str) -> Result<(), Error> {
        self.inspect("container", CONTAINER, id).await?;
        let path = format!("/containers/{}/start", api::escape(id));
        match self.api.post(&path, &Value::Null).await {
            Ok(_) => {}
            Err(failure) if failure.is(StatusCode::NOT_FOUND) || failure.is(StatusCode::BAD_REQUEST) => {
                // It exists; what does not is its program.
                return Err(Error::CannotRun(failure.to_string()));
            }
            Err(failure) => match failure.on("container", id) {
                Error::Internal { context, .. } if context.contains("OCI runtime") => {
                    return Err(Error::CannotRun(context));
                }
                error => return Err(error),
            },
        }
        self.logs.follow(&self.inspect("container", CONTAINER, id).await?)
    }
}

/// Whole seconds, as Docker counts them; a part of one is one.
fn seconds(duration: Duration) -> u128 {
    duration.as_millis().div_ceil(1000)
}

#[async_trait::async_trait]
impl Runtime for DockerRuntime {
    async fn version(&self) -> Result<RuntimeVersion, Error> {
        Ok(RuntimeVersion { name: "docker".into(), version: self.inner.version.clone() })
    }

    async fn handlers(&self) -> Result<Vec<RuntimeHandler>, Error> {
        // Since Docker 25.
        let recursive_readonly_mounts = self.inner.api.version >= (1, 44);
        Ok(vec![RuntimeHandler { recursive_readonly_mounts, ..RuntimeHandler::default() }])
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
        sandbox::status(&self.inner, id).await
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        sandbox::list(&self.inner).await
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<String, Error> {
        let inner = &self.inner;
        let inspected = inner.inspect("sandbox", SANDBOX, sandbox).await?;
        let state = inspected["State"]["Status"].as_str().unwrap_or_default();
        if answer::sandbox_state(state) != SandboxState::Ready {
            return Err(Error::FailedPrecondition(format!("sandbox {sandbox} is not ready")));
        }
        let sandbox_config = answer::sandbox_config(sandbox, &inspected["Config"]["Labels"])?;
        let seccomp = request::seccomp_text(&config.security.seccomp)?;
        let asked = request::container(&config, sandbox, &sandbox_config, &inner.groups(), seccomp)?;
        match inner.api.post("/containers/create", &asked).await {
            Ok(made) => Ok(made["Id"].as_str().unwrap_or_default().to_owned()),
            // The sandbox is there, so it is the image that is not.
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => {
                Err(Error::NotFound { kind: "image", id: config.image })
            }
            Err(failure) => Err(failure.on("container", &config.name)),
        }
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        self.inner.start(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let path = format!("/containers/{}/stop?t={}", api::escape(id), seconds(grace));
        match self.inner.api.post(&path, &Value::Null).await {
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => Ok(()),
            Err(failure) => Err(failure.on("container", id)),
            Ok(_) => Ok(()),
        }
    }

    async fn remove_container(&self, id: &str) -> Result<(), Error> {
        match self.inner.inspect("container", CONTAINER, id).await {
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => sandbox::remove_container(&self.inner, id).await,
        }
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus, Error> {
        self.inner.status(id).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        self.inner.statuses().await
    }

    async fn update_container_resources(&self, id: &str, resources: Resources) -> Result<(), Error> {
        self.inner.inspect("container", CONTAINER, id).await?;
        let path = format!("/containers/{}/update", api::escape(id));
        let updated = self.inner.api.post(&path, &request::resources(&resources)).await;
        updated.map(drop).map_err(|failure| failure.on("container", id))
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats, Error> {
        self.inner.inspect("container", CONTAINER, id).await?;
        let path = format!("/containers/{}/stats?stream=false&one-shot=true", api::escape(id));
        let stats = self.inner.api.get(&path).await.map_err(|failure| failure.on("container", id))?;
        Ok(answer::stats(id, &stats))
    }

    async fn sandbox_process(&self, id: &str) -> Result<Option<u32>, Error> {
        streams::process(&self.inner, id).await
    }

    async fn processes(&self) -> Vec<u32> {
        socket::peer(&self.inner.config.socket).await.into_iter().collect()
    }

    async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        self.inner.logs.reopen(id)
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
        images::status(&self.inner, reference).await
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>, Error> {
        images::list(&self.inner).await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        images::remove(&self.inner, reference).await
    }

    async fn import_image(&self, archive: Reader) -> Result<Vec<String>, Error> {
        images::import(&self.inner, archive).await
    }
}
