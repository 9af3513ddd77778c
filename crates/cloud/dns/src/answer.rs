//! A question's life as one function: bytes in, bytes out, or what has to be asked elsewhere first. No IO.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;

use crate::cookies::Cookies;
use crate::forward::{Ask, Forwarder, Reply, STALE_TTL};
use crate::kind::{rcode, rtype};
use crate::limit::{Limiter, Verdict};
use crate::name::{Labels, WireName};
use crate::names::{Found, Names};
use crate::reply::{Flags, Section, Writer, bare};
use crate::request::{Incoming, Request, parse};
use crate::rrset::{Node, Rrset, target};
use crate::zones::{Outcome, Signing, Zones};

/// Aliases followed before we stop believing them.
const MAX_ALIASES: usize = 8;
/// Of a TSIG record with a long key name.
const MAX_SIGNATURE: usize = 384;
/// Records whose targets' addresses are added unasked.
const MAX_ADDED: usize = 64;

/// All that answers are made from.
pub struct View {
    pub names: RwLock<Names>,
    pub zones: Zones,
    pub forwarder: Forwarder,
    /// What follows the cluster's domains on the search path; `None`: paths are walked by the clients.
    pub search: Option<Vec<WireName>>,
    pub cookies: Cookies,
    pub limiter: Option<Limiter>,
    pub rotation: AtomicUsize,
    pub loop_seen: tokio::sync::Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// From whom and when a question came.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub peer: IpAddr,
    pub transport: Transport,
    pub now: Instant,
}

/// What to do after a question was looked at.
#[derive(Debug)]
pub enum Next {
    Silent,
    /// The reply is in the buffer; `refresh` is to be fetched again in the background.
    Send {
        kind: u16,
        rcode: u16,
        refresh: Option<Ask>,
    },
    /// Ask this, then look at the question again with what came of it.
    Ask(Ask),
    /// A transfer of a zone, for the loop that may write more than one message.
    Transfer,
}

/// What others answered meanwhile; `None`: nobody did.
pub type Known = [(Ask, Option<Arc<Reply>>)];

