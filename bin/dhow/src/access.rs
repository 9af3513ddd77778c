//! What the configuration files say about identity and audit.

use std::path::Path;

use anyhow::{Context, Result};
use dhow_apiserver::{AccessConfig, AuditConfig, AuditFile, AuditPolicy, AuditWebhook, AuthenticationConfig};

use crate::cli::AdmissionPlugin;
use crate::place::{AuditPlace, Place};

/// Reads the files that the place names. An error names the file and the field.
pub fn config(place: &Place, root_ca_pem: &str) -> Result<AccessConfig> {
    let authentication = match &place.authentication_config {
        Some(path) => Some(AuthenticationConfig::parse(&read(path)?).with_context(|| path.display().to_string())?),
        None => None,
    };
    let audit = place.audit.as_ref().map(|audit| self::audit(place, audit)).transpose()?;
    let owner_references = place.admission_plugins.contains(&AdmissionPlugin::OwnerReferencesPermissionEnforcement);
    let root_ca_pem = root_ca_pem.to_owned();
    Ok(AccessConfig { root_ca_pem, authentication, audit, owner_references, ..AccessConfig::default() })
}

fn audit(place: &Place, audit: &AuditPlace) -> Result<AuditConfig> {
    let policy = AuditPolicy::parse(&read(&audit.policy)?).with_context(|| audit.policy.display().to_string())?;
    let webhook = audit.webhook.as_ref().map(|path| AuditWebhook::from_kubeconfig(path)).transpose()?;
    // Somewhere it has to go.
    let log = match (&audit.log, &webhook) {
        (Some(log), _) => Some(log.clone()),
        (None, None) => Some(place.data_dir.join("audit.log")),
        (None, Some(_)) => None,
    };
    let file = log.map(|path| AuditFile {
        path,
        largest: u64::from(audit.max_size.max(1)) << 20,
        kept: audit.max_backups as usize,
        days: audit.max_age,
    });
    Ok(AuditConfig { policy, file, webhook })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
