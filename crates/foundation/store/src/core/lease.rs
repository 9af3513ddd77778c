//! When leases end: one thread per store, asleep until the earliest deadline.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::{Error, LeaseId};

/// Positive, and unlikely to repeat over restarts.
pub(crate) fn next_id() -> LeaseId {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let now = (now & (i64::MAX as u128)) as i64;
    let step = |last: i64| if now > last { now } else { last.wrapping_add(1).max(1) };
    LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(step(last))).map_or(now, step)
}

/// Deadlines live only in memory: after a restart every lease has its full time again, as in etcd.
pub(crate) struct Expiry {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    leases: HashMap<LeaseId, (Duration, Instant)>,
    order: BTreeSet<(Instant, LeaseId)>,
    running: bool,
    closed: bool,
}

impl State {
    fn set(&mut self, id: LeaseId, ttl: Duration) {
        self.remove(id);
        let deadline = Instant::now() + ttl;
        self.leases.insert(id, (ttl, deadline));
        self.order.insert((deadline, id));
    }

    fn remove(&mut self, id: LeaseId) -> Option<Duration> {
        let (ttl, deadline) = self.leases.remove(&id)?;
        self.order.remove(&(deadline, id));
        Some(ttl)
    }
}

impl Expiry {
    pub fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Starts the clock of a lease. `revoke` is called from the expiry thread, once per lease that ran out; only the
    /// first caller's is used.
    pub fn add(&self, id: LeaseId, ttl: u64, revoke: impl FnMut(LeaseId) + Send + 'static) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        state.set(id, Duration::from_secs(ttl.clamp(1, 10 * 365 * 24 * 3600)));
        if !state.running {
            state.running = true;
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new()
                .name("lease-expiry".to_owned())
                .spawn(move || run(&shared, revoke))
                .map_err(|e| Error::Backend { context: "start the lease thread".to_owned(), source: e.into() })?;
        }
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    pub fn keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        let ttl = state.remove(id).ok_or(Error::LeaseNotFound(id))?;
        state.set(id, ttl);
        Ok(())
    }

    pub fn remove(&self, id: LeaseId) {
        self.shared.state.lock().remove(id);
    }
}

impl Drop for Expiry {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

fn run(shared: &Shared, mut revoke: impl FnMut(LeaseId)) {
    let mut state = shared.state.lock();
    while !state.closed {
        match state.order.first().copied() {
            None => shared.wake.wait(&mut state),
            Some((deadline, id)) if deadline <= Instant::now() => {
                state.remove(id);
                parking_lot::MutexGuard::unlocked(&mut state, || revoke(id));
            }
            Some((deadline, _)) => {
                shared.wake.wait_until(&mut state, deadline);
            }
        }
    }
}
