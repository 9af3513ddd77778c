//! When garbage is collected: once a day, and when a push finds the disk nearly full.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::catalog::{seconds, time};
use crate::{Registry, Result};

/// A sleeping machine's timers stand still, so the clock is looked at again at least this often.
const LOOK: Duration = Duration::from_secs(3600);
/// A disk that stays full is no reason to do nothing else.
const BETWEEN: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Keeping {
    /// Between collections, of all servers of the registry together.
    pub every: Duration,
    /// Where the blobs lie, and how full in percent that disk may be before a push wakes a collection.
    pub disk: Option<(PathBuf, u8)>,
}

impl Registry {
    /// Collects garbage until `shutdown`.
    pub async fn keep_collected(self, keeping: Keeping, shutdown: CancellationToken) {
        tokio::select! { () = self.0.access.ready() => {}, () = shutdown.cancelled() => return }
        let mut pressed: Option<tokio::time::Instant> = None;
        loop {
            let pause = match self.collect_if_due(keeping.every).await {
                Ok(left) => left.min(LOOK),
                Err(error) => {
                    tracing::warn!(%error, "collect the registry's garbage");
                    RETRY
                }
            };
            let wake = tokio::time::sleep(pause);
            tokio::pin!(wake);
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = &mut wake => break,
                    () = self.0.grown.notified() => {}
                }
                if pressed.is_some_and(|at| at.elapsed() < BETWEEN) || !is_nearly_full(&keeping).await {
                    continue;
                }
                pressed = Some(tokio::time::Instant::now());
                if let Err(error) = self.collect().await {
                    tracing::warn!(%error, "collect the registry's garbage for want of room");
                }
            }
        }
    }

    /// Collects if nobody did for so long. How long it is until the next time.
    async fn collect_if_due(&self, every: Duration) -> Result<Duration> {
        let now = SystemTime::now();
        let (last, revision) = self.0.catalog.last_collection().await?;
        let since = last.map(|last| now.duration_since(time(last)).unwrap_or_default());
        match since {
            Some(since) if since < every => return Ok(every - since),
            // A new registry has nothing to collect yet.
            None => {
                self.0.catalog.begin_collection(revision, seconds(now)).await?;
                return Ok(every);
            }
            Some(_) => {}
        }
        if self.0.catalog.begin_collection(revision, seconds(now)).await? {
            self.collect().await?;
        }
        Ok(every)
    }
}

async fn is_nearly_full(keeping: &Keeping) -> bool {
    let Some((folder, percent)) = keeping.disk.clone() else { return false };
    let look = move || {
        let fs = rustix::fs::statvfs(&folder).ok()?;
        let (all, free) = (u128::from(fs.f_blocks), u128::from(fs.f_bavail));
        Some(all > 0 && (all - free.min(all)) * 100 >= all * u128::from(percent))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten().unwrap_or(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use dhow_store::{MemoryBlob, MemoryKv};

    use super::*;
    use crate::{Config, Everyone};

    #[tokio::test]
    async fn one_of_all_servers_collects_when_it_is_time() {
        let kv = Arc::new(MemoryKv::new());
        let open = async || {
            let blobs = Arc::new(MemoryBlob::default());
            Registry::open(Config::default(), kv.clone(), blobs, Arc::new(Everyone::default())).await.unwrap()
        };
        let (one, other) = (open().await, open().await);
        let day = Duration::from_secs(86_400);
        assert_eq!(one.collect_if_due(day).await.unwrap(), day);
        assert!(other.collect_if_due(day).await.unwrap() <= day);
        let (_, revision) = one.0.catalog.last_collection().await.unwrap();
        assert!(one.0.catalog.begin_collection(revision, 5).await.unwrap());
        assert!(!one.0.catalog.begin_collection(revision, 6).await.unwrap());
        // Long ago: now it is.
        assert_eq!(other.collect_if_due(day).await.unwrap(), day);
        let (last, _) = one.0.catalog.last_collection().await.unwrap();
        assert!(last.unwrap() > 6);
    }

    #[tokio::test]
    async fn a_disk_is_full_by_its_measure() {
        let of = |percent| Keeping { every: Duration::ZERO, disk: Some((std::env::temp_dir(), percent)) };
        assert!(is_nearly_full(&of(0)).await);
        assert!(!is_nearly_full(&Keeping { disk: None, ..of(0) }).await);
    }
}
