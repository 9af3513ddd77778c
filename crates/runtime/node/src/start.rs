//! Starting one container: its image, its configuration, its process, its postStart hook.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use dhow_client::EventType;
use dhow_cri::runtime::{ContainerStatus, ImageInfo, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::containers::latest;
use crate::pulls::{Image, Notice, Wanted};
use crate::worker::{Worker, grace};
use crate::{Error, config, env, hooks, hosts, pull_secrets};

/// Annotation of a container: the image by the digest it has in its registry.
pub const IMAGE_DIGEST: &str = "dhow.io/image-digest";

/// The pod as it is now, around a container that starts.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    pub pod: &'a Pod,
    pub spec: &'a PodSpec,
    pub sandbox: &'a SandboxStatus,
    pub containers: &'a [ContainerStatus],
    /// Host paths of the volumes by name.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub now: SystemTime,
}

/// How far a container came.
pub enum Outcome {
    Started,
    /// Its image is being pulled; those after it wait.
    Pulling,
    /// Its waiting reason is set; tried again at that time, or when the worker looks next.
    Waits(Option<SystemTime>),
}

impl Worker {
    /// Brings a container as far as it goes now. What went wrong is told by event and kept as the waiting reason.
    pub(crate) async fn bring_up(&mut self, stage: &Stage<'_>, container: &Container) -> Outcome {
        let name = &container.name;
        let found = self.image(stage.pod, container, stage.now).await;
        let image = match self.present(stage.pod, container, found) {
            Ok(image) => image,
            Err(outcome) => return outcome,
        };
        let images = match self.image_volumes(stage, container).await {
            Ok(images) => images,
            Err(outcome) => return outcome,
        };
        match self.start(stage, container, &image, &images).await {
            Ok(()) => {
                self.waiting.remove(name);
                Outcome::Started
            }
            Err(error) => {
                // A hook that failed has had its own event.
                if error.reason() != "PostStartHookError" {
                    self.container_event(stage.pod, name, EventType::Warning, "Failed", &format!("Error: {error}"));
                }
                self.waiting.insert(name.clone(), (error.reason().into(), error.to_string()));
                // One of their images may be gone.
                self.volumes_pulled.clear();
                Outcome::Waits(None)
            }
        }
    }

    /// The image, or how far the container comes without it.
    pub(crate) fn present(
        &mut self,
        pod: &Pod,
        container: &Container,
        found: Result<Image, Error>,
    ) -> Result<Box<ImageInfo>, Outcome> {
        let name = &container.name;
        match found {
            Ok(Image::Here(image)) => Ok(image),
            Ok(Image::Pulling) => Err(Outcome::Pulling),
            Ok(Image::Waiting { reason, message, until }) => {
                self.waiting.insert(name.clone(), (reason.into(), message));
                Err(Outcome::Waits(until))
            }
            Err(error) => {
                self.container_event(pod, name, EventType::Warning, "Failed", &format!("Error: {error}"));
                self.waiting.insert(name.clone(), ("ImageInspectError".into(), error.to_string()));
                Err(Outcome::Waits(None))
            }
        }
    }

    /// Begins the pull of a container's image without starting the container.
    pub(crate) async fn begin_pull(&mut self, stage: &Stage<'_>, container: &Container) {
        let image = container.image.as_deref().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let runtime = &self.shared.config.runtime;
        let present = policy != "Always" && matches!(runtime.image_status(image).await, Ok(Some(_)));
        if !present && policy != "Never" {
            // A failure is told again when it is the container's turn.
            let _ = self.image(stage.pod, container, stage.now).await;
        }
    }

    async fn image(&mut self, pod: &Pod, container: &Container, now: SystemTime) -> Result<Image, Error> {
        let image = container.image.as_deref().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let (found, notices) = self.look_for(pod, &Wanted { container: &container.name, image, policy, now }).await;
        for notice in notices {
            let kind = if notice.warning { EventType::Warning } else { EventType::Normal };
            self.container_event(pod, &container.name, kind, notice.reason, &notice.message);
        }
        found
    }

    /// The image, and what is to be told of it.
    pub(crate) async fn look_for(&mut self, pod: &Pod, wanted: &Wanted<'_>) -> (Result<Image, Error>, Vec<Notice>) {
        let shared = std::sync::Arc::clone(&self.shared);
        let auth = || pull_secrets::auth(&shared.config, pod, wanted.image);
        let mut notices = Vec::new();
        let found = self.pulls.image(&shared.config.runtime, wanted, auth, &self.wake, &mut notices).await;
        (found.map_err(Error::from), notices)
    }

