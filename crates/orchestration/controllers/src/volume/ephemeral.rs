//! Claims that pods bring along (`ephemeral` volumes): each is made for its pod and owned by it.

use std::sync::Arc;

use dhow_client::{
    Change, Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Queue, Reconcile, controller_reference,
    is_controlled_by, reference,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::{in_ending_namespace, is_active};

pub struct EphemeralVolumes {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    recorder: EventRecorder,
}

impl EphemeralVolumes {
    pub fn new(
        client: Client,
        pods: Informer<Pod>,
        claims: Informer<PersistentVolumeClaim>,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        pods.on_change(move |change| {
            let pod = change.object();
            if !matches!(change, Change::Deleted(_)) && templates(pod).next().is_some() && is_active(pod) {
                to.add(Key::of(&pod.metadata));
            }
        });
        let to = queue.clone();
        claims.on_change(move |change| {
            if let Change::Deleted(claim) = change {
                let owners = claim.metadata.owner_references.iter().flatten().filter(|owner| owner.kind == "Pod");
                owners.for_each(|owner| to.add(Key::new(claim.metadata.namespace.as_deref(), &owner.name)));
            }
        });
        let recorder = EventRecorder::new(client.clone(), "ephemeral-volume-controller");
        Arc::new(Self { client, pods, claims, recorder })
    }

    async fn provide(&self, pod: &Pod, volume: &Volume) -> Result<(), Error> {
        let Some(claim) = claim(pod, volume) else { return Ok(()) };
        let namespace = pod.metadata.namespace.as_deref();
        let name = claim.metadata.name.clone().unwrap_or_default();
        let there = match self.claims.get(&Key::of(&claim.metadata)) {
            Some(there) => there,
            None => match self.client.create(&claim).await {
                Err(error) if error.is_already_exists() => Arc::new(self.client.get(namespace, &name).await?),
                Err(error) if in_ending_namespace(&self.client, &error, namespace).await => return Ok(()),
                Err(error) => {
                    self.tell(pod, volume, &error.to_string());
                    return Err(error);
                }
                Ok(_) => return Ok(()),
            },
        };
        if !is_controlled_by(&there.metadata, pod) {
            let (namespace, pod_name) =
                (namespace.unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
            let why =
                format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod_name} (pod is not owner)");
            self.tell(pod, volume, &why);
        }
        Ok(())
    }

    fn tell(&self, pod: &Pod, volume: &Volume, why: &str) {
        let message = format!("ephemeral volume {}: {why}", volume.name);
        self.recorder.event(reference(pod), EventType::Warning, "FailedBinding", &message);
    }
}

fn templates(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|volume| volume.ephemeral.is_some())
}

fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let given = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
        namespace: pod.metadata.namespace.clone(),
        labels: given.labels,
        annotations: given.annotations,
        owner_references: Some(vec![controller_reference(pod)]),
        ..ObjectMeta::default()
    };
    Some(PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), ..PersistentVolumeClaim::default() })
}

#[async_trait::async_trait]
impl Reconcile for EphemeralVolumes {
    fn name(&self) -> &'static str {
        "ephemeral-volume"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| is_active(pod)) else { return Ok(Outcome::Done) };
        for volume in templates(&pod) {
            self.provide(&pod, volume).await?;
        }
        Ok(Outcome::Done)
    }
}
