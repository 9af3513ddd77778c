//! Who makes a request, and how that is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use dhow_api::Status;
use http::HeaderMap;
use x509_parser::prelude::{FromDer, X509Certificate};

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
/// A protocol that a browser offers for a WebSocket in place of a header: what follows is its token.
pub const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

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

/// The bearer token of a request, also from the WebSocket protocol header that browsers have to use.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let direct = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some((scheme, token)) = direct.and_then(|value| value.trim().split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Some(token.trim().to_owned());
    }
    let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|protocol| protocol.trim().strip_prefix(TOKEN_PROTOCOL))?;
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
