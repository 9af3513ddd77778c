//! What a look at a cluster finds: functions of a snapshot, each with the words a person can act upon.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Well,
    Warning,
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at.
    pub about: String,
    pub says: String,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(level: Level, about: impl Into<String>, says: impl Into<String>) -> Self {
        Self { level, about: about.into(), says: says.into(), fix: None }
    }

    pub fn well(about: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Well, about, says)
    }

    pub fn warning(about: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Warning, about, says)
    }

    pub fn problem(about: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Problem, about, says)
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            Level::Well => "ok      ",
            Level::Warning => "warning ",
            Level::Problem => "PROBLEM ",
        };
        write!(f, "{mark} {}: {}", self.about, self.says)?;
        match &self.fix {
            Some(fix) => write!(f, "\n           -> {fix}"),
            None => Ok(()),
        }
    }
}

/// What one look at the API gave.
#[derive(Debug, Default)]
pub struct Cluster {
    /// What the API says of itself, if it is not ready.
    pub not_ready: Option<String>,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub deployments: Vec<Deployment>,
    pub stateful_sets: Vec<StatefulSet>,
    pub daemon_sets: Vec<DaemonSet>,
    pub claims: Vec<PersistentVolumeClaim>,
    pub api_services: Vec<APIService>,
    pub events: Vec<Event>,
}

