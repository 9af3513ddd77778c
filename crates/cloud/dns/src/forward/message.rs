//! What an upstream said, checked and reduced to what was asked: nothing else of it is believed or repeated.

use crate::kind::{CLASS_IN, rtype};
use crate::name::WireName;
use crate::request::{HEADER, Record, u16_at, u32_at};
use crate::rrset::names_within;

const MAX_CHAIN: usize = 16;

/// A question for someone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub name: WireName,
    pub kind: u16,
    pub dnssec_ok: bool,
    pub cd: bool,
}

impl Ask {
    /// What tells two questions apart, in `buffer`.
    pub fn key<'a>(&self, buffer: &'a mut [u8; 258]) -> &'a [u8] {
        let name = self.name.as_bytes();
        buffer[..name.len()].copy_from_slice(name);
        buffer[name.len()..name.len() + 2].copy_from_slice(&self.kind.to_be_bytes());
        buffer[name.len() + 2] = u8::from(self.dnssec_ok) | u8::from(self.cd) << 1;
        &buffer[..name.len() + 3]
    }
}

/// An answer worth keeping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub rcode: u16,
    pub authentic: bool,
    pub answers: Records,
    pub authorities: Records,
    /// How many seconds it may be repeated.
    pub ttl: u32,
    /// Ended, and given because nobody has a newer one.
    pub stale: bool,
}

impl Reply {
    pub fn size(&self) -> usize {
        self.answers.bytes.len() + self.authorities.bytes.len() + std::mem::size_of::<Self>()
    }
}

/// Records one after the other: owner, type, time to live, length, data; names are whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    pub count: u16,
    bytes: Box<[u8]>,
}

impl Records {
    pub fn iter(&self) -> impl Iterator<Item = (WireName, u16, u32, &[u8])> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (owner, after) = WireName::read(&self.bytes, at).filter(|_| at < self.bytes.len())?;
            let (kind, ttl) = (u16_at(&self.bytes, after)?, u32_at(&self.bytes, after + 2)?);
            let rdata = after + 8;
            at = rdata + usize::from(u16_at(&self.bytes, after + 6)?);
            Some((owner, kind, ttl, self.bytes.get(rdata..at)?))
        })
    }
}

/// Why a message is no answer to our question.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Of another question, or no answer at all: somebody's attempt, or late.
    Unrelated,
    /// The same question in other letters.
    Case,
    /// Too long for a datagram.
    Truncated,
    Malformed,
    /// The server cannot or does not want to.
    Rcode(u16),
}

/// The longest that answers and denials are repeated.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub positive: u32,
    pub negative: u32,
}

/// Reads the answer to `ask`, whose question was sent as `question`.
pub fn read(message: &[u8], id: u16, question: &[u8], ask: &Ask, limits: Limits) -> Result<Reply, Unusable> {
    let header = message.first_chunk::<HEADER>().ok_or(Unusable::Unrelated)?;
    let count = |index| u16_at(message, 4 + 2 * index).unwrap_or(0);
    let ours = u16_at(message, 0) == Some(id) && header[2] & 0xf8 == 0x80 && count(0) == 1;
    let repeated = message.get(HEADER..HEADER + question.len());
    match repeated {
        Some(repeated) if ours && repeated == question => {}
        Some(repeated) if ours && repeated.eq_ignore_ascii_case(question) => return Err(Unusable::Case),
        _ => return Err(Unusable::Unrelated),
    }
    if header[2] & 2 != 0 {
        return Err(Unusable::Truncated);
    }
    let mut at = HEADER + question.len();
    let mut sections: [Vec<Record>; 3] = Default::default();
    for (index, section) in sections.iter_mut().enumerate() {
        for _ in 0..count(index + 1) {
            let record = Record::read(message, at).ok_or(Unusable::Malformed)?;
            at = record.end;
            section.push(record);
        }
    }
    let [answers, authorities, additionals] = sections;
    let high = additionals.iter().find(|record| record.kind == rtype::OPT).map_or(0, |opt| opt.ttl >> 24);
    let rcode = u16::try_from(high << 4).unwrap_or(0) | u16::from(header[3] & 15);
    if rcode != 0 && rcode != 3 {
        return Err(Unusable::Rcode(rcode));
    }
    let chain = chain(message, ask, &answers);
    let wanted: Vec<Record> = answers.into_iter().filter(|record| belongs(record, ask, &chain)).collect();
    let positive = wanted.iter().any(|record| record.kind == ask.kind && chain.last() == Some(&record.owner));
    let last = chain.last().copied().unwrap_or(ask.name);
    let denying: Vec<Record> = match positive {
        true => Vec::new(),
        false => authorities.into_iter().filter(|record| denies(record, ask, &last)).collect(),
    };
    let ttl = match positive {
        true => wanted.iter().map(|record| lifetime(record.ttl)).min().unwrap_or(0).min(limits.positive),
        false => negative_lifetime(message, &wanted, &denying).min(limits.negative),
    };
    Ok(Reply {
        rcode,
        authentic: header[3] & 0x20 != 0,
        answers: normalize(message, &wanted).ok_or(Unusable::Malformed)?,
        authorities: normalize(message, &denying).ok_or(Unusable::Malformed)?,
        ttl,
        stale: false,
    })
}

