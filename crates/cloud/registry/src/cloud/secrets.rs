//! What Secrets hold for registries.

use dhow_client::Client;
use dhow_image::{Auth, DockerConfig};
use k8s_openapi::api::core::v1::Secret;

/// What a Secret of the kind that pods pull with has for an image, `registry/repository`; `None`: nothing.
///
/// # Errors
/// With why it cannot be used, as users may read it.
pub async fn credentials(client: &Client, namespace: &str, name: &str, image: &str) -> Result<Option<Auth>, String> {
    let unusable = |why: String| format!("the Secret {namespace}/{name}: {why}");
    let found = client.get::<Secret>(Some(namespace), name).await.map_err(|error| unusable(error.to_string()))?;
    let text = found.data.as_ref().and_then(|data| data.get(".dockerconfigjson"));
    let text = text.ok_or_else(|| unusable("it has no .dockerconfigjson".to_owned()))?;
    // Credentials alone: a Secret names no programs to be run here.
    let text: serde_json::Value = serde_json::from_slice(&text.0).map_err(|error| unusable(error.to_string()))?;
    let auths = serde_json::json!({ "auths": text["auths"] }).to_string();
    let config = DockerConfig::parse(auths.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    config.find(image).await.map_err(|error| unusable(error.to_string()))
}

/// The text under a key of a Secret.
///
/// # Errors
/// As [`credentials`].
pub async fn text(client: &Client, namespace: &str, name: &str, key: &str) -> Result<String, String> {
    let unusable = |why: String| format!("the Secret {namespace}/{name}: {why}");
    let found = client.get::<Secret>(Some(namespace), name).await.map_err(|error| unusable(error.to_string()))?;
    let value =
        found.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| unusable(format!("it has no {key}")))?;
    String::from_utf8(value.0.clone()).map_err(|_| unusable(format!("{key} is no text")))
}
