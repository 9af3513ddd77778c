//! Programs beside the scheduler that have a say by HTTP: which nodes of those left will do, how good they are, whose end
//! makes room, and how a pod is bound. The wire is upstream's.
//!
//! The engine never waits for one: it hands out what is to be asked and goes on with other pods until the answer is there.

mod http;
mod settings;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use serde_json::Value;

use crate::PodKey;
pub use settings::ExtenderConfig;
pub(crate) use settings::read;

use http::{CallError, Caller};
use wire::Meta;

/// Scores of extenders go to 10, those of nodes to 100.
const SCALE: i64 = 10;

/// What the engine has to know of an extender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// It is asked only about pods that want one of these; about all if there are none.
    pub managed: BTreeSet<String>,
    /// It says which nodes will do, or how good they are.
    pub places: bool,
    pub preempts: bool,
}

impl Interest {
    pub fn of(config: &ExtenderConfig) -> Self {
        Self {
            managed: config.managed_resources.iter().map(|resource| resource.name.clone()).collect(),
            places: !config.filter_verb.is_empty() || !config.prioritize_verb.is_empty(),
            preempts: !config.preempt_verb.is_empty(),
        }
    }

    pub fn is_in(&self, pod: &Pod) -> bool {
        let wants = |container: &Container| {
            let resources = container.resources.as_ref();
            let asked = resources.into_iter().flat_map(|r| r.requests.iter().chain(&r.limits).flatten());
            asked.into_iter().any(|(name, _)| self.managed.contains(name))
        };
        let containers = || pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        self.managed.is_empty() || containers().any(wants)
    }
}

/// One way of making room, as an extender is asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub node: String,
    pub victims: Vec<PodKey>,
    pub violations: usize,
}

/// What extenders said about one pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Nodes that will do with what is added to their scores, and the others with the reason.
    Nodes { good: BTreeMap<String, i64>, refused: BTreeMap<String, Objection> },
    /// Ways of making room that are left, for a pod that found no node.
    Rooms { why: crate::Unschedulable, rooms: Vec<Room> },
    /// One that may not be passed over did not answer.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    pub reason: String,
    /// The end of other pods would not help.
    pub lasting: bool,
}

/// How to reach all extenders of a cluster.
pub(crate) struct Extenders {
    all: Vec<(ExtenderConfig, Interest, Caller)>,
}

impl Extenders {
    pub fn new(configs: &[ExtenderConfig]) -> Result<Self, crate::ConfigError> {
        let all = configs.iter().map(|config| {
            let caller = Caller::new(config)?;
            Ok((config.clone(), Interest::of(config), caller))
        });
        Ok(Self { all: all.collect::<Result<_, crate::ConfigError>>()? })
    }

    fn interested(&self, pod: &Pod) -> impl Iterator<Item = (&ExtenderConfig, &Caller)> {
        let interested = self.all.iter().filter(|(_, interest, _)| interest.is_in(pod));
        interested.map(|(config, _, caller)| (config, caller))
    }

