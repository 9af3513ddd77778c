//! What the configuration files say about identity and audit.

use std::path::Path;

use anyhow::{Context, Result};
use dhow_apiserver::{AccessConfig, AuditConfig, AuditFile, AuditPolicy, AuthenticationConfig};

use crate::place::Place;

/// Reads the files that the place names. An error names the file and the field.
pub fn config(place: &Place, root_ca_pem: &str) -> Result<AccessConfig> {
    let authentication = match &place.authentication_config {
        Some(path) => Some(AuthenticationConfig::parse(&read(path)?).with_context(|| path.display().to_string())?),
        None => None,
    };
    let audit = match &place.audit_policy {
        Some(path) => {
            let policy = AuditPolicy::parse(&read(path)?).with_context(|| path.display().to_string())?;
            let log = place.audit_log.clone().unwrap_or_else(|| place.data_dir.join("audit.log"));
            Some(AuditConfig { policy, file: AuditFile::new(log) })
        }
        None => None,
    };
    Ok(AccessConfig { root_ca_pem: root_ca_pem.to_owned(), authentication, audit, ..AccessConfig::default() })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
