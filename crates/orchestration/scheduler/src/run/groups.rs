//! Pod groups of the scheduler-plugins' API (`scheduling.x-k8s.io/v1alpha1`, kind PodGroup), watched once someone has
//! installed that custom kind.

use std::sync::Arc;

use dhow_client::{Change, Client, Informer, ListParams, while_served};
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

dhow_client::kind!(PodGroup, "scheduling.x-k8s.io", "v1alpha1", "podgroups", NamespaceResourceScope);

/// Watches the custom kind while it is there.
pub(super) fn follow(client: &Client, engine: &Arc<Engine>, shutdown: &CancellationToken) {
    let (client, engine, shutdown) = (client.clone(), Arc::clone(engine), shutdown.clone());
    tokio::spawn(async move {
        let begin = |stop: CancellationToken| start(&client, &engine, &stop);
        while_served(&client, &[DEFINITION], "v1alpha1", &shutdown, begin).await;
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
