//! Removes tokens for joining when they expire.

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, DeleteParams, Error, Informer, Key, ListParams, Outcome, Queue, Reconcile};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::common::delete;

const TYPE: &str = "bootstrap.kubernetes.io/token";

pub struct TokenCleaner {
    client: Client,
    secrets: Informer<Secret>,
}

impl TokenCleaner {
    pub fn new(client: Client, queue: &Queue, shutdown: &CancellationToken) -> Arc<Self> {
        let scope = ListParams { field_selector: Some(format!("type={TYPE}")), ..ListParams::default() };
        let secrets = Informer::<Secret>::start(client.clone(), scope, Some("kube-system"), shutdown.clone());
        let to = queue.clone();
        secrets.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, secrets })
    }
}

/// How long a token lasts; `None` is for ever. What cannot be read is over: nobody can join with it.
fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let bytes = &secret.data.as_ref()?.get("expiration").filter(|bytes| !bytes.0.is_empty())?.0;
    let end = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Timestamp>().ok());
    let left = end.map_or(0, |end| end.as_millisecond().saturating_sub(now.as_millisecond()));
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

#[async_trait::async_trait]
impl Reconcile for TokenCleaner {
    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(secret) = self.secrets.get(key) else { return Ok(Outcome::Done) };
        match left(&secret, Timestamp::now()) {
            None => return Ok(Outcome::Done),
            Some(left) if !left.is_zero() => return Ok(Outcome::RequeueAfter(left)),
            Some(_) => {}
        }
        delete(&self.client, &*secret, DeleteParams::default()).await.map(|()| Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_end() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = |end: &str| -> Secret {
            let data = k8s_openapi::ByteString(end.as_bytes().to_vec());
            Secret { data: Some([("expiration".to_owned(), data)].into()), ..Secret::default() }
        };
        assert_eq!(left(&Secret::default(), now), None);
        assert_eq!(left(&token("2026-01-01T00:00:05Z"), now), Some(Duration::from_secs(5)));
        assert_eq!(left(&token("2025-01-01T00:00:05Z"), now), Some(Duration::ZERO));
        assert_eq!(left(&token("soon"), now), Some(Duration::ZERO));
    }
}
