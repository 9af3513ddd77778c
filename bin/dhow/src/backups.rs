//! Scheduled backups: the `backups` section of the settings, and the part of the server that keeps it.
//!
//! Invariant: what counts is the folder. A backup that was due while nobody ran is made up for at the next start, and the
//! oldest one goes only after a new one is whole and on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dhow_apiserver::BackupSource;
use dhow_base::files;
use dhow_base::metrics::{Counters, Gauge, Registry};
use dhow_base::schedule::{self, Schedule};
use dhow_client::{Client, EventRecorder, EventType, reference};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Timestamp, ToSpan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::backup::{self, Contents};

/// After a failure the next try comes this much later at the earliest, however often the schedule wants one.
const RETRY: Duration = Duration::from_secs(10 * 60);
/// Work in the folder that is older was cut off.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
const PREFIX: &str = "dhow-";
const SUFFIX: &str = ".backup";
/// The moment in a file's name, so that names sort by age.
const STAMP: &str = "%Y%m%dT%H%M%SZ";
/// What the events of failures are called.
pub const FAILED: &str = "BackupFailed";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackupSettings {
    /// Folder to write to, best on another disk; without it no backups are made.
    pub folder: Option<PathBuf>,
    /// When, as a CronJob has it: five fields, `@daily` and the like, or `@every 6h`.
    pub schedule: String,
    /// The time zone of the schedule.
    pub time_zone: String,
    /// How many are kept; the oldest go first.
    pub keep: usize,
    /// Whether the cluster's keys are in them. Without keys a restore needs a machine that has them.
    pub with_keys: bool,
}

impl Default for BackupSettings {
    fn default() -> Self {
        Self { folder: None, schedule: "30 3 * * *".to_owned(), time_zone: "UTC".to_owned(), keep: 7, with_keys: true }
    }
}

impl BackupSettings {
    /// The plan, `None` without a folder; mistakes are found with or without one.
    pub fn plan(&self) -> Result<Option<Plan>> {
        let schedule = schedule::parse(&self.schedule).map_err(|error| anyhow!("backups.schedule: {error}"))?;
        let zone =
            TimeZone::get(&self.time_zone).map_err(|_| anyhow!("backups.timeZone: {:?} is unknown", self.time_zone))?;
        ensure!(schedule.next(Timestamp::now(), &zone).is_some(), "backups.schedule: that never comes");
        ensure!(self.keep > 0, "backups.keep: at least 1");
        let Some(folder) = self.folder.clone() else { return Ok(None) };
        ensure!(folder.is_absolute(), "backups.folder: an absolute path");
        Ok(Some(Plan { folder, schedule, zone, keep: self.keep, with_keys: self.with_keys }))
    }
}

/// Settings that were checked.
#[derive(Debug, Clone)]
pub struct Plan {
    pub folder: PathBuf,
    schedule: Schedule,
    zone: TimeZone,
    keep: usize,
    with_keys: bool,
}

/// One backup in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub path: PathBuf,
    pub made: Timestamp,
    pub bytes: u64,
}

impl Plan {
    /// Makes the folder, for root only; one that is there stays as its owner has it.
    pub fn make_folder(&self) -> Result<()> {
        match self.folder.is_dir() {
            true => Ok(()),
            false => Ok(files::create_private_dir(&self.folder)?),
        }
    }

    /// Where a backup of this moment goes.
    pub fn file(&self, now: Timestamp) -> PathBuf {
        self.folder.join(format!("{PREFIX}{}{SUFFIX}", now.strftime(STAMP)))
    }

    /// When the next one is due: at once if there is none, or if the last one is older than the schedule wants.
    pub fn due(&self, newest: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        match newest {
            None => Some(now),
            // A clock that was put back must not keep backups from being made.
            Some(newest) => self.schedule.next(newest.min(now), &self.zone),
        }
    }
}

/// The backups in a folder, the newest first; anything else in it is passed over.
pub fn kept(folder: &Path) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let name = entry.file_name();
        let Some(made) = name.to_str().and_then(made) else { continue };
        let bytes = entry.metadata().with_context(|| format!("read {}", entry.path().display()))?.len();
        found.push(Kept { path: entry.path(), made, bytes });
    }
    found.sort_by_key(|kept| std::cmp::Reverse(kept.made));
    Ok(found)
}

