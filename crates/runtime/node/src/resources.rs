//! Quality of service, cgroup limits and the out-of-memory score of pods and their containers.

use std::collections::BTreeMap;

use dhow_cri::runtime::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::containers::is_sidecar;

pub type List = BTreeMap<String, Quantity>;

/// Pods of at least this priority are the system's own.
pub const SYSTEM_CRITICAL: i32 = 2_000_000_000;
const PERIOD: u64 = 100_000;

/// What of the node limits its containers.
#[derive(Debug, Clone, Default)]
pub struct NodeLimits {
    /// Bytes the machine has.
    pub memory: u64,
    /// Processes of one pod; `None` leaves it to the kernel.
    pub pod_pids: Option<i64>,
    /// Sizes of huge pages that the machine has some of.
    pub huge_pages: Vec<u64>,
}

/// A quantity in thousandths; `None` when it cannot be read.
pub fn milli(quantity: &str) -> Option<i128> {
    let (number, factor, divisor) = split(quantity)?;
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent = exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    let value = format!("{whole}{fraction}").parse::<i128>().ok()?.checked_mul(factor)?;
    if exponent < 0 {
        value.checked_div(divisor.checked_mul(power)?)
    } else {
        value.checked_mul(power)?.checked_div(divisor)
    }
}

/// The number, and the suffix's factor and divisor in thousandths.
fn split(quantity: &str) -> Option<(&str, i128, i128)> {
    let known: [(&str, i128, i128); 16] = [
        ("Ki", 1_000 << 10, 1),
        ("Mi", 1_000 << 20, 1),
        ("Gi", 1_000 << 30, 1),
        ("Ti", 1_000 << 40, 1),
        ("Pi", 1_000 << 50, 1),
        ("Ei", 1_000 << 60, 1),
        ("n", 1, 1_000_000),
        ("u", 1, 1_000),
        ("m", 1, 1),
        ("k", 1_000_000, 1),
        ("M", 1_000_000_000, 1),
        ("G", 1_000_000_000_000, 1),
        ("T", 1_000_000_000_000_000, 1),
        ("P", 1_000_000_000_000_000_000, 1),
        ("E", 1_000_000_000_000_000_000_000, 1),
        ("", 1_000, 1),
    ];
    known.into_iter().find_map(|(suffix, factor, divisor)| {
        let number = quantity.strip_suffix(suffix)?;
        number.ends_with(|c: char| c.is_ascii_digit() || c == '.').then_some((number, factor, divisor))
    })
}

/// A quantity in whole units, rounded up.
pub fn whole(quantity: &str) -> Option<u64> {
    milli(quantity).and_then(|m| u64::try_from((m + 999) / 1000).ok())
}

/// Thousandths of what a list has by that name; nothing counts as absent.
pub fn amount(list: Option<&List>, name: &str) -> Option<i128> {
    list?.get(name).and_then(|q| milli(&q.0)).filter(|v| *v != 0)
}

fn limit_of(resources: Option<&ResourceRequirements>, name: &str) -> Option<i128> {
    amount(resources.and_then(|r| r.limits.as_ref()), name)
}

fn request_of(resources: Option<&ResourceRequirements>, name: &str) -> Option<i128> {
    amount(resources.and_then(|r| r.requests.as_ref()), name).or_else(|| limit_of(resources, name))
}

fn limit(container: &Container, name: &str) -> Option<i128> {
    limit_of(container.resources.as_ref(), name)
}

/// Thousandths asked for; a limit without a request is one.
pub fn request(container: &Container, name: &str) -> Option<i128> {
    request_of(container.resources.as_ref(), name)
}

/// What the pod as a whole was given, if anything.
fn pod_level(spec: &PodSpec) -> Option<&ResourceRequirements> {
    let own = spec.resources.as_ref()?;
    let any = |list: &Option<List>| list.as_ref().is_some_and(|l| l.contains_key("cpu") || l.contains_key("memory"));
    (any(&own.requests) || any(&own.limits)).then_some(own)
}

pub fn qos(spec: &PodSpec) -> &'static str {
    let names = ["cpu", "memory"];
    if let Some(own) = pod_level(spec) {
        let equal = |n| limit_of(Some(own), n).is_some() && limit_of(Some(own), n) == request_of(Some(own), n);
        return if names.iter().all(|n| equal(n)) { "Guaranteed" } else { "Burstable" };
    }
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if all().all(|c| names.iter().all(|n| request(c, n).is_none() && limit(c, n).is_none())) {
        return "BestEffort";
    }
    if all().all(|c| names.iter().all(|n| limit(c, n).is_some() && limit(c, n) == request(c, n))) {
        return "Guaranteed";
    }
    "Burstable"
}

