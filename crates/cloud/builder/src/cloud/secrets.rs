//! What a run may know and as whom it acts: Secrets and the service account of its namespace, nothing else.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_client::Client;
use dhow_image::CLUSTER_AUDIENCE;
use dhow_image::api::Credentials;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::Value;

use super::execute::Failure;
use crate::git::Login;

/// Shortest life of a token that the API gives.
const SHORTEST: i64 = 600;

/// The Secrets and accounts of one namespace.
pub struct Secrets<'a> {
    pub client: &'a Client,
    pub namespace: &'a str,
}

/// The keys of a Secret.
#[derive(Default)]
pub struct Data(BTreeMap<String, Vec<u8>>);

impl Data {
    /// A key as text; empty if there is none.
    pub fn text(&self, key: &str) -> String {
        self.0.get(key).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// The same without the line break that editors leave at its end.
    pub fn line(&self, key: &str) -> String {
        self.text(key).trim_end().to_owned()
    }

    /// The header `Authorization` that its keys make: as it stands there, of a token, or of a name and a password.
    pub fn authorization(&self) -> String {
        let (whole, token) = (self.line("authorization"), self.line("bearerToken"));
        let (username, password) = (self.line("username"), self.line("password"));
        match () {
            () if !whole.is_empty() => whole,
            () if !token.is_empty() => format!("Bearer {token}"),
            () if !username.is_empty() || !password.is_empty() => Login::basic(&username, &password),
            () => String::new(),
        }
    }
}

impl Secrets<'_> {
    pub async fn get(&self, name: &str) -> Result<Data, Failure> {
        match self.client.get::<Secret>(Some(self.namespace), name).await {
            Ok(secret) => {
                Ok(Data(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()))
            }
            Err(error) if error.is_not_found() => {
                Err(Failure::new("SecretNotFound", format!("there is no Secret {name}")))
            }
            Err(error) => Err(Failure::passing("Unavailable", format!("read the Secret {name}: {error}"))),
        }
    }

    pub async fn key(&self, name: &str, key: &str) -> Result<Vec<u8>, Failure> {
        let mut data = self.get(name).await?;
        let missing = || Failure::new("SecretNotFound", format!("the Secret {name} has no key {key}"));
        data.0.remove(key).ok_or_else(missing)
    }

    /// A token that says to the cluster's registry on whose behalf a node speaks, and the account's own Secrets for others.
    pub async fn account(&self, name: &str, seconds: u64) -> Result<(String, Vec<String>), Failure> {
        let failed = |error: dhow_client::Error| match error.is_not_found() {
            true => Failure::new("ServiceAccountNotFound", format!("there is no ServiceAccount {name}")),
            false => Failure::passing("Unavailable", format!("ask for a token of {name}: {error}")),
        };
        let namespace = Some(self.namespace);
        let account = self.client.get::<ServiceAccount>(namespace, name).await.map_err(failed)?;
        let spec = TokenRequestSpec {
            audiences: vec![CLUSTER_AUDIENCE.to_owned()],
            expiration_seconds: Some(i64::try_from(seconds).unwrap_or(i64::MAX).max(SHORTEST)),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer: TokenRequest = self
            .client
            .create_subresource::<ServiceAccount, _, _>(namespace, name, "token", &request)
            .await
            .map_err(failed)?;
        let others = account.image_pull_secrets.unwrap_or_default().into_iter().map(|one| one.name).collect();
        Ok((answer.status.map(|status| status.token).unwrap_or_default(), others))
    }

    /// Credentials of Secrets that pods pull with, by registry.
    pub async fn registries(&self, names: &[String]) -> Result<BTreeMap<String, Credentials>, Failure> {
        let mut all = BTreeMap::new();
        for name in names {
            let text = self.key(name, ".dockerconfigjson").await?;
            let unusable =
                || Failure::new("SecretUnusable", format!("the Secret {name} has no usable .dockerconfigjson"));
            all.extend(entries(&text).ok_or_else(unusable)?);
        }
        Ok(all)
    }
}

/// The entries of a docker configuration by the host that they are for.
fn entries(text: &[u8]) -> Option<BTreeMap<String, Credentials>> {
    let config: Value = serde_json::from_slice(text).ok()?;
    let mut all = BTreeMap::new();
    for (key, entry) in config["auths"].as_object()? {
        let own = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let mut given =
            Credentials { username: own("username"), password: own("password"), identity_token: own("identitytoken") };
        if let Some(auth) = entry["auth"].as_str().filter(|auth| !auth.is_empty()) {
            let plain = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
            let (user, password) = plain.split_once(':')?;
            (given.username, given.password) = (user.to_owned(), password.to_owned());
        }
        let host = key.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
        all.insert(host.to_owned(), given);
    }
    Some(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_header() {
        let header = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
            Data(pairs.collect()).authorization()
        };
        assert_eq!(header(&[("bearerToken", "t\n")]), "Bearer t");
        assert_eq!(header(&[("username", "u"), ("password", "p\n")]), format!("Basic {}", STANDARD.encode("u:p")));
        assert_eq!(header(&[("password", "p")]), format!("Basic {}", STANDARD.encode("git:p")));
        assert_eq!((header(&[("authorization", "X y")]), header(&[])), ("X y".to_owned(), String::new()));
    }

    #[test]
    fn docker_configurations_are_read_by_host() {
        let auth = STANDARD.encode("ada:pass:word");
        let text = format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{auth}"}}, "r.example:5000": {{"username": "bob", "password": "p"}}}}}}"#
        );
        let all = entries(text.as_bytes()).unwrap();
        assert_eq!((all["docker.io"].username.as_str(), all["docker.io"].password.as_str()), ("ada", "pass:word"));
        assert_eq!(all["r.example:5000"].username, "bob");
        assert!(entries(b"{}").is_none() && entries(b"x").is_none());
    }
}
