//! The group networking.k8s.io.

use super::*;
use crate::defaulting;
use crate::table::networking as t;
use crate::validation::networking as rules;

pub(super) const KINDS: &[Kind] = &[
    kind!("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", "networking")
        .short(&["ing"])
        .subs(STATUS)
        .counted()
        .columns(t::INGRESS)
        .defaults(defaulting::rows::ingress)
        .rules(rules::ingress),
    kind!("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass", "networking")
        .cluster()
        .counted()
        .columns(t::INGRESS_CLASS)
        .defaults(defaulting::rows::ingress_class)
        .rules(rules::ingress_class)
        .update_rules(rules::ingress_class_update),
    kind!("networking.k8s.io", "v1", "IPAddress", "ipaddresses", "ipaddress", "networking")
        .short(&["ip"])
        .cluster()
        .columns(t::IP_ADDRESS)
        .named(names::ip_address)
        .rules(rules::ip_address)
        .update_rules(rules::ip_address_update),
    kind!("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy", "networking")
        .short(&["netpol"])
        .counted()
        .columns(t::NETWORK_POLICY)
        .defaults(defaulting::service::network_policy)
        .rules(rules::network_policy),
    kind!("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", "servicecidr", "networking")
        .cluster()
        .subs(STATUS)
        .columns(t::SERVICE_CIDR)
        .rules(rules::service_cidr)
        .update_rules(rules::service_cidr_update),
];
