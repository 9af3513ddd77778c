//! Takes tokens that were made for service accounts long ago and that nobody uses out of use, and later away
//! (`legacy-service-account-token-cleaner`).
//!
//! The API server tells in the label `kubernetes.io/legacy-token-last-used` when a token was used last, and in a
//! ConfigMap since when it does so. Only what a service account lists as its own is touched: other tokens were asked for
//! by somebody.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, DeleteParams, Error, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Span, Timestamp};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Says since when uses are noted.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A token that was not used for so many days is taken out of use, and after as many more away.
pub const CLEAN_UP_DAYS: i32 = 365;

pub struct LegacyTokens {
    client: Client,
    secrets: Informer<Secret>,
    tracking: Informer<ConfigMap>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    days: i32,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing today.
    Keep,
    Invalidate,
    Delete,
}

impl LegacyTokens {
    pub fn new(
        client: Client,
        accounts: Informer<ServiceAccount>,
        pods: Informer<Pod>,
        days: i32,
        queue: &Queue,
        shutdown: &CancellationToken,
    ) -> Arc<Self> {
        let of = |selector: String| ListParams { field_selector: Some(selector), ..ListParams::default() };
        let secrets = Informer::<Secret>::start(client.clone(), of(format!("type={TYPE}")), None, shutdown.clone());
        let tracking = of(format!("metadata.name={TRACKING}"));
        let tracking = Informer::<ConfigMap>::start(client.clone(), tracking, Some("kube-system"), shutdown.clone());
        let to = queue.clone();
        secrets.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        let to = queue.clone();
        accounts.on_change(move |change| {
            let namespace = change.object().metadata.namespace.as_deref();
            for name in change.object().secrets.iter().flatten().filter_map(|one| one.name.as_deref()) {
                to.add(Key::new(namespace, name));
            }
        });
        let (to, all) = (queue.clone(), secrets.clone());
        tracking.on_change(move |_| all.list().iter().for_each(|secret| to.add(Key::of(&secret.metadata))));
        Arc::new(Self { client, secrets, tracking, accounts, pods, days })
    }

    /// Since when uses are noted, if they are.
    fn tracked_since(&self) -> Option<Date> {
        let map = self.tracking.get(&Key::new(Some("kube-system"), TRACKING))?;
        map.data.as_ref()?.get("since")?.parse().ok()
    }

    /// Whether an account lists the token as its own: then it was made for it, and not for somebody who asked.
    fn is_generated(&self, secret: &Secret) -> bool {
        let annotation = |key: &str| secret.metadata.annotations.as_ref()?.get(key);
        let Some(name) = annotation(ACCOUNT) else { return false };
        let Some(account) = self.accounts.get(&Key::new(secret.metadata.namespace.as_deref(), name)) else {
            return false;
        };
        let same = annotation(ACCOUNT_UID).is_none_or(|uid| Some(uid) == account.metadata.uid.as_ref());
        same && account.secrets.iter().flatten().any(|one| one.name == secret.metadata.name)
    }

    fn is_mounted(&self, secret: &Secret) -> bool {
        let here = self.pods.by_index("namespace", secret.metadata.namespace.as_deref().unwrap_or_default());
        let mounted: HashSet<String> = here
            .iter()
            .flat_map(|pod| pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()))
            .filter_map(|volume| volume.secret.as_ref()?.secret_name.clone())
            .collect();
        secret.metadata.name.as_ref().is_some_and(|name| mounted.contains(name))
    }
}

fn day(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// What becomes of a token that nobody asked for and no pod mounts. All days are whole ones, as the labels have them.
fn judge(secret: &Secret, tracked: Option<Date>, today: Date, days: i32) -> Verdict {
    let Ok(limit) = today.checked_sub(Span::new().days(days)) else { return Verdict::Keep };
    let label = |key: &str| secret.metadata.labels.as_ref().and_then(|all| all.get(key));
    let made = secret.metadata.creation_timestamp.as_ref().map(|time| day(time.0));
    // Not used for long is known only of what was watched for long.
    if tracked.is_none_or(|since| since > limit) || made.is_none_or(|made| made > limit) {
        return Verdict::Keep;
    }
    match label(LAST_USED).map(|text| text.parse::<Date>()) {
        Some(Ok(last)) if last > limit => return Verdict::Keep,
        // What cannot be read is left to people.
        Some(Err(_)) => return Verdict::Keep,
        Some(Ok(_)) | None => {}
    }
    match label(INVALID_SINCE).and_then(|text| text.parse::<Date>().ok()) {
        None => Verdict::Invalidate,
        Some(since) if since > limit => Verdict::Keep,
        Some(_) => Verdict::Delete,
    }
}

#[async_trait::async_trait]
impl Reconcile for LegacyTokens {
    fn name(&self) -> &'static str {
        "legacy-service-account-token-cleaner"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(secret) = self.secrets.get(key).filter(|secret| secret.type_.as_deref() == Some(TYPE)) else {
            return Ok(Outcome::Done);
        };
        let again = Ok(Outcome::RequeueAfter(DAY));
        if !self.is_generated(&secret) || self.is_mounted(&secret) {
            return again;
        }
        let today = day(Timestamp::now());
        // Only the version that was judged: one that is used now has another.
        let (uid, version) = (secret.metadata.uid.clone(), secret.metadata.resource_version.clone());
        match judge(&secret, self.tracked_since(), today, self.days) {
            Verdict::Keep => return again,
            Verdict::Invalidate => {
                let labels = json!({INVALID_SINCE: today.to_string()});
                let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "labels": labels}});
                let patch = Patch::Merge(patch);
                match self.client.patch::<Secret>(key.namespace(), &key.name, patch, None).await {
                    Err(error) if error.is_not_found() => {}
                    other => drop(other?),
                }
                tracing::info!(%key, "a token that nobody uses is out of use from now on");
            }
            Verdict::Delete => {
                let params = DeleteParams { uid, resource_version: version, ..DeleteParams::default() };
                match self.client.delete::<Secret>(key.namespace(), &key.name, &params).await {
                    Err(error) if error.is_not_found() => {}
                    other => other?,
                }
                tracing::info!(%key, "removed a token that nobody used");
            }
        }
        again
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_goes_in_two_steps_when_nobody_uses_it() {
        let judged = |made: &str, used: &str, invalid: &str, tracked: &str| {
            let mut labels = serde_json::Map::new();
            for (key, value) in [(LAST_USED, used), (INVALID_SINCE, invalid)] {
                if !value.is_empty() {
                    labels.insert(key.into(), value.into());
                }
            }
            let metadata = json!({"creationTimestamp": format!("{made}T10:00:00Z"), "labels": labels});
            let secret = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            judge(&secret, tracked.parse().ok(), "2026-06-01".parse().unwrap(), 30)
        };
        let (old, new) = ("2026-01-01", "2026-05-20");
        assert_eq!(judged(old, "", "", old), Verdict::Invalidate);
        assert_eq!(judged(old, "2026-02-01", "", old), Verdict::Invalidate);
        assert_eq!(judged(old, "2026-02-01", new, old), Verdict::Keep, "not for long enough");
        assert_eq!(judged(old, "2026-02-01", "2026-04-01", old), Verdict::Delete);
        for (made, used, tracked) in
            [(new, "", old), (old, new, old), (old, "", new), (old, "", ""), (old, "once", old)]
        {
            assert_eq!(judged(made, used, "2026-04-01", tracked), Verdict::Keep, "{made} {used} {tracked}");
        }
    }
}