/// The moment in a backup's name.
fn made(name: &str) -> Option<Timestamp> {
    let stamp = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let time = k8s_openapi::jiff::civil::DateTime::strptime(STAMP, stamp).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// What the part needs beside its plan.
pub struct Sources {
    pub store: BackupSource,
    /// Folder of the cluster's keys.
    pub keys: PathBuf,
    /// Events are told through it.
    pub client: Client,
}

/// What `/metrics` says.
#[derive(Clone)]
struct Metrics {
    made: Counters,
    last: Gauge,
    bytes: Gauge,
    seconds: Gauge,
    kept: Gauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]).with(&[]);
        let made = registry.counter("dhow_backups_total", "Scheduled backups by how they ended.", &["result"]);
        // Both are there from the start: who watches a counter that appears later misses its first step.
        made.with(&["success"]);
        made.with(&["failure"]);
        Self {
            made,
            last: gauge("dhow_backup_last_success_timestamp_seconds", "When the newest backup in the folder was made."),
            bytes: gauge("dhow_backup_last_bytes", "Size of the newest backup."),
            seconds: gauge("dhow_backup_last_duration_seconds", "How long the last backup took."),
            kept: gauge("dhow_backups_kept", "Backups in the folder."),
        }
    }

    fn show(&self, kept: &[Kept]) {
        self.kept.set(kept.len() as f64);
        if let Some(newest) = kept.first() {
            self.last.set(newest.made.as_second() as f64);
            self.bytes.set(newest.bytes as f64);
        }
    }
}

/// Makes backups until `shutdown`. A failure is told by log, event and metric, and tried again.
pub async fn keep(plan: Plan, sources: Sources, registry: Registry, shutdown: CancellationToken) {
    let metrics = Metrics::new(&registry);
    let events = EventRecorder::new(sources.client.clone(), "dhow-backup");
    let plan = Arc::new(plan);
    let mut failed = None;
    loop {
        let folder = Arc::clone(&plan);
        let kept = tokio::task::spawn_blocking(move || kept(&folder.folder)).await.unwrap_or_else(|_| Ok(Vec::new()));
        let kept = kept.unwrap_or_default();
        metrics.show(&kept);
        let due = plan.due(kept.first().map(|kept| kept.made), Timestamp::now());
        let Some(due) = due.map(|due| failed.map_or(due, |earliest: Timestamp| due.max(earliest))) else {
            return shutdown.cancelled().await;
        };
        tokio::select! { () = until(due) => {}, () = shutdown.cancelled() => return }
        let begun = Instant::now();
        match make(&plan, &sources).await {
            Ok((path, contents)) => {
                failed = None;
                metrics.made.with(&["success"]).inc();
                metrics.seconds.set(begun.elapsed().as_secs_f64());
                tracing::info!(path = %path.display(), revision = contents.store.revision, "made a backup");
            }
            Err(error) => {
                failed = Timestamp::now().checked_add(RETRY).ok();
                metrics.made.with(&["failure"]).inc();
                let message = format!("{error:#}");
                tracing::error!(error = message, "cannot make a backup");
                tell(&sources.client, &events, &message).await;
            }
        }
    }
}

/// Until the wall clock shows this moment. Timers stand still while a machine sleeps, so it is looked at again.
async fn until(due: Timestamp) {
    while let Ok(left) = Duration::try_from(Timestamp::now().until(due).unwrap_or_else(|_| 0.seconds()))
        && !left.is_zero()
    {
        tokio::time::sleep(left).await;
    }
}

async fn make(plan: &Arc<Plan>, sources: &Sources) -> Result<(PathBuf, Contents)> {
    let (plan, store, keys) = (Arc::clone(plan), Arc::clone(&sources.store), sources.keys.clone());
    tokio::task::spawn_blocking(move || {
        plan.make_folder()?;
        tidy(&plan.folder);
        let path = plan.file(Timestamp::now());
        let contents = backup::make(&path, plan.with_keys.then_some(keys.as_path()), |out| {
            let mut file = fs::File::create_new(out).context("write the store's backup")?;
            store(&mut file).context("write the store's backup")
        })?;
        for old in kept(&plan.folder)?.into_iter().skip(plan.keep) {
            fs::remove_file(&old.path).with_context(|| format!("remove {}", old.path.display()))?;
        }
        Ok((path, contents))
    })
    .await
    .context("make the backup")?
}

