//! Who makes a request, and how that is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use dhow_api::Status;
use dhow_base::pki::SaKey;
use http::HeaderMap;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;

/// A name that was proven, with its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// What else was proven or asked for, by key.
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const AUTHENTICATED: &str = "system:authenticated";
pub const MASTERS: &str = "system:masters";
pub const ANONYMOUS: &str = "system:anonymous";

impl UserInfo {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        groups.push(AUTHENTICATED.into());
        Self { name: name.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// Who proved nothing. Sees health, version and nothing else.
    pub fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".into()];
        Self { name: ANONYMOUS.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let mut user = Self::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        );
        user.uid = uid.into();
        user
    }

    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

/// The user in a client certificate that TLS has verified: common name and organisations (RFC 5280).
pub fn from_certificate(der: &[u8]) -> Result<UserInfo, Status> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Status::unauthorized())?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).ok_or_else(Status::unauthorized)?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|group| group.as_str().ok()).collect();
    Ok(UserInfo::new(name, &groups))
}

/// Signs and checks service-account tokens (ES256).
pub struct Tokens {
    issuer: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// What a service-account token says, in upstream's claim names.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: NamedUid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<NamedUid>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedUid {
    pub name: String,
    pub uid: String,
}

/// A token that was signed by us and has not expired. Whether its account and pod still exist is for the caller.
#[derive(Debug)]
pub struct Presented {
    pub user: UserInfo,
    pub namespace: String,
    pub account: NamedUid,
    pub pod: Option<NamedUid>,
}

/// What the API server itself accepts as audience.
pub const AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

impl Tokens {
    pub fn new(key: &SaKey) -> Result<Self, Error> {
        let bad = |error: jsonwebtoken::errors::Error| Error::Configuration(format!("service-account key: {error}"));
        Ok(Self {
            issuer: AUDIENCE.into(),
            encoding: EncodingKey::from_ec_pem(key.private_pem().as_bytes()).map_err(bad)?,
            decoding: DecodingKey::from_ec_pem(key.public_pem().as_bytes()).map_err(bad)?,
        })
    }

    /// A token for a service account, bound to a pod if one is given. Times are seconds since 1970.
    pub fn sign(
        &self,
        namespace: &str,
        account: NamedUid,
        pod: Option<NamedUid>,
        audiences: Vec<String>,
        now: i64,
        expires: i64,
    ) -> Result<String, Status> {
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
            aud: audiences,
            exp: expires,
            iat: now,
            nbf: now,
            kubernetes: Bound { namespace: namespace.into(), serviceaccount: account, pod },
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.encoding)
            .map_err(|error| Status::internal(format!("sign token: {error}")))
    }

    pub fn check(&self, token: &str) -> Result<Presented, Status> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[AUDIENCE]);
        validation.validate_nbf = true;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .map_err(|_| Status::unauthorized())?
            .claims;
        let Bound { namespace, serviceaccount, pod } = claims.kubernetes;
        let user = UserInfo::service_account(&namespace, &serviceaccount.name, &serviceaccount.uid);
        Ok(Presented { user, namespace, account: serviceaccount, pod })
    }
}

/// The bearer token of a request, also from the WebSocket protocol header that browsers have to use.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let direct = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(token) = direct.and_then(|value| value.strip_prefix("Bearer ")) {
        return Some(token.trim().to_owned());
    }
    let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols
        .split(',')
        .find_map(|protocol| protocol.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

/// What the connection itself proved.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A call from inside the process, bound to an identity.
    Process(Arc<UserInfo>),
    /// A verified client certificate.
    Certificate(Arc<UserInfo>),
    Unproven,
}
