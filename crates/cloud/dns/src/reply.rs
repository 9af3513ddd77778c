//! Writes replies: header, the question as it was asked, records with compressed names, EDNS. What does not fit is cut.

use crate::kind::CLASS_IN;
use crate::name::{Labels, WireName};
use crate::request::{HEADER, MAX_UDP_PAYLOAD, Request, u16_at};
use crate::rrset::{Node, Rrset, compressible};

const OPT_LENGTH: usize = 11;
const COOKIE_LENGTH: usize = 28;
const MAX_NAMES: usize = 48;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

/// What the header says besides what the question determines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags {
    pub rcode: u16,
    pub authoritative: bool,
    pub authentic: bool,
}

/// One reply in the making, at the end of a buffer.
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Of the message in the buffer.
    begin: usize,
    limit: usize,
    counts: [u16; 3],
    /// Where labels of names written so far begin.
    names: [u16; MAX_NAMES],
    known: usize,
    truncated: bool,
    /// What comes last: an EDNS record, with the full cookie.
    edns: Option<(bool, Option<[u8; 24]>)>,
}

impl<'a> Writer<'a> {
    /// `limit` bytes at most; the reply's cookie, if the question had one, is written at the end.
    pub fn new(out: &'a mut Vec<u8>, request: &Request<'_>, limit: usize, cookie: Option<[u8; 24]>) -> Self {
        let begin = out.len();
        out.extend([0; HEADER]);
        out.extend(request.question);
        let edns = request.edns.map(|edns| (edns.dnssec_ok, cookie));
        let reserved = edns.map_or(0, |(_, cookie)| OPT_LENGTH + cookie.map_or(0, |_| COOKIE_LENGTH));
        let limit = limit.saturating_sub(reserved);
        let mut writer =
            Self { out, begin, limit, counts: [0; 3], names: [0; MAX_NAMES], known: 0, truncated: false, edns };
        writer.remember_labels(HEADER);
        writer
    }

    pub fn count(&self, section: Section) -> u16 {
        self.counts[section as usize]
    }

    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Forgets all records: another answer follows.
    pub fn clear(&mut self) {
        let question = HEADER + self.question_length();
        self.out.truncate(self.begin + question);
        (self.counts, self.known, self.truncated) = ([0; 3], 0, false);
        self.remember_labels(HEADER);
    }

    fn question_length(&self) -> usize {
        let message = &self.out[self.begin..];
        WireName::read(message, HEADER).map_or(0, |(_, after)| after + 4 - HEADER)
    }

    /// All records of a set, beginning with the one at `first`, so that clients who take the first share the load.
    pub fn set(&mut self, section: Section, owner: &WireName, set: &Rrset, first: usize) {
        let skipped = if set.len() > 1 { first % set.len() } else { 0 };
        let rotated = set.iter().skip(skipped).chain(set.iter().take(skipped));
        let begin = self.out.len();
        let count = self.counts[section as usize];
        for rdata in rotated {
            if !self.record(section, owner, set.kind, set.ttl, rdata) {
                // A set is whole or not there.
                self.out.truncate(begin);
                self.counts[section as usize] = count;
                self.known =
                    self.names[..self.known].iter().filter(|at| usize::from(**at) < begin - self.begin).count();
                return;
            }
        }
    }

    pub fn node(&mut self, section: Section, owner: &WireName, node: &Node, kind: u16, first: usize) {
        if let Some(set) = node.get(kind) {
            self.set(section, owner, set, first);
        }
    }

