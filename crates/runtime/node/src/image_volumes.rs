//! Volumes that are images: pulled as containers' images are, then mounted by the runtime.

use std::collections::BTreeMap;

use dhow_client::{EventType, reference};
use k8s_openapi::api::core::v1::Container;

use crate::pulls::{Image, Wanted};
use crate::start::{Outcome, Stage};
use crate::worker::Worker;

impl Worker {
    /// Ids of the images that a container mounts, by volume; or how far the container comes without one of them.
    pub(crate) async fn image_volumes(
        &mut self,
        stage: &Stage<'_>,
        container: &Container,
    ) -> Result<BTreeMap<String, String>, Outcome> {
        let mut ids = BTreeMap::new();
        let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
        for volume in stage.spec.volumes.iter().flatten().filter(|volume| mounted(&volume.name)) {
            let Some(source) = &volume.image else { continue };
            self.can_mount_images(stage, container, &volume.name).await?;
            // No container has such a name.
            let pull = format!("volume/{}", volume.name);
            let image = source.reference.as_deref().unwrap_or_default();
            let wanted = Wanted {
                container: &pull,
                image,
                policy: source.pull_policy.as_deref().unwrap_or("IfNotPresent"),
                now: stage.now,
            };
            let pulled = self.volumes_pulled.get(&volume.name).cloned();
            let found = match pulled {
                // Containers of one pod see one image, and each pull is told of once.
                Some(image) => Ok(Image::Here(image)),
                None => {
                    let (found, notices) = self.look_for(stage.pod, &wanted).await;
                    for notice in notices {
                        let kind = if notice.warning { EventType::Warning } else { EventType::Normal };
                        self.shared.events.event(reference(stage.pod), kind, notice.reason, &notice.message);
                    }
                    found
                }
            };
            let image = self.present(stage.pod, container, found)?;
            ids.insert(volume.name.clone(), image.id.clone());
            self.volumes_pulled.insert(volume.name.clone(), image);
        }
        Ok(ids)
    }

    async fn can_mount_images(
        &mut self,
        stage: &Stage<'_>,
        container: &Container,
        volume: &str,
    ) -> Result<(), Outcome> {
        let shared = std::sync::Arc::clone(&self.shared);
        let features = match shared.runtime_handler(stage.spec).await {
            Ok(handler) => shared.config.runtime.features(&handler).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        let why = match features {
            Ok(features) if features.image_volumes => return Ok(()),
            Ok(_) => format!(
                "volume {volume:?} is an image, and the container runtime {} does not mount images: containerd 2.1, \
                 CRI-O 1.31 and the embedded runtime do",
                shared.runtime_name
            ),
            Err(error) => error,
        };
        let name = &container.name;
        self.container_event(stage.pod, name, EventType::Warning, "Failed", &format!("Error: {why}"));
        self.waiting.insert(name.clone(), ("CreateContainerError".into(), why));
        Err(Outcome::Waits(None))
    }
}
