//! One zone as it is served: what each of its names holds, in canonical order, signed if it is to be. No IO.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::dnssec::covers;
use super::tsig::TsigKey;
use crate::kind::{rcode, rtype};
use crate::name::{Labels, WireName};
use crate::names::{Found, Names};
use crate::reply::{Flags, Section, Writer};
use crate::request::Request;
use crate::rrset::{Node, Rrset, target};

const MAX_ADDED: usize = 32;

/// Where a name sorts: its labels below the origin, the last first, each with an end that sorts before any byte.
pub type SortKey = Box<[u8]>;

#[derive(Clone)]
pub struct Zone {
    pub origin: WireName,
    pub serial: u32,
    /// Of what the serial stands for.
    pub content_hash: String,
    pub signed: bool,
    pub soa: Rrset,
    pub nodes: BTreeMap<SortKey, Entry>,
    /// Who may transfer it.
    pub keys: Vec<TsigKey>,
}

/// One name.
#[derive(Clone)]
pub struct Entry {
    pub name: Box<[u8]>,
    pub node: Node,
    pub signatures: Box<[Rrset]>,
    /// Below a delegation: only the address of a server, not ours to vouch for.
    pub glue: bool,
}

impl Entry {
    fn signature(&self, kind: u16) -> Option<&Rrset> {
        self.signatures.iter().find(|set| covers(set).is_some_and(|(covered, _)| covered == kind))
    }

    pub fn wire_name(&self) -> Option<WireName> {
        WireName::from_wire(&self.name)
    }
}

/// `labels` are what comes before the origin.
pub fn sort_key(labels: &[u8]) -> SortKey {
    let labels: Vec<&[u8]> = Labels(labels).collect();
    let mut key = Vec::new();
    for label in labels.into_iter().rev() {
        for byte in label {
            match byte {
                0 => key.extend([1, 1]),
                1 => key.extend([1, 2]),
                _ => key.push(*byte),
            }
        }
        key.push(0);
    }
    key.into()
}

pub enum Outcome {
    Done(Flags),
    /// The answer goes on at another name.
    Alias(WireName),
}

/// What a walk down to a name found.
enum Place<'z> {
    Here(&'z Entry),
    /// Only longer names are there.
    Between,
    /// A zone of somebody else begins on the way.
    Delegated(&'z Entry),
    /// Not there; with the wildcard that stands for it, if there is one, and its closest name that is there.
    Absent {
        wildcard: Option<&'z Entry>,
        encloser: WireName,
    },
}

impl Zone {
    /// Whether there is anything at a name, or it is somebody else's to say.
    pub fn has(&self, name: &WireName) -> bool {
        !matches!(self.place(name, rtype::A), Place::Absent { wildcard: None, .. })
    }

    fn place(&self, name: &WireName, kind: u16) -> Place<'_> {
        let labels = name.under(&self.origin).unwrap_or_default();
        // Where each label begins: the name from there on is one on the way.
        let mut begins = Vec::with_capacity(8);
        let mut at = 0;
        while at < labels.len() {
            begins.push(at);
            at += 1 + usize::from(labels[at]);
        }
        let mut encloser = self.origin;
        for begin in begins.iter().rev() {
            let key = sort_key(&labels[*begin..]);
            match self.nodes.get(&key) {
                Some(entry) => {
                    let at_name = *begin == 0;
                    if entry.node.get(rtype::NS).is_some() && !(at_name && kind == rtype::DS) {
                        return Place::Delegated(entry);
                    }
                    if at_name {
                        return Place::Here(entry);
                    }
                }
                None if self.any_below(&key) && *begin == 0 => return Place::Between,
                None if self.any_below(&key) => {}
                None => {
                    let wildcard = self.nodes.get(&wildcard_key(encloser.under(&self.origin).unwrap_or_default()));
                    return Place::Absent { wildcard, encloser };
                }
            }
            encloser = WireName::below(&labels[*begin..], &self.origin).unwrap_or(encloser);
        }
        match self.nodes.get(&[][..]) {
            Some(entry) => Place::Here(entry),
            None => Place::Between,
        }
    }

    fn any_below(&self, key: &[u8]) -> bool {
        let next = self.nodes.range::<[u8], _>((Bound::Excluded(key), Bound::Unbounded)).next();
        next.is_some_and(|(next, _)| next.starts_with(key))
    }

    /// Writes what the zone has to say about `name`. `hop` counts the aliases before.
    pub fn answer(
        &self,
        name: &WireName,
        request: &Request<'_>,
        hop: usize,
        names: &Names,
        writer: &mut Writer<'_>,
    ) -> Outcome {
        let mut say = Say { zone: self, names, proofs: self.signed && request.dnssec_ok(), writer };
        let flags = Flags { authoritative: true, ..Flags::default() };
        let kind = request.kind;
        match self.place(name, kind) {
            Place::Delegated(entry) => {
                say.referral(entry);
                Outcome::Done(Flags { authoritative: hop > 0, ..flags })
            }
            Place::Here(entry) => say.entry(name, entry, kind, flags, None),
            Place::Between => {
                say.deny(&[*name]);
                Outcome::Done(flags)
            }
            Place::Absent { wildcard: Some(entry), encloser } => say.entry(name, entry, kind, flags, Some(encloser)),
            Place::Absent { wildcard: None, encloser } => {
                let wildcard = WireName::below(b"\x01*", &encloser);
                say.deny(&[Some(*name), wildcard].into_iter().flatten().collect::<Vec<_>>());
                Outcome::Done(Flags { rcode: rcode::NX_DOMAIN, ..flags })
            }
        }
    }

    /// The name at or before this one that an NSEC record is at.
    fn before(&self, name: &WireName) -> Option<&Entry> {
        let key = sort_key(name.under(&self.origin)?);
        let until = (Bound::Unbounded, Bound::Included(&key[..]));
        let mut before = self.nodes.range::<[u8], _>(until).rev().map(|(_, entry)| entry);
        before.find(|entry| entry.node.get(rtype::NSEC).is_some())
    }
}

