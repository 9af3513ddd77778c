//! `ReplicationRule`, group `registry.dhow.io/v1alpha1`: what of the registry is kept the same in another one, and when.

use std::collections::BTreeMap;

use dhow_api::quantity::Quantity;
use dhow_base::schedule::{self, Schedule};
use dhow_client::kind;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use super::kinds::SecretReference;
use crate::replicate::Direction;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicationRule {
    pub metadata: ObjectMeta,
    pub spec: ReplicationSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ReplicationStatus>,
}
kind!(ReplicationRule, "registry.dhow.io", "v1alpha1", "replicationrules", ClusterResourceScope);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicationSpec {
    pub direction: Way,
    pub remote: RemoteSpec,
    /// By their names where they come from; `*` stands for any characters.
    pub repositories: Vec<String>,
    /// All if empty.
    pub tags: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub rename: Rename,
    pub on_push: bool,
    /// As a CronJob has it.
    pub schedule: Option<String>,
    pub time_zone: Option<String>,
    /// Another text than before: once now.
    pub run: String,
    pub delete: bool,
    /// Bytes in a second, as quantities are written.
    pub bandwidth: Option<String>,
    pub suspend: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    #[default]
    Push,
    Pull,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteSpec {
    pub registry: String,
    /// A Secret of the kind that pods pull with.
    pub credentials: Option<SecretReference>,
    /// PEM of authorities.
    pub ca: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rename {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicationStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What is under way, also if the server that did it is gone.
    pub running: Option<Running>,
    pub last_run: Option<LastRun>,
    /// The `run` that was done.
    pub handled_run: String,
    pub last_scheduled: Option<Time>,
    pub next_run: Option<Time>,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Running {
    pub trigger: Trigger,
    pub started: Time,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastRun {
    pub trigger: Trigger,
    pub started: Time,
    pub finished: Time,
    pub images: u64,
    pub copied: u64,
    pub deleted: u64,
    pub failed: u64,
    pub bytes: u64,
    pub failures: Vec<FailedImage>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedImage {
    pub image: String,
    pub reason: String,
}

/// Why a run began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// Something was pushed or deleted here.
    #[default]
    Push,
    /// The rule is new or changed, or the server began anew and may have missed something.
    Start,
    Schedule,
    Manual,
    /// The one before had failures.
    Retry,
    /// The one before was broken off.
    Resume,
}

impl Default for LastRun {
    fn default() -> Self {
        let never = Time(Timestamp::UNIX_EPOCH);
        Self {
            trigger: Trigger::default(),
            started: never.clone(),
            finished: never,
            images: 0,
            copied: 0,
            deleted: 0,
            failed: 0,
            bytes: 0,
            failures: Vec::new(),
        }
    }
}

/// What is read of a spec without asking anyone.
pub struct Read {
    pub direction: Direction,
    pub bandwidth: Option<u64>,
    pub schedule: Option<(Schedule, TimeZone)>,
}

impl ReplicationSpec {
    /// # Errors
    /// With what is not understood, as users may read it.
    pub fn read(&self) -> Result<Read, String> {
        let bandwidth = match &self.bandwidth {
            None => None,
            Some(text) => {
                let quantity: Quantity =
                    text.parse().map_err(|_| format!("spec.bandwidth: {text:?} is no quantity"))?;
                let bytes = u64::try_from(quantity.units()).ok().filter(|bytes| *bytes > 0);
                Some(bytes.ok_or_else(|| format!("spec.bandwidth: {text:?} is not more than nothing"))?)
            }
        };
        let zone = self.time_zone.as_deref().unwrap_or("UTC");
        let zone = TimeZone::get(zone).map_err(|_| format!("spec.timeZone: {zone:?} is unknown"))?;
        let schedule = match &self.schedule {
            None => None,
            Some(text) => {
                let schedule = schedule::parse(text).map_err(|error| format!("spec.schedule: {error}"))?;
                if schedule.next(Timestamp::now(), &zone).is_none() {
                    return Err("spec.schedule: that never comes".to_owned());
                }
                Some((schedule, zone))
            }
        };
        let direction = match self.direction {
            Way::Push => Direction::Push,
            Way::Pull if self.on_push => return Err("spec.onPush: the other registry does not tell us".to_owned()),
            Way::Pull => Direction::Pull,
        };
        Ok(Read { direction, bandwidth, schedule })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_read_or_refused_by_name() {
        let spec = |value| serde_json::from_value::<ReplicationSpec>(value).unwrap();
        let read = spec(json!({"schedule": "0 3 * * *", "timeZone": "Europe/Berlin", "bandwidth": "10Mi"})).read();
        assert_eq!(read.unwrap().bandwidth, Some(10 << 20));
        for (value, says) in [
            (json!({"schedule": "often"}), "spec.schedule"),
            (json!({"schedule": "0 0 30 2 *"}), "never comes"),
            (json!({"timeZone": "Moon"}), "spec.timeZone"),
            (json!({"bandwidth": "0"}), "spec.bandwidth"),
            (json!({"direction": "Pull", "onPush": true}), "spec.onPush"),
        ] {
            assert!(spec(value).read().err().unwrap().contains(says));
        }
    }
}
