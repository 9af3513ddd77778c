//! The part of our table that does not depend on services or pods: hooks, maps, and what they mean.
//!
//! Read top to bottom, this is the whole packet path; `service_ips`, `service_nodeports`, the host port maps
//! and the policy maps are filled elsewhere. Each map that has to do with addresses is there once for each family, by the
//! names that [`set_name`] gives them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use nlink::netlink::nftables::{
    BaseChain, Chain, FilterHook, NatHook, Priority, Set, SetDataType, SetElement, SetKeyType,
};

use crate::config::{NetConfig, Networks};
use crate::error::KernelContext;
use crate::kernel::Kernel;
use crate::peers::TUNNEL_PORT;
use crate::proxy::names::fingerprint;
use crate::rules::{
    RuleBody, address_key, address_type, destination_type, endpoint_type, pair_type, port_type, set_name, slot_type,
};
use crate::{Cidr, Family, Result};

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
/// Node ports of services that have no endpoint now.
pub(crate) const NO_ENDPOINT_PORTS: &str = "no_endpoint_ports";
/// Protocol and port to pod.
pub(crate) const HOST_PORTS: &str = "host_ports";
/// The same for mappings bound to one address of the host.
pub(crate) const HOST_IP_PORTS: &str = "host_ip_ports";
/// Addresses of load balancers that this node answers for.
pub(crate) const BALANCER_ADDRESSES: &str = "balancer_addresses";
/// Address of a pod to the chain of what may be sent to it; pods that are not in it are open.
pub(crate) const POLICY_INGRESS: &str = "policy_ingress";
/// The same for what it may send.
pub(crate) const POLICY_EGRESS: &str = "policy_egress";
/// Addresses of this node's pods that CNI plugins connected.
pub(crate) const PLUGIN_PODS: &str = "plugin_pods";
/// Each of them with itself.
pub(crate) const PLUGIN_LOOPS: &str = "plugin_loops";
/// Nodes that may send through the tunnel.
pub(crate) const TUNNEL_PEERS: &str = "tunnel_peers";
/// Pairs of a pod address with itself.
const HAIRPIN: &str = "hairpin";
const SERVICES: &str = "services";
const BALANCE: &str = "balance";

/// Raise it when the rules below change.
const LAYOUT_VERSION: u32 = 6;
/// Just after destination NAT, at -100.
const AFTER_DSTNAT: i32 = -90;
/// Just before the filter hook, at 0.
const BEFORE_FILTER: i32 = -5;
const LAYOUT_PREFIX: &str = "layout_";

/// The maps that others fill; they keep their elements when the layout changes.
pub(crate) fn filled_sets(kernel: &Kernel) -> Vec<Set> {
    let of = |family: Family| {
        let set = |name: &str| kernel.set(&set_name(family, name));
        [
            set(SERVICE_IPS).key_type(destination_type(family)).vmap(),
            set(SERVICE_NODEPORTS).key_type(port_type()).vmap(),
            set(BALANCED).key_type(destination_type(family)).map(SetDataType::Value(SetKeyType::Mark)),
            set(BALANCED_ENDPOINTS).key_type(slot_type(family)).map(endpoint_type(family)),
            set(NO_ENDPOINTS).key_type(destination_type(family)),
            set(NO_ENDPOINT_PORTS).key_type(port_type()),
            set(HOST_PORTS).key_type(port_type()).map(endpoint_type(family)),
            set(HOST_IP_PORTS).key_type(destination_type(family)).map(endpoint_type(family)),
            set(BALANCER_ADDRESSES).key_type(address_type(family)),
            set(POLICY_INGRESS).key_type(address_type(family)).vmap(),
            set(POLICY_EGRESS).key_type(address_type(family)).vmap(),
            set(TUNNEL_PEERS).key_type(address_type(family)),
            set(PLUGIN_PODS).key_type(address_type(family)),
            set(PLUGIN_LOOPS).key_type(pair_type(family)),
        ]
    };
    Family::BOTH.into_iter().flat_map(of).collect()
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
    for (chain, _, _) in layout.iter().filter(|(chain, _, _)| chains.contains(chain.as_str())) {
        batch = batch.flush_chain(chain);
    }
    for set in filled_sets(kernel).iter().filter(|set| !sets.contains(set.name())) {
        batch = batch.add_set(set);
    }
    for family in Family::BOTH {
        let name = set_name(family, HAIRPIN);
        if sets.contains(name.as_str()) {
            batch = batch.remove_set(&name);
        }
    }
    for networks in config.networks() {
        let hairpin = kernel.set(&set_name(networks.family(), HAIRPIN)).key_type(pair_type(networks.family()));
        // Without the bridge's own address: the node reaching itself needs no help.
        let pods: Vec<SetElement> = (2..networks.end())
            .filter_map(|index| networks.pods.nth(index))
            .map(|address| SetElement::concat([address_key(address), address_key(address)]))
            .collect();
        batch = batch.add_set(&hairpin).add_elements(&hairpin, &pods);
    }
    for (name, base, _) in &layout {
        let chain = Chain::new(config.table.as_str(), name.as_str()).doing(|| format!("name chain {name}"))?;
        batch = batch.add_chain(match base {
            Some(base) => chain.base(base.clone()),
            None => chain,
        });
    }
    for (name, _, rules) in layout {
        for rule in rules {
            batch = batch.add_rule(&name, rule);
        }
    }
    for old in chains.iter().filter(|c| c.starts_with(LAYOUT_PREFIX)) {
        batch = batch.remove_chain(old);
    }
    let marker = Chain::new(config.table.as_str(), marker.as_str()).doing(|| "name the layout".to_owned())?;
    batch.add_chain(marker).commit().await
}

