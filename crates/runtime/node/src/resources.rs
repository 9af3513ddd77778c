//! Quality of service, cgroup limits and the out-of-memory score of a pod's containers.

use std::collections::BTreeMap;

use dhow_cri::runtime::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

type List = Option<BTreeMap<String, Quantity>>;

/// A quantity in thousandths; `None` when it cannot be read.
pub fn milli(quantity: &str) -> Option<i128> {
    let split = quantity.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(split);
    let (factor, divisor): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = format!("{whole}{fraction}").parse::<i128>().ok()?;
    value.checked_mul(factor)?.checked_div(divisor * scale)
}

fn amount(list: Option<&List>, name: &str) -> Option<i128> {
    list?.as_ref()?.get(name).and_then(|q| milli(&q.0)).filter(|v| *v != 0)
}

fn limit(container: &Container, name: &str) -> Option<i128> {
    amount(container.resources.as_ref().map(|r| &r.limits), name)
}

fn request(container: &Container, name: &str) -> Option<i128> {
    amount(container.resources.as_ref().map(|r| &r.requests), name).or_else(|| limit(container, name))
}

pub fn qos(spec: &PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let names = ["cpu", "memory"];
    if all().all(|c| names.iter().all(|n| request(c, n).is_none() && limit(c, n).is_none())) {
        return "BestEffort";
    }
    if all().all(|c| names.iter().all(|n| limit(c, n).is_some() && limit(c, n) == request(c, n))) {
        return "Guaranteed";
    }
    "Burstable"
}

/// `kubepods/<qos>/pod<uid>`; guaranteed pods sit directly below `kubepods`.
pub fn cgroup_parent(spec: &PodSpec, uid: &str) -> String {
    match qos(spec) {
        "BestEffort" => format!("kubepods/besteffort/pod{uid}"),
        "Burstable" => format!("kubepods/burstable/pod{uid}"),
        _ => format!("kubepods/pod{uid}"),
    }
}

pub fn of(spec: &PodSpec, container: &Container, node_memory: u64) -> Resources {
    let cpu = request(container, "cpu").unwrap_or(0);
    let memory = limit(container, "memory").map(|m| i64::try_from(m / 1000).unwrap_or(i64::MAX));
    let oom = match qos(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let wanted = request(container, "memory").unwrap_or(0) / 1000;
            let score = 1000 - (1000 * wanted) / i128::from(node_memory.max(1));
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    };
    Resources {
        cpu_shares: Some(u64::try_from((cpu * 1024 / 1000).clamp(2, 262_144)).unwrap_or(2)),
        cpu_quota: limit(container, "cpu").map(|m| i64::try_from((m * 100).max(1000)).unwrap_or(i64::MAX)),
        cpu_period: limit(container, "cpu").map(|_| 100_000),
        memory_limit: memory,
        oom_score_adj: Some(oom),
        ..Default::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, want) in [("100m", 100), ("1.5", 1500), ("64Mi", 67_108_864_000), ("2k", 2_000_000), ("0", 0)] {
            assert_eq!(milli(text), Some(want), "{text}");
        }
        assert_eq!(milli("x"), None);
    }

    #[test]
    fn limits_become_quota_shares_and_memory() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({"containers": [{"name": "a",
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}]}))
        .unwrap();
        assert_eq!(qos(&spec), "Guaranteed");
        let got = of(&spec, &spec.containers[0], 1 << 30);
        assert_eq!((got.cpu_quota, got.cpu_shares, got.memory_limit), (Some(50_000), Some(512), Some(64 << 20)));
        assert_eq!(got.oom_score_adj, Some(-997));
    }
}
