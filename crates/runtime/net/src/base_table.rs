//! The part of our table that does not depend on services or pods: hooks, maps, and what they mean.
//!
//! Read top to bottom, this is the whole packet path; `service_ips`, `service_nodeports`, the host port maps
//! and the policy maps are filled elsewhere.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use nlink::netlink::nftables::{
    BaseChain, Chain, FilterHook, NatHook, Priority, Set, SetDataType, SetElement, SetKeyType,
};

use crate::config::NetConfig;
use crate::error::KernelContext;
use crate::kernel::Kernel;
use crate::peers::TUNNEL_PORT;
use crate::proxy::names::fingerprint;
use crate::rules::{RuleBody, destination_type, endpoint_type, pair_type, port_type, slot_type};
use crate::{Cidr, Result};

/// Destination to service chain: cluster, external and load balancer addresses.
pub(crate) const SERVICE_IPS: &str = "service_ips";
/// Protocol and port to service chain, for the node's own addresses.
pub(crate) const SERVICE_NODEPORTS: &str = "service_nodeports";
/// Destination to how many endpoints it has, for services that need no chain of their own. Changes of such services
/// are changes of data alone: the kernel validates all chains anew whenever a rule or a verdict is added, looks
/// for a set by its name in a list, and walks a map for each rule that is bound to it.
pub(crate) const BALANCED: &str = "balanced";
/// Destination and number of the endpoint to endpoint.
pub(crate) const BALANCED_ENDPOINTS: &str = "balanced_endpoints";
/// Endpoints a balanced destination may have; one rule for each count.
pub(crate) const MAX_BALANCED: u32 = 16;
/// Destinations of services that have no endpoint now.
pub(crate) const NO_ENDPOINTS: &str = "no_endpoints";
/// Protocol and port to pod.
pub(crate) const HOST_PORTS: &str = "host_ports";
/// The same for mappings bound to one address of the host.
pub(crate) const HOST_IP_PORTS: &str = "host_ip_ports";
/// Address of a pod to the chain of what may be sent to it; pods that are not in it are open.
pub(crate) const POLICY_INGRESS: &str = "policy_ingress";
/// The same for what it may send.
pub(crate) const POLICY_EGRESS: &str = "policy_egress";
/// Nodes that may send through the tunnel.
pub(crate) const TUNNEL_PEERS: &str = "tunnel_peers";
/// Pairs of a pod address with itself.
const HAIRPIN: &str = "hairpin";
const SERVICES: &str = "services";
const BALANCE: &str = "balance";

/// Raise it when the rules below change.
const LAYOUT_VERSION: u32 = 3;
/// Just after destination NAT, at -100.
const AFTER_DSTNAT: i32 = -90;
/// Just before the filter hook, at 0.
const BEFORE_FILTER: i32 = -5;
const LAYOUT_PREFIX: &str = "layout_";

/// The maps that others fill; they keep their elements when the layout changes.
pub(crate) fn filled_sets(kernel: &Kernel) -> Vec<Set> {
    vec![
        kernel.set(SERVICE_IPS).key_type(destination_type()).vmap(),
        kernel.set(SERVICE_NODEPORTS).key_type(port_type()).vmap(),
        kernel.set(BALANCED).key_type(destination_type()).map(SetDataType::Value(SetKeyType::Mark)),
        kernel.set(BALANCED_ENDPOINTS).key_type(slot_type()).map(endpoint_type()),
        kernel.set(NO_ENDPOINTS).key_type(destination_type()),
        kernel.set(HOST_PORTS).key_type(port_type()).map(endpoint_type()),
        kernel.set(HOST_IP_PORTS).key_type(destination_type()).map(endpoint_type()),
        kernel.set(TUNNEL_PEERS).key_type(SetKeyType::Ipv4Addr),
        kernel.set(POLICY_INGRESS).key_type(SetKeyType::Ipv4Addr).vmap(),
        kernel.set(POLICY_EGRESS).key_type(SetKeyType::Ipv4Addr).vmap(),
    ]
}

