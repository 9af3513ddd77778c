//! Service account tokens of projected volumes, renewed before they expire.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use dhow_client::Client;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::is_inside;
use crate::Error;

/// A token that lives longer is renewed after this long all the same, in seconds.
const MAX_AGE: i64 = 86_400;

#[derive(serde::Deserialize)]
struct Lifetime {
    iat: i64,
    exp: i64,
}

/// When a token is to be renewed, in seconds since 1970: after 80% of its life, or a day.
fn renewal(token: &str) -> Option<i64> {
    let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Lifetime { iat, exp } = serde_json::from_slice(&claims).ok()?;
    Some(iat + ((exp - iat) / 5 * 4).min(MAX_AGE))
}

/// The token already in the volume, while it is good.
fn kept(data: &Path, path: &str, now: i64) -> Option<String> {
    if !is_inside(path) {
        return None;
    }
    let token = std::fs::read_to_string(data.join(path)).ok()?;
    (now < renewal(&token)?).then_some(token)
}

/// The token of a source: the one in the volume's files, or a new one; and when to look again.
pub async fn of(
    client: &Client,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    data: &Path,
    now: SystemTime,
) -> Result<(String, Option<SystemTime>), Error> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let token = match kept(data, &source.path, i64::try_from(seconds).unwrap_or(i64::MAX)) {
        Some(token) => token,
        None => request(client, pod, source.audience.clone(), source.expiration_seconds).await?.0,
    };
    let at = renewal(&token).and_then(|at| u64::try_from(at).ok());
    Ok((token, at.map(|at| SystemTime::UNIX_EPOCH + Duration::from_secs(at))))
}

/// A new token for the pod's account, and when it expires.
pub async fn request(
    client: &Client,
    pod: &Pod,
    audience: Option<String>,
    seconds: Option<i64>,
) -> Result<(String, Option<Time>), Error> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().collect(),
            expiration_seconds: Some(seconds.unwrap_or(3600)),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..Default::default()
    };
    let ns = pod.metadata.namespace.as_deref();
    let answer: TokenRequest = client
        .create_subresource::<ServiceAccount, _, _>(ns, account, "token", &request)
        .await
        .map_err(Error::client("request service account token"))?;
    Ok(answer.status.map(|status| (status.token, Some(status.expiration_timestamp))).unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_for_four_fifths_of_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":2000}"#);
        let token = format!("e30.{claims}.sig");
        std::fs::write(dir.path().join("token"), &token).unwrap();
        assert_eq!(renewal(&token), Some(1800));
        assert_eq!(kept(dir.path(), "token", 1799), Some(token));
        assert_eq!(kept(dir.path(), "token", 1800), None);
        assert_eq!(kept(dir.path(), "absent", 1000), None);
    }
}
