//! Secrets of type `kubernetes.io/service-account-token` get their token, CA and namespace; those whose account is
//! gone go too. A loop that sleeps until such a Secret or an account changes, and another that notes on which day a token
//! was used last.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_api::registry;
use dhow_api::{Status, meta};
use http::Method;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::changes::Missed;
use crate::identity::{MASTERS, UserInfo};
use crate::object::Stored;
use crate::tokens::NamedUid;
use crate::{ApiServer, bootstrap};

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Says since when uses are noted.
pub const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// Uses that wait to be noted; more are noted when the token is used next.
const WAITING: usize = 64;

/// The day it is, as labels have it.
pub fn today() -> String {
    Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// Uses of tokens on their way to the Secrets.
pub struct Uses {
    sender: mpsc::Sender<(String, String)>,
    receiver: Mutex<Option<mpsc::Receiver<(String, String)>>>,
}

impl Default for Uses {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Uses {
    /// Notes that a token was used, once a day. Nobody waits for it.
    pub fn note(&self, secret: &Stored) {
        if secret.header.labels.get(LAST_USED).is_none_or(|day| *day != *today()) {
            let _ = self.sender.try_send((secret.header.namespace.clone(), secret.header.name.clone()));
        }
    }
}

fn note_uses(server: &Arc<ApiServer>) {
    let Some(mut uses) = server.legacy_uses.receiver.lock().take() else { return };
    let (weak, shutdown) = (Arc::downgrade(server), server.shutdown.clone());
    tokio::spawn(async move {
        loop {
            let (namespace, name) = tokio::select! {
                () = shutdown.cancelled() => return,
                one = uses.recv() => match one { Some(one) => one, None => return },
            };
            let Some(server) = weak.upgrade() else { return };
            let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
            let patch = json!({"metadata": {"labels": {LAST_USED: today()}}});
            if let Err(status) = write(&server, Method::PATCH, &path, "application/merge-patch+json", &patch).await {
                tracing::warn!(namespace, name, message = status.message, "cannot note the use of a token");
            }
        }
    });
}

pub fn start(server: &Arc<ApiServer>) -> Result<(), Status> {
    note_uses(server);
    let row = |plural| registry::builtin().get("", "v1", plural).ok_or_else(Status::no_such_resource);
    let (secrets, accounts) = (row("secrets")?, row("serviceaccounts")?);
    let subscribe = move |server: &ApiServer| -> Result<_, Status> {
        let (snapshot, secret_changes) = server.store.cache.snapshot_and_subscribe(secrets)?;
        let (_, account_changes) = server.store.cache.snapshot_and_subscribe(accounts)?;
        let due: Vec<Arc<Stored>> = snapshot.objects.values().cloned().collect();
        Ok((due, secret_changes, account_changes))
    };
    let (mut due, mut secret_changes, mut account_changes) = subscribe(server)?;
    let (weak, shutdown) = (Arc::downgrade(server), server.shutdown.clone());
    tokio::spawn(async move {
        let mut broken = false;
        loop {
            let Some(server) = weak.upgrade() else { return };
            if std::mem::take(&mut broken) {
                // The cache has begun anew.
                let Ok(fresh) = subscribe(&server) else { return };
                (due, secret_changes, account_changes) = fresh;
            }
            for secret in due.drain(..).filter(|secret| secret.field("type") == TYPE) {
                if let Err(status) = settle(&server, &secret).await {
                    tracing::warn!(secret = %secret.key, message = status.message, "cannot fill a token's secret");
                }
            }
            drop(server);
            let everything = tokio::select! {
                () = shutdown.cancelled() => return,
                change = secret_changes.recv() => match change {
                    Ok(change) if change.deleted => false,
                    Ok(change) => { due.push(change.object.clone()); false }
                    Err(Missed::Behind) => true,
                    Err(Missed::Closed) => { broken = true; false }
                },
                change = account_changes.recv() => match change {
                    // Of an account that changes nothing follows; one that comes or goes concerns its secrets.
                    Ok(change) => change.deleted || change.previous.is_none(),
                    Err(Missed::Behind) => true,
                    Err(Missed::Closed) => { broken = true; false }
                },
            };
            if everything && let Some(server) = weak.upgrade() {
                due.extend(server.store.cache.objects(secrets).unwrap_or_default().values().cloned());
            }
        }
    });
    Ok(())
}

/// Fills what is missing, or removes the Secret of an account that is gone.
async fn settle(server: &Arc<ApiServer>, secret: &Stored) -> Result<(), Status> {
    let row = |plural| registry::builtin().get("", "v1", plural).ok_or_else(Status::no_such_resource);
    let (secrets, accounts) = (row("secrets")?, row("serviceaccounts")?);
    let namespace = secret.header.namespace.as_str();
    // What is done is done to the secret as it is now.
    let Some(secret) = server.store.cache.get(secrets, &secrets.storage_key(Some(namespace), &secret.header.name))
    else {
        return Ok(());
    };
    let path = format!("{}/{}", secrets.path(Some(namespace)), secret.header.name);
    let object = secret.value()?;
    let name = meta::text(&object, &["metadata", "annotations", NAME]);
    if name.is_empty() || secret.field("type") != TYPE {
        return Ok(());
    }
    let account = server.store.cache.get(accounts, &accounts.storage_key(Some(namespace), name));
    let wanted_uid = meta::text(&object, &["metadata", "annotations", UID]);
    let account = account.filter(|account| wanted_uid.is_empty() || account.header.uid == wanted_uid);
    let Some(account) = account else {
        // Without a uid it may wait for its account; with one, that account is gone for good.
        if !wanted_uid.is_empty() {
            send(server, Method::DELETE, &path, &json!({})).await?;
        }
        return Ok(());
    };
    let account = NamedUid { name: account.header.name.clone(), uid: account.header.uid.clone() };
    let Some(filled) = filled(server, &object, &account)? else { return Ok(()) };
    send(server, Method::PUT, &path, &filled).await
}

/// Writes as everyone does. What changed or went meanwhile brings us back here, or nowhere.
async fn send(server: &Arc<ApiServer>, method: Method, path: &str, body: &Value) -> Result<(), Status> {
    write(server, method, path, "application/json", body).await
}

async fn write(server: &Arc<ApiServer>, method: Method, path: &str, media: &str, body: &Value) -> Result<(), Status> {
    let client = server.client(UserInfo::new("system:apiserver", &[MASTERS]));
    match bootstrap::send(&client, method, path, media, body).await? {
        (200..=299 | 404 | 409, _) => Ok(()),
        (_, answer) => Err(bootstrap::failed(&answer)),
    }
}

/// The Secret with all that belongs into it; `None` if that is there already.
fn filled(server: &ApiServer, secret: &Value, account: &NamedUid) -> Result<Option<Value>, Status> {
    let (namespace, name) = (meta::namespace(secret), meta::name(secret));
    let mut fresh = secret.clone();
    let missing = |key: &str| meta::text(secret, &["data", key]).is_empty();
    let token = missing("token").then(|| server.tokens.sign_legacy(namespace, name, account)).transpose()?;
    let ca = Some(server.access.root_ca_pem.clone()).filter(|pem| !pem.is_empty() && missing("ca.crt"));
    let namespace = missing("namespace").then(|| namespace.to_owned());
    let data = meta::child_mut(&mut fresh, "data");
    for (key, value) in [("token", token), ("ca.crt", ca), ("namespace", namespace)] {
        if let Some(value) = value {
            data.insert(key.into(), json!(STANDARD.encode(value)));
        }
    }
    if meta::text(secret, &["metadata", "annotations", UID]).is_empty() {
        fresh["metadata"]["annotations"][UID] = json!(account.uid);
    }
    Ok((fresh != *secret).then_some(fresh))
}