impl Cluster {
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![match &self.not_ready {
            None => Finding::well("API", "answers and is ready"),
            Some(checks) => Finding::problem("API", format!("is not ready: {}", checks.trim()))
                .fix("the checks that are not ok are named above; see the daemon's log"),
        }];
        let kinds: [(&str, usize, Vec<Finding>); 5] = [
            ("nodes", self.nodes.len(), self.nodes.iter().flat_map(node).collect()),
            ("pods", self.pods.len(), self.pods.iter().filter_map(|pod| self.pod(pod)).collect()),
            ("workloads", self.deployments.len() + self.stateful_sets.len() + self.daemon_sets.len(), self.workloads()),
            ("volume claims", self.claims.len(), self.claims.iter().filter_map(|claim| self.claim(claim)).collect()),
            ("API services", self.api_services.len(), self.api_services.iter().filter_map(api_service).collect()),
        ];
        for (name, count, found) in kinds {
            if found.is_empty() && count > 0 {
                findings.push(Finding::well(name, format!("all {count} are well")));
            }
            findings.extend(found);
        }
        if self.nodes.is_empty() && self.not_ready.is_none() {
            findings
                .push(Finding::problem("nodes", "there is none").fix("`dhow up` runs one, `dhow join` adds machines"));
        }
        findings
    }

    fn pod(&self, pod: &Pod) -> Option<Finding> {
        let status = pod.status.as_ref()?;
        let phase = status.phase.as_deref().unwrap_or("Pending");
        if phase == "Succeeded" {
            return None;
        }
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let is = |name: &str, value: &str| conditions.iter().find(|found| found.type_ == name && found.status == value);
        if is("Ready", "True").is_some() {
            return None;
        }
        let about = format!("pod {}", full_name(&pod.metadata));
        let name = command_name(&pod.metadata);
        if pod.metadata.deletion_timestamp.is_some() {
            return Some(Finding::warning(about, "is being deleted").fix(format!(
                "if it stays, its node may be away, or a finalizer waits: kubectl get pod {name} -o yaml"
            )));
        }
        if let Some(unscheduled) = is("PodScheduled", "False") {
            let why = unscheduled.message.clone().unwrap_or_else(|| "no node was found for it".into());
            return Some(Finding::problem(about, format!("has no node: {why}")));
        }
        if phase == "Failed" {
            let why = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten().collect::<Vec<_>>();
            let why = if why.is_empty() { "one of its containers failed".into() } else { why.join(": ") };
            return Some(Finding::warning(about, format!("failed: {why}")).fix(format!("kubectl logs {name}")));
        }
        let containers =
            status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        for container in containers {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            let Some(waiting) = waiting else { continue };
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            if reason == "PodInitializing" || reason == "ContainerCreating" {
                continue;
            }
            let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let last = ended.map(|ended| {
                let reason = ended.reason.as_deref().unwrap_or("ended");
                format!("; it last ended with exit code {} ({reason})", ended.exit_code)
            });
            let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
            let says = format!("container {} is in {reason}{message}{}", container.name, last.unwrap_or_default());
            let fix = match reason {
                "CrashLoopBackOff" => format!("kubectl logs {name} -c {} --previous", container.name),
                "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                    "check the image's name, the registry and its credentials (imagePullSecrets); `dhow image list` \
                     shows what the node has"
                        .into()
                }
                "CreateContainerConfigError" => "a ConfigMap, Secret or key it names is missing".into(),
                _ => format!("kubectl describe pod {name}"),
            };
            return Some(Finding::problem(about, says).fix(fix));
        }
        let warned = self.last_warning(&pod.metadata);
        let says =
            warned.map_or_else(|| "is not ready yet".into(), |event| format!("is not ready: {}", text_of(event)));
        Some(Finding::warning(about, says).fix(format!("kubectl describe pod {name}")))
    }

    fn workloads(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for deployment in &self.deployments {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let status = deployment.status.clone().unwrap_or_default();
            let stuck = status.conditions.iter().flatten().find(|condition| {
                condition.type_ == "Progressing" && condition.status == "False"
                    || condition.type_ == "ReplicaFailure" && condition.status == "True"
            });
            let about = format!("deployment {}", full_name(&deployment.metadata));
            found.extend(match stuck {
                Some(stuck) => Some(Finding::problem(about, stuck.message.clone().unwrap_or_default()).fix(format!(
                    "its pods say why (kubectl describe); kubectl rollout undo deployment {} goes back",
                    command_name(&deployment.metadata)
                ))),
                None => short(about, wanted, status.available_replicas.unwrap_or(0)),
            });
        }
        for set in &self.stateful_sets {
            let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
            found.extend(short(format!("stateful set {}", full_name(&set.metadata)), wanted, available));
        }
        for set in &self.daemon_sets {
            let status = set.status.clone().unwrap_or_default();
            let available = status.number_available.unwrap_or(0);
            found.extend(short(
                format!("daemon set {}", full_name(&set.metadata)),
                status.desired_number_scheduled,
                available,
            ));
        }
        found
    }

    fn claim(&self, claim: &PersistentVolumeClaim) -> Option<Finding> {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let about = format!("volume claim {}", full_name(&claim.metadata));
        let event = self.last_event(&claim.metadata);
        match phase {
            "Lost" => {
                Some(Finding::problem(about, "its volume is gone").fix("restore the volume, or delete the claim"))
            }
            "Pending" if event.is_some_and(|event| event.reason.as_deref() == Some("WaitForFirstConsumer")) => None,
            "Pending" => {
                let why = event.map_or_else(|| "no volume fits it yet".into(), text_of);
                Some(Finding::warning(about, format!("is not bound: {why}")).fix("kubectl get storageclass,pv"))
            }
            _ => None,
        }
    }

    fn last_event(&self, of: &ObjectMeta) -> Option<&Event> {
        let mut events: Vec<&Event> =
            self.events.iter().filter(|event| of.uid.is_some() && event.involved_object.uid == of.uid).collect();
        events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
        events.pop()
    }

    fn last_warning(&self, of: &ObjectMeta) -> Option<&Event> {
        self.last_event(of).filter(|event| event.type_.as_deref() == Some("Warning"))
    }
}