/// Removes what a backup that was cut off left in the folder.
fn tidy(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(backup::UNFINISHED));
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = age.and_then(|changed| SystemTime::now().duration_since(changed).ok()).unwrap_or_default();
        if !ours || age < ABANDONED {
            continue;
        }
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
            _ => fs::remove_file(entry.path()),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove what an earlier backup left");
        }
    }
}

/// An event about the namespace of the cluster's own things: backups are of no object.
async fn tell(client: &Client, events: &EventRecorder, message: &str) {
    match client.get::<Namespace>(None, "kube-system").await {
        Ok(namespace) => events.event(reference(&namespace), EventType::Warning, FAILED, message),
        Err(error) => tracing::warn!(%error, "cannot tell of a backup that failed"),
    }
}

/// The plan of the settings, for a store whose backups are ours to make.
pub fn plan(settings: &BackupSettings, store: Option<&BackupSource>) -> Result<Option<Plan>> {
    let plan = settings.plan()?;
    if plan.is_some() && store.is_none() {
        bail!(
            "backups.folder is set, but the state is in etcd, which makes its own backups: take the section out, and \
             use `etcdctl snapshot save`"
        );
    }
    Ok(plan)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plan(folder: &Path, schedule: &str, zone: &str) -> Plan {
        let settings = BackupSettings {
            folder: Some(folder.to_path_buf()),
            schedule: schedule.to_owned(),
            time_zone: zone.to_owned(),
            ..BackupSettings::default()
        };
        settings.plan().unwrap().unwrap()
    }

    #[test]
    fn one_is_due_at_once_or_when_the_schedule_says() {
        let plan = plan(Path::new("/b"), "30 3 * * *", "Europe/Berlin");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-07-10T12:00:00Z");
        assert_eq!(plan.due(None, now), Some(now));
        assert_eq!(plan.due(Some(at("2026-07-10T01:30:00Z")), now), Some(at("2026-07-11T01:30:00Z")));
        // Missed while nothing ran.
        assert!(plan.due(Some(at("2026-07-08T01:30:00Z")), now).unwrap() < now);
        // From a time that the clock has yet to reach.
        assert_eq!(plan.due(Some(at("2030-01-01T00:00:00Z")), now), Some(at("2026-07-11T01:30:00Z")));
    }

    #[test]
    fn names_tell_when_and_mistakes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path(), "@every 1h", "UTC");
        let now = "2026-07-10T12:00:05Z".parse::<Timestamp>().unwrap();
        let file = plan.file(now);
        assert_eq!(file.file_name().unwrap(), "dhow-20260710T120005Z.backup");
        for name in ["dhow-20260710T120005Z.backup", "dhow-20260711T120005Z.backup", "dhow-x.backup", "other"] {
            fs::write(folder.path().join(name), "1234").unwrap();
        }
        let kept = kept(folder.path()).unwrap();
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[1], Kept { path: file, made: now, bytes: 4 });
        let wrong = |change: fn(&mut BackupSettings)| {
            let mut settings = BackupSettings { folder: Some("/b".into()), ..BackupSettings::default() };
            change(&mut settings);
            settings.plan().unwrap_err().to_string()
        };
        assert!(wrong(|settings| settings.schedule = "61 * * * *".into()).contains("backups.schedule"));
        assert!(wrong(|settings| settings.schedule = "0 0 30 2 *".into()).contains("never comes"));
        assert!(wrong(|settings| settings.time_zone = "Mars/Base".into()).contains("backups.timeZone"));
        assert!(wrong(|settings| settings.keep = 0).contains("backups.keep"));
        assert!(wrong(|settings| settings.folder = Some("here".into())).contains("absolute"));
        assert!(super::plan(&BackupSettings { folder: Some("/b".into()), ..Default::default() }, None).is_err());
    }
}
