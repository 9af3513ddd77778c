//! Docker's `config.json`: `auths`, `credHelpers`, `credsStore`, and the protocol of `docker-credential-*` programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::{Auth, match_key, run};
use crate::{Error, Result};

/// The key docker uses for its hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `user:password` in base64.
    #[serde(default)]
    auth: String,
    #[serde(default, alias = "identityToken")]
    identitytoken: String,
    #[serde(default, alias = "registryToken")]
    registrytoken: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry(…)")
    }
}

impl DockerConfig {
    /// Reads the file; a missing one is an empty configuration.
    pub fn read(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&bytes)
                .map_err(|e| Error::Credentials(format!("{} is not a docker config.json: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::Credentials(format!("read {}: {e}", path.display()))),
        }
    }

    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Where docker and its kin look: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`.
    pub fn default_path() -> Option<PathBuf> {
        if let Some(file) = std::env::var_os("REGISTRY_AUTH_FILE") {
            return Some(file.into());
        }
        if let Some(folder) = std::env::var_os("DOCKER_CONFIG") {
            return Some(PathBuf::from(folder).join("config.json"));
        }
        Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker/config.json"))
    }

    /// The credentials for `image` (`host[:port]/path`): a helper of its own first, then what the file says, then the
    /// store. `None` when nothing is known.
    pub async fn find(&self, image: &str) -> Result<Option<Auth>> {
        let host = image.split('/').next().unwrap_or(image);
        let key = if host == "docker.io" { HUB_KEY } else { host };
        let helper = self.cred_helpers.iter().find(|(name, _)| match_key(name, host).is_some());
        if let Some((name, helper)) = helper {
            return ask_helper(helper, if host == "docker.io" { HUB_KEY } else { name }).await;
        }
        let best = self
            .auths
            .iter()
            .filter_map(|(key, entry)| Some((match_key(key, image)?, entry.credentials()?)))
            .max_by_key(|(specific, _)| *specific);
        if let Some((_, auth)) = best {
            return Ok(Some(auth));
        }
        match &self.creds_store {
            Some(store) => ask_helper(store, key).await,
            None => Ok(None),
        }
    }
}

impl Entry {
    fn credentials(&self) -> Option<Auth> {
        if !self.registrytoken.is_empty() {
            return Some(Auth::Bearer(self.registrytoken.clone()));
        }
        if !self.identitytoken.is_empty() {
            return Some(Auth::Refresh(self.identitytoken.clone()));
        }
        if !self.username.is_empty() {
            return Some(Auth::Basic { username: self.username.clone(), password: self.password.clone() });
        }
        let pair = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).ok()?;
        let pair = String::from_utf8(pair).ok()?;
        let (username, password) = pair.trim_end_matches('\0').split_once(':')?;
        Some(Auth::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

/// `docker-credential-NAME get`: the server's address in, JSON out. That it has none is said by exit code and text.
async fn ask_helper(name: &str, server: &str) -> Result<Option<Auth>> {
    if name.is_empty() || name.contains('/') {
        return Err(Error::Credentials(format!("{name:?} is no name of a credential helper")));
    }
    let program = format!("docker-credential-{name}");
    let mut command = tokio::process::Command::new(&program);
    command.arg("get");
    let (good, out, complaint) = run(command, &program, server.as_bytes()).await?;
    if !good {
        let said = String::from_utf8_lossy(&out);
        if said.contains("credentials not found") || complaint.contains("credentials not found") {
            return Ok(None);
        }
        let said = if complaint.is_empty() { said.trim().to_owned() } else { complaint };
        return Err(Error::Credentials(format!("{program} failed for {server}: {said}")));
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&out)
        .map_err(|e| Error::Credentials(format!("{program} answered something else than JSON: {e}")))?;
    Ok(match answer.username.as_str() {
        "" if answer.secret.is_empty() => None,
        "<token>" => Some(Auth::Refresh(answer.secret)),
        _ => Some(Auth::Basic { username: answer.username, password: answer.secret }),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_of_every_shape() {
        let config = DockerConfig::parse(
            br#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dXNlcjpwYTpzcw=="},
                "a.io": {"username": "u", "password": "p"},
                "a.io/team": {"identitytoken": "refresh"},
                "b.io": {"registrytoken": "bearer"},
                "c.io": {}
            }, "HttpHeaders": {"X": "y"}}"#,
        )
        .unwrap();
        let basic = |u: &str, p: &str| Some(Auth::Basic { username: u.into(), password: p.into() });
        assert!(config.find("docker.io/library/x").await.unwrap() == basic("user", "pa:ss"));
        assert!(config.find("a.io/other/x").await.unwrap() == basic("u", "p"));
        assert!(config.find("a.io/team/x").await.unwrap() == Some(Auth::Refresh("refresh".into())));
        assert!(config.find("b.io/x").await.unwrap() == Some(Auth::Bearer("bearer".into())));
        assert!(config.find("c.io/x").await.unwrap().is_none());
        let evil = DockerConfig::parse(br#"{"credsStore": "../../tmp/x"}"#).unwrap();
        assert!(evil.find("d.io/x").await.is_err());
    }
}
