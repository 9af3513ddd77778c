//! Who is it: the connection's proof, else a bearer token.

use std::sync::Arc;

use dhow_api::Status;
use dhow_api::registry;
use http::HeaderMap;

use crate::identity::{self, NamedUid, Peer, UserInfo};
use crate::{ApiServer, impersonate};

/// The caller, or whom the caller may act as.
pub async fn user(server: &ApiServer, peer: &Peer, headers: &HeaderMap) -> Result<Arc<UserInfo>, Status> {
    let caller = match peer {
        Peer::Process(user) | Peer::Certificate(user) => user.clone(),
        Peer::Unproven => match identity::bearer(headers) {
            Some(token) => token_user(server, &token).await.map(Arc::new)?,
            None => Arc::new(UserInfo::anonymous()),
        },
    };
    match impersonate::wanted(headers)? {
        Some(wanted) => impersonate::become_user(&server.authorizer, &caller, wanted).map(Arc::new),
        None => Ok(caller),
    }
}

/// The user of a token whose service account, and pod if it is bound to one, still exist.
pub async fn token_user(server: &ApiServer, token: &str) -> Result<UserInfo, Status> {
    let presented = server.tokens.check(token)?;
    let namespace = Some(presented.namespace.as_str());
    alive(server, "serviceaccounts", namespace, &presented.account).await?;
    if let Some(pod) = &presented.pod {
        alive(server, "pods", namespace, pod).await?;
    }
    Ok(presented.user)
}

async fn alive(server: &ApiServer, plural: &str, namespace: Option<&str>, named: &NamedUid) -> Result<(), Status> {
    let kind = registry::builtin().get("", "v1", plural).ok_or_else(Status::unauthorized)?;
    let object = server.store.get(kind, namespace, &named.name).await.map_err(|_| Status::unauthorized())?;
    if object.header.uid == named.uid { Ok(()) } else { Err(Status::unauthorized()) }
}