/// Brings the fixed part of the table to what `config` asks for, in one transaction, or does nothing when
/// it is there already.
pub(crate) async fn ensure(kernel: &Kernel, config: &NetConfig) -> Result<()> {
    let marker = layout_marker(config);
    let exists = kernel.table_exists().await?;
    let (chains, sets) = if exists { (kernel.chains().await?, kernel.sets().await?) } else { (Vec::new(), Vec::new()) };
    if chains.contains(&marker) {
        return Ok(());
    }
    let chains: BTreeSet<&str> = chains.iter().map(String::as_str).collect();
    let sets: BTreeSet<&str> = sets.iter().map(String::as_str).collect();
    let mut batch = kernel.batch();
    if !exists {
        batch = batch.add_table();
    }
    let layout = layout(config);
    for (chain, _, _) in layout.iter().filter(|(chain, _, _)| chains.contains(chain)) {
        batch = batch.flush_chain(chain);
    }
    for set in filled_sets(kernel).iter().filter(|set| !sets.contains(set.name())) {
        batch = batch.add_set(set);
    }
    let hairpin = kernel.set(HAIRPIN).key_type(pair_type());
    if sets.contains(HAIRPIN) {
        batch = batch.remove_set(HAIRPIN);
    }
    // Without the bridge's own address: the node reaching itself needs no help.
    let pods: Vec<SetElement> = (2..config.pod_cidr.size())
        .filter_map(|index| config.pod_cidr.nth(index))
        .map(|address| SetElement::concat([SetElement::ipv4(address), SetElement::ipv4(address)]))
        .collect();
    batch = batch.add_set(&hairpin).add_elements(&hairpin, &pods);
    for (name, base, _) in &layout {
        let chain = Chain::new(config.table.as_str(), *name).doing(|| format!("name chain {name}"))?;
        batch = batch.add_chain(match base {
            Some(base) => chain.base(base.clone()),
            None => chain,
        });
    }
    for (name, _, rules) in layout {
        for rule in rules {
            batch = batch.add_rule(name, rule);
        }
    }
    for old in chains.iter().filter(|c| c.starts_with(LAYOUT_PREFIX)) {
        batch = batch.remove_chain(old);
    }
    let marker = Chain::new(config.table.as_str(), marker.as_str()).doing(|| "name the layout".to_owned())?;
    batch.add_chain(marker).commit().await
}

fn layout_marker(config: &NetConfig) -> String {
    let text = format!(
        "{LAYOUT_VERSION} {} {} {} {}",
        config.bridge, config.pod_cidr, config.cluster_cidr, config.service_cidr
    );
    format!("{LAYOUT_PREFIX}{}", fingerprint(text.as_bytes()))
}

/// Destination NAT to one of the endpoints of a balanced destination.
fn balance(config: &NetConfig) -> Vec<RuleBody> {
    // Sources outside the network get the node's address, so that replies come back this way.
    let masquerade = RuleBody::ipv4().not_from(config.cluster_cidr).mark_for_masquerade();
    let pick = |count| RuleBody::ipv4().dnat_to_one_of(count, BALANCED, BALANCED_ENDPOINTS);
    std::iter::once(masquerade).chain((1..=MAX_BALANCED).map(pick)).collect()
}

