//! Whose turn it is, and where: a function of what is known.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

use super::kinds::{BuildRun, BuildSpec, RunPolicy};

/// What the nodes' runtime calls itself; others have no builder.
const RUNTIME: &str = "dhow://";

/// How many runs at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub per_node: usize,
    pub per_namespace: usize,
}

/// A run that is under way.
#[derive(Debug, Clone)]
pub struct Busy {
    pub namespace: String,
    pub name: String,
    pub build: String,
    pub node: String,
}

/// What becomes of a run that waits.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// On this node.
    Go(String),
    /// For this.
    Wait(String),
    /// A newer one of the same build waits, too.
    Superseded(String),
}

/// A node that builds.
#[derive(Debug, Clone)]
pub struct Place {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

impl Place {
    /// `None`: it has no builder, or takes nothing now.
    pub fn of(node: &Node) -> Option<Self> {
        let spec = node.spec.as_ref();
        let taken = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        let tainted = spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|taint| taken(&taint.effect));
        let status = node.status.as_ref()?;
        let ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
        let builds = status.node_info.as_ref().is_some_and(|info| info.container_runtime_version.starts_with(RUNTIME));
        let shut = spec.is_some_and(|spec| spec.unschedulable == Some(true));
        (ready && builds && !tainted && !shut).then(|| Place {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
        })
    }
}

/// The place with the fewest runs that has room, or why there is none.
pub fn place(
    places: &[Place],
    busy: &[Busy],
    selector: &BTreeMap<String, String>,
    only: Option<&str>,
    per_node: usize,
) -> Result<String, String> {
    let fits = |place: &&Place| {
        only.is_none_or(|name| name == place.name)
            && selector.iter().all(|(key, value)| place.labels.get(key) == Some(value))
    };
    let count = |place: &Place| busy.iter().filter(|run| run.node == place.name).count();
    let fitting: Vec<&Place> = places.iter().filter(fits).collect();
    match (fitting.iter().map(|place| (count(place), &place.name)).min(), only) {
        (Some((count, name)), _) if count < per_node => Ok(name.clone()),
        (Some(_), _) => Err(format!("the {} nodes that may build it are full", fitting.len())),
        (None, Some(name)) => Err(format!("node {name}, which has what was sent, takes no builds now")),
        (None, None) => Err("no node that is ready builds and has the labels that are asked for".to_owned()),
    }
}