impl View {
    /// Looks at a message and appends the reply, if there is one, to `out`.
    pub fn answer(&self, bytes: &[u8], origin: Origin, known: &Known, out: &mut Vec<u8>) -> Next {
        let begin = out.len();
        let (request, refused) = match parse(bytes) {
            Incoming::Ignore => return Next::Silent,
            Incoming::Broken { id, opcode, rd, rcode } => {
                bare(out, id, opcode, rd, rcode);
                return self.limited(origin, false, None, out, begin, Next::Send { kind: 0, rcode, refresh: None });
            }
            Incoming::Refused(request, rcode) => (request, Some(rcode)),
            Incoming::Transfer(_) if origin.transport == Transport::Tcp => return Next::Transfer,
            // RFC 5936: by TCP only. RFC 1995: the SOA record says whether to come by TCP.
            Incoming::Transfer(request) if request.kind == rtype::AXFR => (request, Some(rcode::FORM_ERR)),
            Incoming::Transfer(request) => (request, None),
            Incoming::Query(request) => (request, None),
        };
        let signing = request.tsig.map(|at| self.zones.verify(bytes, at, unix_time().into()));
        let refused = match &signing {
            Some(Signing::Malformed) => Some(rcode::FORM_ERR),
            Some(signing) if !signing.is_good() => Some(rcode::NOT_AUTH),
            _ => refused,
        };
        let cookie = request.edns.and_then(|edns| edns.cookie);
        let cookie = cookie.map(|(client, server)| self.cookies.reply(client, server, origin.peer, unix_time()));
        let limit = match origin.transport {
            Transport::Udp => request.payload_limit(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let limit = limit.saturating_sub(if signing.is_some() { MAX_SIGNATURE } else { 0 });
        let mut writer = Writer::new(out, &request, limit, cookie.map(|(cookie, _)| cookie));
        let mut refresh = None;
        let flags = match refused {
            Some(rcode) => Flags { rcode, ..Flags::default() },
            None => match self.resolve(&request, origin, known, &mut refresh, &mut writer) {
                Ok(flags) => flags,
                Err(ask) => {
                    out.truncate(begin);
                    return Next::Ask(ask);
                }
            },
        };
        writer.finish(&request, flags, true);
        if let Some(signing) = &signing {
            signing.sign(out, begin, unix_time().into());
        }
        let proved = cookie.is_some_and(|(_, valid)| valid);
        let next = Next::Send { kind: request.kind, rcode: flags.rcode, refresh };
        self.limited(origin, proved, Some(&request), out, begin, next)
    }

    /// The reply to a question that could not be answered in time.
    pub fn fail(&self, bytes: &[u8], out: &mut Vec<u8>) {
        if let Incoming::Query(request) = parse(bytes) {
            let writer = Writer::new(out, &request, request.payload_limit(), None);
            writer.finish(&request, Flags { rcode: rcode::SERV_FAIL, ..Flags::default() }, true);
        }
    }

    fn limited(
        &self,
        origin: Origin,
        proved: bool,
        request: Option<&Request<'_>>,
        out: &mut Vec<u8>,
        begin: usize,
        next: Next,
    ) -> Next {
        let Some(limiter) = self.limiter.as_ref().filter(|_| origin.transport == Transport::Udp && !proved) else {
            return next;
        };
        match (limiter.judge(origin.peer, origin.now), request) {
            (Verdict::Send, _) => next,
            (Verdict::Cut, Some(request)) => {
                out.truncate(begin);
                let mut writer = Writer::new(out, request, request.payload_limit(), None);
                writer.cut();
                writer.finish(request, Flags::default(), true);
                next
            }
            _ => {
                out.truncate(begin);
                Next::Silent
            }
        }
    }

    fn resolve(
        &self,
        request: &Request<'_>,
        origin: Origin,
        known: &Known,
        refresh: &mut Option<Ask>,
        writer: &mut Writer<'_>,
    ) -> Result<Flags, Ask> {
        if self.forwarder.is_probe(&request.name) {
            self.loop_seen.notify_one();
            return Ok(Flags { rcode: rcode::REFUSED, ..Flags::default() });
        }
        let names = self.names.read();
        let mut step = Step { view: self, names: &names, request, origin, known, refresh, writer };
        step.resolve()
    }
}

/// One question being answered.
struct Step<'a, 'w, 'o> {
    view: &'a View,
    names: &'a Names,
    request: &'a Request<'a>,
    origin: Origin,
    known: &'a Known,
    refresh: &'a mut Option<Ask>,
    writer: &'w mut Writer<'o>,
}

/// What a name turned out to be when looked at on the search path.
enum Tried {
    There,
    NotThere,
    /// Nobody can say.
    Unknown,
}

impl Step<'_, '_, '_> {
    fn resolve(&mut self) -> Result<Flags, Ask> {
        let mut name = self.request.name;
        let mut flags = Flags { authoritative: true, ..Flags::default() };
        let mut searched = false;
        for hop in 0..MAX_ALIASES {
            let made;
            let node = match self.names.find(&name, self.request.kind) {
                Found::Node(node) => node,
                Found::Made(node) => {
                    made = node;
                    &made
                }
                Found::NoName => {
                    if hop == 0 && !searched {
                        searched = true;
                        if let Some(target) = self.search()? {
                            let wire = target.as_bytes();
                            self.writer.record(Section::Answer, &name, rtype::CNAME, self.names.ttl, wire);
                            name = target;
                            continue;
                        }
                    }
                    self.deny();
                    return Ok(Flags { rcode: rcode::NX_DOMAIN, ..flags });
                }
                Found::NotOurs => match self.view.zones.find(&name) {
                    None if self.request.kind == rtype::IXFR => {
                        return Ok(Flags { rcode: rcode::NOT_AUTH, ..Flags::default() });
                    }
                    None => return self.elsewhere(&name, flags),
                    Some(zone) => match zone.answer(&name, self.request, hop, self.names, self.writer) {
                        Outcome::Done(found) => return Ok(found),
                        Outcome::Alias(target) => {
                            name = target;
                            continue;
                        }
                    },
                },
            };
            match self.records(&name, node) {
                Some(target) => name = target,
                None => return Ok(flags),
            }
        }
        self.writer.clear();
        flags.authoritative = false;
        Ok(Flags { rcode: rcode::SERV_FAIL, ..flags })
    }

    /// Writes what a name holds; returns where the answer goes on if that is an alias.
    fn records(&mut self, name: &WireName, node: &Node) -> Option<WireName> {
        let kind = self.request.kind;
        if kind == rtype::ANY {
            // RFC 8482: one set is enough, and nothing to attack others with.
            match node.sets.first() {
                Some(set) => self.writer.set(Section::Answer, name, set, 0),
                None => self.deny(),
            }
            return None;
        }
        if kind != rtype::CNAME
            && let Some(alias) = node.get(rtype::CNAME)
        {
            self.writer.set(Section::Answer, name, alias, 0);
            return alias.first().and_then(WireName::from_wire);
        }
        match node.get(kind) {
            Some(set) => {
                let first = self.view.rotation.fetch_add(1, Ordering::Relaxed);
                self.writer.set(Section::Answer, name, set, first);
                self.add_addresses(set);
            }
            None => self.deny(),
        }
        None
    }

    /// The addresses a client will ask for next.
    fn add_addresses(&mut self, set: &Rrset) {
        if !matches!(set.kind, rtype::SRV | rtype::NS | rtype::MX) {
            return;
        }
        for target in set.iter().take(MAX_ADDED).filter_map(|rdata| target(set.kind, rdata)) {
            if let Found::Node(node) = self.names.find(&target, rtype::A) {
                self.writer.node(Section::Additional, &target, node, rtype::A, 0);
                self.writer.node(Section::Additional, &target, node, rtype::AAAA, 0);
            }
        }
    }

