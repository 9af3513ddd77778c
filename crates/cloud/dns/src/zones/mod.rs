//! Zones of users: kinds of the API, served authoritatively, signed, and handed to secondaries.

mod build;
pub mod dnssec;
pub mod keeper;
pub mod kinds;
mod notify;
mod transfer;
pub mod tsig;
mod zone;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::name::WireName;
use tsig::{TsigKey, Verified, append_error, verify};
pub use zone::{Outcome, Zone};

/// All zones served now; they change as a whole.
#[derive(Default)]
pub struct Zones {
    /// Those with the longest origins first.
    list: ArcSwap<Vec<Arc<Zone>>>,
}

impl Zones {
    pub fn replace(&self, mut zones: Vec<Arc<Zone>>) {
        zones.sort_by_key(|zone| std::cmp::Reverse(zone.origin.labels().count()));
        self.list.store(Arc::new(zones));
    }

    /// The nearest zone that a name is in.
    pub fn find(&self, name: &WireName) -> Option<Arc<Zone>> {
        self.list.load().iter().find(|zone| name.under(&zone.origin).is_some()).cloned()
    }

    /// The zone with exactly this origin.
    fn at(&self, origin: &WireName) -> Option<Arc<Zone>> {
        self.list.load().iter().find(|zone| zone.origin == *origin).cloned()
    }

    /// Checks the TSIG record at `at`.
    pub fn verify(&self, message: &[u8], at: usize, now: u64) -> Signing {
        let zones = self.list.load();
        match verify(message, at, zones.iter().flat_map(|zone| &zone.keys), now) {
            Verified::By(key, mac) => Signing::By { key: key.clone(), mac, error: 0 },
            Verified::BadTime(key, mac) => Signing::By { key: key.clone(), mac, error: tsig::BAD_TIME },
            Verified::Failed { name, algorithm, error } => Signing::Failed { name, algorithm, error },
            Verified::Malformed => Signing::Malformed,
        }
    }
}

/// How the reply to a signed question is to be signed.
pub enum Signing {
    By { key: TsigKey, mac: Vec<u8>, error: u16 },
    Failed { name: WireName, algorithm: WireName, error: u16 },
    Malformed,
}

impl Signing {
    /// Whether the question is whose it says.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::By { error: 0, .. })
    }

    /// Signs the reply at the end of `out`.
    pub fn sign(&self, out: &mut Vec<u8>, begin: usize, now: u64) {
        match self {
            Self::By { key, mac, error } => {
                key.sign(out, begin, mac, false, now, *error);
            }
            Self::Failed { name, algorithm, error } => append_error(out, begin, name, algorithm, now, *error),
            Self::Malformed => {}
        }
    }
}
