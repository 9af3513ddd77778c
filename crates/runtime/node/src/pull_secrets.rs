//! Credentials for pulls: from the secrets a pod or its service account names, and for the cluster's own registry a token of
//! the account.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dhow_client::Client;
use dhow_cri::runtime::ImageAuth;
use dhow_image::{CLUSTER_AUDIENCE, Reference};
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde::Deserialize;

use crate::NodeConfig;
use crate::volumes::token;

/// Seconds; the shortest that there is. A pull shows it once, at its beginning.
const TOKEN_LIFETIME: i64 = 600;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

/// The credentials for `image`.
pub async fn auth(config: &NodeConfig, pod: &Pod, image: &str) -> Option<ImageAuth> {
    match of_secrets(&config.client, pod, image).await {
        Some(found) => Some(found),
        None => of_account(config, pod, image).await,
    }
}

/// What the pod's account may pull from the cluster's registry, its pods may.
async fn of_account(config: &NodeConfig, pod: &Pod, image: &str) -> Option<ImageAuth> {
    let host = Reference::parse(image).ok()?.registry;
    // Pods of the node's own files have no account.
    pod.spec.as_ref()?.service_account_name.as_ref()?;
    if !config.registries.is_clusters(&host) {
        return None;
    }
    match token::request(&config.client, pod, Some(CLUSTER_AUDIENCE.to_owned()), Some(TOKEN_LIFETIME)).await {
        Ok((password, _)) => {
            Some(ImageAuth { username: "serviceaccount".to_owned(), password, identity_token: String::new() })
        }
        Err(error) => {
            tracing::warn!(%error, image, "cannot get a token for the cluster's registry");
            None
        }
    }
}

/// A secret that is missing or unreadable leaves the pull to the others, or to none.
async fn of_secrets(client: &Client, pod: &Pod, image: &str) -> Option<ImageAuth> {
    let mut best: Option<(usize, ImageAuth)> = None;
    // The API server's admission has put the service account's names into the pod.
    for name in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).map(|r| &r.name) {
        match client.get::<Secret>(pod.metadata.namespace.as_deref(), name).await {
            Ok(secret) => {
                let found = of_secret(&secret, image);
                if let Some(found) = found.filter(|f| best.as_ref().is_none_or(|b| f.0 > b.0)) {
                    best = Some(found);
                }
            }
            Err(error) => tracing::warn!(%error, secret = %name, "cannot read an image pull secret"),
        }
    }
    best.map(|(_, auth)| auth)
}

/// The entry whose key says most of the image's address, with the length of what it says.
fn of_secret(secret: &Secret, image: &str) -> Option<(usize, ImageAuth)> {
    let data = secret.data.as_ref()?;
    let entries = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
        (Some(json), _) => serde_json::from_slice::<Config>(&json.0).ok()?.auths,
        (None, Some(json)) => serde_json::from_slice(&json.0).ok()?,
        (None, None) => return None,
    };
    let matching = entries.into_iter().filter_map(|(key, entry)| Some((matches(&key, image)?, entry)));
    let (length, entry) = matching.max_by_key(|(length, _)| *length)?;
    Some((length, credentials(entry)?))
}

fn credentials(entry: Entry) -> Option<ImageAuth> {
    let Entry { mut username, mut password, auth, identitytoken: identity_token } = entry;
    if !auth.is_empty() {
        let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (user, word) = text.split_once(':')?;
        (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
    }
    Some(ImageAuth { username, password, identity_token })
}

/// How much of the image's address a key matches: its host exactly or by `*` per label, and whole parts of its path.
fn matches(key: &str, image: &str) -> Option<usize> {
    const HUB: &str = "docker.io";
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Keys may name the version of the registry's API instead of a path.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { HUB } else { host };
    let (image_host, image_path) = match image.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (HUB, image),
    };
    let image_host = if image_host == "index.docker.io" { HUB } else { image_host };
    let (have, want): (Vec<&str>, Vec<&str>) = (image_host.split('.').collect(), host.split('.').collect());
    let same = have.len() == want.len() && want.iter().zip(&have).all(|(w, h)| *w == "*" || w == h);
    let image_path = image_path.split('@').next().unwrap_or_default();
    let rest = image_path.strip_prefix(path)?;
    let whole = path.is_empty() || rest.is_empty() || rest.starts_with(['/', ':']);
    (same && whole).then_some(bare.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_hosts_and_whole_parts_of_paths() {
        for (key, image, expected) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "library/busybox:1", true),
            ("r.example:5000", "r.example:5000/a/b@sha256:0", true),
            ("r.example:5000/a", "r.example:5000/a/b", true),
            ("r.example:5000/a", "r.example:5000/ab", false),
            ("*.example", "r.example/a", true),
            ("*.example", "r.s.example/a", false),
            ("r.example", "busybox", false),
        ] {
            assert_eq!(matches(key, image).is_some(), expected, "{key} {image}");
        }
    }

    #[test]
    fn both_kinds_of_secret_are_read_and_the_longest_key_wins() {
        let secret = |name: &str, text: &str| Secret {
            data: Some([(name.to_owned(), k8s_openapi::ByteString(text.as_bytes().to_vec()))].into()),
            ..Default::default()
        };
        let json = r#"{"auths":{"r.example":{"username":"u","password":"p"},"r.example/a":{"auth":"eDp5Ong="}}}"#;
        let (_, found) = of_secret(&secret(".dockerconfigjson", json), "r.example/a/b").unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("x", "y:x"));
        let old = r#"{"r.example":{"username":"u","password":"p"}}"#;
        let (_, found) = of_secret(&secret(".dockercfg", old), "r.example/c").unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("u", "p"));
        assert!(of_secret(&secret(".dockercfg", "{"), "r.example/c").is_none());
    }
}
