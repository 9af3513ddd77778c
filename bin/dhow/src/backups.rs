//! Scheduled backups: the `backups` section of the settings, and the part of the server that keeps it.
//!
//! Invariant: what counts is the folder or bucket. A backup that was due while nobody ran is made up for at the next start, and the
//! oldest one goes only after a new one is whole and durable.

use std::fmt;
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
use dhow_store::{Blob, S3Blob};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Timestamp, ToSpan};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::backup::{self, Contents};
use crate::backup_object;
use crate::s3_settings::S3Settings;

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
    /// Folder to write to, best on another disk; without it and `s3` no backups are made.
    pub folder: Option<PathBuf>,
    /// Bucket to write to, in the place of a folder.
    pub s3: Option<S3Settings>,
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
        let (schedule, time_zone) = ("30 3 * * *".to_owned(), "UTC".to_owned());
        Self { folder: None, s3: None, schedule, time_zone, keep: 7, with_keys: true }
    }
}

impl BackupSettings {
    /// The plan, `None` without a place; mistakes are found with or without one.
    pub fn plan(&self) -> Result<Option<Plan>> {
        let schedule = schedule::parse(&self.schedule).map_err(|error| anyhow!("backups.schedule: {error}"))?;
        let zone =
            TimeZone::get(&self.time_zone).map_err(|_| anyhow!("backups.timeZone: {:?} is unknown", self.time_zone))?;
        ensure!(schedule.next(Timestamp::now(), &zone).is_some(), "backups.schedule: that never comes");
        ensure!(self.keep > 0, "backups.keep: at least 1");
        let place = match (&self.folder, &self.s3) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => bail!("backups: one of folder and s3"),
            (Some(folder), None) => {
                ensure!(folder.is_absolute(), "backups.folder: an absolute path");
                Destination::Folder(folder.clone())
            }
            (None, Some(bucket)) => {
                bucket.check("backups.s3")?;
                Destination::Bucket(bucket.clone())
            }
        };
        Ok(Some(Plan { place, schedule, zone, keep: self.keep, with_keys: self.with_keys }))
    }
}

/// Settings that were checked.
#[derive(Debug, Clone)]
pub struct Plan {
    pub place: Destination,
    schedule: Schedule,
    zone: TimeZone,
    keep: usize,
    with_keys: bool,
}

/// Where scheduled backups are.
#[derive(Debug, Clone)]
pub enum Destination {
    Folder(PathBuf),
    Bucket(S3Settings),
}

/// One backup there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name in the folder or bucket.
    pub name: String,
    /// The same as commands take it.
    pub path: PathBuf,
    pub made: Timestamp,
    pub bytes: u64,
}

