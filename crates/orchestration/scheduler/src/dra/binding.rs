//! Devices that somebody has to prepare once they are allocated, and before their pod is bound: how far that is, which whoever
//! does it writes in the claim's status.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceRequestAllocationResult, ResourceClaim,
};
use k8s_openapi::jiff::Timestamp;

use super::known::allocation;

/// From the allocation on; then the devices are given back.
const PATIENCE: Duration = Duration::from_secs(600);

/// How far a claim's devices are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Ready,
    /// Until that time, if it is known.
    Waits(Option<Timestamp>),
    /// Why the pod cannot be bound with these devices.
    Failed(String),
    /// The claim does not name the pod any more.
    Lost,
}

/// Whether devices of an allocation have to be prepared.
pub(crate) fn is_conditional(allocation: &AllocationResult) -> bool {
    results(allocation).any(|result| result.binding_conditions.as_ref().is_some_and(|all| !all.is_empty()))
}

fn results(allocation: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten())
}

fn is_about(status: &AllocatedDeviceStatus, result: &DeviceRequestAllocationResult) -> bool {
    (&status.driver, &status.pool, &status.device, &status.share_id)
        == (&result.driver, &result.pool, &result.device, &result.share_id)
}

pub(crate) fn progress(claim: &ResourceClaim, pod: &Pod, now: Timestamp) -> Progress {
    let Some(allocation) = allocation(claim) else { return Progress::Lost };
    let status = claim.status.as_ref();
    let mut consumers = status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !consumers.any(|by| Some(&by.uid) == pod.metadata.uid.as_ref()) {
        return Progress::Lost;
    }
    let mut missing = None;
    for result in
        results(allocation).filter(|result| result.binding_conditions.as_ref().is_some_and(|all| !all.is_empty()))
    {
        let shown = status.iter().flat_map(|status| status.devices.iter().flatten());
        let shown: Vec<_> = shown.filter(|shown| is_about(shown, result)).collect();
        let holds = |name: &String| {
            let mut all = shown.iter().flat_map(|shown| shown.conditions.iter().flatten());
            all.find(|condition| condition.type_ == *name && condition.status == "True")
        };
        let device = format!("{}/{}/{}", result.driver, result.pool, result.device);
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holds) {
            return Progress::Failed(format!("device {device} failed: {}: {}", failed.type_, failed.message));
        }
        let mut wanted = result.binding_conditions.iter().flatten();
        if let Some(name) = wanted.find(|name| holds(name).is_none()) {
            missing.get_or_insert_with(|| format!("device {device} is not {name}"));
        }
    }
    let Some(missing) = missing else { return Progress::Ready };
    let until = allocation.allocation_timestamp.as_ref().and_then(|time| time.0.checked_add(PATIENCE).ok());
    match until {
        Some(until) if until <= now => Progress::Failed(format!("{missing} after {} s", PATIENCE.as_secs())),
        until => Progress::Waits(until),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn devices_are_ready_when_all_conditions_hold_and_none_that_says_no() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "p"}})).unwrap();
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        let at = |since: &str, conditions: Value| -> Progress {
            let result = json!({"request": "r", "driver": "x.io", "pool": "p", "device": "d",
                "bindingConditions": ["Wired", "Powered"], "bindingFailureConditions": ["Broken"]});
            let allocation = json!({"allocationTimestamp": since, "devices": {"results": [result]}});
            let devices = json!([{"driver": "x.io", "pool": "p", "device": "d", "conditions": conditions}]);
            let status = json!({"allocation": allocation, "devices": devices,
                "reservedFor": [{"resource": "pods", "name": "p", "uid": "p"}]});
            let claim = serde_json::from_value(json!({"metadata": {}, "spec": {}, "status": status})).unwrap();
            progress(&claim, &pod, now)
        };
        let is = |name: &str, status: &str| json!({"type": name, "status": status, "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let start = "2026-01-01T00:00:00Z";
        let until = Some("2026-01-01T00:10:00Z".parse().unwrap());
        assert_eq!(at(start, json!([])), Progress::Waits(until));
        assert_eq!(at(start, json!([is("Wired", "True"), is("Powered", "False")])), Progress::Waits(until));
        assert_eq!(at(start, json!([is("Wired", "True"), is("Powered", "True")])), Progress::Ready);
        let failed = at(start, json!([is("Wired", "True"), is("Powered", "True"), is("Broken", "True")]));
        assert_eq!(failed, Progress::Failed("device x.io/p/d failed: Broken: m".into()));
        let late = at("2025-12-31T23:55:00Z", json!([is("Wired", "True")]));
        assert_eq!(late, Progress::Failed("device x.io/p/d is not Powered after 600 s".into()));
        let nobody = serde_json::from_value(json!({"metadata": {}, "spec": {}, "status": {"allocation": {}}})).unwrap();
        assert_eq!(progress(&nobody, &pod, now), Progress::Lost);
    }
}