    async fn start(
        &mut self,
        stage: &Stage<'_>,
        container: &Container,
        image: &ImageInfo,
        images: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let shared = std::sync::Arc::clone(&self.shared);
        let runtime = &shared.config.runtime;
        let (spec, sandbox) = (stage.spec, stage.sandbox);
        let before = latest(stage.containers, &container.name);
        if let Some(before) = before {
            let failed = before.finished_at.unwrap_or(before.created_at);
            self.crashes.grow(&container.name, failed, stage.now);
        }
        let mut pod = stage.pod.clone();
        let pod_status = pod.status.get_or_insert_default();
        let ips: Vec<String> = match spec.host_network {
            Some(true) => shared.config.node_ips.clone(),
            _ => sandbox.ips.iter().map(ToString::to_string).collect(),
        };
        pod_status.pod_ip = ips.first().cloned();
        pod_status.pod_ips = Some(ips.into_iter().map(|ip| k8s_openapi::api::core::v1::PodIP { ip }).collect());
        pod_status.host_ip = shared.config.node_ips.first().cloned();
        let host_ips = shared.config.node_ips.iter().map(|ip| k8s_openapi::api::core::v1::HostIP { ip: ip.clone() });
        pod_status.host_ips = Some(host_ips.collect());
        let vars = env::build(&shared.objects, &shared.services.list(), &pod, container, &shared.allocatable()).await?;
        let attempt = before.map_or(0, |c| c.attempt + 1);
        let dir = self.pod_dir(&sandbox.pod.uid);
        let files = dir.join("containers").join(&container.name);
        std::fs::create_dir_all(&files).map_err(Error::io("create container directory"))?;
        let termination_log = files.join(format!("termination-{attempt}"));
        std::fs::write(&termination_log, "").map_err(Error::io("create termination log"))?;
        // Whoever the container runs as writes its last words there.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&termination_log, open).map_err(Error::io("open the termination log"))?;
        let etc_hosts = dir.join("hosts");
        let text = hosts::file(&pod, spec, &sandbox.ips, &shared.config.cluster_domain);
        std::fs::write(&etc_hosts, text).map_err(Error::io("write hosts file"))?;
        let debugged = spec.ephemeral_containers.iter().flatten().find(|c| c.name == container.name);
        let target = debugged.and_then(|debug| debug.target_container_name.as_deref()).filter(|name| !name.is_empty());
        let target = match target.map(|name| (name, latest(stage.containers, name))) {
            Some((_, Some(found))) if crate::containers::is_live(found) => Some(found.id.clone()),
            Some((name, _)) => return Err(Error::config(format!("unable to find target container {name}"))),
            None => None,
        };
        let start = config::Start {
            attempt,
            image,
            env: vars,
            volumes: stage.volumes,
            images,
            features: runtime.features(&shared.runtime_handler(spec).await.map_err(Error::config)?).await?,
            hosts: Some(etc_hosts),
            termination_log,
            subpaths: dir.join("subpaths").join(&container.name),
            node: &shared.limits,
            target,
        };
        let mut config = config::container(&shared.config, spec, container, start)?;
        if let Some(own) = self.allocated.get(&container.name) {
            let resized = Container { resources: Some(own.clone()), ..container.clone() };
            config.resources = crate::resources::of(spec, &resized, &shared.limits);
        }
        let digest = image.repo_digests.first().unwrap_or(&image.id);
        config.annotations.insert(IMAGE_DIGEST.into(), digest.clone());
        shared.devices.equip(&sandbox.pod.uid, &mut config).await?;
        shared.dra.equip(&pod, container, &mut config).await?;
        let id = runtime.create_container(&sandbox.id, config).await?;
        let name = &container.name;
        self.container_event(&pod, name, EventType::Normal, "Created", &format!("Container created: {name}"));
        runtime.start_container(&id).await?;
        self.container_event(&pod, name, EventType::Normal, "Started", &format!("Container started: {name}"));
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let ip = self.address(sandbox);
        let target = hooks::Target { runtime: runtime.as_ref(), id: &id, ip: &ip, container };
        let result = tokio::select! {
            result = target.run(hook) => result,
            () = self.ending() => Err("the pod is being deleted".into()),
        };
        let Err(message) = result else { return Ok(()) };
        let message = format!("PostStartHook failed: {message}");
        self.container_event(&pod, name, EventType::Warning, "FailedPostStartHook", &message);
        runtime.stop_container(&id, grace(&pod)).await?;
        Err(Error::Spec { reason: "PostStartHookError", message })
    }
}