    /// One after another they leave fewer nodes; together they score what is left.
    pub async fn place(&self, pod: &Pod, nodes: Vec<Arc<Node>>) -> Answer {
        let mut left = nodes;
        let mut refused = BTreeMap::new();
        for (config, caller) in self.interested(pod).filter(|(config, _)| !config.filter_verb.is_empty()) {
            if left.is_empty() {
                break;
            }
            let turn = caller.turn().await;
            let asked = wire::question(pod, &left, config.node_cache_capable);
            let answer = caller.post(&config.filter_verb, &asked).await;
            drop(turn);
            match answer.and_then(|answer| wire::filtered(&answer, &left).map_err(CallError::Answer)) {
                Ok((good, objections)) => {
                    left.retain(|node| node.metadata.name.as_ref().is_some_and(|name| good.contains(name)));
                    refused.extend(objections);
                }
                Err(error) if config.ignorable => {
                    tracing::warn!(extender = config.url_prefix, %error, "passed over an extender that did not answer");
                }
                Err(error) => return Answer::Failed(format!("extender {}: {error}", config.url_prefix)),
            }
        }
        let mut good: BTreeMap<String, i64> = left.iter().filter_map(|n| Some((n.metadata.name.clone()?, 0))).collect();
        let scorers = self.interested(pod).filter(|(config, _)| !config.prioritize_verb.is_empty());
        let scored = scorers.map(|(config, caller)| {
            let left = &left;
            async move {
                let _turn = caller.turn().await;
                let asked = wire::question(pod, left, config.node_cache_capable);
                (config, caller.post(&config.prioritize_verb, &asked).await)
            }
        });
        // A score is an opinion: without it, the others decide.
        for (config, answer) in futures::future::join_all(scored).await {
            match answer.and_then(|answer| wire::scores(&answer).map_err(CallError::Answer)) {
                Ok(scores) => {
                    for (node, score) in scores {
                        if let Some(sum) = good.get_mut(&node) {
                            *sum += score.saturating_mul(config.weight).saturating_mul(SCALE);
                        }
                    }
                }
                Err(error) => tracing::warn!(extender = config.url_prefix, %error, "an extender gave no scores"),
            }
        }
        Answer::Nodes { good, refused }
    }

    /// Which ways of making room they leave. `pods` gives the victims' objects.
    pub async fn make_room(
        &self,
        pod: &Pod,
        why: crate::Unschedulable,
        mut rooms: Vec<Room>,
        pods: impl Fn(&PodKey) -> Option<Arc<Pod>>,
    ) -> Answer {
        for (config, caller) in self.interested(pod).filter(|(config, _)| !config.preempt_verb.is_empty()) {
            if rooms.is_empty() {
                break;
            }
            let turn = caller.turn().await;
            let asked = wire::victims(pod, &rooms, config.node_cache_capable, &pods);
            let answer = caller.post(&config.preempt_verb, &asked).await;
            drop(turn);
            match answer.and_then(|answer| wire::rooms(&answer).map_err(CallError::Answer)) {
                Ok(left) => rooms = kept(&rooms, &left, &pods),
                Err(error) if config.ignorable => {
                    tracing::warn!(extender = config.url_prefix, %error, "passed over an extender that did not answer");
                }
                Err(error) => return Answer::Failed(format!("extender {}: {error}", config.url_prefix)),
            }
        }
        Answer::Rooms { why, rooms }
    }

    /// Whether one of them binds the pod.
    pub fn binds(&self, pod: &Pod) -> bool {
        self.interested(pod).any(|(config, _)| !config.bind_verb.is_empty())
    }

    pub async fn bind(&self, pod: &Pod, node: &str) -> Result<(), String> {
        let Some((config, caller)) = self.interested(pod).find(|(config, _)| !config.bind_verb.is_empty()) else {
            return Ok(());
        };
        let _turn = caller.turn().await;
        let answer = caller.post(&config.bind_verb, &wire::binding(pod, node)).await;
        let answer = answer.map_err(|error| format!("extender {}: {error}", config.url_prefix))?;
        wire::said(&answer).map_or(Ok(()), |error| Err(format!("extender {}: {error}", config.url_prefix)))
    }
}

/// What the extender left of the ways: nodes that it named, with the victims that it named.
fn kept(rooms: &[Room], left: &BTreeMap<String, Meta>, pods: &impl Fn(&PodKey) -> Option<Arc<Pod>>) -> Vec<Room> {
    let uid = |key: &PodKey| pods(key).and_then(|pod| pod.metadata.uid.clone());
    let rooms = rooms.iter().filter_map(|room| {
        let meta = left.get(&room.node)?;
        let named = |key: &&PodKey| uid(key).is_some_and(|uid| meta.uids.contains(&uid));
        let victims: Vec<PodKey> = room.victims.iter().filter(named).cloned().collect();
        Some(Room { node: room.node.clone(), victims, violations: meta.violations })
    });
    rooms.filter(|room| !room.victims.is_empty()).collect()
}

/// A field whatever the case of its name, as Go reads it.
fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next().unwrap_or(&Value::Null)
}
