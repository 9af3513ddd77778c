//! DNS cookies (RFC 7873, in the form of RFC 9018): who has one of ours has its address proved.

use std::hash::Hasher;
use std::net::IpAddr;

use crate::{Error, Result, random};

const VERSION: [u8; 4] = [1, 0, 0, 0];
/// Seconds.
const LIFETIME: u32 = 3600;
const RENEWED_AFTER: u32 = 1800;
/// Clocks of servers that share a secret may differ.
const AHEAD: u32 = 300;

pub struct Cookies {
    secret: [u64; 2],
}

impl Cookies {
    pub fn new() -> Result<Self> {
        let bytes: [u8; 16] = random::bytes().map_err(Error::Random)?;
        let half = |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
        Ok(Self { secret: [half(0), half(8)] })
    }

    /// The whole cookie for the reply, and whether the one in the question is ours, given to this very client.
    pub fn reply(&self, client: &[u8; 8], server: &[u8], peer: IpAddr, now: u32) -> ([u8; 24], bool) {
        if let Some((head, hash)) = server.split_first_chunk::<8>()
            && let Some((version, time)) = head.split_first_chunk::<4>()
            && *version == VERSION
            && hash == self.hash(client, head, peer)
        {
            let time = time.first_chunk().map_or(0, |time| u32::from_be_bytes(*time));
            // Serial arithmetic, as the clock's 32 bits will overflow one day.
            let age = now.wrapping_sub(time);
            let valid = age <= LIFETIME || time.wrapping_sub(now) <= AHEAD;
            if valid && age <= RENEWED_AFTER {
                return (assemble(client, head, hash.first_chunk().unwrap_or(&[0; 8])), true);
            }
            return (self.fresh(client, peer, now), valid);
        }
        (self.fresh(client, peer, now), false)
    }

    fn fresh(&self, client: &[u8; 8], peer: IpAddr, now: u32) -> [u8; 24] {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&VERSION);
        head[4..].copy_from_slice(&now.to_be_bytes());
        assemble(client, &head, &self.hash(client, &head, peer))
    }

    #[allow(deprecated)] // It is SipHash-2-4, which the RFC names; its successor here is not.
    fn hash(&self, client: &[u8; 8], head: &[u8; 8], peer: IpAddr) -> [u8; 8] {
        let mut hasher = std::hash::SipHasher::new_with_keys(self.secret[0], self.secret[1]);
        hasher.write(client);
        hasher.write(head);
        match peer {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        hasher.finish().to_le_bytes()
    }
}

fn assemble(client: &[u8; 8], head: &[u8; 8], hash: &[u8; 8]) -> [u8; 24] {
    let mut cookie = [0; 24];
    cookie[..8].copy_from_slice(client);
    cookie[8..16].copy_from_slice(head);
    cookie[16..].copy_from_slice(hash);
    cookie
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_one_clients_for_an_hour() {
        let cookies = Cookies::new().unwrap();
        let (client, peer) = ([7; 8], IpAddr::from([192, 0, 2, 1]));
        let (given, valid) = cookies.reply(&client, &[], peer, 10_000);
        assert!(!valid);
        let server = &given[8..];
        let asked = |peer, now| cookies.reply(&client, server, peer, now);
        assert_eq!(asked(peer, 10_100), (given, true), "a young one is kept");
        let (renewed, valid) = asked(peer, 12_000);
        assert!(valid && renewed != given);
        assert!(!asked(peer, 14_000).1);
        assert!(!asked(IpAddr::from([192, 0, 2, 2]), 10_000).1);
        assert!(!cookies.reply(&[8; 8], server, peer, 10_000).1);
        assert!(!Cookies::new().unwrap().reply(&client, server, peer, 10_000).1);
    }
}
