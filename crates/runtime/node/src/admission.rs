//! Whether a pod that was bound to this node may run on it: the node's own word, whoever bound it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration};

use crate::resources::{self, List};
use crate::status::Ended;

/// Settings of the kernel that one pod's change of cannot reach another.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The node as far as it decides.
pub struct NodeFacts<'a> {
    pub name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub allocatable: &'a List,
    /// Patterns of sysctls allowed beyond the safe ones; `*` at the end stands for anything.
    pub unsafe_sysctls: &'a [String],
    /// Conditions of being short of something that hold now.
    pub pressures: &'a BTreeSet<&'static str>,
    /// Whether the kernel has AppArmor.
    pub apparmor: bool,
}

/// Whether this kernel has AppArmor.
pub fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn refuse(reason: &'static str, message: String) -> Ended {
    Ended { reason, message: format!("Pod was rejected: {message}") }
}

/// Lets a pod in beside those that are in already.
pub fn admit(node: &NodeFacts<'_>, admitted: &[&PodSpec], pod: &Pod) -> Result<(), Ended> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    bears(node, spec)?;
    fits(node, admitted, spec)?;
    if !selects(node, spec) {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Err(refuse("NodeAffinity", message.into()));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS".into()));
    }
    // Run without, it would be less confined than its owner thinks.
    if !node.apparmor && asks_for_apparmor(spec) {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(refuse("AppArmor", message.into()));
    }
    let ports = |spec: &PodSpec| -> Vec<(String, String, i32)> {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|c| c.ports.iter().flatten());
        let used = ports.filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            let ip = p.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "0.0.0.0").unwrap_or_default();
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, port))
        });
        used.collect()
    };
    let clash = |a: &(String, String, i32), b: &(String, String, i32)| {
        a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1.is_empty() || b.1.is_empty())
    };
    let taken: Vec<_> = admitted.iter().flat_map(|spec| ports(spec)).collect();
    if ports(spec).iter().any(|wanted| taken.iter().any(|have| clash(wanted, have))) {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(refuse("NodePorts", message.into()));
    }
    for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        let name = sysctl.name.replace('/', ".");
        let allowed = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *pattern,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !node.unsafe_sysctls.iter().any(allowed) {
            return Err(refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted")));
        }
    }
    Ok(())
}

/// Whether a container is to be confined by AppArmor: what it says itself counts before what its pod says.
fn asks_for_apparmor(spec: &PodSpec) -> bool {
    let usual = spec.security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref());
    let debug: Vec<_> = spec.ephemeral_containers.iter().flatten().map(crate::containers::of_ephemeral).collect();
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten()).chain(&debug);
    all.any(|container| {
        let own = container.security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref());
        own.or(usual).is_some_and(|profile| profile.type_ != "Unconfined")
    })
}

/// Whether the pod may come while the node is short of something. Critical ones may; while it is memory, so may those
/// that asked for some, and those that bear it.
fn bears(node: &NodeFacts<'_>, spec: &PodSpec) -> Result<(), Ended> {
    let critical = spec.priority.is_some_and(|priority| priority >= resources::SYSTEM_CRITICAL);
    let only_memory = node.pressures.iter().all(|pressure| *pressure == "MemoryPressure");
    let tolerant =
        || resources::qos(spec) != "BestEffort" || spec.tolerations.iter().flatten().any(bears_little_memory);
    if node.pressures.is_empty() || critical || (only_memory && tolerant()) {
        return Ok(());
    }
    let names: Vec<&str> = node.pressures.iter().copied().collect();
    Err(Ended { reason: "Evicted", message: format!("The node had condition: [{}]. ", names.join(" ")) })
}

/// Whether it is for the taint of nodes that are short of memory, which has no value.
fn bears_little_memory(toleration: &Toleration) -> bool {
    let is = |text: &Option<String>, wanted: &str| text.as_deref().is_none_or(|text| text.is_empty() || text == wanted);
    let always = toleration.operator.as_deref() == Some("Exists");
    let keyed = toleration.key.as_deref().is_some_and(|key| !key.is_empty());
    is(&toleration.key, "node.kubernetes.io/memory-pressure")
        && is(&toleration.effect, "NoSchedule")
        && (always || keyed && is(&toleration.value, ""))
}