fn wildcard_key(encloser: &[u8]) -> SortKey {
    sort_key(&[b"\x01*", encloser].concat())
}

/// One reply of a zone.
struct Say<'a, 'w, 'o> {
    zone: &'a Zone,
    names: &'a Names,
    /// The client wants signatures and there are some.
    proofs: bool,
    writer: &'w mut Writer<'o>,
}

impl Say<'_, '_, '_> {
    /// What `entry` says for `name`; with an encloser, it is a wildcard below that.
    fn entry(
        &mut self,
        name: &WireName,
        entry: &Entry,
        kind: u16,
        flags: Flags,
        encloser: Option<WireName>,
    ) -> Outcome {
        let kind = match kind {
            // RFC 8482: one set is enough.
            rtype::ANY => entry.node.sets.first().map_or(rtype::ANY, |set| set.kind),
            rtype::IXFR => rtype::SOA,
            kind => kind,
        };
        let alias = entry.node.get(rtype::CNAME).filter(|_| kind != rtype::CNAME && kind != rtype::NSEC);
        if let Some(set) = alias.or_else(|| entry.node.get(kind)) {
            self.set(Section::Answer, name, entry, set);
            if encloser.is_some() && self.proofs {
                // That nothing nearer than the wildcard is there.
                self.prove(&[*name]);
            }
            if alias.is_some() {
                return set.first().and_then(WireName::from_wire).map_or(Outcome::Done(flags), Outcome::Alias);
            }
            self.add_addresses(set);
            return Outcome::Done(flags);
        }
        match encloser.and_then(|encloser| WireName::below(b"\x01*", &encloser)) {
            Some(wildcard) => self.deny(&[wildcard, *name]),
            None => self.deny(&[*name]),
        }
        Outcome::Done(flags)
    }

    fn set(&mut self, section: Section, name: &WireName, entry: &Entry, set: &Rrset) {
        self.writer.set(section, name, set, 0);
        if let Some(signature) = entry.signature(set.kind).filter(|_| self.proofs) {
            self.writer.set(section, name, signature, 0);
        }
    }

    /// The SOA record, which says for how long; and that these names, or types at them, are not there.
    fn deny(&mut self, names: &[WireName]) {
        let origin = self.zone.origin;
        // RFC 2308: the denial's time to live is the smaller of two numbers, and the record has it.
        match self.zone.nodes.get(&[][..]) {
            Some(entry) => {
                let soa = self.zone.soa.clone();
                self.set(Section::Authority, &origin, entry, &soa);
            }
            None => self.writer.set(Section::Authority, &origin, &self.zone.soa, 0),
        }
        if self.proofs {
            self.prove(names);
        }
    }

    fn prove(&mut self, names: &[WireName]) {
        let mut said: Vec<&[u8]> = Vec::new();
        for entry in names.iter().filter_map(|name| self.zone.before(name)) {
            let (Some(owner), Some(nsec)) = (entry.wire_name(), entry.node.get(rtype::NSEC)) else { continue };
            if !said.contains(&entry.name.as_ref()) {
                said.push(&entry.name);
                self.set(Section::Authority, &owner, entry, nsec);
            }
        }
    }

    fn referral(&mut self, entry: &Entry) {
        let (Some(owner), Some(servers)) = (entry.wire_name(), entry.node.get(rtype::NS)) else { return };
        self.writer.set(Section::Authority, &owner, servers, 0);
        if self.proofs {
            // Whether the child is signed.
            match entry.node.get(rtype::DS) {
                Some(ds) => self.set(Section::Authority, &owner, entry, ds),
                None => self.prove(&[owner]),
            }
        }
        let mut missing = false;
        for server in servers.iter().filter_map(|rdata| target(rtype::NS, rdata)) {
            let Some(glue) = server.under(&self.zone.origin).and_then(|labels| self.zone.nodes.get(&sort_key(labels)))
            else {
                continue;
            };
            for set in [rtype::A, rtype::AAAA].iter().filter_map(|kind| glue.node.get(*kind)) {
                let before = self.writer.count(Section::Additional);
                self.writer.set(Section::Additional, &server, set, 0);
                missing |= self.writer.count(Section::Additional) == before;
            }
        }
        if missing {
            // RFC 9471: without its glue a referral leads nowhere.
            self.writer.cut();
        }
    }

    fn add_addresses(&mut self, set: &Rrset) {
        for name in set.iter().take(MAX_ADDED).filter_map(|rdata| target(set.kind, rdata)) {
            if let Some(labels) = name.under(&self.zone.origin) {
                if let Some(entry) = self.zone.nodes.get(&sort_key(labels)).filter(|entry| !entry.glue) {
                    for kind in [rtype::A, rtype::AAAA] {
                        if let Some(found) = entry.node.get(kind) {
                            self.set(Section::Additional, &name, entry, found);
                        }
                    }
                }
            } else if let Found::Node(node) = self.names.find(&name, rtype::A) {
                self.writer.node(Section::Additional, &name, node, rtype::A, 0);
                self.writer.node(Section::Additional, &name, node, rtype::AAAA, 0);
            }
        }
    }
}