    fn deny(&mut self) {
        self.writer.set(Section::Authority, &self.names.apex, &self.names.soa, 0);
    }

    fn ask(&self, name: WireName) -> Ask {
        Ask { name, kind: self.request.kind, dnssec_ok: self.request.dnssec_ok(), cd: self.request.cd }
    }

    /// What is known of a name that is not ours: `None` if nobody answers.
    fn known(&mut self, ask: Ask) -> Result<Option<(Arc<Reply>, u32)>, Ask> {
        if let Some((_, reply)) = self.known.iter().find(|(asked, _)| *asked == ask) {
            return Ok(reply.clone().map(|reply| (reply, 0)));
        }
        match self.view.forwarder.cached(&ask, self.origin.now) {
            Some((reply, age, refresh)) => {
                if refresh {
                    *self.refresh = Some(ask);
                }
                Ok(Some((reply, age)))
            }
            None => Err(ask),
        }
    }

    fn elsewhere(&mut self, name: &WireName, mut flags: Flags) -> Result<Flags, Ask> {
        let aliased = self.writer.count(Section::Answer) > 0;
        flags.authoritative = aliased;
        if self.request.kind == rtype::ANY {
            // RFC 8482 again: whoever wants to know what a name holds asks for it by type.
            self.writer.record(Section::Answer, name, rtype::HINFO, 3600, b"\x07RFC8482\x00");
            return Ok(flags);
        }
        if !self.request.rd {
            flags.rcode = if aliased { rcode::NO_ERROR } else { rcode::REFUSED };
            return Ok(flags);
        }
        let Some((reply, age)) = self.known(self.ask(*name))? else {
            // An alias without its target is still a useful answer.
            flags.rcode = if aliased { rcode::NO_ERROR } else { rcode::SERV_FAIL };
            return Ok(flags);
        };
        let left = |ttl: u32| if reply.stale { STALE_TTL } else { ttl.saturating_sub(age) };
        for (section, records) in [(Section::Answer, &reply.answers), (Section::Authority, &reply.authorities)] {
            for (owner, kind, ttl, rdata) in records.iter() {
                self.writer.record(section, &owner, kind, left(ttl), rdata);
            }
        }
        Ok(Flags { rcode: reply.rcode, authentic: reply.authentic && !aliased, ..flags })
    }

    /// The rest of the search path of the pod that asks, walked for it: the first name on it that exists.
    fn search(&mut self) -> Result<Option<WireName>, Ask> {
        let Some(domains) = &self.view.search else { return Ok(None) };
        let Some(base) = self.searched_base() else { return Ok(None) };
        let apex = self.names.apex;
        let services = WireName::below(b"\x03svc", &apex);
        let own = services.into_iter().chain([apex]);
        for domain in own.chain(domains.iter().copied()).chain([WireName::ROOT]) {
            let Some(candidate) = WireName::below(&base, &domain) else { continue };
            match self.exists(&candidate)? {
                Tried::There => return Ok(Some(candidate)),
                Tried::NotThere => {}
                // The client goes on by itself and learns of the failure at the end of its path.
                Tried::Unknown => return Ok(None),
            }
        }
        Ok(None)
    }

    /// What a pod looked for, if the question is the first step of its search: its namespace's domain at the end.
    fn searched_base(&self) -> Option<Vec<u8>> {
        let namespace = self.names.namespace_of(self.origin.peer)?;
        let prefix = self.request.name.under(&self.names.apex)?;
        let labels: Vec<&[u8]> = Labels(prefix).collect();
        let [base @ .., last, b"svc"] = labels.as_slice() else { return None };
        // A single label is a service's name, never one for others to know of.
        let wanted = *last == namespace && base.len() >= 2;
        wanted.then(|| prefix[..base.iter().map(|label| label.len() + 1).sum()].to_vec())
    }

    fn exists(&mut self, name: &WireName) -> Result<Tried, Ask> {
        match self.names.find(name, self.request.kind) {
            Found::Node(_) | Found::Made(_) => Ok(Tried::There),
            Found::NoName => Ok(Tried::NotThere),
            Found::NotOurs if let Some(zone) = self.view.zones.find(name) => {
                Ok(if zone.has(name) { Tried::There } else { Tried::NotThere })
            }
            Found::NotOurs if !self.request.rd => Ok(Tried::Unknown),
            Found::NotOurs => Ok(match self.known(self.ask(*name))? {
                Some((reply, _)) if reply.rcode == rcode::NO_ERROR => Tried::There,
                Some(_) => Tried::NotThere,
                None => Tried::Unknown,
            }),
        }
    }
}

pub fn unix_time() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    // Serial arithmetic goes round in 2106.
    u32::try_from(now & u64::from(u32::MAX)).unwrap_or(0)
}
