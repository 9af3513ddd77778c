//! What clients may take of the server before it knows who they are, and between requests: time, and connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::Body;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::held::Held;

/// How long clients may take, and how many of those who have proven nothing may be connected.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// Until the head of the first request is there, and over HTTP/1 that of each later one; as upstream.
    pub head: Duration,
    /// Without any request; as upstream.
    pub idle: Duration,
    /// Between two pieces of a request's body.
    pub pause: Duration,
    /// For a request's body, from first to last; as upstream gives a request.
    pub body: Duration,
    /// Connections whose clients have not proven who they are: altogether, and of one address.
    pub newcomers: usize,
    pub newcomers_each: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(32),
            idle: Duration::from_secs(90),
            pause: Duration::from_secs(20),
            body: Duration::from_secs(60),
            newcomers: 2000,
            newcomers_each: 200,
        }
    }
}

/// Counts the connections whose clients have not proven who they are.
#[derive(Default)]
pub struct Door {
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one such connection; freed by proof, or with the connection.
#[derive(Clone)]
pub struct Newcomer(Arc<Mutex<Option<Place>>>);

struct Place {
    door: Arc<Door>,
    from: IpAddr,
}

impl Door {
    /// `None` if there is no place left.
    pub fn enter(self: &Arc<Self>, from: IpAddr, limits: &Limits) -> Option<Newcomer> {
        let mut waiting = self.waiting.lock();
        let all: usize = waiting.values().sum();
        let own = waiting.get(&from).copied().unwrap_or(0);
        if all >= limits.newcomers || own >= limits.newcomers_each {
            return None;
        }
        waiting.insert(from, own + 1);
        Some(Newcomer(Arc::new(Mutex::new(Some(Place { door: self.clone(), from })))))
    }
}

impl Newcomer {
    /// It is known who it is.
    pub fn proven(&self) {
        self.0.lock().take();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.door.waiting.lock();
        if let Some(own) = waiting.get_mut(&self.from) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.from);
            }
        }
    }
}

/// Whether a connection has requests, and since when it has none.
pub struct Activity(Mutex<State>);

struct State {
    running: usize,
    /// No request has come yet.
    fresh: bool,
    quiet_since: Instant,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { running: 0, fresh: true, quiet_since: Instant::now() })))
    }

    /// A request begins; it ends when its answer has been written or dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        let mut state = self.0.lock();
        (state.running, state.fresh) = (state.running + 1, false);
        Busy(self.clone())
    }

    /// When to look again whether the connection is in use; `None` if it has not been for too long.
    pub fn look_again(&self, limits: &Limits, now: Instant) -> Option<Instant> {
        let state = self.0.lock();
        if state.running > 0 {
            return Some(now + limits.idle);
        }
        let end = state.quiet_since + if state.fresh { limits.head } else { limits.idle };
        (end > now).then_some(end)
    }
}

pub struct Busy(Arc<Activity>);

impl Busy {
    /// Lasts as long as the answer.
    pub fn hold(self, body: Body) -> Held<Self> {
        Held::new(body, self)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.running -= 1;
        state.quiet_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn newcomers_take_turns() {
        let limits = Limits { newcomers: 3, newcomers_each: 2, ..Limits::default() };
        let door = Arc::new(Door::default());
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let first = door.enter(one, &limits).unwrap();
        let _second = door.enter(one, &limits).unwrap();
        assert!(door.enter(one, &limits).is_none());
        let third = door.enter(two, &limits).unwrap();
        assert!(door.enter(two, &limits).is_none());
        // Proof frees a place once, however often it is given.
        (0..2).for_each(|_| third.proven());
        let _fourth = door.enter(two, &limits).unwrap();
        assert!(door.enter(two, &limits).is_none());
        drop(first);
        assert!(door.enter(one, &limits).is_some());
    }

    #[test]
    fn a_quiet_connection_is_not_in_use() {
        let limits = Limits::default();
        let (activity, second) = (Activity::new(), Duration::from_secs(1));
        let begun = Instant::now();
        // The first request is waited for less long.
        assert!(activity.look_again(&limits, begun).is_some_and(|again| again <= begun + limits.head));
        assert!(activity.look_again(&limits, begun + limits.head).is_none());
        let busy = activity.begin();
        assert!(activity.look_again(&limits, begun + 2 * limits.idle).is_some());
        drop(busy);
        let ended = Instant::now();
        assert!(
            activity
                .look_again(&limits, ended + limits.idle - second)
                .is_some_and(|again| again <= ended + limits.idle)
        );
        assert!(activity.look_again(&limits, ended + limits.idle).is_none());
    }
}