type ChainLayout = (&'static str, Option<BaseChain>, Vec<RuleBody>);

fn layout(config: &NetConfig) -> Vec<ChainLayout> {
    let bridge = config.bridge.as_str();
    let loopback = Cidr::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("8 is a prefix");
    let services = || vec![RuleBody::ipv4().jump(SERVICES)];
    vec![
        (
            // `route_localnet` lets the node reach NodePorts on 127.0.0.1; pods must not profit from it.
            "guard",
            Some(BaseChain::filter(FilterHook::Prerouting, Priority::Raw)),
            vec![
                RuleBody::ipv4().in_from(bridge).to(loopback).drop(),
                RuleBody::ipv4().in_from(bridge).from(loopback).drop(),
            ],
        ),
        (BALANCE, None, balance(config)),
        (
            SERVICES,
            None,
            vec![
                RuleBody::ipv4().destination_mapped_in(BALANCED).goto(BALANCE),
                RuleBody::ipv4().vmap_destination(SERVICE_IPS),
                RuleBody::ipv4().aimed_at_node().vmap_port(SERVICE_NODEPORTS),
                RuleBody::ipv4().dnat_by_destination(HOST_IP_PORTS),
                RuleBody::ipv4().aimed_at_node().dnat_by_port(HOST_PORTS),
            ],
        ),
        ("nat_prerouting", Some(BaseChain::nat(NatHook::Prerouting, Priority::DstNat)), services()),
        ("nat_output", Some(BaseChain::nat(NatHook::Output, Priority::DstNat)), services()),
        (
            // What still is for a service after destination NAT has nowhere to go. Before routing, because
            // routing it would first spend the sender's ICMP allowance on a redirect.
            "filter_prerouting",
            Some(BaseChain::filter(FilterHook::Prerouting, Priority::Custom(AFTER_DSTNAT))),
            vec![
                RuleBody::ipv4().destination_in(NO_ENDPOINTS).reject(),
                RuleBody::ipv4().to(config.service_cidr).reject(),
            ],
        ),
        (
            "nat_postrouting",
            Some(BaseChain::nat(NatHook::Postrouting, Priority::SrcNat)),
            vec![
                RuleBody::ipv4().marked_for_masquerade().clear_masquerade_mark().masquerade(),
                // A pod that reached itself through a service must see the reply come through it, too.
                RuleBody::ipv4().pair_in(HAIRPIN).masquerade(),
                RuleBody::ipv4().out_to(bridge).from(loopback).masquerade(),
                RuleBody::ipv4().from(config.pod_cidr).not_to(config.cluster_cidr).not_out_to(bridge).masquerade(),
            ],
        ),
        (
            // Network policies. What the node itself sends and receives does not pass here. After destination NAT,
            // so services hide no pod; before source NAT, so clients keep their addresses.
            "policy_forward",
            Some(BaseChain::filter(FilterHook::Forward, Priority::Custom(BEFORE_FILTER))),
            vec![
                RuleBody::any().of_known_connection().accept(),
                RuleBody::ipv4().pair_in(HAIRPIN).accept(),
                RuleBody::ipv4().vmap_source(POLICY_EGRESS),
                RuleBody::ipv4().vmap_destination_address(POLICY_INGRESS),
            ],
        ),
        (
            // Whoever could send into the tunnel could send as any pod.
            "tunnel_input",
            Some(BaseChain::filter(FilterHook::Input, Priority::Filter)),
            vec![
                RuleBody::ipv4().to_udp_port(TUNNEL_PORT).source_in(TUNNEL_PEERS).accept(),
                RuleBody::ipv4().to_udp_port(TUNNEL_PORT).drop(),
            ],
        ),
        (
            // Ends of a connection believe their own link's size; what lies between, a tunnel or a smaller link, is
            // known here. Without this, large packets would vanish wherever ICMP does.
            "clamp",
            Some(BaseChain::filter(FilterHook::Forward, Priority::Mangle)),
            vec![
                RuleBody::any().in_from(bridge).tcp_syn().clamp_segments(),
                RuleBody::any().out_to(bridge).tcp_syn().clamp_segments(),
            ],
        ),
        (
            "filter_forward",
            Some(BaseChain::filter(FilterHook::Forward, Priority::Filter)),
            vec![RuleBody::any().in_from(bridge).accept(), RuleBody::any().out_to(bridge).accept()],
        ),
        (
            "filter_output",
            Some(BaseChain::filter(FilterHook::Output, Priority::Filter)),
            vec![
                RuleBody::ipv4().destination_in(NO_ENDPOINTS).reject(),
                RuleBody::ipv4().to(config.service_cidr).reject(),
                // Pods on one bridge talk through us on purpose; a redirect would teach them not to.
                RuleBody::ipv4().out_to(bridge).icmp_redirect().drop(),
            ],
        ),
    ]
}
