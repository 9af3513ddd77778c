//! Gives each node a network for its pods, of each of the cluster's families.
//!
//! The Nodes themselves are the record of what is given, so that nothing is lost with the process; that no two get the
//! same even from two leaders at once is the API server's doing, which writes such a change with a guard.

mod range;

use std::sync::Arc;

use dhow_client::reference;
use dhow_client::{Change, Client, Error, EventRecorder, EventType, Informer, Key, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use range::{Network, Range};

/// A range of the cluster and the length of one node's part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRange {
    pub cidr: String,
    pub node_prefix: u8,
}

pub struct NodeIpam {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    ranges: Arc<Mutex<Vec<Range>>>,
}

fn networks(node: &Node) -> Vec<Network> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|text| Network::parse(text)).collect()
}

impl NodeIpam {
    pub fn new(
        client: Client,
        nodes: Informer<Node>,
        ranges: &[ClusterRange],
        queue: &Queue,
    ) -> Result<Arc<Self>, String> {
        let ranges = ranges.iter().map(|range| Range::new(&range.cidr, range.node_prefix));
        let ranges = Arc::new(Mutex::new(ranges.collect::<Result<Vec<_>, _>>()?));
        // All that is given is known before anything is: handlers hear of every object that is there at once.
        let (to, known) = (queue.clone(), Arc::clone(&ranges));
        nodes.on_change(move |change| {
            let node = change.object();
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let mut ranges = known.lock();
            if matches!(change, Change::Deleted(_)) {
                ranges.iter_mut().for_each(|range| range.release(name));
                return;
            }
            let held = networks(node);
            for network in &held {
                for range in ranges.iter_mut() {
                    if let Some(other) = range.occupy(*network, name) {
                        tracing::error!(node = name, other, %network, "two nodes have the same pod network");
                    }
                }
            }
            if held.is_empty() {
                to.add(Key::of(&node.metadata));
            }
        });
        let recorder = EventRecorder::new(client.clone(), "cidrAllocator");
        Ok(Arc::new(Self { client, recorder, nodes, ranges }))
    }
}

#[async_trait::async_trait]
impl Reconcile for NodeIpam {
    fn name(&self) -> &'static str {
        "node-ipam"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(Outcome::Done) };
        if !networks(&node).is_empty() {
            return Ok(Outcome::Done);
        }
        let taken: Option<Vec<String>> = {
            let mut ranges = self.ranges.lock();
            ranges.iter_mut().map(|range| range.take(&key.name).map(|network| network.to_string())).collect()
        };
        let Some(cidrs) = taken else {
            let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.event(reference(&*node), EventType::Normal, "CIDRNotAvailable", &text);
            return Err(Error::Configuration(format!("no pod network is left for node {}", key.name)));
        };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        });
        match self.client.patch::<Node>(None, &key.name, Patch::Merge(patch), None).await {
            Ok(_) => Ok(Outcome::Done),
            Err(error) => {
                // A node that is gone tells so itself. Otherwise it is another's now, or it is tried again: with
                // another network in the first case, for the Nodes are the record.
                if !error.is_conflict() {
                    self.ranges.lock().iter_mut().for_each(|range| range.release(&key.name));
                }
                if error.is_not_found() { Ok(Outcome::Done) } else { Err(error) }
            }
        }
    }
}
