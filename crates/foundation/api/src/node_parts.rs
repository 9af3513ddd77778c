//! Parts of a node that call the API as users of their own: each with the rights it needs and no others, by a certificate
//! that its node asks for.

/// Who signs their certificates.
pub const SIGNER: &str = "dhow.io/node-part";

/// As whom they call.
pub const USERS: [&str; 4] =
    ["system:kube-proxy", "system:dhow:network-policy", "system:dhow:load-balancer", "system:kube-dns"];
