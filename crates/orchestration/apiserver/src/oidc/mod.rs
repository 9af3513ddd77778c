//! JWTs of other issuers (OpenID Connect): checked with the issuer's keys, mapped to a user as the configuration says.

mod config;
mod keys;

use dhow_api::Status;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Value, json};

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
        match &rule.expression {
            Some(expression) if expression.evaluate(claims)? != true => return Err(unmet(&rule.message)),
            None if claims[&rule.claim].as_str() != Some(&rule.required_value) => {
                return Err(format!("its claim {} is not {:?}", rule.claim, rule.required_value));
            }
            _ => {}
        }
    }
    let mappings = &issuer.claim_mappings;
    let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let username = text(mappings.username.of(claims)?);
    if username.is_empty() {
        return Err("it has no user name".into());
    }
    let unverified = claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true));
    if mappings.username.claim == "email" && unverified {
        return Err("its e-mail address is not verified".into());
    }
    let mut user = UserInfo::new(&mappings.username.prefixed(&username), &[]);
    if !mappings.groups.is_unset() {
        let named = strings(&mappings.groups.of(claims)?).ok_or("its groups are not strings")?;
        let groups = named.iter().filter(|group| !group.is_empty()).map(|group| mappings.groups.prefixed(group));
        user.groups.splice(0..0, groups);
    }
    if !mappings.uid.is_unset() {
        user.uid = text(mappings.uid.of(claims)?);
    }
    for mapping in &mappings.extra {
        let values = strings(&mapping.value_expression.evaluate(claims)?).ok_or("an extra is not a string")?;
        let values: Vec<String> = values.into_iter().filter(|value| !value.is_empty()).collect();
        if !values.is_empty() {
            user.extra.insert(mapping.key.clone(), values);
        }
    }
    let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
    for rule in &issuer.user_validation_rules {
        if rule.expression.evaluate(&shown)? != true {
            return Err(unmet(&rule.message));
        }
    }
    Ok(user)
}

fn unmet(message: &str) -> String {
    format!("a rule does not hold: {message}")
}

/// A string or a list of them; nothing is none.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) => all.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
