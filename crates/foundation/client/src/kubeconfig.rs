//! Reads kubeconfig files: inline data or file references, any context.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use crate::{Auth, Error, HttpsConfig};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: ContextEntry,
}

#[derive(Deserialize)]
struct ContextEntry {
    cluster: String,
    user: String,
}

/// The connection that a context describes; `None` is the file's current context.
pub(crate) fn load(path: &Path, context: Option<&str>) -> Result<HttpsConfig, Error> {
    let bad = |what: String| Error::Configuration(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let wanted = context
        .map(str::to_owned)
        .or(config.current_context)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| bad("no current context is set".into()))?;
    let context = config
        .contexts
        .into_iter()
        .find(|entry| entry.name == wanted)
        .ok_or_else(|| bad(format!("has no context {wanted:?}")))?
        .context;
    let cluster = config
        .clusters
        .into_iter()
        .find(|entry| entry.name == context.cluster)
        .ok_or_else(|| bad(format!("has no cluster {:?}", context.cluster)))?
        .cluster;
    let user = config
        .users
        .into_iter()
        .find(|entry| entry.name == context.user)
        .ok_or_else(|| bad(format!("has no user {:?}", context.user)))?
        .user;
    let pem = |data: Option<String>, file: Option<PathBuf>, what: &str| -> Result<Option<String>, Error> {
        if let Some(data) = data {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(data.trim())
                .map_err(|error| bad(format!("{what}: {error}")))?;
            return String::from_utf8(bytes).map(Some).map_err(|error| bad(format!("{what}: {error}")));
        }
        let Some(file) = file else { return Ok(None) };
        let file = path.parent().map_or_else(|| file.clone(), |folder| folder.join(&file));
        std::fs::read_to_string(&file).map(Some).map_err(|error| bad(format!("{what} {}: {error}", file.display())))
    };
    let cert = pem(user.client_certificate_data, user.client_certificate, "client certificate")?;
    let key = pem(user.client_key_data, user.client_key, "client key")?;
    let auth = match (cert, key, user.token, user.token_file) {
        (Some(cert_pem), Some(key_pem), _, _) => Auth::ClientCert { cert_pem, key_pem },
        (_, _, Some(token), _) => Auth::Token(token),
        (_, _, _, Some(file)) => Auth::TokenFile(file),
        _ => Auth::None,
    };
    let ca_pem = match pem(cluster.certificate_authority_data, cluster.certificate_authority, "CA certificate")? {
        Some(ca_pem) => ca_pem,
        // Whoever takes such an address does not verify anybody.
        None if cluster.server.starts_with("http://") => String::new(),
        None => return Err(bad("the cluster names no CA certificate".into())),
    };
    Ok(HttpsConfig { server: cluster.server, ca_pem, auth })
}
