//! A zone from its objects: a function of what is there, and of what was served before. No IO.

use std::collections::BTreeMap;
use std::str::FromStr;

use hickory_proto::rr::{RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};

use super::dnssec::{PERIOD, ZoneKey, covers, is_fresh, nsec_rdata};
use super::kinds::{Record, Zone as ZoneObject};
use super::tsig::TsigKey;
use super::zone::{Entry, Zone, sort_key};
use crate::kind::rtype;
use crate::name::WireName;
use crate::rrset::{Node, Rrset, SoaTimes, soa_rdata, target};

const DEFAULT_TTL: u32 = 3600;
const DEFAULT_NEGATIVE_TTL: u32 = 60;

/// What a zone is made of, besides its own object.
pub struct Inputs<'a> {
    pub zone: &'a ZoneObject,
    pub records: &'a [&'a Record],
    pub key: Option<&'a ZoneKey>,
    pub transfer_keys: Vec<TsigKey>,
    /// Its servers if it names none.
    pub server: &'a str,
    /// The one served until now, of this program's life.
    pub previous: Option<&'a Zone>,
    pub now: u32,
}

pub struct Built {
    pub zone: Zone,
    /// Why a record is not served, by its place among the inputs.
    pub refused: BTreeMap<usize, Refusal>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

fn refuse<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// Sets in the making, by name and type.
type Sets = BTreeMap<Box<[u8]>, (WireName, BTreeMap<u16, (u32, Vec<Vec<u8>>)>)>;

pub fn build(inputs: &Inputs<'_>) -> Result<Built, Refusal> {
    let spec = &inputs.zone.spec;
    let Some(origin) = WireName::parse(&spec.origin).filter(|origin| !origin.is_root()) else {
        return refuse("InvalidOrigin", format!("{:?} is not the name of a zone", spec.origin));
    };
    let ttl = spec.ttl.unwrap_or(DEFAULT_TTL);
    let negative_ttl = spec.negative_ttl.unwrap_or(DEFAULT_NEGATIVE_TTL);
    let mut servers = Vec::new();
    for server in &spec.name_servers {
        match WireName::parse(server) {
            Some(name) => servers.push(name),
            None => return refuse("InvalidNameServer", format!("{server:?} is not a domain name")),
        }
    }
    if servers.is_empty() {
        servers.extend(WireName::parse(inputs.server));
    }
    let Some(primary) = servers.first().copied() else {
        return refuse("InvalidNameServer", "the zone names no server");
    };
    let mailbox = match &spec.mailbox {
        Some(mailbox) => WireName::parse(mailbox),
        None => WireName::below(b"\x0ahostmaster", &origin),
    };
    let Some(mailbox) = mailbox else { return refuse("InvalidMailbox", "the mailbox is not a domain name") };

    let mut sets = Sets::new();
    let mut refused = BTreeMap::new();
    for (index, record) in inputs.records.iter().enumerate() {
        if let Err(refusal) = add(&mut sets, &origin, ttl, record) {
            refused.insert(index, refusal);
        }
    }
    let apex = &mut sets.entry(sort_key(&[])).or_insert_with(|| (origin, BTreeMap::new())).1;
    let ns = apex.entry(rtype::NS).or_insert_with(|| (ttl, Vec::new()));
    if ns.1.is_empty() {
        ns.1.extend(servers.iter().map(|server| server.as_bytes().to_vec()));
    }
    let period = inputs.key.map_or(0, |_| inputs.now / PERIOD);
    let content_hash = hash(&sets, &primary, &mailbox, negative_ttl, period, inputs.key.map_or(0, ZoneKey::tag));
    let serial = serial(inputs, &content_hash);
    let times = SoaTimes { refresh: 3600, retry: 600, expire: 1_209_600, minimum: negative_ttl };
    let soa_ttl = ttl.min(negative_ttl);
    let Some(soa) = Rrset::new(rtype::SOA, soa_ttl, [soa_rdata(&primary, &mailbox, serial, times)]) else {
        return refuse("InvalidZone", "the zone's SOA record is too long");
    };
    let cuts: Vec<WireName> = sets
        .values()
        .filter(|(name, sets)| *name != origin && sets.contains_key(&rtype::NS))
        .map(|(n, _)| *n)
        .collect();
    let mut nodes = BTreeMap::new();
    for (key, (name, kinds)) in sets {
        let glue = cuts.iter().any(|cut| *cut != name && name.under(cut).is_some());
        let mut made: Vec<Option<Rrset>> =
            kinds.into_iter().map(|(kind, (ttl, rdatas))| Rrset::new(kind, ttl, rdatas)).collect();
        if name == origin {
            made.insert(0, Some(soa.clone()));
            if let Some(zone_key) = inputs.key {
                made.extend(zone_key.sets(&origin, ttl));
            }
        }
        let entry = Entry { name: name.as_bytes().into(), node: Node::new(made), signatures: Box::default(), glue };
        nodes.insert(key, entry);
    }
    let mut zone = Zone { origin, serial, content_hash, signed: false, soa, nodes, keys: inputs.transfer_keys.clone() };
    if let Some(key) = inputs.key {
        sign(&mut zone, key, inputs.previous, negative_ttl, inputs.now);
    }
    Ok(Built { zone, refused })
}

/// A content that others know by a number keeps it; another has a higher one.
fn serial(inputs: &Inputs<'_>, content_hash: &str) -> u32 {
    let status = inputs.zone.status.as_ref();
    let known = status.and_then(|status| status.serial);
    // The status may not have come back to us yet.
    if let Some(previous) = inputs.previous.filter(|previous| previous.content_hash == content_hash) {
        return previous.serial;
    }
    if let Some(serial) = known
        && status.and_then(|status| status.content_hash.as_deref()) == Some(content_hash)
    {
        return serial;
    }
    let version = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let records = inputs.records.iter().map(|record| version(&record.metadata.resource_version));
    let revision = records.chain([version(&inputs.zone.metadata.resource_version)]).max().unwrap_or(1);
    let revision = u32::try_from(revision & u64::from(u32::MAX)).unwrap_or(1).max(1);
    let before = known.max(inputs.previous.map(|zone| zone.serial));
    before.map_or(revision, |before| revision.max(before.wrapping_add(1)))
}

fn add(sets: &mut Sets, origin: &WireName, default_ttl: u32, record: &Record) -> Result<(), Refusal> {
    let spec = &record.spec;
    let name = match spec.name.as_str() {
        "@" => Some(*origin),
        name => WireName::parse(name).and_then(|name| {
            let labels = name.as_bytes();
            WireName::below(&labels[..labels.len() - 1], origin)
        }),
    };
    let Some(name) = name else { return refuse("InvalidName", format!("{:?} is not a name in the zone", spec.name)) };
    let kind = RecordType::from_str(&spec.r#type)
        .map_err(|_| Refusal { reason: "InvalidType", message: format!("{:?} is not a record type", spec.r#type) })?;
    let number = u16::from(kind);
    let mut rdatas = Vec::new();
    for value in &spec.values {
        rdatas.push(rdata(kind, value)?);
    }
    let key = sort_key(name.under(origin).unwrap_or_default());
    let there = &mut sets.entry(key).or_insert_with(|| (name, BTreeMap::new())).1;
    let alone = |number| number == rtype::CNAME;
    let conflict = there.keys().any(|other| *other != number && (alone(*other) || alone(number)))
        || alone(number) && (there.contains_key(&number) || name == *origin);
    if conflict {
        return refuse("Conflict", format!("{name} cannot be an alias and hold other records"));
    }
    let set = there.entry(number).or_insert_with(|| (spec.ttl.unwrap_or(default_ttl), Vec::new()));
    // RFC 2181: the records of a set have one time to live.
    set.0 = set.0.min(spec.ttl.unwrap_or(default_ttl));
    set.1.extend(rdatas);
    Ok(())
}

/// The wire form of data as zone files have it, names written out and lower-cased.
fn rdata(kind: RecordType, value: &str) -> Result<Vec<u8>, Refusal> {
    let invalid = |error: String| Refusal { reason: "InvalidValue", message: format!("{kind} {value:?}: {error}") };
    if kind == RecordType::DS {
        return ds_rdata(value).ok_or_else(|| invalid("not key tag, algorithm, digest type and digest".into()));
    }
    // A text without quotes is one text, whatever is in it.
    let quoted = format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
    let bare = kind == RecordType::TXT && !value.contains('"');
    let data = RData::try_from_str(kind, if bare { &quoted } else { value }).map_err(|e| invalid(e.to_string()))?;
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(NameEncoding::UncompressedLowercase);
    data.emit(&mut encoder).map_err(|error| invalid(error.to_string()))?;
    Ok(bytes)
}

fn ds_rdata(value: &str) -> Option<Vec<u8>> {
    let mut words = value.split_whitespace();
    let mut rdata = words.next()?.parse::<u16>().ok()?.to_be_bytes().to_vec();
    rdata.push(words.next()?.parse().ok()?);
    rdata.push(words.next()?.parse().ok()?);
    let digits: String = words.collect();
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    for pair in digits.as_bytes().chunks(2) {
        rdata.push(u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?);
    }
    Some(rdata)
}

fn hash(sets: &Sets, primary: &WireName, mailbox: &WireName, negative_ttl: u32, period: u32, tag: u16) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(primary.as_bytes());
    context.update(mailbox.as_bytes());
    [negative_ttl, period, u32::from(tag)].iter().for_each(|number| context.update(&number.to_be_bytes()));
    for (name, kinds) in sets.values() {
        for (kind, (ttl, rdatas)) in kinds {
            context.update(name.as_bytes());
            context.update(&kind.to_be_bytes());
            context.update(&ttl.to_be_bytes());
            let mut rdatas: Vec<&Vec<u8>> = rdatas.iter().collect();
            rdatas.sort_unstable();
            rdatas.dedup();
            for rdata in rdatas {
                context.update(&u32::try_from(rdata.len()).unwrap_or(u32::MAX).to_be_bytes());
                context.update(rdata);
            }
        }
    }
    context.finish().as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Adds the chain of names and all signatures; those of before are kept where nothing changed.
fn sign(zone: &mut Zone, key: &ZoneKey, previous: Option<&Zone>, negative_ttl: u32, now: u32) {
    let origin = zone.origin;
    let owners: Vec<(Box<[u8]>, WireName)> = zone
        .nodes
        .iter()
        .filter(|(_, entry)| !entry.glue)
        .filter_map(|(key, entry)| Some((key.clone(), entry.wire_name()?)))
        .collect();
    for (index, (sort, owner)) in owners.iter().enumerate() {
        let next = owners[(index + 1) % owners.len()].1;
        let Some(entry) = zone.nodes.get_mut(sort) else { continue };
        let cut = *owner != origin && entry.node.get(rtype::NS).is_some();
        let mut kinds: Vec<u16> = entry.node.sets.iter().map(|set| set.kind).collect();
        if cut {
            kinds.retain(|kind| [rtype::NS, rtype::DS].contains(kind));
        }
        kinds.extend([rtype::RRSIG, rtype::NSEC]);
        let nsec = Rrset::new(rtype::NSEC, negative_ttl, [nsec_rdata(&next, &kinds)]);
        entry.node = Node::new(entry.node.sets.iter().cloned().map(Some).chain([nsec]));
        let before = previous.and_then(|zone| zone.nodes.get(sort));
        // At a cut only what is the parent's is signed.
        let ours = entry.node.sets.iter().filter(|set| !cut || [rtype::DS, rtype::NSEC].contains(&set.kind));
        let signatures = ours.filter_map(|set| {
            let kept = before.filter(|before| before.node.get(set.kind) == Some(set)).and_then(|before| {
                before.signatures.iter().find(|signature| {
                    covers(signature).is_some_and(|(kind, _)| kind == set.kind) && is_fresh(signature, key.tag(), now)
                })
            });
            kept.cloned().or_else(|| key.sign(owner, set, &origin, now))
        });
        entry.signatures = signatures.collect();
    }
    zone.signed = true;
}

/// Servers of delegations whose addresses the zone should have and does not.
pub fn missing_glue(zone: &Zone) -> Vec<WireName> {
    let mut missing = Vec::new();
    for entry in zone.nodes.values().filter(|entry| *entry.name != *zone.origin.as_bytes()) {
        let Some(owner) = entry.wire_name() else { continue };
        let servers = entry.node.get(rtype::NS).into_iter().flat_map(Rrset::iter);
        for server in servers.filter_map(|rdata| target(rtype::NS, rdata)) {
            let wanted = server.under(&owner).is_some();
            let there = server.under(&zone.origin).is_some_and(|labels| zone.nodes.contains_key(&sort_key(labels)));
            if wanted && !there {
                missing.push(server);
            }
        }
    }
    missing
}