impl Destination {
    /// The backups that are there, the newest first; anything else is passed over. Before the first one there is no
    /// folder.
    pub async fn kept(&self) -> Result<Vec<Kept>> {
        match self {
            Self::Folder(folder) => {
                let folder = folder.clone();
                tokio::task::spawn_blocking(move || kept(&folder)).await.context("list the backups")?
            }
            Self::Bucket(settings) => kept_in(&settings.open("backups.s3")?).await,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(S3Settings { bucket, prefix, .. }) => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// What a backup of this moment is called.
pub fn name(now: Timestamp) -> String {
    format!("{PREFIX}{}{SUFFIX}", now.strftime(STAMP))
}

/// Makes the folder, for root only; one that is there stays as its owner has it.
pub fn make_folder(folder: &Path) -> Result<()> {
    match folder.is_dir() {
        true => Ok(()),
        false => Ok(files::create_private_dir(folder)?),
    }
}

impl Plan {
    /// When the next one is due: at once if there is none, or if the last one is older than the schedule wants.
    pub fn due(&self, newest: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        match newest {
            None => Some(now),
            // A clock that was put back must not keep backups from being made.
            Some(newest) => self.schedule.next(newest.min(now), &self.zone),
        }
    }
}

fn kept(folder: &Path) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let name = entry.file_name();
        let Some(made) = name.to_str().and_then(made) else { continue };
        let bytes = entry.metadata().with_context(|| format!("read {}", entry.path().display()))?.len();
        let name = name.to_string_lossy().into_owned();
        found.push(Kept { name, path: entry.path(), made, bytes });
    }
    found.sort_by_key(|kept| std::cmp::Reverse(kept.made));
    Ok(found)
}

/// The same in a bucket.
pub async fn kept_in(bucket: &S3Blob) -> Result<Vec<Kept>> {
    let told = |error: dhow_store::Error| anyhow!("{}", dhow_base::chain(&error));
    let mut found = Vec::new();
    let mut listed = bucket.list(PREFIX).await.map_err(told)?;
    while let Some(meta) = listed.try_next().await.map_err(told)? {
        let Some(made) = made(&meta.key) else { continue };
        found.push(Kept { path: bucket.url(&meta.key).into(), name: meta.key, made, bytes: meta.size });
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
    /// Where there is room for what goes to a bucket.
    pub scratch: PathBuf,
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
            last: gauge("dhow_backup_last_success_timestamp_seconds", "When the newest backup that is kept was made."),
            bytes: gauge("dhow_backup_last_bytes", "Size of the newest backup."),
            seconds: gauge("dhow_backup_last_duration_seconds", "How long the last backup took."),
            kept: gauge("dhow_backups_kept", "Backups that are kept."),
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
        // What cannot be listed cannot be written to either, which is told of.
        let kept = plan.place.kept().await.unwrap_or_default();
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
    match &plan.place {
        Destination::Folder(folder) => make_file(folder.clone(), Arc::clone(plan), sources).await,
        Destination::Bucket(bucket) => make_object(&bucket.open("backups.s3")?, plan, sources).await,
    }
}

fn write_store(source: &BackupSource, out: &Path) -> Result<()> {
    let mut file = fs::File::create_new(out).context("write the store's backup")?;
    source(&mut file).context("write the store's backup")
}

async fn make_object(bucket: &S3Blob, plan: &Plan, sources: &Sources) -> Result<(PathBuf, Contents)> {
    let told = |error: dhow_store::Error| anyhow!("{}", dhow_base::chain(&error));
    backup_object::tidy(bucket, ABANDONED).await.map_err(told)?;
    let (source, folder) = (Arc::clone(&sources.store), sources.scratch.clone());
    // Its size stands before it in the archive, so it is made first.
    let scratch = tokio::task::spawn_blocking(move || {
        tidy(&folder);
        let scratch = backup::folder_beside(&folder.join("backup"))?;
        write_store(&source, &scratch.path().join("store"))?;
        Ok::<_, anyhow::Error>(scratch)
    });
    let scratch = scratch.await.context("make the backup")??;
    let key = name(Timestamp::now());
    let keys = plan.with_keys.then(|| sources.keys.clone());
    let contents = backup_object::send(bucket, &key, scratch.path().join("store"), keys).await?;
    for old in kept_in(bucket).await?.into_iter().skip(plan.keep) {
        bucket.delete(&old.name).await.map_err(told)?;
    }
    Ok((bucket.url(&key).into(), contents))
}

async fn make_file(folder: PathBuf, plan: Arc<Plan>, sources: &Sources) -> Result<(PathBuf, Contents)> {
    let (store, keys) = (Arc::clone(&sources.store), sources.keys.clone());
    tokio::task::spawn_blocking(move || {
        make_folder(&folder)?;
        tidy(&folder);
        let path = folder.join(name(Timestamp::now()));
        let contents = backup::make(&path, plan.with_keys.then_some(keys.as_path()), |out| write_store(&store, out))?;
        for old in kept(&folder)?.into_iter().skip(plan.keep) {
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
            "backups are to be made, but the state is in etcd, which makes its own backups: take the section out, and \
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
        let now = "2026-07-10T12:00:05Z".parse::<Timestamp>().unwrap();
        let file = name(now);
        assert_eq!(file, "dhow-20260710T120005Z.backup");
        for name in ["dhow-20260710T120005Z.backup", "dhow-20260711T120005Z.backup", "dhow-x.backup", "other"] {
            fs::write(folder.path().join(name), "1234").unwrap();
        }
        let kept = kept(folder.path()).unwrap();
        assert_eq!(kept.len(), 2);
        let path = folder.path().join(&file);
        assert_eq!(kept[1], Kept { name: file, path, made: now, bytes: 4 });
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
        assert!(wrong(|settings| settings.s3 = Some(S3Settings::default())).contains("one of"));
        let wrong = |s3: S3Settings| {
            let settings = BackupSettings { s3: Some(s3), ..BackupSettings::default() };
            settings.plan().unwrap_err().to_string()
        };
        assert!(wrong(S3Settings::default()).contains("backups.s3: "));
        let bucket = S3Settings { bucket: "b".to_owned(), ..S3Settings::default() };
        assert!(wrong(S3Settings { endpoint: Some("here".to_owned()), ..bucket.clone() }).contains("https://"));
        assert!(wrong(S3Settings { ca_file: Some("here".into()), ..bucket }).contains("absolute"));
        assert!(super::plan(&BackupSettings { folder: Some("/b".into()), ..Default::default() }, None).is_err());
    }
}