/// `waiting` are all runs that neither began nor are over, this one among them or not.
pub fn turn(
    run: &BuildRun,
    spec: &BuildSpec,
    waiting: &[&BuildRun],
    busy: &[Busy],
    places: &[Place],
    room: Room,
) -> Turn {
    let same = |other: &&&BuildRun| {
        other.namespace() == run.namespace() && other.spec.build == run.spec.build && other.name() != run.name()
    };
    let siblings: Vec<&&BuildRun> = waiting.iter().filter(same).collect();
    if spec.run_policy == RunPolicy::SerialLatestOnly
        && let Some(newest) = siblings.iter().filter(|other| other.age() > run.age()).max_by_key(|other| other.age())
    {
        return Turn::Superseded(newest.name().to_owned());
    }
    if spec.run_policy != RunPolicy::Parallel {
        let of_build = |other: &&Busy| other.namespace == run.namespace() && other.build == run.spec.build;
        if let Some(other) = busy.iter().find(of_build) {
            return Turn::Wait(format!("{} of the same build is under way", other.name));
        }
        if let Some(older) = siblings.iter().filter(|other| other.age() < run.age()).min_by_key(|other| other.age()) {
            return Turn::Wait(format!("{} of the same build comes first", older.name()));
        }
    }
    let here = busy.iter().filter(|other| other.namespace == run.namespace()).count();
    if here >= room.per_namespace {
        return Turn::Wait(format!("the namespace has {here} runs under way, and may have no more"));
    }
    let only = run.spec.upload.as_ref().map(|upload| upload.node.as_str());
    match place(places, busy, &spec.node_selector, only, room.per_node) {
        Ok(node) => Turn::Go(node),
        Err(why) => Turn::Wait(why),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    const ROOM: Room = Room { per_node: 2, per_namespace: 2 };

    fn run(name: &str, build: &str, second: u32) -> BuildRun {
        let made = format!("2026-01-01T00:00:{second:02}Z");
        let metadata = json!({"namespace": "team", "name": name, "creationTimestamp": made});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"build": build}})).unwrap()
    }

    fn busy(name: &str, build: &str, node: &str) -> Busy {
        let own = str::to_owned;
        Busy { namespace: own("team"), name: own(name), build: own(build), node: own(node) }
    }

    fn places(names: &[&str]) -> Vec<Place> {
        names.iter().map(|name| Place { name: (*name).to_owned(), labels: BTreeMap::new() }).collect()
    }

    #[test]
    fn runs_of_a_build_go_one_after_the_other() {
        let (old, new) = (run("a-1", "a", 1), run("a-2", "a", 2));
        let waiting = [&old, &new];
        let nodes = places(&["n0"]);
        let turn_of = |run, policy, busy: &[Busy]| {
            let spec = BuildSpec { run_policy: policy, ..BuildSpec::default() };
            turn(run, &spec, &waiting, busy, &nodes, ROOM)
        };
        let go = Turn::Go("n0".to_owned());
        assert_eq!(turn_of(&old, RunPolicy::Serial, &[]), go);
        assert!(matches!(turn_of(&new, RunPolicy::Serial, &[]), Turn::Wait(why) if why.contains("a-1")));
        assert_eq!(turn_of(&new, RunPolicy::Parallel, &[busy("a-0", "a", "n0")]), go);
        assert!(matches!(turn_of(&old, RunPolicy::Serial, &[busy("a-0", "a", "n0")]), Turn::Wait(_)));
        assert_eq!(turn_of(&old, RunPolicy::SerialLatestOnly, &[]), Turn::Superseded("a-2".to_owned()));
        assert_eq!(
            turn_of(&new, RunPolicy::SerialLatestOnly, &[]),
            Turn::Wait("a-1 of the same build comes first".into())
        );
    }

    #[test]
    fn there_is_only_so_much_room() {
        let one = run("a-1", "a", 1);
        let spec = BuildSpec::default();
        let of = |busy: &[Busy], nodes: &[&str]| turn(&one, &spec, &[], busy, &places(nodes), ROOM);
        assert_eq!(of(&[busy("b-1", "b", "n0")], &["n0", "n1"]), Turn::Go("n1".to_owned()));
        let others: Vec<Busy> =
            (0..2).map(|_| Busy { namespace: "other".to_owned(), ..busy("b-1", "b", "n0") }).collect();
        assert!(matches!(of(&others, &["n0"]), Turn::Wait(why) if why.contains("full")));
        let mine = [busy("b-1", "b", "n0"), busy("c-1", "c", "n1")];
        assert!(matches!(of(&mine, &["n2"]), Turn::Wait(why) if why.contains("namespace")));
        assert!(matches!(of(&[], &[]), Turn::Wait(why) if why.contains("no node")));
    }

    #[test]
    fn nodes_build_if_they_can() {
        let node = |runtime: &str, ready: &str, spec: serde_json::Value| {
            Place::of(
                &serde_json::from_value(json!({
                    "metadata": {"name": "n"}, "spec": spec,
                    "status": {
                        "conditions": [{"type": "Ready", "status": ready}],
                        "nodeInfo": {"containerRuntimeVersion": runtime, "architecture": "", "bootID": "", "kernelVersion": "",
                            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""},
                    },
                }))
                .unwrap(),
            )
            .is_some()
        };
        assert!(node("dhow://0.1", "True", json!({})));
        assert!(!node("containerd://2.0", "True", json!({})));
        assert!(!node("dhow://0.1", "Unknown", json!({})));
        assert!(!node("dhow://0.1", "True", json!({"unschedulable": true})));
        assert!(!node("dhow://0.1", "True", json!({"taints": [{"key": "a", "effect": "NoSchedule"}]})));
    }
}
