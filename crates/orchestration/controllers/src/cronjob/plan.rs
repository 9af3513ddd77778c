//! When a CronJob runs next, and which of its finished jobs it keeps: functions of a snapshot.

use std::sync::Arc;
use std::time::Duration;

use dhow_base::schedule::Schedule;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;

/// More missed times than this are worth a warning.
const MANY: usize = 100;

#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The latest time that has come since the last run.
    pub at: Option<Timestamp>,
    /// So many passed unused that a clock may be wrong.
    pub too_many: bool,
    /// `at` is too long ago to be made up for.
    pub too_late: bool,
    /// Until the next time.
    pub wait: Option<Duration>,
}

pub fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Due {
    let status = cron.status.as_ref();
    let last = status.and_then(|status| status.last_schedule_time.as_ref());
    let begin = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |time| time.0);
    let deadline = cron.spec.as_ref().and_then(|spec| spec.starting_deadline_seconds);
    // What is further back than the deadline counts neither as missed nor as due.
    let limit = deadline.and_then(|seconds| Timestamp::from_second(now.as_second().saturating_sub(seconds)).ok());
    let earliest = limit.map_or(begin, |limit| limit.max(begin));
    let mut missed = 0;
    let mut at = earliest;
    while missed <= MANY {
        match schedule.next(at, zone).filter(|next| *next <= now) {
            Some(next) => at = next,
            None => break,
        }
        missed += 1;
    }
    let latest = match missed {
        0 => None,
        _ if missed <= MANY => Some(at),
        _ => latest(schedule, zone, at, now),
    };
    let wait = schedule
        .next(now, zone)
        .map(|next| Duration::from_millis(u64::try_from(next.as_millisecond() - now.as_millisecond()).unwrap_or(0)));
    Due {
        too_late: latest.is_some_and(|at| {
            deadline.is_some_and(|seconds| now.as_millisecond() - at.as_millisecond() > seconds.saturating_mul(1000))
        }),
        at: latest,
        too_many: missed > MANY,
        wait,
    }
}

/// The latest time up to `now`, where `known` is one; does not walk through years of minutes.
fn latest(schedule: &Schedule, zone: &TimeZone, known: Timestamp, now: Timestamp) -> Option<Timestamp> {
    if let Schedule::Every(every) = schedule {
        let every = i64::try_from(every.as_secs()).ok()?;
        let count = (now.as_second() - known.as_second()) / every;
        return Timestamp::from_second(known.as_second() + count * every).ok();
    }
    for hours in [1, 24, 24 * 32, 24 * 366] {
        let start = Timestamp::from_second(now.as_second() - hours * 3600).ok()?.max(known);
        let mut found = None;
        let mut at = start;
        while let Some(next) = schedule.next(at, zone).filter(|next| *next <= now) {
            (found, at) = (Some(next), next);
        }
        if found.is_some() {
            return found;
        }
    }
    Some(known)
}

/// Finished jobs beyond what the history keeps, oldest first.
pub fn surplus(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = cron.spec.as_ref();
    let limits = [
        ("Complete", spec.and_then(|spec| spec.successful_jobs_history_limit)),
        ("Failed", spec.and_then(|spec| spec.failed_jobs_history_limit)),
    ];
    let mut surplus = Vec::new();
    for (kind, limit) in limits {
        let Some(limit) = limit else { continue };
        let ended = |job: &Job| crate::job::finished(job).is_some_and(|end| end.type_ == kind);
        let mut ended: Vec<_> = jobs.iter().filter(|job| ended(job)).cloned().collect();
        ended.sort_by_key(|job| {
            (
                job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0),
                job.metadata.name.clone(),
            )
        });
        let excess = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        surplus.extend(ended.into_iter().take(excess));
    }
    surplus
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dhow_base::schedule::parse;
    use serde_json::{Value, json};

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        let mut whole = json!({"schedule": "* * * * *", "jobTemplate": {}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:30Z"}, "spec": whole, "status": {"lastScheduleTime": last}
        }))
        .unwrap()
    }

    fn decide(cron: &CronJob, schedule: &str, now: &str) -> (Option<String>, bool, bool, u64) {
        let due = due(cron, &parse(schedule).unwrap(), &TimeZone::UTC, now.parse().unwrap());
        (due.at.map(|at| at.to_string()), due.too_many, due.too_late, due.wait.unwrap().as_secs())
    }

    #[test]
    fn only_the_latest_missed_time_is_made_up_for() {
        let fresh = cron(json!({}), None);
        assert_eq!(decide(&fresh, "0 * * * *", "2026-01-01T00:59:00Z"), (None, false, false, 60));
        let at = |text: &str| Some(text.to_owned());
        assert_eq!(
            decide(&fresh, "0 * * * *", "2026-01-01T05:30:00Z"),
            (at("2026-01-01T05:00:00Z"), false, false, 1800)
        );
        let ran = cron(json!({}), Some("2026-01-01T05:00:00Z"));
        assert_eq!(decide(&ran, "0 * * * *", "2026-01-01T05:30:00Z"), (None, false, false, 1800));
        assert_eq!(
            decide(&ran, "* * * * *", "2027-06-01T05:30:59Z"),
            (at("2027-06-01T05:30:00Z"), true, false, 1),
            "a long time away"
        );
        assert!(decide(&ran, "@every 7s", "2027-06-01T00:00:00Z").1);
    }

    #[test]
    fn a_starting_deadline_lets_old_times_go() {
        let short = cron(json!({"startingDeadlineSeconds": 60}), Some("2026-01-01T00:00:00Z"));
        assert_eq!(decide(&short, "0 * * * *", "2026-01-01T05:30:00Z").0, None);
        assert_eq!(decide(&short, "0 * * * *", "2026-01-01T05:00:59Z").0.as_deref(), Some("2026-01-01T05:00:00Z"));
        assert!(!decide(&short, "* * * * *", "2026-02-01T05:00:59Z").1, "what is let go is not missed");
    }

    #[test]
    fn history_keeps_the_newest() {
        let job = |name: &str, end: &str| -> Arc<Job> {
            let status = json!({"startTime": format!("2026-01-01T00:0{}:00Z", &name[1..]),
                "conditions": [{"type": end, "status": "True"}]});
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"template": {}}, "status": status}))
                    .unwrap(),
            )
        };
        let jobs = [job("j1", "Complete"), job("j2", "Failed"), job("j3", "Complete"), job("j4", "Suspended")];
        let cron = cron(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}), None);
        let names: Vec<_> = surplus(&cron, &jobs).iter().map(|job| job.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["j1", "j2"]);
    }
}