fn fits(node: &NodeFacts<'_>, admitted: &[&PodSpec], spec: &PodSpec) -> Result<(), Ended> {
    let whole = |list: &List, name: &str| resources::amount(Some(list), name).unwrap_or(0);
    let pods = i128::try_from(admitted.len()).unwrap_or(i128::MAX);
    let room = whole(node.allocatable, "pods") / 1000;
    let short = |reason, name: &str, requested: i128, used: i128, capacity: i128| {
        let numbers = format!("requested: {requested}, used: {used}, capacity: {capacity}");
        Err(refuse(reason, format!("Node didn't have enough resource: {name}, {numbers}")))
    };
    if pods >= room {
        return short("OutOfpods", "pods", 1, pods, room);
    }
    let mut names: Vec<String> = vec!["cpu".into(), "memory".into(), "ephemeral-storage".into()];
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let lists = container.resources.iter().flat_map(|r| r.requests.iter().chain(&r.limits));
        names.extend(
            lists.flat_map(|list| list.keys().cloned()).filter(|name| !names.contains(name)).collect::<Vec<_>>(),
        );
    }
    for name in names {
        let wanted = resources::pod_request(spec, &name);
        if wanted == 0 {
            continue;
        }
        let used: i128 = admitted.iter().map(|other| resources::pod_request(other, &name)).sum();
        let capacity = whole(node.allocatable, &name);
        if wanted + used > capacity {
            // Processors are counted in thousandths, everything else in units.
            let unit = if name == "cpu" { 1 } else { 1000 };
            let reason = match name.as_str() {
                "cpu" => "OutOfcpu",
                "memory" => "OutOfmemory",
                "ephemeral-storage" => "OutOfephemeral-storage",
                _ => "UnexpectedAdmissionError",
            };
            return short(reason, &name, wanted / unit, used / unit, capacity / unit);
        }
    }
    Ok(())
}

/// Whether the pod's selector and required affinity match the node.
fn selects(node: &NodeFacts<'_>, spec: &PodSpec) -> bool {
    let selector = spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selector && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(node, term)))
}

