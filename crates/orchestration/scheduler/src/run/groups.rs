//! Pod groups of the scheduler-plugins' API (`scheduling.x-k8s.io/v1alpha1`, kind PodGroup), watched once someone has
//! installed that custom kind.

use std::sync::Arc;

use dhow_client::{Change, Client, Informer, ListParams};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{Engine, GroupRule};

const DEFINITION: &str = "podgroups.scheduling.x-k8s.io";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodGroup {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: PodGroupSpec,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodGroupSpec {
    min_member: usize,
}

dhow_client::object!(PodGroup);

impl k8s_openapi::Resource for PodGroup {
    const API_VERSION: &'static str = "scheduling.x-k8s.io/v1alpha1";
    const GROUP: &'static str = "scheduling.x-k8s.io";
    const KIND: &'static str = "PodGroup";
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = "podgroups";
    type Scope = k8s_openapi::NamespaceResourceScope;
}

impl k8s_openapi::Metadata for PodGroup {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn is_served(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut established = conditions.filter(|c| c.type_ == "Established" && c.status == "True");
    established.next().is_some() && definition.spec.versions.iter().any(|v| v.name == "v1alpha1" && v.served)
}

/// Watches the custom kind while it is there.
pub(super) fn follow(client: &Client, engine: &Arc<Engine>, shutdown: &CancellationToken) {
    let scope = ListParams { field_selector: Some(format!("metadata.name={DEFINITION}")), ..ListParams::default() };
    let definitions = Informer::<CustomResourceDefinition>::start(client.clone(), scope, None, shutdown.clone());
    let (client, engine, shutdown) = (client.clone(), Arc::clone(engine), shutdown.clone());
    let running = parking_lot::Mutex::new(None::<CancellationToken>);
    definitions.on_change(move |change| {
        let served = !matches!(change, Change::Deleted(_)) && is_served(change.object());
        let mut running = running.lock();
        if served && running.is_none() {
            let stop = shutdown.child_token();
            start(&client, &engine, &stop);
            *running = Some(stop);
        } else if !served && let Some(stop) = running.take() {
            stop.cancel();
        }
    });
}

fn start(client: &Client, engine: &Arc<Engine>, stop: &CancellationToken) {
    let groups = Informer::<PodGroup>::start(client.clone(), ListParams::default(), None, stop.clone());
    let engine = Arc::clone(engine);
    groups.on_change(move |change| {
        let group = change.object();
        let rule = (!matches!(change, Change::Deleted(_))).then(|| GroupRule::Gang(group.spec.min_member.max(1)));
        let name = group.metadata.name.clone().unwrap_or_default();
        let namespace = group.metadata.namespace.as_deref().unwrap_or_default();
        engine.groups_changed(namespace, "PodGroup", &[(name, rule)]);
    });
}
