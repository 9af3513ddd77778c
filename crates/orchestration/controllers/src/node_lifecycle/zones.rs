//! How fast nodes may lose their pods: slower where much of a zone is silent at once, for then the network is more likely
//! gone than the machines.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// Between two nodes of one zone, and in a large zone much of which is silent; upstream's 0.1 and 0.01 per second.
const USUAL: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(100);
/// A zone with more nodes than that is large.
const LARGE: usize = 50;
/// Percent of a zone that is silent from which on it is disrupted.
const UNHEALTHY: usize = 55;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneState {
    Normal,
    /// Much of it is silent.
    Partial,
    /// All of it is.
    Full,
}

pub fn zone_state(ready: usize, not_ready: usize) -> ZoneState {
    if ready == 0 && not_ready > 0 {
        ZoneState::Full
    } else if not_ready > 2 && not_ready * 100 >= UNHEALTHY * (ready + not_ready) {
        ZoneState::Partial
    } else {
        ZoneState::Normal
    }
}

/// The zone of a node: two that are called alike in different regions are two.
pub fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str);
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// How long is to be between two nodes of this zone; `None` is for ever: nobody leaves a node.
pub fn pace<'a>(zone: &str, nodes: impl Iterator<Item = &'a Node>) -> Option<Duration> {
    let mut counts: HashMap<String, (usize, usize)> = HashMap::new();
    for node in nodes {
        let count = counts.entry(zone_of(node)).or_default();
        if is_ready(node) { count.0 += 1 } else { count.1 += 1 }
    }
    // If all are silent, it is we who hear nothing.
    if counts.values().all(|(ready, not_ready)| zone_state(*ready, *not_ready) == ZoneState::Full) {
        return None;
    }
    let (ready, not_ready) = counts.get(zone).copied().unwrap_or_default();
    match zone_state(ready, not_ready) {
        ZoneState::Normal | ZoneState::Full => Some(USUAL),
        ZoneState::Partial if ready + not_ready > LARGE => Some(SLOW),
        ZoneState::Partial => None,
    }
}

/// When the last node of each zone lost its pods.
#[derive(Debug, Default)]
pub struct Limiter {
    last: HashMap<String, Instant>,
}

impl Limiter {
    /// Takes a turn; or how long until there is one.
    pub fn take(&mut self, zone: &str, pace: Duration, now: Instant) -> Result<(), Duration> {
        let waited = self.last.get(zone).map_or(pace, |last| now.duration_since(*last));
        if waited < pace {
            return Err(pace - waited);
        }
        self.last.insert(zone.to_owned(), now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn nodes(zone: &str, ready: usize, silent: usize) -> Vec<Node> {
        let node = |ready: bool| -> Node {
            serde_json::from_value(json!({
                "metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}]},
            }))
            .unwrap()
        };
        (0..ready).map(|_| node(true)).chain((0..silent).map(|_| node(false))).collect()
    }

    #[test]
    fn the_more_is_silent_the_slower() {
        let pace_of = |all: &[Vec<Node>]| pace("/a", all.iter().flatten());
        assert_eq!(pace_of(&[nodes("a", 3, 1)]), Some(USUAL));
        assert_eq!(pace_of(&[nodes("a", 2, 3)]), None, "a small zone that is mostly silent");
        assert_eq!(pace_of(&[nodes("a", 25, 35)]), Some(SLOW), "a large one");
        assert_eq!(pace_of(&[nodes("a", 0, 3)]), None, "everything is silent");
        assert_eq!(pace_of(&[nodes("a", 0, 3), nodes("b", 1, 0)]), Some(USUAL), "a whole zone, but others are there");
        assert_eq!(pace_of(&[nodes("a", 1, 1)]), Some(USUAL), "two nodes are too few to tell");
    }

    #[test]
    fn one_node_at_a_time() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        assert_eq!(limiter.take("a", USUAL, now), Ok(()));
        assert_eq!(limiter.take("b", USUAL, now), Ok(()));
        assert_eq!(limiter.take("a", USUAL, now + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        assert_eq!(limiter.take("a", USUAL, now + USUAL), Ok(()));
    }
}
