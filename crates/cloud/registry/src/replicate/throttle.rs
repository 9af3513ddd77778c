//! How much goes over the wire in a second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Shared by all transfers of a replication. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Throttle(Option<(u64, std::sync::Arc<Mutex<Instant>>)>);

impl Throttle {
    /// Bytes in a second; `None`: as fast as it goes.
    pub fn new(bandwidth: Option<u64>) -> Self {
        Self(bandwidth.map(|bytes| (bytes.max(1), std::sync::Arc::new(Mutex::new(Instant::now())))))
    }

    /// Returns once so much more may go.
    pub async fn pass(&self, bytes: usize) {
        let Some((rate, free)) = &self.0 else { return };
        let turn = {
            let mut free = free.lock();
            let turn = (*free).max(Instant::now());
            *free = turn + Duration::from_secs_f64(bytes as f64 / *rate as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_much_in_a_second() {
        let throttle = Throttle::new(Some(1000));
        let begun = Instant::now();
        for _ in 0..5 {
            throttle.clone().pass(500).await;
        }
        assert_eq!(begun.elapsed().as_millis(), 2000);
        Throttle::new(None).pass(usize::MAX).await;
    }
}
