//! Response-rate limiting: a forged source address gains its victim few packets of ours, and small ones.

use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;

const BUCKETS: usize = 4096;
/// One suppressed reply in so many is sent as "come by TCP", so that a real client behind the address is not cut off.
const SLIP: u32 = 2;

/// What to do with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Send,
    Cut,
    Drop,
}

pub struct Limiter {
    per_second: u32,
    trusted: Vec<(IpAddr, u8)>,
    start: Instant,
    buckets: Mutex<Box<[Bucket]>>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    network: u64,
    second: u32,
    sent: u32,
}

impl Limiter {
    pub fn new(per_second: u32, trusted: Vec<(IpAddr, u8)>, now: Instant) -> Self {
        Self { per_second, trusted, start: now, buckets: Mutex::new(vec![Bucket::default(); BUCKETS].into()) }
    }

    pub fn judge(&self, peer: IpAddr, now: Instant) -> Verdict {
        if self.trusted.iter().any(|trusted| contains(*trusted, peer)) {
            return Verdict::Send;
        }
        let network = network(peer);
        let second = u32::try_from(now.saturating_duration_since(self.start).as_secs()).unwrap_or(u32::MAX);
        let mut buckets = self.buckets.lock();
        let index = usize::try_from(network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52).unwrap_or(0) % BUCKETS;
        let bucket = &mut buckets[index];
        // Two networks that share a bucket take turns; the limit is then laxer, never stricter.
        if bucket.second != second || bucket.network != network {
            *bucket = Bucket { network, second, sent: 0 };
        }
        bucket.sent = bucket.sent.saturating_add(1);
        match bucket.sent.checked_sub(self.per_second) {
            None | Some(0) => Verdict::Send,
            Some(over) if over % SLIP == 0 => Verdict::Cut,
            Some(_) => Verdict::Drop,
        }
    }
}

fn contains((network, prefix): (IpAddr, u8), peer: IpAddr) -> bool {
    match (network, peer) {
        (IpAddr::V4(network), IpAddr::V4(peer)) => {
            (network.to_bits() ^ peer.to_bits()).leading_zeros() >= u32::from(prefix.min(32))
        }
        (IpAddr::V6(network), IpAddr::V6(peer)) => {
            (network.to_bits() ^ peer.to_bits()).leading_zeros() >= u32::from(prefix.min(128))
        }
        _ => false,
    }
}

/// A /24 or /56: what one attacker's victim has.
fn network(peer: IpAddr) -> u64 {
    match peer.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => u64::try_from(ip.to_bits() >> 72).unwrap_or(0) | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_network_gets_so_many_a_second() {
        let start = Instant::now();
        let limiter = Limiter::new(3, vec![(IpAddr::from([10, 42, 0, 0]), 16)], start);
        let judge = |last: u8, at: u64| limiter.judge(IpAddr::from([192, 0, 2, last]), start + Duration::from_secs(at));
        let verdicts: Vec<Verdict> = (0..7).map(|last| judge(last, 0)).collect();
        use Verdict::{Cut, Drop, Send};
        assert_eq!(verdicts, [Send, Send, Send, Drop, Cut, Drop, Cut]);
        assert_eq!(limiter.judge(IpAddr::from([198, 51, 100, 1]), start), Send);
        assert_eq!(judge(1, 1), Send);
        assert!((0..20).all(|_| limiter.judge(IpAddr::from([10, 42, 7, 1]), start) == Send));
        assert_ne!((0..20).map(|_| limiter.judge(IpAddr::from([10, 43, 7, 1]), start)).last(), Some(Send));
    }
}
