//! Names of chains and maps: what they are for, whose they are, and a fingerprint of what is in them.

use sha2::{Digest, Sha256};

/// The chain packets to a service's cluster address enter.
pub(crate) const SERVICE: &str = "svc_";
/// The chain packets from outside enter: node ports, external addresses.
pub(crate) const EXTERNAL: &str = "ext_";
/// The chain packets to a load balancer's address enter when only some may.
pub(crate) const BALANCER: &str = "lb_";
/// The chain that picks an endpoint.
pub(crate) const PICK: &str = "pick_";
/// The map of numbered endpoints.
pub(crate) const ENDPOINTS: &str = "ep_";
/// The map of numbered [`STICKY`] chains.
pub(crate) const STICKIES: &str = "verdict_";
/// The chain that sends to one endpoint and remembers the client.
pub(crate) const STICKY: &str = "sticky_";
/// The clients an endpoint has had lately.
pub(crate) const CLIENTS: &str = "clients_";

/// Sixteen hexadecimal digits of SHA-256: names come from tenants, so collisions must not be craftable.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn is_service_chain(name: &str) -> bool {
    [SERVICE, EXTERNAL, BALANCER, PICK, STICKY].iter().any(|prefix| name.starts_with(prefix))
}

pub(crate) fn is_service_map(name: &str) -> bool {
    [ENDPOINTS, STICKIES, CLIENTS].iter().any(|prefix| name.starts_with(prefix))
}
