//! Who runs and who waits: seats per priority level, queues with shuffle sharding, fair between queues.
//!
//! A level runs up to its nominal number of requests at any time, and more while other levels have seats to lend that
//! they do not use. A lender that needs its seats takes them at once, so for as long as borrowed requests run, a few
//! more than the server's total may be running.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use tokio::sync::oneshot;

/// What a request is taken to cost, in seconds of a seat, until it is known.
const ESTIMATE: f64 = 0.1;
/// What it costs at least, so that turns are taken among those whose requests take no time.
const LEAST: f64 = 0.001;

/// A level's share, in seats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub nominal: usize,
    /// How many of them others may have.
    pub lendable: usize,
    /// How many of others it may have.
    pub borrowing: usize,
    pub queuing: Option<Queuing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    pub hand: usize,
    pub length: usize,
}

/// A seat that was given: at which level, from which queue, since when.
#[derive(Debug)]
pub struct Grant {
    pub level: String,
    queue: usize,
    since: Instant,
}

/// Somebody who waits, to be told of the grant.
pub type Waiter = oneshot::Sender<Grant>;

/// What becomes of a request that wants a seat.
pub enum Answer {
    Granted(Grant),
    Waiting(oneshot::Receiver<Grant>),
    /// There is neither a seat nor a place to wait; the reason is in upstream's words.
    Refused(&'static str),
}

#[derive(Default)]
pub struct Seats {
    levels: HashMap<String, Level>,
}

struct Level {
    limits: Limits,
    running: usize,
    queues: Vec<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    /// Seconds of seats it has had, as far as that counts: a queue that was empty has no claim on the past.
    used: f64,
    running: usize,
}

impl Seats {
    /// Sets the levels' limits. What runs or waits at a level that is gone stays until it is done.
    pub fn configure(&mut self, limits: &HashMap<String, Limits>) {
        self.levels.retain(|name, level| limits.contains_key(name) || level.running + level.waiting() > 0);
        for (name, limits) in limits {
            let level = self.levels.entry(name.clone()).or_insert_with(|| Level::new(*limits));
            level.limits = *limits;
            let queues = limits.queuing.map_or(1, |queuing| queuing.queues.max(1));
            // Queues are only ever added to a level in use: those at the end empty themselves.
            if queues > level.queues.len() || level.running + level.waiting() == 0 {
                level.queues.resize_with(queues, Queue::default);
            }
        }
    }

    /// A seat for a flow, now or later. `flow` is its hash.
    pub fn ask(&mut self, name: &str, flow: u64) -> Answer {
        let may_run = self.may_run(name);
        let Some(level) = self.levels.get_mut(name) else { return Answer::Refused("no-such-level") };
        let Some(queuing) = level.limits.queuing else {
            return if may_run { Answer::Granted(level.grant(name, 0)) } else { Answer::Refused("concurrency-limit") };
        };
        let deck = queuing.queues.clamp(1, level.queues.len());
        let hand = deal(flow, deck, queuing.hand);
        let shortest = hand.into_iter().min_by_key(|queue| {
            let queue = &level.queues[*queue];
            (queue.waiting.len(), queue.running)
        });
        let Some(chosen) = shortest else { return Answer::Refused("queue-full") };
        if may_run && level.waiting() == 0 {
            level.join(chosen);
            return Answer::Granted(level.grant(name, chosen));
        }
        let queue = &mut level.queues[chosen];
        if queue.waiting.len() >= queuing.length {
            // Those who gave up do not count.
            queue.waiting.retain(|waiter| !waiter.is_closed());
            if queue.waiting.len() >= queuing.length {
                return Answer::Refused("queue-full");
            }
        }
        let (tell, told) = oneshot::channel();
        level.join(chosen);
        level.queues[chosen].waiting.push_back(tell);
        Answer::Waiting(told)
    }

    /// Gives a seat back; returns whom to tell of theirs.
    pub fn release(&mut self, grant: &Grant) -> Vec<(Waiter, Grant)> {
        if let Some(level) = self.levels.get_mut(&grant.level) {
            level.running = level.running.saturating_sub(1);
            if let Some(queue) = level.queues.get_mut(grant.queue) {
                queue.running = queue.running.saturating_sub(1);
                queue.used += grant.since.elapsed().as_secs_f64().max(LEAST) - ESTIMATE;
            }
        }
        let mut names: Vec<String> =
            self.levels.iter().filter(|(_, level)| level.waiting() > 0).map(|(name, _)| name.clone()).collect();
        // Its own first; then those who may borrow what became free.
        names.sort_by_key(|name| *name != grant.level);
        let mut told = Vec::new();
        for name in names {
            while self.may_run(&name)
                && let Some(next) = self.levels.get_mut(&name).and_then(|level| level.next(&name))
            {
                told.push(next);
            }
        }
        told
    }

    /// How many run and how many wait at a level.
    pub fn counts(&self, name: &str) -> (usize, usize) {
        self.levels.get(name).map_or((0, 0), |level| (level.running, level.waiting()))
    }

    fn may_run(&self, name: &str) -> bool {
        let Some(level) = self.levels.get(name) else { return false };
        if level.running < level.limits.nominal {
            return true;
        }
        let over = |level: &Level| level.running.saturating_sub(level.limits.nominal);
        if over(level) >= level.limits.borrowing {
            return false;
        }
        let lent: usize = self.levels.values().map(over).sum();
        let unused = |level: &Level| level.limits.nominal.saturating_sub(level.running).min(level.limits.lendable);
        self.levels.values().map(unused).sum::<usize>() > lent
    }
}

impl Level {
    fn new(limits: Limits) -> Self {
        Self { limits, running: 0, queues: Vec::new() }
    }

    fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.waiting.len()).sum()
    }

    /// A queue that was idle starts beside the one that has had least, not with credit for its idle time.
    fn join(&mut self, chosen: usize) {
        let idle = |queue: &Queue| queue.waiting.is_empty() && queue.running == 0;
        if !self.queues.get(chosen).is_some_and(idle) {
            return;
        }
        let settled = |queue: &Queue| queue.used - ESTIMATE * queue.running as f64;
        let active = self.queues.iter().filter(|queue| !idle(queue)).map(settled);
        let least = active.fold(f64::INFINITY, f64::min);
        self.queues[chosen].used = if least.is_finite() { least } else { 0.0 };
    }

    fn grant(&mut self, name: &str, queue: usize) -> Grant {
        self.running += 1;
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.running += 1;
            queue.used += ESTIMATE;
        }
        Grant { level: name.to_owned(), queue, since: Instant::now() }
    }

    /// The first in the queue that has had least.
    fn next(&mut self, name: &str) -> Option<(Waiter, Grant)> {
        loop {
            let waiting = self.queues.iter().enumerate().filter(|(_, queue)| !queue.waiting.is_empty());
            let (chosen, _) = waiting.min_by(|(_, a), (_, b)| a.used.total_cmp(&b.used))?;
            let waiter = self.queues[chosen].waiting.pop_front()?;
            if !waiter.is_closed() {
                return Some((waiter, self.grant(name, chosen)));
            }
        }
    }
}

/// A hand of `size` different queues out of `deck`, dealt by a flow's hash: two flows rarely share all of theirs.
fn deal(mut hash: u64, deck: usize, size: usize) -> Vec<usize> {
    let mut rest: Vec<usize> = (0..deck).collect();
    (0..size.min(deck))
        .map(|_| {
            let left = rest.len() as u64;
            let card = (hash % left) as usize;
            hash /= left;
            rest.swap_remove(card)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUING: Option<Queuing> = Some(Queuing { queues: 16, hand: 4, length: 3 });

    fn seats(levels: &[(&str, usize, usize, usize)]) -> Seats {
        let limits = levels.iter().map(|(name, nominal, lendable, borrowing)| {
            let limits = Limits { nominal: *nominal, lendable: *lendable, borrowing: *borrowing, queuing: QUEUING };
            ((*name).to_owned(), limits)
        });
        let mut seats = Seats::default();
        seats.configure(&limits.collect());
        seats
    }

    fn granted(answer: Answer) -> Option<Grant> {
        match answer {
            Answer::Granted(grant) => Some(grant),
            _ => None,
        }
    }

    #[test]
    fn a_hand_has_no_card_twice() {
        for hash in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let mut hand = deal(hash, 64, 6);
            hand.sort_unstable();
            hand.dedup();
            assert_eq!(hand.len(), 6);
        }
        assert_eq!(deal(7, 2, 6).len(), 2);
    }

    #[test]
    fn unused_seats_are_lent_and_taken_back() {
        let mut seats = seats(&[("a", 4, 2, 0), ("b", 2, 0, 10)]);
        let held: Vec<Grant> = (0..4).map_while(|flow| granted(seats.ask("b", flow))).collect();
        assert_eq!(held.len(), 4, "two of its own and two borrowed");
        let waiting = seats.ask("b", 9);
        assert!(matches!(waiting, Answer::Waiting(_)));
        let own: Vec<Grant> = (0..4).map_while(|flow| granted(seats.ask("a", flow))).collect();
        assert_eq!(own.len(), 4, "a lender has its own seats at once");
        // A borrowed seat that comes back is not given to the borrower again.
        assert!(seats.release(&held[0]).is_empty());
        assert!(seats.release(&held[1]).is_empty());
        assert_eq!(seats.release(&held[2]).len(), 1);
    }

    #[test]
    fn a_flood_waits_behind_itself() {
        let mut seats = seats(&[("a", 1, 0, 0)]);
        let first = granted(seats.ask("a", 1)).into_iter().next();
        let mut flood = Vec::new();
        let refused = loop {
            match seats.ask("a", 1) {
                Answer::Waiting(told) => flood.push(told),
                Answer::Refused(why) => break why,
                Answer::Granted(_) => return assert!(first.is_none()),
            }
        };
        assert_eq!((refused, flood.len()), ("queue-full", 12), "four queues of three");
        let Answer::Waiting(mut other) = seats.ask("a", 0xfedc_ba98_7654_3210) else {
            return assert!(first.is_none(), "another flow finds a place");
        };
        // It comes next but for the few queues of the flood that have had as little.
        let mut turn = first;
        let mut turns = 0;
        while let Some(grant) = turn.take() {
            turns += 1;
            for (waiter, grant) in seats.release(&grant) {
                let _ = waiter.send(grant);
            }
            if other.try_recv().is_ok() {
                break;
            }
            turn = flood.iter_mut().find_map(|told| told.try_recv().ok());
        }
        assert!(turns <= 5, "{turns}");
    }

    #[test]
    fn who_gave_up_holds_no_place() {
        let mut seats = seats(&[("a", 1, 0, 0)]);
        let Some(grant) = granted(seats.ask("a", 1)) else { return assert!(seats.levels.is_empty()) };
        for _ in 0..100 {
            assert!(matches!(seats.ask("a", 1), Answer::Waiting(_)));
        }
        assert!(seats.release(&grant).is_empty());
        assert_eq!(seats.counts("a"), (0, 0));
    }
}