/// What a pod takes of a node, in thousandths: its containers and sidecars together or its greatest init container,
/// and the overhead of its runtime class.
pub fn pod_request(spec: &PodSpec, name: &str) -> i128 {
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    if let Some(own) = pod_level(spec).and_then(|own| request_of(Some(own), name)) {
        return own + overhead;
    }
    aggregate(spec, |c| request(c, name).unwrap_or(0)) + overhead
}

/// The sum of a pod's limits in thousandths; `None` if any of its containers has none.
fn pod_limit(spec: &PodSpec, name: &str) -> Option<i128> {
    if let Some(own) = pod_level(spec).and_then(|own| limit_of(Some(own), name)) {
        return Some(own);
    }
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.all(|c| limit(c, name).is_some()).then(|| aggregate(spec, |c| limit(c, name).unwrap_or(0)))
}

fn aggregate(spec: &PodSpec, of: impl Fn(&Container) -> i128) -> i128 {
    let mut lasting: i128 = spec.containers.iter().map(&of).sum();
    let (mut sidecars, mut greatest) = (0, 0);
    for init in spec.init_containers.iter().flatten() {
        if is_sidecar(init) {
            sidecars += of(init);
            greatest = greatest.max(sidecars);
        } else {
            greatest = greatest.max(sidecars + of(init));
        }
    }
    lasting += sidecars;
    lasting.max(greatest)
}

/// Bytes of memory the pod may use at most, if that is known.
pub fn memory_limit(spec: &PodSpec) -> Option<u64> {
    pod_limit(spec, "memory").and_then(|m| u64::try_from(m / 1000).ok())
}

/// `kubepods/<qos>/pod<uid>`; guaranteed pods sit directly below `kubepods`.
pub fn cgroup_parent(spec: &PodSpec, uid: &str) -> String {
    match qos(spec) {
        "BestEffort" => format!("kubepods/besteffort/pod{uid}"),
        "Burstable" => format!("kubepods/burstable/pod{uid}"),
        _ => format!("kubepods/pod{uid}"),
    }
}

/// cgroup v1's shares of a request in thousandths of a processor.
pub fn shares(milli_cpu: i128) -> u64 {
    u64::try_from((milli_cpu * 1024 / 1000).clamp(2, 262_144)).unwrap_or(2)
}

/// Microseconds per period of a limit in thousandths of a processor.
fn quota(milli_cpu: i128) -> i64 {
    i64::try_from((milli_cpu * i128::from(PERIOD) / 1000).max(1000)).unwrap_or(i64::MAX)
}

fn bytes(milli: i128) -> i64 {
    i64::try_from(milli / 1000).unwrap_or(i64::MAX)
}

fn oom_score(spec: &PodSpec, container: &Container, node_memory: u64) -> i32 {
    if spec.priority.is_some_and(|priority| priority >= SYSTEM_CRITICAL) {
        return -997;
    }
    let burstable = |wanted: i128| {
        let score = 1000 - (1000 * (wanted / 1000)) / i128::from(node_memory.max(1));
        i32::try_from(score.clamp(3, 999)).unwrap_or(999)
    };
    match qos(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let own = burstable(request(container, "memory").unwrap_or(0));
            let is_init = spec.init_containers.iter().flatten().any(|c| c.name == container.name && is_sidecar(c));
            // A sidecar goes no earlier than those it serves.
            let mains = spec.containers.iter().map(|c| burstable(request(c, "memory").unwrap_or(0)));
            if is_init { mains.min().map_or(own, |main| own.min(main)) } else { own }
        }
    }
}

/// Page sizes as cgroups name them: `2Mi` is `2MB`.
fn page_name(size: &str) -> Option<String> {
    whole(size).map(page_size)
}

fn page_size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

/// The limits of one container.
pub fn of(spec: &PodSpec, container: &Container, node: &NodeLimits) -> Resources {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    // Whoever asks for none of the machine's huge pages gets none.
    let none = node.huge_pages.iter().map(|size| (page_size(*size), 0));
    let asked = limits
        .into_iter()
        .flatten()
        .filter_map(|(name, quantity)| Some((page_name(name.strip_prefix("hugepages-")?)?, whole(&quantity.0)?)));
    Resources {
        cpu_shares: Some(shares(request(container, "cpu").unwrap_or(0))),
        cpu_quota: limit(container, "cpu").map(quota),
        cpu_period: limit(container, "cpu").map(|_| PERIOD),
        memory_limit: limit(container, "memory").map(bytes),
        oom_score_adj: Some(oom_score(spec, container, node.memory)),
        hugepages: none.chain(asked).collect(),
        ..Default::default()
    }
}

