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
