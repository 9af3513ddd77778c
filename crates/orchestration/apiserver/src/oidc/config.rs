//! The `AuthenticationConfiguration` file (`apiserver.config.k8s.io/v1`): whose JWTs are believed, and who is anonymous.

use std::collections::{BTreeSet, HashMap};

use dhow_api::cel::{self, CompileError, Environment, Meter, Program};
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
    pub user_validation_rules: Vec<UserRule>,
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

/// A claim that has to have a value, or an expression that has to hold.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimRule {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
    #[serde(default)]
    pub expression: Option<OfClaims>,
    #[serde(default)]
    pub message: String,
}

/// An expression that has to hold for the user that was made of the claims.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRule {
    pub expression: OfUser,
    #[serde(default)]
    pub message: String,
}

/// A CEL expression that may name `claims`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct OfClaims(Program);

/// A CEL expression that may name `user`, with its `username`, `uid`, `groups` and `extra`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct OfUser(Program);

impl TryFrom<String> for OfClaims {
    type Error = CompileError;

    fn try_from(source: String) -> Result<Self, CompileError> {
        Program::compile(&source, &Environment::of(&["claims"])).map(Self)
    }
}

impl TryFrom<String> for OfUser {
    type Error = CompileError;

    fn try_from(source: String) -> Result<Self, CompileError> {
        Program::compile(&source, &Environment::of(&["user"])).map(Self)
    }
}

impl OfClaims {
    pub fn evaluate(&self, claims: &Value) -> Result<Value, String> {
        evaluate(&self.0, "claims", claims)
    }

    fn names(&self, claim: &str) -> bool {
        self.0.source().contains(claim)
    }
}

impl OfUser {
    pub fn evaluate(&self, user: &Value) -> Result<Value, String> {
        evaluate(&self.0, "user", user)
    }
}

fn evaluate(program: &Program, name: &'static str, value: &Value) -> Result<Value, String> {
    let variables = HashMap::from([(name, cel::Value::from_json(value))]);
    let failed = |error: cel::EvalError| format!("{:?}: {error}", program.source());
    program.evaluate(&variables, &mut Meter::new(cel::CALL_LIMIT)).and_then(|value| value.to_json()).map_err(failed)
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
    pub expression: Option<OfClaims>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Extra {
    pub key: String,
    pub value_expression: OfClaims,
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
        }
        for (at, rule) in self.claim_validation_rules.iter().enumerate() {
            if rule.claim.is_empty() == rule.expression.is_none() {
                return Err(format!("claimValidationRules[{at}]: either claim or expression is required"));
            }
        }
        self.check_mail()
    }

    /// Whoever makes a name of an address has to ask whether it was verified.
    fn check_mail(&self) -> Result<(), String> {
        let mappings = &self.claim_mappings;
        let name = mappings.username.expression.as_ref().filter(|name| name.names("claims.email"));
        let rules = self.claim_validation_rules.iter().filter_map(|rule| rule.expression.as_ref());
        let mut all = name.into_iter().chain(mappings.extra.iter().map(|extra| &extra.value_expression)).chain(rules);
        if name.is_none() || all.any(|expression| expression.names("email_verified")) {
            return Ok(());
        }
        Err("claimMappings.username.expression: claims.email_verified must be used in it, in an extra's \
             valueExpression or in claimValidationRules when claims.email is"
            .into())
    }
}

impl Mapping {
    pub fn is_unset(&self) -> bool {
        self.claim.is_empty() && self.expression.is_none()
    }

    fn check(&self) -> Result<(), String> {
        if !self.claim.is_empty() && self.expression.is_some() {
            return Err("claim and expression exclude each other".into());
        }
        Ok(())
    }

    /// What the claims say; null is nothing.
    pub fn of(&self, claims: &Value) -> Result<Value, String> {
        match &self.expression {
            Some(expression) => expression.evaluate(claims),
            None => Ok(claims.get(&self.claim).cloned().unwrap_or_default()),
        }
    }

    pub fn prefixed(&self, value: &str) -> String {
        format!("{}{value}", self.prefix.as_deref().unwrap_or_default())
    }
}
