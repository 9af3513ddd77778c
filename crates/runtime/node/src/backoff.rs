//! Growing pauses between attempts at something that keeps failing: restarts of containers, pulls of images.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

const FIRST: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(300);
/// This long without trouble forgives what was before.
const FORGIVEN: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    updated: SystemTime,
}

/// Pauses by name: none before the first failure, then 10 s doubling to 5 min.
#[derive(Debug, Default)]
pub struct Backoff {
    entries: HashMap<String, Entry>,
}

impl Backoff {
    /// How long after a failure that happened at `failed` the next attempt has to wait.
    pub fn delay(&self, name: &str, failed: SystemTime) -> Duration {
        self.entries.get(name).filter(|entry| !forgiven(entry, failed)).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// When an attempt may be made that does not follow an event of its own but the last [`Backoff::grow`].
    pub fn until(&self, name: &str) -> Option<SystemTime> {
        self.entries.get(name).map(|entry| entry.updated + entry.delay)
    }

    /// Notes that an attempt is made, or failed, at `now`; what it follows happened at `failed`.
    pub fn grow(&mut self, name: &str, failed: SystemTime, now: SystemTime) {
        let delay = match self.entries.get(name).filter(|entry| !forgiven(entry, failed)) {
            Some(entry) => (entry.delay * 2).min(MAX),
            None => FIRST,
        };
        self.entries.insert(name.to_owned(), Entry { delay, updated: now });
    }

    pub fn forget(&mut self, name: &str) {
        self.entries.remove(name);
    }
}

fn forgiven(entry: &Entry, failed: SystemTime) -> bool {
    failed.duration_since(entry.updated).is_ok_and(|quiet| quiet > FORGIVEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_to_five_minutes_and_a_long_run_forgives() {
        let mut backoff = Backoff::default();
        let mut now = 1000;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let delay = backoff.delay("a", at(now)).as_secs();
            delays.push(delay);
            now += delay;
            backoff.grow("a", at(now), at(now));
            now += 1;
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.until("a"), Some(at(now - 1 + 300)));
        assert_eq!(backoff.delay("a", at(now + 600)), Duration::ZERO);
        backoff.grow("a", at(now + 600), at(now + 600));
        assert_eq!(backoff.delay("a", at(now + 601)), FIRST);
        assert_eq!(backoff.delay("b", at(now)), Duration::ZERO);
    }
}
