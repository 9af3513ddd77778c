//! Leader election by a Lease: one holder at a time, taken over when it is not renewed.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec as Held};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Client, Error};

/// Which lease to hold, as whom.
#[derive(Debug, Clone)]
pub struct LeaseSpec {
    pub namespace: String,
    pub name: String,
    pub identity: String,
    /// Upstream's are 15 s and a retry every 2 s.
    pub duration: Duration,
    pub retry: Duration,
}

/// Waits to become the leader. The token returned ends when leadership is lost or at `shutdown`.
pub async fn run(client: Client, spec: LeaseSpec, shutdown: CancellationToken) -> CancellationToken {
    let mut seen: Option<(String, Instant)> = None;
    let leading = shutdown.child_token();
    while !matches!(attempt(&client, &spec, &mut seen).await, Ok(true)) {
        tokio::select! { () = tokio::time::sleep(spec.retry) => {}, () = shutdown.cancelled() => return leading }
    }
    let held = leading.clone();
    tokio::spawn(async move {
        let _ends = held.clone().drop_guard();
        let mut renewed = Instant::now();
        // Gives up before another may take over.
        while renewed.elapsed() < spec.duration.mul_f64(0.66) {
            tokio::select! { () = tokio::time::sleep(spec.retry) => {}, () = held.cancelled() => return }
            let begun = Instant::now();
            match tokio::time::timeout(spec.retry, attempt(&client, &spec, &mut seen)).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::debug!(%error, lease = spec.name, "cannot renew"),
                Err(_) => {}
            }
        }
    });
    leading
}

/// Takes or renews the lease; false while another holds it. Only this process's clock judges its age.
async fn attempt(client: &Client, spec: &LeaseSpec, seen: &mut Option<(String, Instant)>) -> Result<bool, Error> {
    let now = MicroTime(Timestamp::now());
    let mut lease = match client.get::<Lease>(Some(&spec.namespace), &spec.name).await {
        Ok(lease) => lease,
        Err(error) if error.is_not_found() => {
            let metadata = ObjectMeta {
                namespace: Some(spec.namespace.clone()),
                name: Some(spec.name.clone()),
                ..ObjectMeta::default()
            };
            let made = Lease { metadata, ..Lease::default() };
            client.create(&made).await?
        }
        Err(error) => return Err(error),
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    let held: &mut Held = lease.spec.get_or_insert_default();
    let holder = held.holder_identity.clone().unwrap_or_default();
    let mine = holder == spec.identity;
    if !mine && !holder.is_empty() {
        match seen {
            Some((known, since)) if *known == version && since.elapsed() > spec.duration => {}
            Some((known, _)) if *known == version => return Ok(false),
            _ => {
                *seen = Some((version, Instant::now()));
                return Ok(false);
            }
        }
    }
    if !mine {
        held.acquire_time = Some(now.clone());
        held.lease_transitions = Some(held.lease_transitions.map_or(0, |times| times + 1));
    }
    held.holder_identity = Some(spec.identity.clone());
    held.lease_duration_seconds = Some(i32::try_from(spec.duration.as_secs()).unwrap_or(i32::MAX).max(1));
    held.renew_time = Some(now);
    client.update(&lease).await.map(|_| true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// A server with one lease and versions.
    #[derive(Default)]
    struct OneLease(Mutex<(u64, Option<Value>)>);

    #[async_trait::async_trait]
    impl crate::Transport for OneLease {
        async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<crate::Body>, Error> {
            let mut state = self.0.lock();
            let answer = |code: u16, value: &Value| {
                Ok(http::Response::builder().status(code).body(crate::full(value.to_string().into())).unwrap())
            };
            if request.method() == http::Method::GET {
                return state.1.as_ref().map_or_else(|| answer(404, &json!({})), |lease| answer(200, lease));
            }
            let mut sent: Value = serde_json::from_slice(request.body()).unwrap();
            let known = state.1.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
            if known.is_some_and(|known| known != sent["metadata"]["resourceVersion"]) {
                return answer(409, &json!({"reason": "Conflict"}));
            }
            state.0 += 1;
            sent["metadata"]["resourceVersion"] = json!(state.0.to_string());
            state.1 = Some(sent.clone());
            answer(200, &sent)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_leads_only_after_the_first_is_silent() {
        let client = Client::new(Arc::new(OneLease::default()));
        let spec = |identity: &str| LeaseSpec {
            namespace: "kube-system".into(),
            name: "dhow".into(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            retry: Duration::from_secs(2),
        };
        let stop = CancellationToken::new();
        let first = run(client.clone(), spec("a"), stop.clone()).await;
        let waiting = run(client.clone(), spec("b"), CancellationToken::new());
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_secs(120), &mut waiting).await.is_err(), "the first renews");
        assert!(!first.is_cancelled());
        stop.cancel();
        let begin = Instant::now();
        let second = waiting.await;
        assert!(begin.elapsed() >= Duration::from_secs(10) && !second.is_cancelled());
    }
}
