//! Making room: which images go, when, and what no image needs any more.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::content::STALE_PART;
use crate::error::At;
use crate::index::{Record, now};
use crate::store::{ImageStore, blocking};
use crate::{Error, Result};

/// Between two looks at the disk: others fill it, too, and nothing tells when.
const LOOK: Duration = Duration::from_secs(5 * 60);

/// `images:` in the configuration; the thresholds are kubelet's. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GcConfig {
    /// Percent of the file system in use at which unused images are removed; 100 never.
    pub gc_high_threshold_percent: u8,
    /// How far down.
    pub gc_low_threshold_percent: u8,
    /// Seconds an image has to be unused before it may go.
    pub minimum_gc_age_seconds: u64,
    /// Seconds after which an unused image goes, full disk or not; 0 never.
    pub maximum_gc_age_seconds: u64,
}

impl Default for GcConfig {
    fn default() -> Self {
        GcConfig {
            gc_high_threshold_percent: 85,
            gc_low_threshold_percent: 80,
            minimum_gc_age_seconds: 120,
            maximum_gc_age_seconds: 0,
        }
    }
}

impl GcConfig {
    pub fn check(&self) -> Result<()> {
        if self.gc_high_threshold_percent > 100 || self.gc_low_threshold_percent >= self.gc_high_threshold_percent {
            let message = "images.gcLowThresholdPercent must be below gcHighThresholdPercent, which is at most 100";
            return Err(Error::Config(message.to_owned()));
        }
        if self.maximum_gc_age_seconds != 0 && self.maximum_gc_age_seconds < self.minimum_gc_age_seconds {
            let message = "images.maximumGcAgeSeconds must not be below minimumGcAgeSeconds";
            return Err(Error::Config(message.to_owned()));
        }
        Ok(())
    }

    /// Bytes to free on a file system of `capacity` of which `available` are left; `None` below the high threshold.
    fn wanted(&self, capacity: u64, available: u64) -> Option<u64> {
        let used = capacity.saturating_sub(available);
        let part = |percent: u8| u64::try_from(u128::from(capacity) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        let full = self.gc_high_threshold_percent < 100 && capacity > 0 && used >= part(self.gc_high_threshold_percent);
        full.then(|| used.saturating_sub(part(self.gc_low_threshold_percent)))
    }
}

/// The file system the store is on, in bytes and inodes, and what the store takes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FsUsage {
    pub capacity_bytes: u64,
    /// What an unprivileged process could still write.
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub inodes_used: u64,
}

/// What a collection took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    pub images: Vec<String>,
    pub freed_bytes: u64,
}

impl ImageStore {
    /// Blocks while it looks at layers it has not measured yet.
    pub fn fs_usage(&self) -> Result<FsUsage> {
        let root = &self.inner.root;
        let fs = rustix::fs::statvfs(root).at("look at the file system of", root)?;
        let (blob_bytes, blobs) = self.inner.content.usage()?;
        let layers = self.inner.snapshots.usage()?;
        Ok(FsUsage {
            capacity_bytes: fs.f_blocks * fs.f_frsize,
            available_bytes: fs.f_bavail * fs.f_frsize,
            used_bytes: blob_bytes + layers.bytes,
            inodes: fs.f_files,
            inodes_free: fs.f_ffree,
            inodes_used: blobs + layers.inodes,
        })
    }

    /// Frees at least `want_bytes` if it can: first what no image needs, then what builds left, then images that nobody holds, unused for
    /// `minimum_age`, least recently used first. What a pull, import or container uses stays. Blocks.
    pub fn collect_garbage(&self, want_bytes: u64, minimum_age: Duration) -> Result<Collected> {
        self.collect_where(want_bytes, minimum_age, |_| true)
    }

    /// Removes images without a name, or with `all` every image that no container uses; and what no image needs. Blocks.
    pub fn prune(&self, all: bool) -> Result<Collected> {
        self.collect_where(u64::MAX, Duration::ZERO, |record| all || record.references.is_empty())
    }

    fn collect_where(
        &self,
        want_bytes: u64,
        minimum_age: Duration,
        may_go: impl Fn(&Record) -> bool,
    ) -> Result<Collected> {
        let content = &self.inner.content;
        let patience = if want_bytes > 0 { Duration::ZERO } else { STALE_PART };
        let mut freed_bytes = content.sweep_ingest(false, patience)? + self.collect(self.inner.index.lock())?;
        if freed_bytes < want_bytes {
            freed_bytes += self.trim_kept(0)?;
        }
        let mut images = Vec::new();
        while freed_bytes < want_bytes {
            let mut index = self.inner.index.lock();
            let oldest = index
                .images()
                .filter(|r| r.holds.is_empty() && unused_for(r) >= minimum_age && may_go(r))
                .filter(|r| !content.pinned(&r.manifest.digest) && !content.pinned(&r.id))
                .min_by_key(|r| (r.used.max(r.added), r.id.clone()));
            let Some(record) = oldest.cloned() else { break };
            index.forget(&record.id);
            freed_bytes += self.save_and_collect(index)?;
            tracing::info!(image = %record.id, names = ?record.references, "removed unused image");
            images.push(record.references.first().cloned().unwrap_or_else(|| record.id.to_string()));
        }
        Ok(Collected { images, freed_bytes })
    }

    /// Keeps the file system below the thresholds until `shutdown`: looks after every pull and import, and every five
    /// minutes.
    pub async fn keep_room(self, config: GcConfig, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.inner.grown.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let (store, config) = (self.clone(), config.clone());
            if let Err(error) = blocking(move || store.make_room(&config)).await {
                tracing::warn!(error = error.chain(), "collect unused images");
            }
        }
    }

    fn make_room(&self, config: &GcConfig) -> Result<()> {
        let maximum = Duration::from_secs(config.maximum_gc_age_seconds);
        if !maximum.is_zero() {
            self.collect_where(u64::MAX, maximum, |_| true)?;
        }
        let root = &self.inner.root;
        let fs = rustix::fs::statvfs(root).at("look at the file system of", root)?;
        let minimum = Duration::from_secs(config.minimum_gc_age_seconds);
        let Some(want) = config.wanted(fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize) else {
            return self.collect_garbage(0, minimum).map(drop);
        };
        let freed = self.collect_garbage(want, minimum)?.freed_bytes;
        if freed < want {
            tracing::warn!(
                "Failed to garbage collect required amount of images. Attempted to free {want} bytes, but only found \
                 {freed} bytes eligible to free."
            );
        }
        Ok(())
    }
}

fn unused_for(record: &Record) -> Duration {
    Duration::from_secs(now().saturating_sub(record.used.max(record.added)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_kubelets() {
        let config = GcConfig::default();
        config.check().unwrap();
        assert_eq!(config.wanted(1000, 151), None);
        assert_eq!(config.wanted(1000, 150), Some(50));
        assert_eq!(config.wanted(1000, 0), Some(200));
        assert_eq!(config.wanted(0, 0), None);
        let off = GcConfig { gc_high_threshold_percent: 100, ..GcConfig::default() };
        assert_eq!(off.wanted(1000, 0), None);
        assert!(GcConfig { gc_low_threshold_percent: 85, ..GcConfig::default() }.check().is_err());
    }
}