/// The names that the answer leads through, from the one asked for to the one that holds the data.
fn chain(message: &[u8], ask: &Ask, answers: &[Record]) -> Vec<WireName> {
    let mut chain = vec![ask.name];
    while ask.kind != rtype::CNAME && chain.len() < MAX_CHAIN {
        let last = chain[chain.len() - 1];
        let alias = answers.iter().find(|r| r.kind == rtype::CNAME && r.class == CLASS_IN && r.owner == last);
        match alias.and_then(|alias| WireName::read(message, alias.rdata)) {
            Some((target, _)) if !chain.contains(&target) => chain.push(target),
            _ => break,
        }
    }
    chain
}

fn belongs(record: &Record, ask: &Ask, chain: &[WireName]) -> bool {
    let expected = [ask.kind, rtype::CNAME, rtype::RRSIG].contains(&record.kind) && chain.contains(&record.owner);
    let renamed = [rtype::DNAME, rtype::RRSIG].contains(&record.kind)
        && chain.iter().any(|name| name.under(&record.owner).is_some());
    let signature = record.kind != rtype::RRSIG || ask.dnssec_ok || ask.kind == rtype::RRSIG;
    record.class == CLASS_IN && signature && (expected || renamed)
}

/// Only a zone that the name is in can deny it.
fn denies(record: &Record, ask: &Ask, name: &WireName) -> bool {
    let proof = matches!(record.kind, rtype::RRSIG | rtype::NSEC | rtype::NSEC3) && ask.dnssec_ok;
    let zone = record.kind == rtype::SOA && name.under(&record.owner).is_some();
    record.class == CLASS_IN && (proof || zone)
}

/// RFC 2181: a number with the highest bit set means 0.
fn lifetime(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// RFC 2308: the smaller of the SOA's time to live and its last number; without a SOA nothing is remembered.
fn negative_lifetime(message: &[u8], answers: &[Record], authorities: &[Record]) -> u32 {
    let soa = authorities.iter().find(|record| record.kind == rtype::SOA);
    let minimum = soa.and_then(|soa| Some(u32_at(message, soa.end.checked_sub(4)?)?.min(lifetime(soa.ttl))));
    answers.iter().map(|record| lifetime(record.ttl)).chain([minimum.unwrap_or(0)]).min().unwrap_or(0)
}

fn normalize(message: &[u8], records: &[Record]) -> Option<Records> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend(record.owner.as_bytes());
        bytes.extend(record.kind.to_be_bytes());
        bytes.extend(lifetime(record.ttl).to_be_bytes());
        let rdata = whole_rdata(message, record)?;
        bytes.extend(u16::try_from(rdata.len()).ok()?.to_be_bytes());
        bytes.extend(rdata);
    }
    Some(Records { count: u16::try_from(records.len()).ok()?, bytes: bytes.into() })
}

/// The data with names written out.
fn whole_rdata(message: &[u8], record: &Record) -> Option<Vec<u8>> {
    let rdata = record.rdata_in(message)?;
    let Some((skip, names)) = names_within(record.kind) else { return Some(rdata.to_vec()) };
    let mut whole = rdata.get(..skip)?.to_vec();
    let mut at = record.rdata + skip;
    for _ in 0..names {
        let (name, after) = WireName::read(message, at).filter(|(_, after)| *after <= record.end)?;
        whole.extend(name.as_bytes());
        at = after;
    }
    whole.extend(message.get(at..record.end)?);
    Some(whole)
}
