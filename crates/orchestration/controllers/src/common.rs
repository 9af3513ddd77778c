//! What several controllers need: selectors, pod readiness, template hashes, expectations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use dhow_client::{Client, DeleteParams, Error, Key, Object, Patch};
use k8s_openapi::api::core::v1::{Namespace, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

pub type Labels = BTreeMap<String, String>;

/// Whether labels satisfy a selector. An empty selector selects everything.
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = get(&requirement.key);
            let listed = || value.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
            match requirement.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// What holds an object that is being deleted until it is taken away.
#[derive(Debug, Clone, Copy)]
pub struct Finalizer(pub &'static str);

impl Finalizer {
    pub fn is_on(self, metadata: &ObjectMeta) -> bool {
        metadata.finalizers.iter().flatten().any(|name| name == self.0)
    }

    pub async fn take<K: Object>(self, client: &Client, object: &K) -> Result<(), Error> {
        self.write(client, object, false).await
    }

    pub async fn put<K: Object>(self, client: &Client, object: &K) -> Result<(), Error> {
        self.write(client, object, true).await
    }

    /// Others have finalizers too: the list is written only if it is still the one that was seen.
    async fn write<K: Object>(self, client: &Client, object: &K, on: bool) -> Result<(), Error> {
        let metadata = object.metadata();
        let mut names: Vec<&str> = metadata.finalizers.iter().flatten().map(String::as_str).collect();
        names.retain(|name| *name != self.0);
        names.extend(on.then_some(self.0));
        let seen = json!({"finalizers": names, "uid": metadata.uid, "resourceVersion": metadata.resource_version});
        let name = metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": seen}));
        match client.patch::<K>(metadata.namespace.as_deref(), name, patch, None).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Neither finished nor going away.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty())
}

/// Since when the pod is ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// How long until a ready pod counts as available; `None` if it is not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let since = ready_since(pod)?;
    let elapsed = now.as_millisecond() - since.as_millisecond();
    let left = i64::from(min_ready_seconds) * 1000 - elapsed;
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

/// How old an object is.
pub fn since_creation(metadata: &ObjectMeta) -> Duration {
    let made = metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let age = Timestamp::now().as_millisecond().saturating_sub(made.as_millisecond());
    Duration::from_millis(u64::try_from(age).unwrap_or(0))
}

/// Deletes this very object. One that is gone already is fine, and so is another of its name, which is left alone.
pub async fn delete<K: Object>(client: &Client, object: &K, params: DeleteParams) -> Result<(), Error> {
    let metadata = object.metadata();
    let params = DeleteParams { uid: metadata.uid.clone(), ..params };
    let name = metadata.name.as_deref().unwrap_or_default();
    match client.delete::<K>(metadata.namespace.as_deref(), name, &params).await {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        other => other,
    }
}

/// Whether a creation failed because its namespace is going away: then there is nothing to make, and nothing to retry.
pub async fn in_ending_namespace(client: &Client, error: &Error, namespace: Option<&str>) -> bool {
    let Some(namespace) = namespace.filter(|_| error.is_forbidden() || error.is_not_found()) else { return false };
    match client.get::<Namespace>(None, namespace).await {
        Ok(namespace) => namespace.metadata.deletion_timestamp.is_some(),
        Err(error) => error.is_not_found(),
    }
}

/// A number, or a percentage of the whole; `default` stands for what is not given.
pub fn portion(value: Option<&IntOrString>, default: &str, of: i32, round_up: bool) -> i32 {
    let text = match value {
        Some(IntOrString::Int(number)) => return *number,
        Some(IntOrString::String(text)) => text.as_str(),
        None => default,
    };
    let number: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
    if !text.ends_with('%') {
        return i32::try_from(number).unwrap_or(i32::MAX);
    }
    let scaled = number * i64::from(of) + if round_up { 99 } else { 0 };
    i32::try_from(scaled / 100).unwrap_or(i32::MAX)
}

/// A short stable name for a template, in letters that form no words.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> Result<String, Error> {
    let bytes = serde_json::to_vec(template)
        .map_err(|source| Error::Decode { context: "encode pod template".into(), source })?;
    let mut hash: u32 = 0x811c_9dc5;
    let tail = collisions.map(i32::to_le_bytes);
    for byte in bytes.iter().chain(tail.iter().flatten()) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let letters =
        hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect();
    Ok(letters)
}

/// What a controller has asked for and its informer has not yet shown, so that it does not ask twice.
#[derive(Default)]
pub struct Expectations {
    pending: Mutex<HashMap<Key, Pending>>,
}

struct Pending {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

/// An expectation that is never met is given up after this time, as upstream does.
const GIVE_UP: Duration = Duration::from_secs(300);

impl Expectations {
    pub fn expect(&self, key: &Key, creations: i64, deletions: impl IntoIterator<Item = String>) {
        let pending = Pending { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.pending.lock().insert(key.clone(), pending);
    }

    /// A creation was seen, or failed.
    pub fn created(&self, key: &Key) {
        if let Some(pending) = self.pending.lock().get_mut(key) {
            pending.creations -= 1;
        }
    }

    /// A deletion was seen, or failed.
    pub fn deleted(&self, key: &Key, uid: &str) {
        if let Some(pending) = self.pending.lock().get_mut(key) {
            pending.deletions.remove(uid);
        }
    }

    pub fn satisfied(&self, key: &Key) -> bool {
        self.pending.lock().get(key).is_none_or(|pending| {
            (pending.creations <= 0 && pending.deletions.is_empty()) || pending.since.elapsed() > GIVE_UP
        })
    }

    pub fn forget(&self, key: &Key) {
        self.pending.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_follow_upstream() {
        let selector: LabelSelector = serde_json::from_value(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["db"]},
                {"key": "old", "operator": "DoesNotExist"}
            ]
        }))
        .unwrap();
        let labels = |value| serde_json::from_value::<Labels>(value).unwrap();
        assert!(selects(&selector, Some(&labels(json!({"app": "web"})))), "NotIn holds where the label is absent");
        assert!(!selects(&selector, Some(&labels(json!({"app": "web", "tier": "db"})))));
        assert!(!selects(&selector, Some(&labels(json!({"app": "web", "old": ""})))));
        assert!(!selects(&selector, None));
        assert!(selects(&LabelSelector::default(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn expectations_hold_until_met_or_given_up() {
        let expectations = Expectations::default();
        let key = Key::new(Some("a"), "b");
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 1, ["u".to_owned()]);
        expectations.created(&key);
        assert!(!expectations.satisfied(&key));
        expectations.deleted(&key, "u");
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 1, []);
        tokio::time::advance(GIVE_UP + Duration::from_secs(1)).await;
        assert!(expectations.satisfied(&key));
    }
}
