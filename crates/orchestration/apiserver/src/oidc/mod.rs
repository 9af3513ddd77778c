//! JWTs of other issuers (OpenID Connect): checked with the issuer's keys, mapped to a user as the configuration says.

mod config;
mod keys;

use std::collections::BTreeMap;

use dhow_api::Status;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::Value;

pub use config::{Anonymous, AuthenticationConfig};

use crate::identity::UserInfo;
use config::Issuer;
use keys::Keys;

const ALGORITHMS: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::ES256, Algorithm::ES384, Algorithm::PS256];

/// The issuers that are believed beside the cluster's own.
pub struct Issuers(Vec<(Issuer, Keys)>);

impl Issuers {
    pub fn new(config: &AuthenticationConfig) -> Self {
        Self(config.jwt.iter().map(|issuer| (issuer.clone(), Keys::new(issuer.issuer.clone()))).collect())
    }

    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(issuer, _)| issuer.issuer.url.as_str())
    }

    /// The user of a token that says it is `from` an issuer.
    pub async fn user(&self, token: &str, from: &str) -> Result<UserInfo, Status> {
        let known = self.0.iter().find(|(issuer, _)| issuer.issuer.url == from);
        let (issuer, keys) = known.ok_or_else(Status::unauthorized)?;
        verified(issuer, keys, token).await.and_then(|claims| mapped(issuer, &claims)).map_err(|why| {
            // The client only hears that it failed; whoever runs the server may want to know why.
            tracing::info!(issuer = from, why, "a token was refused");
            Status::unauthorized()
        })
    }
}

async fn verified(issuer: &Issuer, keys: &Keys, token: &str) -> Result<Value, String> {
    let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(format!("it is signed by {:?}", header.alg));
    }
    let mut validation = Validation::new(header.alg);
    validation.set_issuer(&[&issuer.issuer.url]);
    validation.set_audience(&issuer.issuer.audiences);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.validate_nbf = true;
    let id = header.kid.as_deref();
    let mut why = "no key of the issuer fits it".to_owned();
    for key in keys.find(id).await.iter().filter(|key| key.fits(id)) {
        match jsonwebtoken::decode::<Value>(token, &key.key, &validation) {
            Ok(data) => return Ok(data.claims),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

fn mapped(issuer: &Issuer, claims: &Value) -> Result<UserInfo, String> {
    for rule in &issuer.claim_validation_rules {
        if claims[&rule.claim].as_str() != Some(&rule.required_value) {
            return Err(format!("its claim {} is not {:?}", rule.claim, rule.required_value));
        }
    }
    let mappings = &issuer.claim_mappings;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let username = text(mappings.username.of(claims));
    if username.is_empty() {
        return Err("it has no user name".into());
    }
    let unverified = claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true));
    let by_mail = mappings.username.claim == "email" || mappings.username.expression == "claims.email";
    if by_mail && unverified {
        return Err("its e-mail address is not verified".into());
    }
    let mut groups = Vec::new();
    if !mappings.groups.is_unset() {
        let named = strings(mappings.groups.of(claims)).ok_or("its groups are not strings")?;
        groups.extend(named.iter().map(|group| mappings.groups.prefixed(group)));
    }
    let mut extra = BTreeMap::new();
    for mapping in &mappings.extra {
        let values = strings(config::value_at(claims, &mapping.value_expression)).ok_or("an extra is not a string")?;
        let values: Vec<String> = values.into_iter().filter(|value| !value.is_empty()).collect();
        if !values.is_empty() {
            extra.insert(mapping.key.clone(), values);
        }
    }
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut user = UserInfo::new(&mappings.username.prefixed(&username), &groups);
    user.uid = text(mappings.uid.of(claims).filter(|_| !mappings.uid.is_unset()));
    user.extra = extra;
    Ok(user)
}

/// A string or a list of them; nothing is none.
fn strings(value: Option<&Value>) -> Option<Vec<String>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(all)) => all.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    }
}