fn layout_marker(config: &NetConfig) -> String {
    let networks: Vec<Networks> = config.networks().collect();
    let text = format!("{LAYOUT_VERSION} {} {networks:?} {:?}", config.bridge, config.node_port_addresses);
    format!("{LAYOUT_PREFIX}{}", fingerprint(text.as_bytes()))
}

/// Destination NAT to one of the endpoints of a balanced destination.
fn balance(networks: Networks) -> Vec<RuleBody> {
    let family = networks.family();
    let (counts, endpoints) = (set_name(family, BALANCED), set_name(family, BALANCED_ENDPOINTS));
    // Sources outside the network get the node's address, so that replies come back this way.
    let masquerade = RuleBody::of(family).not_from(networks.cluster).mark_for_masquerade();
    let pick = |count| RuleBody::of(family).dnat_to_one_of(count, &counts, &endpoints);
    std::iter::once(masquerade).chain((1..=MAX_BALANCED).map(pick)).collect()
}

/// Where services and host ports lead.
fn services(config: &NetConfig, family: Family) -> Vec<RuleBody> {
    let rule = || RuleBody::of(family);
    let name = |name| set_name(family, name);
    let node_ports = name(SERVICE_NODEPORTS);
    let mut rules = vec![
        rule().destination_mapped_in(&name(BALANCED)).goto(&name(BALANCE)),
        rule().vmap_destination(&name(SERVICE_IPS)),
    ];
    if config.node_port_addresses.is_empty() {
        rules.push(rule().aimed_at_node().vmap_port(&node_ports));
    }
    for network in config.node_port_addresses.iter().filter(|network| network.family() == family) {
        rules.push(rule().to(*network).aimed_at_node().vmap_port(&node_ports));
    }
    rules.push(rule().dnat_by_destination(&name(HOST_IP_PORTS)));
    rules.push(rule().aimed_at_node().dnat_by_port(&name(HOST_PORTS)));
    rules
}

/// What still is for a service after destination NAT has nowhere to go.
fn refusals(config: &NetConfig, networks: Networks) -> Vec<RuleBody> {
    let family = networks.family();
    let ports = set_name(family, NO_ENDPOINT_PORTS);
    let mut rules = vec![
        RuleBody::of(family).destination_in(&set_name(family, NO_ENDPOINTS)).reject(),
        RuleBody::of(family).to(networks.services).reject(),
        // A balancer's address is on a link of ours, but what listens on the node is not for its clients. Neighbours ask
        // for the address, and people ping it.
        RuleBody::of(family).except_icmp().destination_address_in(&set_name(family, BALANCER_ADDRESSES)).reject(),
    ];
    if config.node_port_addresses.is_empty() {
        rules.push(RuleBody::of(family).aimed_at_node().port_in(&ports).reject());
    }
    for network in config.node_port_addresses.iter().filter(|network| network.family() == family) {
        rules.push(RuleBody::of(family).to(*network).aimed_at_node().port_in(&ports).reject());
    }
    rules
}

fn loopback(family: Family) -> Cidr {
    match family {
        Family::V4 => Cidr::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("8 is a prefix"),
        Family::V6 => Cidr::host(Ipv6Addr::LOCALHOST.into()),
    }
}

type ChainLayout = (String, Option<BaseChain>, Vec<RuleBody>);

