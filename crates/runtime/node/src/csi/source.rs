//! What a pod wants of a driver, from a volume's object or from the pod itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod, SecretReference};

use super::record::hash;

/// A volume as the API describes it.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub driver: String,
    pub handle: String,
    /// The persistent volume's name, or that of the pod's own.
    pub name: String,
    pub pod_volume: String,
    pub claim: Option<(String, String)>,
    pub fs_type: String,
    pub mount_flags: Vec<String>,
    pub read_only: bool,
    pub attributes: BTreeMap<String, String>,
    /// Namespace and name.
    pub stage_secret: Option<(String, String)>,
    pub publish_secret: Option<(String, String)>,
    pub expand_secret: Option<(String, String)>,
    pub access_modes: Vec<String>,
    pub block: bool,
    /// Lives in the pod's own description.
    pub ephemeral: bool,
    /// Bytes the volume is to have.
    pub capacity: Option<u64>,
}

fn secret(reference: Option<&SecretReference>) -> Option<(String, String)> {
    let reference = reference?;
    Some((reference.namespace.clone().unwrap_or_default(), reference.name.clone()?))
}

impl Source {
    /// `None` for a volume of another kind.
    pub fn of_volume(volume: &PersistentVolume, pod_volume: &str, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let held = spec.claim_ref.as_ref();
        Some(Self {
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            name: volume.metadata.name.clone().unwrap_or_default(),
            pod_volume: pod_volume.to_owned(),
            claim: held.and_then(|held| Some((held.namespace.clone()?, held.name.clone()?))),
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            mount_flags: spec.mount_options.clone().unwrap_or_default(),
            read_only: read_only || csi.read_only == Some(true),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            stage_secret: secret(csi.node_stage_secret_ref.as_ref()),
            publish_secret: secret(csi.node_publish_secret_ref.as_ref()),
            expand_secret: secret(csi.node_expand_secret_ref.as_ref()),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            block: spec.volume_mode.as_deref() == Some("Block"),
            ephemeral: false,
            capacity: spec
                .capacity
                .as_ref()
                .and_then(|all| all.get("storage"))
                .and_then(|q| crate::resources::whole(&q.0)),
        })
    }

    pub fn of_pod(pod: &Pod, name: &str, csi: &CSIVolumeSource) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let own = csi.node_publish_secret_ref.as_ref();
        Self {
            driver: csi.driver.clone(),
            handle: format!("csi-{}", hash(&format!("{}{name}", text(&pod.metadata.uid)))),
            name: name.to_owned(),
            pod_volume: name.to_owned(),
            fs_type: text(&csi.fs_type),
            read_only: csi.read_only == Some(true),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            publish_secret: own.map(|secret| (text(&pod.metadata.namespace), secret.name.clone())),
            access_modes: vec!["ReadWriteOnce".into()],
            ephemeral: true,
            ..Self::default()
        }
    }
}
