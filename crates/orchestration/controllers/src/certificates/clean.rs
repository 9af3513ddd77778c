//! Removes requests that nobody waits for any more, after upstream's times.

use std::sync::Arc;
use std::time::Duration;

use dhow_base::pki;
use dhow_client::{Client, DeleteParams, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use k8s_openapi::jiff::Timestamp;

use super::{certificate, condition};
use crate::common::delete;

const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);
/// Whatever became of them.
const OF_PODS: Duration = Duration::from_secs(15 * 60);

pub struct Cleaner {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
}

impl Cleaner {
    pub fn new(client: Client, requests: Informer<CertificateSigningRequest>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        requests.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, requests })
    }
}

/// What is left of a life.
fn left(start: Option<Timestamp>, life: Duration, now: Timestamp) -> Duration {
    let age = start.map_or(0, |start| now.as_second().saturating_sub(start.as_second()));
    life.saturating_sub(Duration::from_secs(u64::try_from(age).unwrap_or(0)))
}

/// How long a request stays from now on; none at all if it is to go.
fn stays(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let after = |start: Option<Timestamp>, life: Duration| left(start, life, now);
    let decided = ["Approved", "Denied", "Failed"].iter().filter_map(|kind| condition(request, kind));
    let mut stay = match decided.filter_map(|condition| condition.last_update_time.as_ref()).map(|time| time.0).max() {
        Some(when) => after(Some(when), DECIDED),
        None => after(request.metadata.creation_timestamp.as_ref().map(|time| time.0), PENDING),
    };
    if let Some(end) = certificate(request).and_then(|pem| pki::expires(pem).ok()) {
        let end = Timestamp::try_from(end).unwrap_or(Timestamp::UNIX_EPOCH);
        let left = end.as_second().saturating_sub(now.as_second());
        stay = stay.min(Duration::from_secs(u64::try_from(left).unwrap_or(0)));
    }
    stay
}

#[async_trait::async_trait]
impl Reconcile for Cleaner {
    fn name(&self) -> &'static str {
        "csr-cleaner"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(request) = self.requests.get(key) else { return Ok(Outcome::Done) };
        let left = stays(&request, Timestamp::now());
        if !left.is_zero() {
            return Ok(Outcome::RequeueAfter(left));
        }
        delete(&self.client, &*request, DeleteParams::default()).await.map(|()| Outcome::Done)
    }
}

/// Requests of pods for certificates go soon: who asked has what came of it by then, or asks again.
pub struct PodCleaner {
    client: Client,
    requests: Informer<PodCertificateRequest>,
}

impl PodCleaner {
    pub fn new(client: Client, requests: Informer<PodCertificateRequest>, queue: &Queue) -> Arc<Self> {
        let to = queue.clone();
        requests.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, requests })
    }
}

#[async_trait::async_trait]
impl Reconcile for PodCleaner {
    fn name(&self) -> &'static str {
        "podcertificaterequest-cleaner"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(request) = self.requests.get(key) else { return Ok(Outcome::Done) };
        let made = request.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let left = left(made, OF_PODS, Timestamp::now());
        if !left.is_zero() {
            return Ok(Outcome::RequeueAfter(left));
        }
        delete(&self.client, &*request, DeleteParams::default()).await.map(|()| Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn requests_go_after_their_time() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let request = |conditions: Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "a/b"}, "status": {"conditions": conditions},
            }))
            .unwrap()
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        let pending = request(json!([]));
        assert_eq!(stays(&pending, at(3600)), PENDING - Duration::from_secs(3600));
        assert_eq!(stays(&pending, at(25 * 3600)), Duration::ZERO);
        let denied = request(json!([{"type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T00:10:00Z"}]));
        assert_eq!(stays(&denied, at(600)), DECIDED);
        assert_eq!(stays(&denied, at(600 + 3600)), Duration::ZERO);
    }
}
