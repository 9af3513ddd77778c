//! The `AuthenticationConfiguration` file (`apiserver.config.k8s.io/v1`): whose JWTs are believed, and who is anonymous.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::Error;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfig {
    api_version: String,
    kind: String,
    #[serde(default)]
    pub jwt: Vec<Issuer>,
    #[serde(default)]
    pub anonymous: Anonymous,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    pub issuer: Source,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimRule>,
    pub claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    pub url: String,
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    #[serde(default)]
    pub certificate_authority: String,
    pub audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
}

/// A claim that has to be there, with a value if one is named.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimRule {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    #[allow(dead_code, reason = "the message of an expression, which is refused")]
    message: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    pub username: Mapping,
    #[serde(default)]
    pub groups: Mapping,
    #[serde(default)]
    pub uid: Mapping,
    #[serde(default)]
    pub extra: Vec<Extra>,
}

/// A claim and what is put before its value, or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub prefix: Option<String>,
    #[serde(default)]
    pub expression: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Extra {
    pub key: String,
    pub value_expression: String,
}

/// Who proves nothing is let on as `system:anonymous`, everywhere or on some paths only.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub path: String,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

impl Anonymous {
    pub fn allows(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|condition| condition.path == path))
    }
}

/// Most issuers a file may name, as upstream.
const MOST: usize = 64;

impl AuthenticationConfig {
    /// Reads and checks a file in YAML or JSON. The error names the field.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Configuration(format!("authentication configuration: {why}"));
        let config: Self = serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?;
        let known = ["v1", "v1beta1"].map(|version| format!("apiserver.config.k8s.io/{version}"));
        if config.kind != "AuthenticationConfiguration" || !known.contains(&config.api_version) {
            return Err(bad(format!("cannot read {} of {}", config.kind, config.api_version)));
        }
        if config.jwt.len() > MOST {
            return Err(bad(format!("jwt: must have at most {MOST} items")));
        }
        let mut urls = BTreeSet::new();
        for (at, issuer) in config.jwt.iter().enumerate() {
            issuer.check().map_err(|why| bad(format!("jwt[{at}].{why}")))?;
            if !urls.insert(&issuer.issuer.url) {
                return Err(bad(format!("jwt[{at}].issuer.url: Duplicate value: {:?}", issuer.issuer.url)));
            }
        }
        if !config.anonymous.enabled && !config.anonymous.conditions.is_empty() {
            return Err(bad("anonymous.conditions: must not be set when enabled is false".into()));
        }
        Ok(config)
    }
}

impl Issuer {
    fn check(&self) -> Result<(), String> {
        let source = &self.issuer;
        for (field, url) in [("issuer.url", Some(&source.url)), ("issuer.discoveryURL", source.discovery_url.as_ref())]
        {
            if url.is_some_and(|url| !url.starts_with("https://")) {
                return Err(format!("{field}: must be an https URL"));
            }
        }
        if source.audiences.is_empty() {
            return Err("issuer.audiences: at least one is required".into());
        }
        if source.audiences.len() > 1 && source.audience_match_policy != "MatchAny" {
            return Err("issuer.audienceMatchPolicy: must be MatchAny for multiple audiences".into());
        }
        let mappings = &self.claim_mappings;
        let named = [("username", &mappings.username), ("groups", &mappings.groups), ("uid", &mappings.uid)];
        for (field, mapping) in named {
            mapping.check().map_err(|why| format!("claimMappings.{field}: {why}"))?;
        }
        if mappings.username.is_unset() {
            return Err("claimMappings.username: claim or expression is required".into());
        }
        for (field, mapping) in &named[..2] {
            if !mapping.claim.is_empty() && mapping.prefix.is_none() {
                return Err(format!("claimMappings.{field}.prefix: required with a claim; it may be empty"));
            }
        }
        for (at, extra) in mappings.extra.iter().enumerate() {
            let field = format!("claimMappings.extra[{at}]");
            if !extra.key.contains('/') || extra.key != extra.key.to_lowercase() {
                return Err(format!("{field}.key: must be a lower-case path with a domain, such as example.com/x"));
            }
            path(&extra.value_expression).map_err(|why| format!("{field}.valueExpression: {why}"))?;
        }
        for (at, rule) in self.claim_validation_rules.iter().enumerate() {
            if !rule.expression.is_empty() {
                return Err(format!("claimValidationRules[{at}].expression: {}", no_cel(&rule.expression)));
            }
            if rule.claim.is_empty() {
                return Err(format!("claimValidationRules[{at}].claim: required"));
            }
        }
        if !self.user_validation_rules.is_empty() {
            return Err("userValidationRules: CEL expressions are not supported here yet; remove them".into());
        }
        Ok(())
    }
}

impl Mapping {
    pub fn is_unset(&self) -> bool {
        self.claim.is_empty() && self.expression.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        if !self.claim.is_empty() && !self.expression.is_empty() {
            return Err("claim and expression exclude each other".into());
        }
        if !self.expression.is_empty() {
            path(&self.expression)?;
        }
        Ok(())
    }

    /// The value in the claims that is meant.
    pub fn of<'a>(&self, claims: &'a Value) -> Option<&'a Value> {
        if self.expression.is_empty() { claims.get(&self.claim) } else { value_at(claims, &self.expression) }
    }

    pub fn prefixed(&self, value: &str) -> String {
        format!("{}{value}", self.prefix.as_deref().unwrap_or_default())
    }
}

/// The claim at the end of `claims.a.b`.
pub fn value_at<'a>(claims: &'a Value, expression: &str) -> Option<&'a Value> {
    path(expression).ok()?.into_iter().try_fold(claims, |value, part| value.get(part))
}

/// The one kind of expression that is understood: `claims.a.b`.
fn path(expression: &str) -> Result<Vec<&str>, String> {
    let plain = |part: &&str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !part.as_bytes()[0].is_ascii_digit()
    };
    let rest = expression.trim().strip_prefix("claims.").ok_or_else(|| no_cel(expression))?;
    let parts: Vec<&str> = rest.split('.').collect();
    if parts.iter().all(plain) { Ok(parts) } else { Err(no_cel(expression)) }
}

fn no_cel(expression: &str) -> String {
    format!("{expression:?}: of CEL only a claim's path such as claims.sub is supported here yet")
}
