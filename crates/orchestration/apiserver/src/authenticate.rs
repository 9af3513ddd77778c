//! Who is it: the connection's proof, else a bearer token. Tokens are told apart by their looks and their issuer.

use std::sync::Arc;

use dhow_api::{Status, registry};
use http::HeaderMap;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::identity::{self, Peer, UserInfo};
use crate::object::Stored;
use crate::tokens::{Claims, LegacyClaims, NamedUid, Presented, claimed_issuer};
use crate::{ApiServer, bootstrap_token, impersonate};

/// How long after its deletion was asked for an object still vouches for tokens, as upstream gives it.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// A legacy token's Secret that carries this label is out of use.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Who makes a request, and as whom: the same, unless somebody else is impersonated.
#[derive(Debug, Clone)]
pub struct Caller {
    pub proven: Arc<UserInfo>,
    pub acting: Arc<UserInfo>,
}

/// Who makes a request for a path.
pub async fn prove(server: &ApiServer, peer: &Peer, path: &str, headers: &HeaderMap) -> Result<Arc<UserInfo>, Status> {
    match peer {
        Peer::Process(user) | Peer::Certificate(user) => Ok(user.clone()),
        Peer::Unproven => match identity::bearer(headers) {
            Some(token) => token_user(server, &token, &[]).await.map(|(user, _)| Arc::new(user)),
            None if server.access.anonymous().allows(path) => Ok(Arc::new(UserInfo::anonymous())),
            None => Err(Status::unauthorized()),
        },
    }
}

/// As whom a request is made, if its maker may.
pub fn act(server: &ApiServer, proven: &Arc<UserInfo>, headers: &HeaderMap) -> Result<Caller, Status> {
    let acting = match impersonate::wanted(headers)? {
        Some(wanted) => impersonate::become_user(&server.authorizer, proven, wanted).map(Arc::new)?,
        None => proven.clone(),
    };
    Ok(Caller { proven: proven.clone(), acting })
}

/// The user of a token, and for which of the wanted audiences it is. None wanted means the API server's own.
pub async fn token_user(
    server: &ApiServer,
    token: &str,
    audiences: &[String],
) -> Result<(UserInfo, Vec<String>), Status> {
    let own = server.audiences();
    let wanted = if audiences.is_empty() { own.clone() } else { audiences.to_vec() };
    // What names no audience is for the API server.
    let implicit = || {
        let common: Vec<String> = wanted.iter().filter(|audience| own.contains(audience)).cloned().collect();
        if common.is_empty() { Err(Status::unauthorized()) } else { Ok(common) }
    };
    if let Some((id, secret)) = bootstrap_token::parse(token) {
        let common = implicit()?;
        server.store.catch_up().await?;
        return Ok((bootstrap_token::user(&server.store.cache, id, secret)?, common));
    }
    if server.tokens.is_from_here(token) {
        return match server.tokens.check(token, &wanted)? {
            Presented::Bound(claims, common) => Ok((bound_user(server, &claims).await?, common)),
            Presented::Legacy(claims) => {
                let common = implicit()?;
                Ok((legacy_user(server, token, &claims).await?, common))
            }
        };
    }
    let (Some(issuers), Some(from)) = (&server.issuers, claimed_issuer(token)) else {
        return Err(Status::unauthorized());
    };
    let common = implicit()?;
    Ok((issuers.user(token, &from).await?, common))
}

/// The user of a token whose account, and the object it is bound to, still exist.
async fn bound_user(server: &ApiServer, claims: &Claims) -> Result<UserInfo, Status> {
    let bound = &claims.bound;
    let namespace = Some(bound.namespace.as_str());
    alive(server, "serviceaccounts", namespace, &bound.serviceaccount).await?;
    if let Some(secret) = &bound.secret {
        alive(server, "secrets", namespace, secret).await?;
    }
    match (&bound.pod, &bound.node) {
        (Some(pod), _) => drop(alive(server, "pods", namespace, pod).await?),
        // The node of a pod is told only; a token that is bound to a node lives with it.
        (None, Some(node)) => drop(alive(server, "nodes", None, node).await?),
        (None, None) => {}
    }
    let account = &bound.serviceaccount;
    let mut user = UserInfo::service_account(&bound.namespace, &account.name, &account.uid);
    let mut tell = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        tell("credential-id", &format!("JTI={}", claims.jti));
    }
    for (what, named) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(named) = named {
            tell(&format!("{what}-name"), &named.name);
            tell(&format!("{what}-uid"), &named.uid);
        }
    }
    Ok(user)
}

/// The user of a token that its Secret still holds.
async fn legacy_user(server: &ApiServer, token: &str, claims: &LegacyClaims) -> Result<UserInfo, Status> {
    let namespace = Some(claims.namespace.as_str());
    let account = NamedUid { name: claims.account.clone(), uid: claims.uid.clone() };
    alive(server, "serviceaccounts", namespace, &account).await?;
    let secret = NamedUid { name: claims.secret.clone(), uid: String::new() };
    let secret = alive(server, "secrets", namespace, &secret).await?;
    let kept: k8s_openapi::api::core::v1::Secret = secret.read().map_err(|_| Status::unauthorized())?;
    let same = kept.data.as_ref().and_then(|data| data.get("token")).is_some_and(|held| held.0 == token.as_bytes());
    if !same || secret.header.labels.get(INVALID_SINCE).is_some() {
        return Err(Status::unauthorized());
    }
    server.legacy_uses.note(&secret);
    Ok(UserInfo::service_account(&claims.namespace, &account.name, &account.uid))
}

async fn alive(
    server: &ApiServer,
    plural: &str,
    namespace: Option<&str>,
    named: &NamedUid,
) -> Result<Arc<Stored>, Status> {
    let kind = registry::builtin().get("", "v1", plural).ok_or_else(Status::unauthorized)?;
    let stored = server.store.get(kind, namespace, &named.name).await.map_err(|_| Status::unauthorized())?;
    let ends = stored.header.deletion_timestamp.as_deref();
    let gone = ends.is_some_and(|ends| ends.parse().is_ok_and(|ends: Timestamp| ends < Timestamp::now() - LEEWAY));
    let same = named.uid.is_empty() || stored.header.uid == named.uid;
    if same && !gone { Ok(stored) } else { Err(Status::unauthorized()) }
}
