//! What mounted volumes hold, as their drivers tell it.

use std::path::Path;

use dhow_plugins::csi::node_service_capability::rpc::Type as Can;
use dhow_plugins::csi::volume_usage::Unit;
use dhow_plugins::csi::{NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse};
use serde_json::{Value, json};

use super::mount::text;
use super::record::{self, Record};
use crate::shared::Shared;

/// The volumes of a pod in the words of the kubelet's stats API.
pub async fn of_pod(shared: &Shared, uid: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for (_, own) in record::of_pod(&shared.config.root_dir.join("pods").join(uid)) {
        if let Some(answer) = ask(shared, &own).await {
            all.push(shown(&own, &answer));
        }
    }
    all
}

async fn ask(shared: &Shared, own: &Record) -> Option<NodeGetVolumeStatsResponse> {
    let driver = shared.csi.driver(&own.driver_name).ok()?;
    if !own.published || !driver.can(Can::GetVolumeStats) {
        return None;
    }
    let request = NodeGetVolumeStatsRequest {
        volume_id: own.volume_handle.clone(),
        volume_path: text(&own.target),
        staging_target_path: text(Path::new(&own.staging)),
    };
    match driver.node().node_get_volume_stats(request).await {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) => {
            tracing::debug!(driver = own.driver_name, volume = own.name, %status, "a driver tells nothing of a volume");
            None
        }
    }
}

fn shown(own: &Record, answer: &NodeGetVolumeStatsResponse) -> Value {
    let mut out = json!({"time": jiff::Timestamp::now(), "name": own.pod_volume});
    if let Some((namespace, name)) = &own.claim {
        out["pvcRef"] = json!({"name": name, "namespace": namespace});
    }
    for usage in &answer.usage {
        let names = match usage.unit() {
            Unit::Bytes => ["availableBytes", "capacityBytes", "usedBytes"],
            Unit::Inodes => ["inodesFree", "inodes", "inodesUsed"],
            Unit::Unknown => continue,
        };
        for (name, value) in names.into_iter().zip([usage.available, usage.total, usage.used]) {
            out[name] = json!(value);
        }
    }
    if let Some(condition) = &answer.volume_condition {
        out["volumeHealthStats"] = json!({"abnormal": condition.abnormal});
    }
    out
}