/// The limits of a pod as a whole.
pub fn of_pod(spec: &PodSpec, node: &NodeLimits) -> Resources {
    let cpu = pod_limit(spec, "cpu");
    Resources {
        cpu_shares: Some(shares(pod_request(spec, "cpu"))),
        cpu_quota: cpu.map(quota),
        cpu_period: cpu.map(|_| PERIOD),
        memory_limit: pod_limit(spec, "memory").map(bytes),
        pids_limit: node.pod_pids,
        ..Default::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    const NODE: NodeLimits = NodeLimits { memory: 1 << 30, pod_pids: Some(100), huge_pages: Vec::new() };

    #[test]
    fn quantities_are_read_exactly() {
        for (text, want) in [
            ("100m", 100),
            ("1.5", 1500),
            ("64Mi", 67_108_864_000),
            ("2k", 2_000_000),
            ("0", 0),
            ("1e3", 1_000_000),
            ("12E-1", 1200),
            ("1E", 1_000_000_000_000_000_000_000),
            ("0.5Gi", 536_870_912_000),
        ] {
            assert_eq!(milli(text), Some(want), "{text}");
        }
        assert_eq!((milli("x"), milli(""), milli("Mi")), (None, None, None));
        assert_eq!((whole("1500m"), whole("2Ki")), (Some(2), Some(2048)));
    }

    #[test]
    fn limits_become_quota_shares_and_memory() {
        let spec = spec(serde_json::json!({"containers": [{"name": "a", "resources":
            {"limits": {"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}}}]}));
        assert_eq!(qos(&spec), "Guaranteed");
        let got = of(&spec, &spec.containers[0], &NODE);
        assert_eq!((got.cpu_quota, got.cpu_shares, got.memory_limit), (Some(50_000), Some(512), Some(64 << 20)));
        assert_eq!(got.oom_score_adj, Some(-997));
        assert_eq!(got.hugepages.get("2MB"), Some(&(4 << 20)));
        let node = NodeLimits { huge_pages: vec![2 << 20, 1 << 30], ..NODE };
        let got = of(&spec, &spec.containers[0], &node).hugepages;
        assert_eq!(got, [("1GB".to_owned(), 0), ("2MB".to_owned(), 4 << 20)].into());
        let pod = of_pod(&spec, &NODE);
        assert_eq!((pod.cpu_quota, pod.memory_limit, pod.pids_limit), (Some(50_000), Some(64 << 20), Some(100)));
    }

    #[test]
    fn a_pod_takes_its_containers_or_its_greatest_init_container() {
        let cpu = |c: &str| serde_json::json!({"requests": {"cpu": c}});
        let spec = spec(serde_json::json!({"overhead": {"cpu": "10m"},
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": cpu("100m")},
                {"name": "i", "resources": cpu("600m")}],
            "containers": [{"name": "a", "resources": cpu("200m")}, {"name": "b", "resources": cpu("300m")}]}));
        assert_eq!(pod_request(&spec, "cpu"), 710);
        assert_eq!((pod_request(&spec, "memory"), memory_limit(&spec)), (0, None));
        assert_eq!(of_pod(&spec, &NODE).cpu_quota, None);
    }

    #[test]
    fn the_pod_s_own_resources_decide_before_its_containers() {
        let own = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let spec = spec(serde_json::json!({"resources": own, "containers": [{"name": "a"}]}));
        assert_eq!((qos(&spec), pod_request(&spec, "cpu")), ("Guaranteed", 1000));
        assert_eq!(of_pod(&spec, &NODE).memory_limit, Some(1 << 30));
    }

    #[test]
    fn the_kernel_is_told_whom_to_kill_first() {
        let memory = |m: &str| serde_json::json!({"requests": {"memory": m}});
        let spec = spec(serde_json::json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "resources": memory("512Mi")}, {"name": "b"}]}));
        let score = |c: &Container| of(&spec, c, &NODE).oom_score_adj.unwrap();
        assert_eq!((score(&spec.containers[0]), score(&spec.containers[1])), (500, 999));
        assert_eq!(score(&spec.init_containers.as_ref().unwrap()[0]), 500);
        let critical = PodSpec { priority: Some(SYSTEM_CRITICAL), ..spec.clone() };
        assert_eq!(of(&critical, &spec.containers[1], &NODE).oom_score_adj, Some(-997));
    }
}
