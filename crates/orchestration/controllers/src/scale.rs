//! The `scale` subresource, of kinds that are built in and of others.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_client::{Client, Error};
use http::Method;
use k8s_openapi::api::autoscaling::v1::Scale;
use parking_lot::Mutex;

use crate::resources::{Resource, call, kinds_of_version};

/// Finds resources by kind, and remembers them.
pub struct Kinds {
    client: Client,
    known: Mutex<HashMap<(String, String), Arc<Resource>>>,
}

impl Kinds {
    pub fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The resource of a kind in a group version.
    pub async fn find(&self, api_version: &str, kind: &str) -> Result<Arc<Resource>, Error> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.known.lock().get(&key) {
            return Ok(known.clone());
        }
        let none = || Error::Reconcile(format!("no matches for kind \"{kind}\" in version \"{api_version}\""));
        let all = match kinds_of_version(&self.client, api_version).await {
            Err(error) if error.is_not_found() => return Err(none()),
            other => other?,
        };
        let found = Arc::new(all.into_iter().find(|one| one.kind == kind).ok_or_else(none)?);
        self.known.lock().insert(key, found.clone());
        Ok(found)
    }

    /// Forgets a kind: its definition may have changed.
    pub fn forget(&self, api_version: &str, kind: &str) {
        self.known.lock().remove(&(api_version.to_owned(), kind.to_owned()));
    }
}

/// One target's scale.
pub struct Scaled {
    path: String,
    pub scale: Scale,
}

impl Scaled {
    pub async fn get(client: &Client, resource: &Resource, namespace: &str, name: &str) -> Result<Self, Error> {
        let path = format!("{}/scale", resource.path(Some(namespace), Some(name)));
        let answer = call(client, Method::GET, &path, "", Vec::new()).await?;
        let scale = serde_json::from_value(answer)
            .map_err(|source| Error::Decode { context: format!("read the scale {path}"), source })?;
        Ok(Self { path, scale })
    }

    pub fn replicas(&self) -> i32 {
        self.scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
    }

    /// How many there are, whatever is asked for.
    pub fn actual(&self) -> i32 {
        self.scale.status.as_ref().map_or(0, |status| status.replicas)
    }

    /// Which pods it is about.
    pub fn selector(&self) -> &str {
        self.scale.status.as_ref().and_then(|status| status.selector.as_deref()).unwrap_or_default()
    }

    /// Resizes, unless somebody else did meanwhile.
    pub async fn set(&self, client: &Client, replicas: i32) -> Result<(), Error> {
        let mut wanted = self.scale.clone();
        wanted.spec.get_or_insert_default().replicas = Some(replicas);
        let body =
            serde_json::to_vec(&wanted).map_err(|source| Error::Decode { context: "encode a scale".into(), source })?;
        call(client, Method::PUT, &self.path, "application/json", body).await.map(drop)
    }
}
