//! Conditions of a status, of the shape that all newer kinds share (`meta/v1` Condition).

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Since when `kind` has been of `status`: the time of a condition is when its status changed, so it is the one in `old` if that
/// says the same, else `now`.
pub fn since(old: &[Condition], kind: &str, status: &str, now: Timestamp) -> Time {
    let same = old.iter().find(|one| one.type_ == kind && one.status == status);
    same.map_or(Time(now), |one| one.last_transition_time.clone())
}
