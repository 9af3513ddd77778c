//! `dhow.io/depends-on`: pods behind that scheduling gate start once the services that they name are so far.
//!
//! The annotation of the same name is a list of `{"service": …, "condition": …}` with the conditions of Compose. A service
//! is the pods of the namespace with its label `dhow.io/service` and the waiting pod's `dhow.io/project`; one that is to
//! have ended is the Job of its name. The gate goes once for each pod: what fails later does not stop what runs.

use std::sync::Arc;

use dhow_client::{Client, Error, Informer, Key, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::json;

use crate::common::{is_finished, ready_since};

const GATE: &str = "dhow.io/depends-on";
const PROJECT: &str = "dhow.io/project";
const SERVICE: &str = "dhow.io/service";

#[derive(Debug, Deserialize)]
struct Wait {
    service: String,
    condition: String,
}

pub struct Dependencies {
    client: Client,
    pods: Informer<Pod>,
    jobs: Informer<Job>,
}

impl Dependencies {
    pub fn new(client: Client, pods: Informer<Pod>, jobs: Informer<Job>, queue: &Queue) -> Arc<Self> {
        let (to, all) = (queue.clone(), pods.clone());
        pods.on_change(move |change| {
            let pod = change.object();
            if is_gated(pod) {
                to.add(Key::of(&pod.metadata));
            }
            // Those that may wait for it.
            wake(&to, &all, pod.metadata.namespace.as_deref(), label(pod, PROJECT));
        });
        let (to, all) = (queue.clone(), pods.clone());
        jobs.on_change(move |change| {
            let metadata = &change.object().metadata;
            let project = metadata.labels.as_ref().and_then(|labels| labels.get(PROJECT)).map(String::as_str);
            wake(&to, &all, metadata.namespace.as_deref(), project);
        });
        Arc::new(Self { client, pods, jobs })
    }

    fn is_met(&self, pod: &Pod, wait: &Wait) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if wait.condition == "service_completed_successfully" {
            return self.jobs.get(&Key::new(Some(namespace), &wait.service)).is_some_and(|job| is_complete(&job));
        }
        let all = self.pods.by_index("namespace", namespace);
        let of_service = all.iter().filter(|other| {
            label(other, PROJECT) == label(pod, PROJECT)
                && label(other, SERVICE) == Some(wait.service.as_str())
                && other.metadata.deletion_timestamp.is_none()
        });
        let of_service: Vec<&Arc<Pod>> = of_service.collect();
        if wait.condition == "service_healthy" {
            let alive: Vec<_> = of_service.iter().filter(|other| !is_finished(other)).collect();
            return !alive.is_empty() && alive.iter().all(|other| ready_since(other).is_some());
        }
        of_service.iter().any(|other| has_started(other))
    }
}

#[async_trait::async_trait]
impl Reconcile for Dependencies {
    fn name(&self) -> &'static str {
        "dependencies"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        if !is_gated(&pod) || pod.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(GATE)).map_or("[]", String::as_str);
        let waits: Vec<Wait> = match serde_json::from_str(annotation) {
            Ok(waits) => waits,
            Err(error) => {
                tracing::warn!(pod = %key, %error, "the annotation {GATE} is not understood; the pod waits");
                return Ok(Outcome::Done);
            }
        };
        if !waits.iter().all(|wait| self.is_met(&pod, wait)) {
            return Ok(Outcome::Done);
        }
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "spec": {"schedulingGates": [{"$patch": "delete", "name": GATE}]},
        });
        match self.client.patch::<Pod>(key.namespace.as_deref(), &key.name, Patch::Strategic(patch), None).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }
}

fn wake(queue: &Queue, pods: &Informer<Pod>, namespace: Option<&str>, project: Option<&str>) {
    let (Some(namespace), Some(project)) = (namespace, project) else { return };
    for other in pods.by_index("namespace", namespace) {
        if is_gated(&other) && label(&other, PROJECT) == Some(project) {
            queue.add(Key::of(&other.metadata));
        }
    }
}

fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.scheduling_gates.iter().flatten().any(|gate| gate.name == GATE))
}

/// Whether a container of it runs or ran.
fn has_started(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut states = statuses.filter_map(|status| status.state.as_ref());
    states.any(|state| state.running.is_some() || state.terminated.is_some()) || is_finished(pod)
}

fn is_complete(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut complete = conditions.filter(|one| one.type_ == "Complete" || one.type_ == "SuccessCriteriaMet");
    complete.any(|one| one.status == "True")
}
