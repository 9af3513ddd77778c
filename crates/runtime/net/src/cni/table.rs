//! What our table knows of pods that plugins connected.
//!
//! Two pods on a bridge that is not ours would answer each other past the node, and a service's client would not know who
//! answers: so where a service leads from one such pod to another of this node, the client is the node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nlink::netlink::nftables::SetElement;

use crate::base_table::{PLUGIN_LOOPS, PLUGIN_PODS, filled_sets};
use crate::rules::{address_key, set_name};
use crate::{Family, Net, Result};

impl Net {
    /// Makes the sets hold exactly these pods.
    pub(super) async fn set_plugin_pods(&self, pods: &BTreeSet<IpAddr>) -> Result<()> {
        let sets = filled_sets(&self.kernel);
        let mut batch = self.kernel.batch();
        for family in Family::BOTH {
            let of_family = || pods.iter().copied().filter(|address| Family::of(*address) == family);
            let alone: Vec<SetElement> = of_family().map(address_key).collect();
            let pairs = of_family().map(|address| SetElement::concat([address_key(address), address_key(address)]));
            for (name, wanted) in [(PLUGIN_PODS, alone), (PLUGIN_LOOPS, pairs.collect())] {
                let name = set_name(family, name);
                let set = sets.iter().find(|set| set.name() == name).expect("the base table has it");
                let held = self.kernel.elements(&name).await?;
                let lacks = |of: &[SetElement], one: &SetElement| !of.iter().any(|other| other.key() == one.key());
                let stale: Vec<SetElement> = held.iter().filter(|held| lacks(&wanted, held)).cloned().collect();
                let new: Vec<SetElement> = wanted.iter().filter(|wanted| lacks(&held, wanted)).cloned().collect();
                batch = batch.remove_elements(set, &stale).add_elements(set, &new);
            }
        }
        batch.commit().await
    }
}
