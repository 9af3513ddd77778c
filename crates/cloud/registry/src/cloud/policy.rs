//! `ImagePolicy`, group `registry.dhow.io/v1alpha1`: whose signature an image needs for pods to run it.

use std::collections::BTreeMap;

use dhow_client::{Client, kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

use super::kinds::SecretReference;
use super::secrets;
use crate::rules::Pattern;
use crate::signatures::{Authority, Identity, Key, Keyless, Roots};

/// The definition that the API serves the kind by.
pub const DEFINITION: &str = include_str!("policy.yaml");
pub const NAME: &str = "imagepolicies.registry.dhow.io";
/// Where a Secret has a key, or certificates, unless the policy says it.
const KEY: &str = "cosign.pub";
const CERTIFICATES: &str = "ca.crt";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImagePolicy {
    pub metadata: ObjectMeta,
    pub spec: PolicySpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PolicyStatus>,
}
kind!(ImagePolicy, "registry.dhow.io", "v1alpha1", "imagepolicies", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicySpec {
    /// `registry/repository`, with `*`.
    pub images: Vec<String>,
    pub namespace_selector: Option<LabelSelector>,
    pub mode: Mode,
    pub authorities: Vec<AuthoritySpec>,
    /// Besides those of the pod.
    pub credentials: Option<SecretReference>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    #[default]
    Enforce,
    Warn,
    Audit,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthoritySpec {
    pub name: String,
    pub cosign: Option<CosignSpec>,
    pub notation: Option<NotationSpec>,
    pub keyless: Option<KeylessSpec>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CosignSpec {
    /// In PEM.
    pub key: Option<String>,
    pub secret: Option<KeyReference>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NotationSpec {
    /// In PEM.
    pub certificates: Option<String>,
    pub secret: Option<KeyReference>,
    pub subjects: Vec<String>,
}

/// All but the identities in PEM.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeylessSpec {
    pub certificates: String,
    pub logs: Option<String>,
    pub timestamps: Option<String>,
    pub identities: Vec<IdentitySpec>,
}

/// With `*`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentitySpec {
    pub subject: String,
    pub issuer: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyReference {
    pub namespace: String,
    pub name: String,
    pub key: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub conditions: Vec<Condition>,
}

impl PolicySpec {
    /// Whether the policy is about an image, which may have several names: `registry/repository`.
    pub fn covers(&self, names: &[String]) -> bool {
        self.images.iter().any(|pattern| names.iter().any(|name| Pattern(pattern.clone()).matches(name)))
    }

    /// # Errors
    /// When the selector cannot be understood.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> Result<bool, String> {
        let Some(selector) = &self.namespace_selector else { return Ok(true) };
        let text = serde_json::to_value(selector).map_err(|error| error.to_string())?;
        let selector = dhow_api::selectors::LabelSelector::from_object(Some(&text));
        Ok(selector.map_err(|error| format!("spec.namespaceSelector: {error}"))?.matches(labels))
    }

    /// Reads the keys and certificates.
    ///
    /// # Errors
    /// With what is not understood, as users may read it.
    pub async fn read(&self, client: &Client) -> Result<Vec<Authority>, String> {
        let mut authorities = Vec::new();
        for spec in &self.authorities {
            let at = |why: String| format!("spec.authorities {:?}: {why}", spec.name);
            if let Some(cosign) = &spec.cosign {
                let text = pem(client, cosign.key.as_ref(), cosign.secret.as_ref(), KEY).await.map_err(at)?;
                authorities.push(Authority::Cosign(Key::read_all(&text).map_err(at)?));
            }
            if let Some(notation) = &spec.notation {
                let from = (notation.certificates.as_ref(), notation.secret.as_ref());
                let text = pem(client, from.0, from.1, CERTIFICATES).await.map_err(at)?;
                authorities.push(Authority::Notation(Roots::read(&text, &notation.subjects).map_err(at)?));
            }
            if let Some(KeylessSpec { certificates, logs, timestamps, identities }) = &spec.keyless {
                let identity = |of: &IdentitySpec| Identity {
                    subject: Pattern(of.subject.clone()),
                    issuer: Pattern(of.issuer.clone()),
                };
                let identities = identities.iter().map(identity).collect();
                let trust = Keyless::read(certificates, logs.as_deref(), timestamps.as_deref(), identities);
                authorities.push(Authority::Keyless(trust.map_err(at)?));
            }
        }
        self.selects(&BTreeMap::new())?;
        Ok(authorities)
    }
}

async fn pem(
    client: &Client,
    own: Option<&String>,
    secret: Option<&KeyReference>,
    key: &str,
) -> Result<String, String> {
    match (own, secret) {
        (Some(text), None) => Ok(text.clone()),
        (None, Some(secret)) => {
            secrets::text(client, &secret.namespace, &secret.name, secret.key.as_deref().unwrap_or(key)).await
        }
        _ => Err("it needs either a text or a Secret".to_owned()),
    }
}