    /// Returns whether it fitted. Without what is answered the message is marked as cut; additional records are only
    /// a kindness.
    pub fn record(&mut self, section: Section, owner: &WireName, kind: u16, ttl: u32, rdata: &[u8]) -> bool {
        if self.truncated {
            return false;
        }
        let (begin, known) = (self.out.len(), self.known);
        self.name(owner.as_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend(CLASS_IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend([0; 2]);
        match compressible(kind) {
            None => self.out.extend(rdata),
            Some((at, names)) => self.compressed(rdata, at, names),
        }
        let length = u16::try_from(self.out.len() - length_at - 2).unwrap_or(u16::MAX);
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        if self.out.len() - self.begin > self.limit || self.counts[section as usize] == u16::MAX {
            self.out.truncate(begin);
            self.known = known;
            self.truncated |= section != Section::Additional;
            return false;
        }
        self.counts[section as usize] += 1;
        true
    }

    /// As [`Writer::record`], for those who have another message for what does not fit.
    pub fn try_record(&mut self, section: Section, owner: &WireName, kind: u16, ttl: u32, rdata: &[u8]) -> bool {
        let fitted = self.record(section, owner, kind, ttl, rdata);
        self.truncated = false;
        fitted
    }

    /// Marks the message as cut: what was left out matters.
    pub fn cut(&mut self) {
        self.truncated = true;
    }

    fn compressed(&mut self, rdata: &[u8], at: usize, names: usize) {
        let (before, mut rest) = rdata.split_at(at.min(rdata.len()));
        self.out.extend(before);
        for _ in 0..names {
            let length = Labels(rest).map(|label| label.len() + 1).sum::<usize>() + 1;
            let (name, after) = rest.split_at(length.min(rest.len()));
            self.name(name);
            rest = after;
        }
        self.out.extend(rest);
    }

    /// A name in wire form, with a pointer to the longest end of it that is there already.
    fn name(&mut self, name: &[u8]) {
        let mut rest = name;
        while let Some(length) = rest.first().copied().filter(|length| *length > 0) {
            let message = &self.out[self.begin..];
            if let Some(at) = self.names[..self.known].iter().find(|at| same_name(message, usize::from(**at), rest)) {
                self.out.extend((0xc000 | at).to_be_bytes());
                return;
            }
            let at = self.out.len() - self.begin;
            if at < 0x4000 && self.known < MAX_NAMES {
                self.names[self.known] = u16::try_from(at).unwrap_or(u16::MAX);
                self.known += 1;
            }
            let (label, after) = rest.split_at((1 + usize::from(length)).min(rest.len()));
            self.out.extend(label);
            rest = after;
        }
        self.out.push(0);
    }

    /// Makes the labels of the uncompressed name at `at` known.
    fn remember_labels(&mut self, mut at: usize) {
        while let Some(length) = self.out.get(self.begin + at).copied().filter(|length| *length > 0) {
            if self.known < MAX_NAMES {
                self.names[self.known] = u16::try_from(at).unwrap_or(u16::MAX);
                self.known += 1;
            }
            at += 1 + usize::from(length);
        }
    }

    /// Writes the header and what comes last.
    pub fn finish(mut self, request: &Request<'_>, flags: Flags, recursion: bool) {
        if self.truncated {
            self.clear();
            self.truncated = true;
        }
        let mut additionals = self.counts[2];
        if let Some((dnssec_ok, cookie)) = self.edns {
            additionals += 1;
            let high = u8::try_from(flags.rcode >> 4).unwrap_or(0);
            self.out.extend([0, 0, 41]);
            self.out.extend(MAX_UDP_PAYLOAD.to_be_bytes());
            self.out.extend([high, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
            match cookie {
                None => self.out.extend([0, 0]),
                Some(cookie) => {
                    self.out.extend([0, 28, 0, 10, 0, 24]);
                    self.out.extend(cookie);
                }
            }
        }
        let header = &mut self.out[self.begin..self.begin + HEADER];
        header[..2].copy_from_slice(&request.id.to_be_bytes());
        let bit = |on: bool, mask: u8| if on { mask } else { 0 };
        header[2] =
            0x80 | request.opcode << 3 | bit(flags.authoritative, 4) | bit(self.truncated, 2) | bit(request.rd, 1);
        let low = u8::try_from(flags.rcode & 15).unwrap_or(0);
        header[3] = bit(recursion, 0x80) | bit(flags.authentic, 0x20) | bit(request.cd, 0x10) | low;
        header[4..6].copy_from_slice(&1u16.to_be_bytes());
        for (index, count) in [self.counts[0], self.counts[1], additionals].into_iter().enumerate() {
            header[6 + 2 * index..8 + 2 * index].copy_from_slice(&count.to_be_bytes());
        }
    }
}

/// Whether the name at `at` is `name`, letters aside.
fn same_name(message: &[u8], mut at: usize, mut name: &[u8]) -> bool {
    loop {
        let (Some(theirs), Some(ours)) = (message.get(at), name.first()) else { return false };
        if theirs & 0xc0 == 0xc0 {
            match u16_at(message, at) {
                Some(pointer) => at = usize::from(pointer & 0x3fff),
                None => return false,
            }
            continue;
        }
        let end = 1 + usize::from(*ours);
        match (message.get(at..at + end), name.get(..end)) {
            (Some(a), Some(b)) if a.eq_ignore_ascii_case(b) => (at, name) = (at + end, &name[end..]),
            _ => return false,
        }
        if *ours == 0 {
            return true;
        }
    }
}

/// A header and nothing else, for what cannot be understood.
pub fn bare(out: &mut Vec<u8>, id: u16, opcode: u8, rd: bool, rcode: u16) {
    let [high, low] = id.to_be_bytes();
    let rcode = u8::try_from(rcode & 15).unwrap_or(0);
    out.extend([high, low, 0x80 | opcode << 3 | u8::from(rd), rcode, 0, 0, 0, 0, 0, 0, 0, 0]);
}