fn text_of(event: &Event) -> String {
    [event.reason.as_deref(), event.message.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(": ")
}

fn short(about: String, wanted: i32, available: i32) -> Option<Finding> {
    (available < wanted).then(|| Finding::warning(about, format!("{available} of {wanted} pods are available")))
}

/// `namespace/name`, or the name alone of what has no namespace.
fn full_name(metadata: &ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    metadata.namespace.as_ref().map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

/// The same as kubectl takes it.
fn command_name(metadata: &ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    metadata.namespace.as_ref().map_or_else(|| name.to_owned(), |namespace| format!("-n {namespace} {name}"))
}

fn node(node: &Node) -> Vec<Finding> {
    let about = format!("node {}", full_name(&node.metadata));
    let conditions: BTreeMap<&str, _> = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .map(|condition| (condition.type_.as_str(), condition))
        .collect();
    let mut found = Vec::new();
    let ready = conditions.get("Ready");
    match ready.map(|ready| ready.status.as_str()) {
        Some("True") => {}
        Some("Unknown") => {
            found.push(Finding::problem(&about, "its agent went silent").fix(
                "is the machine up and reached by the network? On it: `dhow status`, then `dhow up` or `dhow join`",
            ))
        }
        _ => {
            let why = ready.and_then(|ready| ready.message.clone()).unwrap_or_else(|| "it never reported".into());
            found.push(Finding::problem(&about, format!("is not ready: {why}")));
        }
    }
    let pressures = [
        (
            "MemoryPressure",
            "is short of memory, so it evicts pods",
            "give pods requests and limits, or add memory or nodes",
        ),
        (
            "DiskPressure",
            "is short of disk, so it evicts pods and takes no new ones",
            "free space (`dhow image prune --all`)",
        ),
        ("PIDPressure", "is short of process numbers", "find who forks (kubectl top pods), or raise kernel.pid_max"),
        ("NetworkUnavailable", "has no pod network yet", "see the log of its daemon"),
    ];
    for (name, says, fix) in pressures {
        if conditions.get(name).is_some_and(|condition| condition.status == "True") {
            found.push(Finding::problem(&about, says).fix(fix));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        found.push(Finding::warning(about, "takes no new pods").fix(format!("kubectl uncordon {name}")));
    }
    found
}

fn api_service(service: &APIService) -> Option<Finding> {
    let available = service.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == "Available")?;
    if available.status == "True" {
        return None;
    }
    let why = available.message.clone().or_else(|| available.reason.clone()).unwrap_or_default();
    Some(Finding::problem(format!("API service {}", full_name(&service.metadata)), why))
}

/// The daemon renews what it has long before its end, so a certificate near it tells that it does not run, or cannot.
pub fn certificate(name: &str, end: SystemTime, now: SystemTime) -> Option<Finding> {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    match end.duration_since(now) {
        Err(_) => Some(
            Finding::problem("certificates", format!("{name} has expired"))
                .fix("start the daemon (`dhow up`), which renews it; if it does not, its log says why"),
        ),
        Ok(left) if left < WEEK => {
            let hours = left.as_secs() / 3600;
            Some(
                Finding::warning("certificates", format!("{name} ends in {hours} hours"))
                    .fix("the daemon renews it while it runs; see its log"),
            )
        }
        Ok(_) => None,
    }
}

/// `free` and `all` in bytes.
pub fn disk(folder: &str, free: u64, all: u64) -> Finding {
    let percent = free.saturating_mul(100).checked_div(all).unwrap_or(100);
    let says = format!("{} GiB ({percent} %) free at {folder}", free >> 30);
    // The node evicts pods and collects images below 15 and 10 percent.
    match percent {
        0..5 => Finding::problem("disk", says).fix("free space: `dhow image prune --all`, old logs and backups"),
        5..15 => {
            Finding::warning("disk", says).fix("free space soon: the node collects images and evicts pods at 10 %")
        }
        _ => Finding::well("disk", says),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        let metadata = json!({"namespace": "shop", "name": "web", "uid": "1"});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn of(pod: Pod, events: Vec<Event>) -> Option<Finding> {
        let cluster = Cluster { pods: vec![pod], events, ..Cluster::default() };
        cluster.pod(&cluster.pods[0])
    }

    #[test]
    fn a_pod_that_is_not_well_is_told_of_with_what_helps() {
        assert_eq!(of(pod(json!({"phase": "Succeeded"})), vec![]), None);
        assert_eq!(
            of(pod(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})), vec![]),
            None
        );
        let scheduled = json!([{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]);
        let found = of(pod(json!({"phase": "Pending", "conditions": scheduled})), vec![]).unwrap();
        assert_eq!((found.level, found.says.as_str()), (Level::Problem, "has no node: 0/1 nodes are available"));
        let crashes = json!([{"name": "app", "ready": false, "restartCount": 3, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]);
        let found = of(pod(json!({"phase": "Running", "containerStatuses": crashes})), vec![]).unwrap();
        assert_eq!(
            found.says,
            "container app is in CrashLoopBackOff: back-off 40s; it last ended with exit code 137 (OOMKilled)"
        );
        assert_eq!(found.fix.unwrap(), "kubectl logs -n shop web -c app --previous");
        let event = |kind: &str, uid: &str| -> Event {
            serde_json::from_value(json!({"metadata": {}, "involvedObject": {"uid": uid}, "type": kind,
                "reason": "FailedMount", "message": "no such secret"}))
            .unwrap()
        };
        let starting = || pod(json!({"phase": "Pending"}));
        let found = of(starting(), vec![event("Warning", "1")]).unwrap();
        assert_eq!(found.says, "is not ready: FailedMount: no such secret");
        let found = of(starting(), vec![event("Warning", "2"), event("Normal", "1")]).unwrap();
        assert_eq!(found.says, "is not ready yet");
    }

    #[test]
    fn a_node_tells_of_silence_pressure_and_cordons() {
        let with = |conditions: serde_json::Value, spec: serde_json::Value| -> Vec<String> {
            let all = json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}});
            node(&serde_json::from_value(all).unwrap()).into_iter().map(|found| found.says).collect()
        };
        let ready = json!({"type": "Ready", "status": "True"});
        assert!(with(json!([ready]), json!({})).is_empty());
        assert_eq!(with(json!([{"type": "Ready", "status": "Unknown"}]), json!({})), ["its agent went silent"]);
        assert_eq!(with(json!([]), json!({})), ["is not ready: it never reported"]);
        let pressed =
            json!([ready, {"type": "DiskPressure", "status": "True"}, {"type": "PIDPressure", "status": "False"}]);
        let found = with(pressed, json!({"unschedulable": true}));
        assert_eq!(found, ["is short of disk, so it evicts pods and takes no new ones", "takes no new pods"]);
    }

    #[test]
    fn workloads_and_claims() {
        let stuck = json!({"metadata": {"namespace": "a", "name": "d"}, "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"availableReplicas": 1, "conditions": [
                {"type": "Progressing", "status": "False", "message": "has timed out progressing"}]}});
        let claim = json!({"metadata": {"namespace": "a", "name": "c", "uid": "7"}, "status": {"phase": "Pending"}});
        let waits = json!({"metadata": {}, "involvedObject": {"uid": "7"}, "reason": "WaitForFirstConsumer"});
        let mut cluster = Cluster {
            deployments: vec![serde_json::from_value(stuck).unwrap()],
            claims: vec![serde_json::from_value(claim).unwrap()],
            ..Cluster::default()
        };
        assert_eq!(cluster.workloads()[0].says, "has timed out progressing");
        assert_eq!(cluster.claim(&cluster.claims[0]).unwrap().says, "is not bound: no volume fits it yet");
        cluster.events = vec![serde_json::from_value(waits).unwrap()];
        assert_eq!(cluster.claim(&cluster.claims[0]), None);
        assert!(short("x".into(), 2, 2).is_none());
        // All that is well has a line of its own, so that nobody wonders what was looked at.
        let quiet = Cluster { api_services: vec![], ..Cluster::default() }.findings();
        assert_eq!(quiet.iter().map(|found| found.level).collect::<Vec<_>>(), [Level::Well, Level::Problem]);
    }

    #[test]
    fn certificates_and_disks_warn_before_their_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let level = |end: SystemTime| certificate("c", end, now).map(|found| found.level);
        assert_eq!(level(now - Duration::from_secs(1)), Some(Level::Problem));
        assert_eq!(level(now + Duration::from_secs(3600)), Some(Level::Warning));
        assert_eq!(level(now + Duration::from_secs(8 * 24 * 3600)), None);
        for (free, wanted) in [(50, Level::Well), (14, Level::Warning), (4, Level::Problem)] {
            assert_eq!(disk("/", free, 100).level, wanted);
        }
        assert_eq!(disk("/", 0, 0).level, Level::Well);
    }
}
