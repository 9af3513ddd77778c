//! How fast a pod's traffic may be, by the annotations that upstream's network plugins know.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use dhow_api::quantity::Quantity;
use nlink::netlink::tc::TbfConfig;
use nlink::netlink::{Connection, InterfaceRef, Route};
use nlink::{Bytes, Rate};

use crate::error::KernelContext;
use crate::{Error, Net, Result};

/// Towards the pod.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// From the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits a second that upstream admits.
const ADMITTED: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;
/// Bytes that may come at once: a few of the largest frames that the kernel hands on in one piece.
const LEAST_BURST: u64 = 128 << 10;

/// Bits a second in each direction; `None` is as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    pub ingress: Option<u64>,
    pub egress: Option<u64>,
}

impl Bandwidth {
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let rate = |name: &str| {
            let Some(text) = annotations.get(name) else { return Ok(None) };
            let bits = Quantity::from_str(text).ok().map(|rate| rate.units()).filter(|bits| ADMITTED.contains(bits));
            let bits = bits.and_then(|bits| u64::try_from(bits).ok());
            bits.map(Some).ok_or_else(|| Error::InvalidBandwidth { annotation: name.to_owned(), text: text.clone() })
        };
        Ok(Self { ingress: rate(INGRESS)?, egress: rate(EGRESS)? })
    }

    pub fn is_limited(self) -> bool {
        self != Self::default()
    }
}

impl Net {
    /// Holds the pod to its bandwidth: at our end of its link what goes to it, at its own end what it sends.
    pub(crate) async fn shape(&self, netns: BorrowedFd<'_>, link: &str, bandwidth: Bandwidth) -> Result<()> {
        if let Some(rate) = bandwidth.ingress {
            let limited = self.kernel.route.replace_qdisc(link, bucket(rate)).await;
            limited.doing(|| format!("limit what goes to {link} to {rate} bit/s"))?;
        }
        if let Some(rate) = bandwidth.egress {
            let pod = Connection::<Route>::new_in(netns).doing(|| "open the pod's network namespace".to_owned())?;
            let limited = pod.replace_qdisc(InterfaceRef::from("eth0"), bucket(rate)).await;
            limited.doing(|| format!("limit what comes from {link} to {rate} bit/s"))?;
        }
        Ok(())
    }
}

/// A token bucket that waits for at most 25 ms of tokens, as upstream's plugin does.
fn bucket(rate: u64) -> TbfConfig {
    let a_hundredth = rate / 8 / 100;
    let burst = a_hundredth.max(LEAST_BURST).min(u64::from(u32::MAX));
    let waiting = (rate / 8 / 40).max(LEAST_BURST).min(u64::from(u32::MAX));
    let limit = (burst + waiting).min(u64::from(u32::MAX));
    TbfConfig::new().rate(Rate::bits_per_sec(rate)).burst(Bytes::new(burst)).limit(Bytes::new(limit))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(ingress: &str) -> Result<Bandwidth> {
        Bandwidth::parse(&BTreeMap::from([(INGRESS.to_owned(), ingress.to_owned())]))
    }

    #[test]
    fn quantities_within_reason() {
        assert_eq!(parse("10M").unwrap(), Bandwidth { ingress: Some(10_000_000), egress: None });
        assert!(!Bandwidth::parse(&BTreeMap::new()).unwrap().is_limited());
        for text in ["", "fast", "-1", "999", "2000P", "0"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
