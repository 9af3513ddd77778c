//! Record sets as they go on the wire: what a name holds is encoded once, when it changes, never per question.

use std::net::IpAddr;

use crate::kind::rtype;
use crate::name::WireName;

/// Records of one type at one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rrset {
    pub kind: u16,
    pub ttl: u32,
    count: u16,
    /// Length and data of one after the other; names in them are whole.
    data: Box<[u8]>,
}

impl Rrset {
    /// `None` if nothing is left of the data: no set is empty. Twins are dropped, and so is what no message could hold.
    pub fn new(kind: u16, ttl: u32, rdatas: impl IntoIterator<Item = Vec<u8>>) -> Option<Self> {
        let mut seen = std::collections::HashSet::new();
        let mut data = Vec::new();
        let mut count = 0;
        for rdata in rdatas {
            let Ok(length) = u16::try_from(rdata.len()) else { continue };
            if count < 4096 && data.len() + rdata.len() < 60_000 && seen.insert(rdata.clone()) {
                data.extend(length.to_be_bytes());
                data.extend(&rdata);
                count += 1;
            }
        }
        (count > 0).then(|| Self { kind, ttl, count, data: data.into() })
    }

    pub fn iter(&self) -> Rdatas<'_> {
        Rdatas(&self.data)
    }

    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    pub fn first(&self) -> Option<&[u8]> {
        self.iter().next()
    }
}

pub struct Rdatas<'a>(&'a [u8]);

impl<'a> Iterator for Rdatas<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (rdata, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.0 = rest;
        Some(rdata)
    }
}

/// All that one name holds. Without sets it is a name that only has others below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub sets: Box<[Rrset]>,
}

impl Node {
    pub fn new(sets: impl IntoIterator<Item = Option<Rrset>>) -> Self {
        Self { sets: sets.into_iter().flatten().collect() }
    }

    pub fn get(&self, kind: u16) -> Option<&Rrset> {
        self.sets.iter().find(|set| set.kind == kind)
    }

    /// The A and AAAA sets of these addresses.
    pub fn of_addresses(addresses: &[IpAddr], ttl: u32) -> Self {
        let of = |kind, wanted: fn(&IpAddr) -> bool| {
            Rrset::new(kind, ttl, addresses.iter().filter(|ip| wanted(ip)).map(|ip| address_rdata(*ip)))
        };
        Self::new([of(rtype::A, IpAddr::is_ipv4), of(rtype::AAAA, IpAddr::is_ipv6)])
    }
}

pub fn address_rdata(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub fn srv_rdata(priority: u16, weight: u16, port: u16, target: &WireName) -> Vec<u8> {
    let mut rdata = Vec::with_capacity(6 + target.as_bytes().len());
    [priority, weight, port].iter().for_each(|number| rdata.extend(number.to_be_bytes()));
    rdata.extend(target.as_bytes());
    rdata
}

/// Text in strings of at most 255 bytes.
pub fn txt_rdata(text: &str) -> Vec<u8> {
    let mut rdata = Vec::new();
    for chunk in text.as_bytes().chunks(255) {
        rdata.push(u8::try_from(chunk.len()).unwrap_or(u8::MAX));
        rdata.extend(chunk);
    }
    rdata
}

/// The numbers of a SOA record after its serial.
#[derive(Debug, Clone, Copy)]
pub struct SoaTimes {
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    pub minimum: u32,
}

pub fn soa_rdata(server: &WireName, mailbox: &WireName, serial: u32, times: SoaTimes) -> Vec<u8> {
    let mut rdata = [server.as_bytes(), mailbox.as_bytes()].concat();
    for number in [serial, times.refresh, times.retry, times.expire, times.minimum] {
        rdata.extend(number.to_be_bytes());
    }
    rdata
}

/// Where names stand in the data of a type that may be compressed, and how many there are (RFC 3597, section 4).
pub fn compressible(kind: u16) -> Option<(usize, usize)> {
    match kind {
        rtype::NS | rtype::CNAME | rtype::PTR => Some((0, 1)),
        rtype::SOA => Some((0, 2)),
        rtype::MX => Some((2, 1)),
        _ => None,
    }
}

/// The same for what others may have compressed in messages to us: also types that nobody should compress.
pub fn names_within(kind: u16) -> Option<(usize, usize)> {
    match kind {
        // MD, MF, MB, MG, MR and DNAME; MINFO and RP; AFSDB, RT and KX; PX; SRV.
        3 | 4 | 7 | 8 | 9 | rtype::DNAME => Some((0, 1)),
        14 | 17 => Some((0, 2)),
        18 | 21 | 36 => Some((2, 1)),
        26 => Some((2, 2)),
        rtype::SRV => Some((6, 1)),
        _ => compressible(kind),
    }
}

/// The name in the data for which a client will want addresses next.
pub fn target(kind: u16, rdata: &[u8]) -> Option<WireName> {
    let at = match kind {
        rtype::NS => 0,
        rtype::MX => 2,
        rtype::SRV => 6,
        _ => return None,
    };
    WireName::from_wire(rdata.get(at..)?)
}
