//! What is configured about identity and access; the defaults need no configuration.

use crate::aggregate::FrontProxy;
use crate::audit::AuditConfig;
use crate::connections::Limits;
use crate::oidc::{Anonymous, AuthenticationConfig, Issuers};
use crate::tokens::AUDIENCE;
use crate::{ApiServer, Error};

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
    /// Other issuers of tokens, and who is anonymous.
    pub authentication: Option<AuthenticationConfig>,
    /// What is recorded of requests, and where.
    pub audit: Option<AuditConfig>,
    /// Whether the plugin OwnerReferencesPermissionEnforcement is on.
    pub owner_references: bool,
    /// Requests that run at once, shared out among the priority levels; 600 if `None`, no limits at all if 0.
    pub seats: Option<usize>,
    /// How extension servers know this server; without, they get no certificate.
    pub front_proxy: Option<FrontProxy>,
    /// How long clients may take.
    pub limits: Limits,
}

impl AccessConfig {
    pub fn anonymous(&self) -> Anonymous {
        self.authentication.as_ref().map(|config| config.anonymous.clone()).unwrap_or_default()
    }

    /// The issuers named in the configuration. None of them may have the cluster's own name.
    pub fn issuers(&self) -> Result<Option<Issuers>, Error> {
        let Some(config) = self.authentication.as_ref().filter(|config| !config.jwt.is_empty()) else {
            return Ok(None);
        };
        let issuers = Issuers::new(config);
        let own = self.issuer.as_deref().unwrap_or(AUDIENCE);
        if issuers.urls().any(|url| url == own) {
            return Err(Error::Configuration(format!(
                "authentication configuration: {own:?} is the issuer of service-account tokens and cannot be another's"
            )));
        }
        Ok(Some(issuers))
    }
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