fn layout(config: &NetConfig) -> Vec<ChainLayout> {
    let bridge = config.bridge.as_str();
    let each = |rules: &dyn Fn(Networks) -> Vec<RuleBody>| config.networks().flat_map(rules).collect::<Vec<_>>();
    let jump = || each(&|networks| vec![RuleBody::of(networks.family()).jump(SERVICES)]);
    // Only what begins is refused: an answer to the node may well be for a balancer's address that the node asked from.
    let refused = || {
        let known = RuleBody::any().of_known_connection().accept();
        std::iter::once(known).chain(each(&|networks| refusals(config, networks))).collect::<Vec<_>>()
    };
    let mut chains: Vec<ChainLayout> = Vec::new();
    let mut chain = |name: &str, base, rules| chains.push((name.to_owned(), base, rules));
    chain(
        // `route_localnet` lets the node reach NodePorts on 127.0.0.1; pods must not profit from it.
        "guard",
        Some(BaseChain::filter(FilterHook::Prerouting, Priority::Raw)),
        each(&|networks| {
            let rule = || RuleBody::of(networks.family()).in_from(bridge);
            let loopback = loopback(networks.family());
            vec![rule().to(loopback).drop(), rule().from(loopback).drop()]
        }),
    );
    for networks in config.networks() {
        chain(&set_name(networks.family(), BALANCE), None, balance(networks));
    }
    chain(SERVICES, None, each(&|networks| services(config, networks.family())));
    chain("nat_prerouting", Some(BaseChain::nat(NatHook::Prerouting, Priority::DstNat)), jump());
    chain("nat_output", Some(BaseChain::nat(NatHook::Output, Priority::DstNat)), jump());
    chain(
        // Before routing, because routing it would first spend the sender's ICMP allowance on a redirect.
        "filter_prerouting",
        Some(BaseChain::filter(FilterHook::Prerouting, Priority::Custom(AFTER_DSTNAT))),
        refused(),
    );
    chain(
        "nat_postrouting",
        Some(BaseChain::nat(NatHook::Postrouting, Priority::SrcNat)),
        each(&|networks| {
            let rule = || RuleBody::of(networks.family());
            vec![
                rule().marked_for_masquerade().clear_masquerade_mark().masquerade(),
                // A pod that reached itself through a service must see the reply come through it, too.
                rule().pair_in(&set_name(networks.family(), HAIRPIN)).masquerade(),
                rule()
                    .source_in(&set_name(networks.family(), PLUGIN_PODS))
                    .destination_address_in(&set_name(networks.family(), PLUGIN_PODS))
                    .sent_elsewhere()
                    .masquerade(),
                rule().out_to(bridge).from(loopback(networks.family())).masquerade(),
                rule().from(networks.pods).not_to(networks.cluster).not_out_to(bridge).masquerade(),
            ]
        }),
    );
    let judged = each(&|networks| {
        let family = networks.family();
        let rule = || RuleBody::of(family);
        vec![
            rule().pair_in(&set_name(family, HAIRPIN)).accept(),
            rule().pair_in(&set_name(family, PLUGIN_LOOPS)).accept(),
            rule().vmap_source(&set_name(family, POLICY_EGRESS)),
            rule().vmap_destination_address(&set_name(family, POLICY_INGRESS)),
        ]
    });
    chain(
        // Network policies. What the node itself sends and receives does not pass here. After destination NAT,
        // so services hide no pod; before source NAT, so clients keep their addresses.
        "policy_forward",
        Some(BaseChain::filter(FilterHook::Forward, Priority::Custom(BEFORE_FILTER))),
        std::iter::once(RuleBody::any().of_known_connection().accept()).chain(judged).collect(),
    );
    chain(
        // Whoever could send into the tunnel could send as any pod.
        "tunnel_input",
        Some(BaseChain::filter(FilterHook::Input, Priority::Filter)),
        Family::BOTH
            .into_iter()
            .flat_map(|family| {
                let rule = || RuleBody::of(family).aimed_at_udp_port(TUNNEL_PORT);
                [rule().source_in(&set_name(family, TUNNEL_PEERS)).accept(), rule().drop()]
            })
            .collect(),
    );
    chain(
        // Ends of a connection believe their own link's size; what lies between, a tunnel or a smaller link, is known
        // here. Without this, large packets would vanish wherever ICMP does.
        "clamp",
        Some(BaseChain::filter(FilterHook::Forward, Priority::Mangle)),
        vec![
            RuleBody::any().in_from(bridge).tcp_syn().clamp_segments(),
            RuleBody::any().out_to(bridge).tcp_syn().clamp_segments(),
        ],
    );
    chain(
        "filter_forward",
        Some(BaseChain::filter(FilterHook::Forward, Priority::Filter)),
        vec![RuleBody::any().in_from(bridge).accept(), RuleBody::any().out_to(bridge).accept()],
    );
    chain(
        "filter_output",
        Some(BaseChain::filter(FilterHook::Output, Priority::Filter)),
        // Pods on one bridge talk through us on purpose; a redirect would teach them not to.
        each(&|networks| vec![RuleBody::of(networks.family()).out_to(bridge).icmp_redirect().drop()])
            .into_iter()
            .chain(refused())
            .collect(),
    );
    chains
}
