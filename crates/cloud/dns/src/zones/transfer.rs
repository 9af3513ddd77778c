//! A zone to a secondary that has a key for it: AXFR (RFC 5936), and IXFR answered in full (RFC 1995).

use super::zone::{Entry, Zone};
use super::{Signing, Zones};
use crate::kind::{rcode, rtype};
use crate::name::WireName;
use crate::reply::{Flags, Section, Writer};
use crate::request::{Incoming, Request, parse};
use crate::rrset::Rrset;

/// Of one message; its signature comes on top.
const MESSAGE: usize = 16_000;

impl Zones {
    /// The messages that answer a question for a transfer.
    pub fn transfer(&self, bytes: &[u8], now: u64) -> Vec<Vec<u8>> {
        let Incoming::Transfer(request) = parse(bytes) else { return Vec::new() };
        let signing = request.tsig.map(|at| self.verify(bytes, at, now));
        let zone = self.at(&request.name);
        let refusal = match (&zone, &signing) {
            (_, Some(Signing::Malformed)) => Some(rcode::FORM_ERR),
            (_, Some(signing)) if !signing.is_good() => Some(rcode::NOT_AUTH),
            (None, _) => Some(rcode::NOT_AUTH),
            // Without a key nobody gets a zone.
            (Some(zone), Some(Signing::By { key, .. })) if zone.keys.iter().any(|known| known.name == key.name) => None,
            _ => Some(rcode::REFUSED),
        };
        let (Some(zone), None, Some(Signing::By { key, mac, .. })) = (zone, refusal, &signing) else {
            let rcode = refusal.unwrap_or(rcode::REFUSED);
            tracing::info!(zone = %request.name, rcode, "a transfer is refused");
            let mut out = Vec::new();
            Writer::new(&mut out, &request, MESSAGE, None).finish(&request, Flags { rcode, ..Flags::default() }, false);
            if let Some(signing) = &signing {
                signing.sign(&mut out, 0, now);
            }
            return vec![out];
        };
        let newest = request.kind == rtype::IXFR && request.serial.is_some_and(|theirs| !is_newer(zone.serial, theirs));
        let mut messages = messages(&zone, &request, newest);
        let mut previous = mac.clone();
        for (index, message) in messages.iter_mut().enumerate() {
            previous = key.sign(message, 0, &previous, index > 0, now, 0);
        }
        tracing::info!(zone = %zone.origin, serial = zone.serial, messages = messages.len(), "a zone is transferred");
        messages
    }
}

/// RFC 1982.
fn is_newer(ours: u32, theirs: u32) -> bool {
    ours != theirs && ours.wrapping_sub(theirs) < 1 << 31
}

/// The SOA record, everything else, the SOA record again; or only that, for who has it all already.
fn messages(zone: &Zone, request: &Request<'_>, only_soa: bool) -> Vec<Vec<u8>> {
    let mut packer = Packer { request, out: Vec::new() };
    let flags = Flags { authoritative: true, ..Flags::default() };
    let soa: Vec<(WireName, &Rrset)> = vec![(zone.origin, &zone.soa)];
    let sets = |entry: &'_ Entry| entry.wire_name();
    let everything = zone.nodes.values().filter_map(|entry| Some((sets(entry)?, entry))).flat_map(|(name, entry)| {
        let sets = entry.node.sets.iter().chain(&entry.signatures).filter(|set| set.kind != rtype::SOA);
        sets.map(move |set| (name, set))
    });
    if only_soa {
        packer.pack(soa.into_iter(), flags);
    } else {
        packer.pack(soa.clone().into_iter().chain(everything).chain(soa), flags);
    }
    packer.out
}

struct Packer<'a> {
    request: &'a Request<'a>,
    out: Vec<Vec<u8>>,
}

impl Packer<'_> {
    fn pack<'z>(&mut self, sets: impl Iterator<Item = (WireName, &'z Rrset)>, flags: Flags) {
        let mut records = sets.flat_map(|(name, set)| set.iter().map(move |rdata| (name, set, rdata))).peekable();
        while records.peek().is_some() {
            let mut message = Vec::new();
            let mut writer = Writer::new(&mut message, self.request, MESSAGE, None);
            while let Some((name, set, rdata)) = records.peek() {
                if !writer.try_record(Section::Answer, name, set.kind, set.ttl, rdata) {
                    break;
                }
                records.next();
            }
            if writer.count(Section::Answer) == 0 {
                // Larger than a message may be: it cannot be sent to anyone, and was refused when it was made.
                records.next();
                continue;
            }
            writer.finish(self.request, flags, false);
            self.out.push(message);
        }
    }
}