fn matches(node: &NodeFacts<'_>, term: &NodeSelectorTerm) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let field = |wanted: &NodeSelectorRequirement| wanted.key == "metadata.name" && holds(wanted, Some(node.name));
    expressions.iter().all(|e| holds(e, node.labels.get(&e.key).map(String::as_str))) && fields.iter().all(field)
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |by: fn(i64, i64) -> bool| {
        let (have, want) = (value.and_then(number), values.first().and_then(|v| number(v)));
        have.zip(want).is_some_and(|(have, want)| by(have, want))
    };
    match wanted.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|v| v == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|v| v != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, want| have > want),
        "Lt" => compare(|have, want| have < want),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()
    }

    fn refused(admitted: &[serde_json::Value], spec: serde_json::Value) -> Option<(&'static str, String)> {
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let allocatable =
            serde_json::from_value(serde_json::json!({"cpu": "2", "memory": "1Gi", "pods": "3"})).unwrap();
        let sysctls = ["net.core.*".to_owned()];
        let pressures = BTreeSet::new();
        let node = NodeFacts {
            name: "n",
            labels: &labels,
            allocatable: &allocatable,
            unsafe_sysctls: &sysctls,
            pressures: &pressures,
            apparmor: false,
        };
        let admitted: Vec<PodSpec> =
            admitted.iter().map(|spec| serde_json::from_value(spec.clone()).unwrap()).collect();
        let admitted: Vec<&PodSpec> = admitted.iter().collect();
        admit(&node, &admitted, &pod(spec)).err().map(|ended| (ended.reason, ended.message))
    }

    fn asks(name: &str, amount: &str) -> serde_json::Value {
        serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {name: amount}}}]})
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        assert_eq!(refused(&[], asks("cpu", "2")), None);
        let (reason, message) = refused(&[asks("cpu", "500m")], asks("cpu", "1600m")).unwrap();
        assert_eq!(reason, "OutOfcpu");
        let expected =
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1600, used: 500, capacity: 2000";
        assert_eq!(message, expected);
        assert_eq!(refused(&[], asks("memory", "2Gi")).unwrap().0, "OutOfmemory");
        assert_eq!(refused(&[], asks("example.com/gpu", "1")).unwrap().0, "UnexpectedAdmissionError");
        let three = [asks("cpu", "1m"), asks("cpu", "1m"), asks("cpu", "1m")];
        assert_eq!(refused(&three, asks("cpu", "1m")).unwrap().0, "OutOfpods");
    }

    #[test]
    fn selectors_and_affinity_are_looked_at_again() {
        let with = |json: serde_json::Value| {
            let mut spec = serde_json::json!({"containers": []});
            spec.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
            spec
        };
        let affinity = |expression: serde_json::Value| {
            with(serde_json::json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}}))
        };
        assert_eq!(refused(&[], with(serde_json::json!({"nodeSelector": {"disk": "ssd"}}))), None);
        let got = refused(&[], with(serde_json::json!({"nodeSelector": {"disk": "hdd"}})));
        assert_eq!(got.unwrap().0, "NodeAffinity");
        let expression = serde_json::json!({"key": "disk", "operator": "In", "values": ["ssd"]});
        assert_eq!(refused(&[], affinity(expression)), None);
        let expression = serde_json::json!({"key": "disk", "operator": "DoesNotExist"});
        assert!(refused(&[], affinity(expression)).is_some());
    }

    #[test]
    fn nobody_runs_without_the_confinement_they_ask_for() {
        let profile = |pod: &str, own: &str| {
            let security = |kind: &str| match kind {
                "" => serde_json::json!({}),
                kind => serde_json::json!({"appArmorProfile": {"type": kind}}),
            };
            serde_json::json!({"containers": [{"name": "a", "securityContext": security(own)}], "securityContext": security(pod)})
        };
        for (pod, own, fine) in [
            ("", "", true),
            ("Unconfined", "", true),
            ("RuntimeDefault", "", false),
            ("", "Localhost", false),
            ("RuntimeDefault", "Unconfined", true),
            ("Unconfined", "RuntimeDefault", false),
        ] {
            let got = refused(&[], profile(pod, own));
            assert_eq!(got.is_none(), fine, "{pod} {own}: {got:?}");
            assert!(got.is_none_or(|(reason, why)| reason == "AppArmor" && why.contains("not enabled on the host")));
        }
    }

    #[test]
    fn ports_and_sysctls_are_held_against_the_node() {
        let port = |ip: &str| {
            serde_json::json!({"containers": [{"name": "a",
                "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": ip}]}]})
        };
        assert_eq!(refused(&[port("")], port("127.0.0.1")).unwrap().0, "NodePorts");
        assert_eq!(refused(&[port("127.0.0.2")], port("127.0.0.1")), None);
        let sysctl = |name: &str| serde_json::json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        assert_eq!(refused(&[], sysctl("net.ipv4.tcp_syncookies")), None);
        assert_eq!(refused(&[], sysctl("net.core.somaxconn")), None);
        assert_eq!(refused(&[], sysctl("kernel.msgmax")).unwrap().0, "SysctlForbidden");
    }

    #[test]
    fn short_of_memory_a_node_takes_who_asked_for_some_and_who_bears_it() {
        let pressures = BTreeSet::from(["MemoryPressure"]);
        let (labels, allocatable) = (BTreeMap::new(), List::new());
        let node = NodeFacts {
            name: "n",
            labels: &labels,
            allocatable: &allocatable,
            unsafe_sysctls: &[],
            pressures: &pressures,
            apparmor: false,
        };
        let may = |spec: serde_json::Value| bears(&node, &serde_json::from_value(spec).unwrap()).is_ok();
        let tolerates =
            |toleration: serde_json::Value| may(serde_json::json!({"containers": [], "tolerations": [toleration]}));
        assert!(!may(serde_json::json!({"containers": []})));
        assert!(may(asks("cpu", "1")));
        assert!(tolerates(serde_json::json!({"operator": "Exists"})));
        assert!(tolerates(serde_json::json!({"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"})));
        assert!(!tolerates(serde_json::json!({"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"})));
        assert!(!tolerates(serde_json::json!({"operator": "Exists", "effect": "NoExecute"})));
    }
}
