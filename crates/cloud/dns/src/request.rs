//! Bytes to a question. Whatever arrives, the result is a question, an error to send back, or silence.

use crate::kind::{CLASS_IN, opcode, rcode, rtype};
use crate::name::WireName;

pub const HEADER: usize = 12;
/// What fits through any path without fragments (DNS flag day 2020).
pub const MAX_UDP_PAYLOAD: u16 = 1232;
pub const CLASSIC_UDP_PAYLOAD: u16 = 512;
const OPTION_COOKIE: u16 = 10;

/// What to do with a datagram or frame.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// Not a question: answering could start a loop between servers.
    Ignore,
    /// So broken that only the header can be sent back.
    Broken {
        id: u16,
        opcode: u8,
        rd: bool,
        rcode: u16,
    },
    /// A question that is refused whatever we know.
    Refused(Request<'a>, u16),
    Query(Request<'a>),
    /// AXFR or IXFR.
    Transfer(Request<'a>),
}

/// One well-formed question.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The message as it came.
    pub bytes: &'a [u8],
    pub id: u16,
    pub opcode: u8,
    pub rd: bool,
    pub cd: bool,
    /// Name, type and class as they were written, so that the reply has them in the same letters.
    pub question: &'a [u8],
    pub name: WireName,
    pub kind: u16,
    pub edns: Option<Edns<'a>>,
    /// Where the TSIG record begins, which is always the last one.
    pub tsig: Option<usize>,
    /// The serial in the authority section of an IXFR.
    pub serial: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct Edns<'a> {
    pub size: u16,
    pub dnssec_ok: bool,
    pub cookie: Option<(&'a [u8; 8], &'a [u8])>,
}

impl Request<'_> {
    /// The most bytes its sender takes in one datagram.
    pub fn payload_limit(&self) -> usize {
        let asked = self.edns.map_or(CLASSIC_UDP_PAYLOAD, |edns| edns.size);
        usize::from(asked.clamp(CLASSIC_UDP_PAYLOAD, MAX_UDP_PAYLOAD))
    }

    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub fn parse(bytes: &[u8]) -> Incoming<'_> {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Incoming::Ignore };
    if header[2] & 0x80 != 0 {
        return Incoming::Ignore;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let (opcode, rd) = (header[2] >> 3 & 15, header[2] & 1 != 0);
    let broken = |rcode| Incoming::Broken { id, opcode, rd, rcode };
    match opcode {
        opcode::QUERY => {}
        // Only zones of our own are here; nobody else is their primary.
        opcode::NOTIFY => return broken(rcode::NOT_AUTH),
        _ => return broken(rcode::NOT_IMP),
    }
    match request(bytes, id, opcode, rd) {
        Ok((request, class)) => classify(request, class),
        Err(Malformed::Message) => broken(rcode::FORM_ERR),
        Err(Malformed::Version(request)) => Incoming::Refused(request, rcode::BAD_VERS),
    }
}

fn classify(request: Request<'_>, class: u16) -> Incoming<'_> {
    if class != CLASS_IN {
        return Incoming::Refused(request, rcode::REFUSED);
    }
    match request.kind {
        rtype::AXFR | rtype::IXFR => Incoming::Transfer(request),
        0 | rtype::OPT | rtype::TSIG => Incoming::Refused(request, rcode::FORM_ERR),
        // Questions for more than one record set, and types that only exist inside messages.
        128..=254 => Incoming::Refused(request, rcode::NOT_IMP),
        _ => Incoming::Query(request),
    }
}

enum Malformed<'a> {
    Message,
    /// An EDNS version that is not 0.
    Version(Request<'a>),
}

fn request(bytes: &[u8], id: u16, opcode: u8, rd: bool) -> Result<(Request<'_>, u16), Malformed<'_>> {
    let count = |index: usize| u16_at(bytes, 4 + 2 * index).ok_or(Malformed::Message);
    // RFC 9619: one question, neither fewer nor more.
    if count(0)? != 1 || count(1)? != 0 {
        return Err(Malformed::Message);
    }
    let (name, after) = question_name(bytes).ok_or(Malformed::Message)?;
    let kind = u16_at(bytes, after).ok_or(Malformed::Message)?;
    let class = u16_at(bytes, after + 2).ok_or(Malformed::Message)?;
    let mut request = Request {
        bytes,
        id,
        opcode,
        rd,
        cd: bytes[3] & 0x10 != 0,
        question: &bytes[HEADER..after + 4],
        name,
        kind,
        edns: None,
        tsig: None,
        serial: None,
    };
    let mut at = after + 4;
    let (authorities, additionals) = (count(2)?, count(3)?);
    if authorities > 0 && kind != rtype::IXFR {
        return Err(Malformed::Message);
    }
    let mut version = 0;
    for index in 0..u32::from(authorities) + u32::from(additionals) {
        let record = Record::read(bytes, at).ok_or(Malformed::Message)?;
        // What signs the message must be its end.
        if request.tsig.is_some() {
            return Err(Malformed::Message);
        }
        if index < u32::from(authorities) {
            if record.kind == rtype::SOA {
                request.serial = record.rdata_in(bytes).and_then(|_| soa_serial(bytes, &record));
            }
        } else {
            match record.kind {
                rtype::OPT if request.edns.is_some() || !record.owner.is_root() => return Err(Malformed::Message),
                rtype::OPT => {
                    version = record.ttl >> 16 & 0xff;
                    let cookie = cookie(record.rdata_in(bytes).unwrap_or_default()).ok_or(Malformed::Message)?;
                    let dnssec_ok = record.ttl & 0x8000 != 0;
                    request.edns = Some(Edns { size: record.class, dnssec_ok, cookie });
                }
                rtype::TSIG => request.tsig = Some(at),
                _ => {}
            }
        }
        at = record.end;
    }
    if at != bytes.len() {
        return Err(Malformed::Message);
    }
    if version != 0 {
        return Err(Malformed::Version(request));
    }
    Ok((request, class))
}

/// A pointer in the question has nothing behind it to lead to.
fn question_name(bytes: &[u8]) -> Option<(WireName, usize)> {
    let (name, next) = WireName::read(bytes, HEADER)?;
    (next == HEADER + name.as_bytes().len()).then_some((name, next))
}

/// A record's place in a message.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub owner: WireName,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    pub rdata: usize,
    pub end: usize,
}

impl Record {
    pub fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let (owner, after) = WireName::read(bytes, at)?;
        let rdata = after + 10;
        let end = rdata + usize::from(u16_at(bytes, after + 8)?);
        let (kind, class, ttl) = (u16_at(bytes, after)?, u16_at(bytes, after + 2)?, u32_at(bytes, after + 4)?);
        (end <= bytes.len()).then_some(Self { owner, kind, class, ttl, rdata, end })
    }

    pub fn rdata_in<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.rdata..self.end)
    }
}

fn soa_serial(bytes: &[u8], record: &Record) -> Option<u32> {
    let (_, after) = WireName::read(bytes, record.rdata)?;
    let (_, after) = WireName::read(bytes, after)?;
    (after + 20 == record.end).then(|| u32_at(bytes, after)).flatten()
}

/// The cookie among the options; the outer `None` means that they are malformed.
#[allow(clippy::type_complexity)]
fn cookie(mut options: &[u8]) -> Option<Option<(&[u8; 8], &[u8])>> {
    let mut found = None;
    while !options.is_empty() {
        let (code, length) = (u16_at(options, 0)?, usize::from(u16_at(options, 2)?));
        let data = options.get(4..4 + length)?;
        if code == OPTION_COOKIE && found.is_none() {
            // RFC 7873: 8 of the client's, then nothing or 8 to 32 of the server's.
            let (client, server) = data.split_first_chunk::<8>()?;
            if !server.is_empty() && !(8..=32).contains(&server.len()) {
                return None;
            }
            found = Some((client, server));
        }
        options = &options[4 + length..];
    }
    Some(found)
}
