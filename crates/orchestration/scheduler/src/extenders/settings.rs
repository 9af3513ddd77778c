//! Extenders as upstream's configuration describes them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_base::pki::CertPair;
use dhow_base::tls::{self, LiveCert};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;

use crate::ConfigError;

/// As upstream's.
const USUAL_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtenderConfig {
    pub url_prefix: String,
    pub filter_verb: String,
    pub prioritize_verb: String,
    pub preempt_verb: String,
    pub bind_verb: String,
    pub weight: i64,
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    pub tls_config: ExtenderTls,
    /// As Go writes durations.
    pub http_timeout: Option<String>,
    /// It is told nodes by name, for it knows them itself.
    pub node_cache_capable: bool,
    pub managed_resources: Vec<ManagedResource>,
    /// Pods are placed without it while it does not answer.
    pub ignorable: bool,
}

#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtenderTls {
    pub insecure: bool,
    pub server_name: Option<String>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    /// Base64 of PEM, as the fields below.
    pub cert_data: Option<String>,
    pub key_data: Option<String>,
    pub ca_data: Option<String>,
}

impl std::fmt::Debug for ExtenderTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtenderTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedResource {
    pub name: String,
    #[serde(default)]
    pub ignored_by_scheduler: bool,
}

impl ExtenderConfig {
    pub(super) fn timeout(&self) -> Result<Duration, String> {
        let Some(text) = self.http_timeout.as_deref() else { return Ok(USUAL_TIMEOUT) };
        let seconds = dhow_base::duration::go_seconds(text).filter(|seconds| (0.0..=86400.0).contains(seconds));
        let seconds = seconds.ok_or_else(|| format!("httpTimeout {text:?} is no duration such as 5s"))?;
        Ok(if seconds > 0.0 { Duration::from_secs_f64(seconds) } else { USUAL_TIMEOUT })
    }

    /// Whom to believe, and how to prove who we are.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let of = &self.tls_config;
        let text = |what: &str, file: &Option<PathBuf>, data: &Option<String>| -> Result<Option<String>, String> {
            if let Some(data) = data {
                let bytes = STANDARD.decode(data.trim()).map_err(|error| format!("{what}Data: {error}"))?;
                return String::from_utf8(bytes).map(Some).map_err(|_| format!("{what}Data is not PEM"));
            }
            let Some(file) = file else { return Ok(None) };
            std::fs::read_to_string(file).map(Some).map_err(|error| format!("read {}: {error}", file.display()))
        };
        let (cert, key) = (text("cert", &of.cert_file, &of.cert_data)?, text("key", &of.key_file, &of.key_data)?);
        let client = match (cert, key) {
            (None, None) => None,
            (Some(cert_pem), Some(key_pem)) => {
                let pair = CertPair { cert_pem, key_pem };
                Some(Arc::new(LiveCert::new(&pair).map_err(|error| dhow_base::chain(&error))?))
            }
            _ => return Err("a client certificate needs both its certificate and its key".to_owned()),
        };
        let config = match text("ca", &of.ca_file, &of.ca_data)? {
            Some(ca) if !of.insecure => tls::client_config_with(&ca, client),
            None if !of.insecure => {
                return Err("tlsConfig names no authority: give caFile or caData, or set insecure".to_owned());
            }
            _ => tls::client_config_unverified(client),
        };
        config.map_err(|error| dhow_base::chain(&error))
    }
}

/// The list `extenders` of a configuration.
pub(crate) fn read(list: &[Value]) -> Result<Vec<ExtenderConfig>, ConfigError> {
    let mut extenders: Vec<ExtenderConfig> = Vec::new();
    let mut managed = BTreeSet::new();
    for (index, value) in list.iter().enumerate() {
        let context = format!("extenders[{index}]");
        let mut extender: ExtenderConfig = serde_json::from_value(value.clone())
            .map_err(|source| ConfigError::Malformed { context: context.clone(), source })?;
        let invalid = |why: String| ConfigError::Invalid(format!("{context}: {why}"));
        if extender.enable_https
            && let Some(rest) = extender.url_prefix.strip_prefix("http://")
        {
            extender.url_prefix = format!("https://{rest}");
        }
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            return Err(invalid(format!("weight {}: must have a positive weight applied to it", extender.weight)));
        }
        for resource in &extender.managed_resources {
            let own = resource.name.split_once('/').is_some_and(|(domain, name)| {
                !domain.is_empty()
                    && !name.is_empty()
                    && domain != "kubernetes.io"
                    && !domain.ends_with(".kubernetes.io")
            });
            if !own || resource.name.starts_with("requests.") {
                return Err(invalid(format!("{} is an invalid extended resource name", resource.name)));
            }
            if !managed.insert(resource.name.clone()) {
                return Err(invalid(format!("{}: duplicate extender managed resource name", resource.name)));
            }
        }
        extender.timeout().map_err(invalid)?;
        extenders.push(extender);
    }
    let binders = extenders.iter().filter(|extender| !extender.bind_verb.is_empty()).count();
    if binders > 1 {
        return Err(ConfigError::Invalid(format!(
            "found {binders} extenders implementing bind: only one extender can implement bind"
        )));
    }
    // Certificates that cannot be read are told at start.
    super::Extenders::new(&extenders)?;
    Ok(extenders)
}
