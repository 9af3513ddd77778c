//! Signatures of a zone's sets and the chain that proves what is not there (RFC 4034, ECDSA P-256, one key for both uses).

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use crate::kind::{CLASS_IN, rtype};
use crate::name::WireName;
use crate::rrset::Rrset;

const ALGORITHM: u8 = 13;
const PROTOCOL: u8 = 3;
const ZONE_AND_ENTRY_POINT: u16 = 257;
const DIGEST_SHA256: u8 = 2;
const DAY: u32 = 86400;
/// Signatures hold so long, begin an hour ago for clocks that are late, and are made anew in each period.
const VALIDITY: u32 = 14 * DAY;
const BACKDATED: u32 = 3600;
pub const PERIOD: u32 = 3 * DAY;

/// A zone's key.
pub struct ZoneKey {
    pair: EcdsaKeyPair,
    dnskey: Vec<u8>,
    tag: u16,
}

impl ZoneKey {
    /// A new key as it is kept in a Secret.
    pub fn generate() -> Option<Vec<u8>> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        document.ok().map(|document| document.as_ref().to_vec())
    }

    pub fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &SystemRandom::new()).ok()?;
        let mut dnskey = ZONE_AND_ENTRY_POINT.to_be_bytes().to_vec();
        dnskey.extend([PROTOCOL, ALGORITHM]);
        // Without the byte that says that the point is not compressed.
        dnskey.extend(pair.public_key().as_ref().get(1..)?);
        let tag = key_tag(&dnskey);
        Some(Self { pair, dnskey, tag })
    }

    pub fn tag(&self) -> u16 {
        self.tag
    }

    /// The sets at the origin that publish the key.
    pub fn sets(&self, origin: &WireName, ttl: u32) -> [Option<Rrset>; 3] {
        [
            Rrset::new(rtype::DNSKEY, ttl, [self.dnskey.clone()]),
            Rrset::new(rtype::CDNSKEY, ttl, [self.dnskey.clone()]),
            Rrset::new(rtype::CDS, ttl, [self.ds_rdata(origin)]),
        ]
    }

    fn ds_rdata(&self, origin: &WireName) -> Vec<u8> {
        let hash = digest(&SHA256, &[origin.as_bytes(), &self.dnskey].concat());
        [&self.tag.to_be_bytes()[..], &[ALGORITHM, DIGEST_SHA256], hash.as_ref()].concat()
    }

    /// The DS record's data as people write it.
    pub fn ds_text(&self, origin: &WireName) -> String {
        let hash: String = self.ds_rdata(origin)[4..].iter().map(|byte| format!("{byte:02X}")).collect();
        format!("{} {ALGORITHM} {DIGEST_SHA256} {hash}", self.tag)
    }

    /// The RRSIG set of a set.
    pub fn sign(&self, owner: &WireName, set: &Rrset, origin: &WireName, now: u32) -> Option<Rrset> {
        let wildcard = owner.labels().next() == Some(b"*");
        let labels = owner.labels().count() - usize::from(wildcard);
        let mut rdata = set.kind.to_be_bytes().to_vec();
        rdata.extend([ALGORITHM, u8::try_from(labels).ok()?]);
        rdata.extend(set.ttl.to_be_bytes());
        rdata.extend(now.wrapping_add(VALIDITY).to_be_bytes());
        rdata.extend(now.wrapping_sub(BACKDATED).to_be_bytes());
        rdata.extend(self.tag.to_be_bytes());
        rdata.extend(origin.as_bytes());
        let mut signed = rdata.clone();
        let mut rdatas: Vec<&[u8]> = set.iter().collect();
        rdatas.sort_unstable();
        for data in rdatas {
            signed.extend(owner.as_bytes());
            signed.extend(set.kind.to_be_bytes());
            signed.extend(CLASS_IN.to_be_bytes());
            signed.extend(set.ttl.to_be_bytes());
            signed.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            signed.extend(data);
        }
        let signature = self.pair.sign(&SystemRandom::new(), &signed).ok()?;
        rdata.extend(signature.as_ref());
        Rrset::new(rtype::RRSIG, set.ttl, [rdata])
    }
}

/// Which type a signature is of, and when it ends.
pub fn covers(rrsig: &Rrset) -> Option<(u16, u32)> {
    let rdata = rrsig.first()?;
    let kind = u16::from_be_bytes(*rdata.first_chunk()?);
    Some((kind, u32::from_be_bytes(*rdata.get(8..)?.first_chunk()?)))
}

/// Whether a signature made before is still good enough: of this key, and not near its end.
pub fn is_fresh(rrsig: &Rrset, tag: u16, now: u32) -> bool {
    let Some((_, expires)) = covers(rrsig) else { return false };
    let made_by = rrsig.first().and_then(|rdata| Some(u16::from_be_bytes(*rdata.get(16..)?.first_chunk()?)));
    let left = expires.wrapping_sub(now);
    made_by == Some(tag) && left <= VALIDITY && left > VALIDITY / 2
}

/// RFC 4034, appendix B.
fn key_tag(dnskey: &[u8]) -> u16 {
    let sum = dnskey.iter().enumerate().fold(0u32, |sum, (index, byte)| {
        sum.wrapping_add(if index % 2 == 0 { u32::from(*byte) << 8 } else { u32::from(*byte) })
    });
    u16::try_from((sum + (sum >> 16 & 0xffff)) & 0xffff).unwrap_or(0)
}

/// The data of an NSEC record: the next name and the types here.
pub fn nsec_rdata(next: &WireName, kinds: &[u16]) -> Vec<u8> {
    let mut kinds = kinds.to_vec();
    kinds.sort_unstable();
    kinds.dedup();
    let mut rdata = next.as_bytes().to_vec();
    for window in kinds.chunk_by(|a, b| a >> 8 == b >> 8) {
        let mut bits = [0u8; 32];
        let mut length = 0;
        for kind in window {
            let low = usize::from(kind & 0xff);
            bits[low / 8] |= 0x80 >> (low % 8);
            length = low / 8 + 1;
        }
        rdata.extend([(window[0] >> 8).to_be_bytes()[1], u8::try_from(length).unwrap_or(32)]);
        rdata.extend(&bits[..length]);
    }
    rdata
}
