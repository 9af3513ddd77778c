//! How often repositories are pulled from and pushed to, by day.
//!
//! Counted in memory and added to the records once a minute: what a server that is killed counted last is lost, and it is
//! figures only.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::projects::project_of;
use crate::{Inner, Registry, Result};

const FLUSH: Duration = Duration::from_secs(60);
/// Days that are kept of a repository.
const DAYS: usize = 90;

/// Pulls and pushes of a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// Images that were asked for, each platform's once; a client that has it does not ask.
    pub pulls: u64,
    /// Tags that were set.
    pub pushes: u64,
}

/// By day, as `2030-01-31`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Days(pub BTreeMap<String, Count>);

impl Days {
    /// Adds to a day; the oldest ones make room.
    pub fn add(&mut self, day: &str, count: Count) {
        let of_day = self.0.entry(day.to_owned()).or_default();
        of_day.pulls = of_day.pulls.saturating_add(count.pulls);
        of_day.pushes = of_day.pushes.saturating_add(count.pushes);
        while self.0.len() > DAYS {
            self.0.pop_first();
        }
    }
}

/// What was not added to the records yet.
#[derive(Default)]
pub struct Usage(Mutex<HashMap<String, Days>>);

fn today() -> String {
    Timestamp::now().to_zoned(TimeZone::UTC).date().to_string()
}

impl Usage {
    fn count(&self, repository: &str, count: Count) {
        let mut waiting = self.0.lock();
        // Found far more often than made.
        match waiting.get_mut(repository) {
            Some(days) => days.add(&today(), count),
            None => {
                let mut days = Days::default();
                days.add(&today(), count);
                waiting.insert(repository.to_owned(), days);
            }
        }
    }
}

impl Inner {
    pub fn count_pull(&self, repository: &str) {
        self.usage.count(repository, Count { pulls: 1, pushes: 0 });
        self.metrics.pulls.with(&[project_of(repository)]).inc();
    }

    pub fn count_push(&self, repository: &str, tags: usize) {
        self.usage.count(repository, Count { pulls: 0, pushes: tags as u64 });
        self.metrics.pushes.with(&[project_of(repository)]).add(tags as u64);
    }

    /// What is known of a repository, this server's last minute included.
    pub async fn usage_of(&self, repository: &str) -> Result<Days> {
        let mut days = self.catalog.used(repository).await?;
        let waiting = self.usage.0.lock().get(repository).cloned().unwrap_or_default();
        waiting.0.iter().for_each(|(day, count)| days.add(day, *count));
        Ok(days)
    }

    pub(crate) async fn flush_usage(&self) -> Result<()> {
        let waiting = std::mem::take(&mut *self.usage.0.lock());
        let mut failed = Ok(());
        for (repository, days) in waiting {
            if let Err(error) = self.catalog.add_use(&repository, &days).await {
                // Added to what came meanwhile.
                let mut all = self.usage.0.lock();
                let known = all.entry(repository).or_default();
                days.0.iter().for_each(|(day, count)| known.add(day, *count));
                failed = Err(error);
            }
        }
        failed
    }
}

impl Registry {
    /// Writes down how much the registry is used until `shutdown`, and then once more.
    pub async fn keep_usage(self, shutdown: CancellationToken) {
        loop {
            let ends = tokio::select! { () = tokio::time::sleep(FLUSH) => false, () = shutdown.cancelled() => true };
            if let Err(error) = self.0.flush_usage().await {
                tracing::warn!(%error, "write down how much the registry is used");
            }
            if ends {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_bounded() {
        let mut days = Days::default();
        for day in 0..200 {
            days.add(&format!("2030-{day:03}"), Count { pulls: 1, pushes: 2 });
        }
        days.add("2030-199", Count { pulls: 1, pushes: 0 });
        assert_eq!(days.0.len(), DAYS);
        assert_eq!(days.0.get("2030-199"), Some(&Count { pulls: 2, pushes: 2 }));
        assert!(!days.0.contains_key("2030-109"));
    }
}
