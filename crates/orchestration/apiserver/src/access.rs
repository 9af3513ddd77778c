//! What is configured about identity and access; the defaults need no configuration.

use crate::ApiServer;
use crate::tokens::AUDIENCE;

/// Everything beyond the cluster's own keys that decides who may do what.
#[derive(Default)]
pub struct AccessConfig {
    /// Issuer in service-account tokens, an `https` URL; the cluster's usual name if `None`.
    pub issuer: Option<String>,
    /// What the API server accepts as audience; its issuer if empty.
    pub audiences: Vec<String>,
    /// Public keys in PEM (ES256) whose service-account tokens are still believed, beside the signing key's.
    pub verification_keys: Vec<String>,
    /// Longest life of a requested token in seconds.
    pub longest_token: Option<i64>,
    /// The cluster's CA, for Secrets of type `kubernetes.io/service-account-token`.
    pub root_ca_pem: String,
}

impl ApiServer {
    /// For whom tokens have to be that are for this server.
    pub fn audiences(&self) -> Vec<String> {
        match self.access.audiences.as_slice() {
            [] => vec![self.access.issuer.clone().unwrap_or_else(|| AUDIENCE.into())],
            named => named.to_vec(),
        }
    }
}
