//! Service-account tokens: signed with one key, believed with several. Whether what they name still exists is for
//! [`crate::authenticate`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dhow_api::Status;
use dhow_base::pki::SaKey;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Error;

/// What the API server itself accepts as audience, and its name as an issuer.
pub const AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";
/// The issuer of tokens that are kept in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Bytes of an uncompressed P-256 point, and of a whole public key (RFC 5480) that ends with one.
const P256_POINT: usize = 65;
const P256_KEY: usize = 91;

pub struct Tokens {
    issuer: String,
    key_id: String,
    encoding: EncodingKey,
    /// By key id; the signing key's is the first.
    believed: Vec<(String, DecodingKey)>,
    jwks: Value,
}

/// What a service-account token says, in upstream's claim names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    nbf: i64,
    sub: String,
}

/// The account of a token and what its life hangs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: NamedUid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<NamedUid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<NamedUid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NamedUid>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedUid {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What a token that is kept in a Secret says. It has no audience and no end.
#[derive(Debug, Serialize, Deserialize)]
pub struct LegacyClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub uid: String,
    sub: String,
}

/// A token that was signed by us and whose time has come and not passed.
pub enum Presented {
    /// With the audiences that were asked for and that the token is for.
    Bound(Box<Claims>, Vec<String>),
    Legacy(LegacyClaims),
}

/// When a token is from and until; seconds since 1970.
pub struct Life {
    pub from: i64,
    pub until: i64,
}

impl Tokens {
    /// `others` are public keys in PEM that are believed too: those of a former signing key.
    pub fn new(key: &SaKey, issuer: Option<&str>, others: &[String]) -> Result<Self, Error> {
        let bad = |error: jsonwebtoken::errors::Error| Error::Configuration(format!("service-account key: {error}"));
        let own = DecodingKey::from_ec_pem(key.public_pem().as_bytes()).map_err(bad)?;
        let (mut believed, mut jwks) = (vec![(key.key_id(), own)], vec![key.jwk()]);
        for pem in others {
            let jwk = jwk(pem)?;
            let id = jwk["kid"].as_str().unwrap_or_default().to_owned();
            if believed.iter().all(|(known, _)| *known != id) {
                believed.push((id, DecodingKey::from_ec_pem(pem.as_bytes()).map_err(bad)?));
                jwks.push(jwk);
            }
        }
        Ok(Self {
            issuer: issuer.unwrap_or(AUDIENCE).to_owned(),
            key_id: key.key_id(),
            encoding: EncodingKey::from_ec_pem(key.private_pem().as_bytes()).map_err(bad)?,
            believed,
            jwks: json!({"keys": jwks}),
        })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The keys for `/openid/v1/jwks` (RFC 7517).
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// A token for a service account; returns it with its id.
    pub fn sign(&self, bound: Bound, audiences: Vec<String>, life: &Life) -> Result<(String, String), Status> {
        let id = uuid::Uuid::new_v4().to_string();
        let claims = Claims {
            aud: audiences,
            exp: life.until,
            iat: life.from,
            iss: self.issuer.clone(),
            jti: id.clone(),
            nbf: life.from,
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            bound,
        };
        Ok((self.encode(&claims)?, id))
    }

    /// A token to be kept in a Secret.
    pub fn sign_legacy(&self, namespace: &str, secret: &str, account: &NamedUid) -> Result<String, Status> {
        self.encode(&LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.name.clone(),
            uid: account.uid.clone(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
        })
    }

    fn encode(&self, claims: &impl Serialize) -> Result<String, Status> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.encoding)
            .map_err(|error| Status::internal(format!("sign token: {error}")))
    }

    /// Whether a token says that it is from here. Says nothing about whether that is true.
    pub fn is_from_here(&self, token: &str) -> bool {
        let issuer = claimed_issuer(token);
        issuer.is_some_and(|issuer| issuer == self.issuer || issuer == LEGACY_ISSUER)
    }

    /// Checks signature, issuer, times, and that the token is for one of `audiences`.
    pub fn check(&self, token: &str, audiences: &[String]) -> Result<Presented, Status> {
        let refuse = |_| Status::unauthorized();
        let mut validation = Validation::new(Algorithm::ES256);
        let wanted = jsonwebtoken::decode_header(token).map_err(refuse)?.kid;
        let keys = self.believed.iter().filter(|(id, _)| wanted.as_ref().is_none_or(|wanted| wanted == id));
        if claimed_issuer(token).as_deref() == Some(LEGACY_ISSUER) {
            validation.required_spec_claims.clear();
            validation.validate_aud = false;
            validation.set_issuer(&[LEGACY_ISSUER]);
            let mut found =
                keys.filter_map(|(_, key)| jsonwebtoken::decode::<LegacyClaims>(token, key, &validation).ok());
            return found.next().map(|data| Presented::Legacy(data.claims)).ok_or_else(Status::unauthorized);
        }
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "nbf"]);
        let mut found = keys.filter_map(|(_, key)| jsonwebtoken::decode::<Claims>(token, key, &validation).ok());
        let claims = found.next().ok_or_else(Status::unauthorized)?.claims;
        let common = audiences.iter().filter(|wanted| claims.aud.contains(wanted)).cloned().collect();
        Ok(Presented::Bound(Box::new(claims), common))
    }
}

/// The issuer that a token names, before anything about it is known to be true.
pub fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    let mut parts = token.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let bytes = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Issuer>(&bytes).ok().map(|claims| claims.iss)
}

/// A P-256 public key as a JWK, with the key id that the signer of that key used.
fn jwk(pem: &str) -> Result<Value, Error> {
    let bad = |why: &str| Error::Configuration(format!("service-account verification key: {why}"));
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(&error.to_string()))?;
    let der: &[u8] = der.as_ref();
    let Some((head, point)) = der.split_at_checked(der.len().saturating_sub(P256_POINT)) else {
        return Err(bad("not a P-256 public key"));
    };
    if der.len() != P256_KEY || head.len() != P256_KEY - P256_POINT || point.first() != Some(&4) {
        return Err(bad("not a P-256 public key"));
    }
    let (x, y) = point[1..].split_at(32);
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    Ok(json!({
        "use": "sig",
        "kty": "EC",
        "kid": URL_SAFE_NO_PAD.encode(digest),
        "crv": "P-256",
        "alg": "ES256",
        "x": URL_SAFE_NO_PAD.encode(x),
        "y": URL_SAFE_NO_PAD.encode(y),
    }))
}
