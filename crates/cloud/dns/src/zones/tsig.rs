//! Shared keys that prove who asks for a zone, and that what he gets is from us (TSIG, RFC 8945).

use ring::hmac;

use crate::kind::rtype;
use crate::name::WireName;
use crate::request::{HEADER, Record, u16_at};

const FUDGE: u16 = 300;
pub const BAD_SIG: u16 = 16;
pub const BAD_KEY: u16 = 17;
pub const BAD_TIME: u16 = 18;

/// A key of a secondary.
#[derive(Clone)]
pub struct TsigKey {
    pub name: WireName,
    algorithm: WireName,
    key: hmac::Key,
}

impl TsigKey {
    /// `None` for an algorithm that is unknown or broken.
    pub fn new(name: &str, algorithm: &str, secret: &[u8]) -> Option<Self> {
        let hash = match algorithm.trim_end_matches('.').to_ascii_lowercase().as_str() {
            "hmac-sha256" => hmac::HMAC_SHA256,
            "hmac-sha384" => hmac::HMAC_SHA384,
            "hmac-sha512" => hmac::HMAC_SHA512,
            _ => return None,
        };
        let (name, algorithm) = (WireName::parse(name)?, WireName::parse(algorithm)?);
        (secret.len() >= 16).then(|| Self { name, algorithm, key: hmac::Key::new(hash, secret) })
    }

    /// Appends the record that signs the message at the end of `out`, whose other end is `begin`. `previous` is the
    /// MAC that this one goes on from, `follows` whether it is one of several messages but not the first.
    pub fn sign(
        &self,
        out: &mut Vec<u8>,
        begin: usize,
        previous: &[u8],
        follows: bool,
        now: u64,
        error: u16,
    ) -> Vec<u8> {
        let time = time48(now);
        let mut context = hmac::Context::with_key(&self.key);
        if !previous.is_empty() {
            context.update(&u16::try_from(previous.len()).unwrap_or(0).to_be_bytes());
            context.update(previous);
        }
        context.update(&out[begin..]);
        match follows {
            true => {
                context.update(&time);
                context.update(&FUDGE.to_be_bytes());
            }
            false => context.update(&self.variables(&time, FUDGE, error, &[])),
        }
        let mac = context.sign().as_ref().to_vec();
        let id = [out[begin], out[begin + 1]];
        append(out, begin, &self.name, &self.algorithm, &time, &mac, id, error);
        mac
    }

    fn variables(&self, time: &[u8; 6], fudge: u16, error: u16, other: &[u8]) -> Vec<u8> {
        let mut bytes = self.name.as_bytes().to_vec();
        bytes.extend([0, 255, 0, 0, 0, 0]);
        bytes.extend(self.algorithm.as_bytes());
        bytes.extend(time);
        bytes.extend(fudge.to_be_bytes());
        bytes.extend(error.to_be_bytes());
        bytes.extend(u16::try_from(other.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(other);
        bytes
    }
}

/// What the signature of a message turned out to be.
pub enum Verified<'a> {
    /// By this key; the MAC goes into the reply's.
    By(&'a TsigKey, Vec<u8>),
    /// The reply says why, in a record that is not signed.
    Failed {
        name: WireName,
        algorithm: WireName,
        error: u16,
    },
    /// Right, but of another time: signed, so that the clock's owner learns of it.
    BadTime(&'a TsigKey, Vec<u8>),
    Malformed,
}

/// Checks the record at `at`, the last one of `message`.
pub fn verify<'a>(message: &[u8], at: usize, keys: impl Iterator<Item = &'a TsigKey>, now: u64) -> Verified<'a> {
    let Some(fields) = Fields::read(message, at) else { return Verified::Malformed };
    let failed = |error| Verified::Failed { name: fields.name, algorithm: fields.algorithm, error };
    let mut keys = keys.filter(|key| key.name == fields.name && key.algorithm == fields.algorithm);
    let Some(key) = keys.next() else { return failed(BAD_KEY) };
    // As the message was before it was signed.
    let mut unsigned = message[..at].to_vec();
    unsigned[..2].copy_from_slice(&fields.id);
    let additionals = u16_at(message, 10).unwrap_or(1) - 1;
    unsigned[10..12].copy_from_slice(&additionals.to_be_bytes());
    unsigned.extend(key.variables(&fields.time, fields.fudge, fields.error, fields.other));
    if hmac::verify(&key.key, &unsigned, fields.mac).is_err() {
        return failed(BAD_SIG);
    }
    let mac = fields.mac.to_vec();
    let time = fields.time.iter().fold(0u64, |time, byte| time << 8 | u64::from(*byte));
    if now.abs_diff(time) > u64::from(fields.fudge) {
        return Verified::BadTime(key, mac);
    }
    Verified::By(key, mac)
}

/// Appends a record without a signature, which tells of an error.
pub fn append_error(out: &mut Vec<u8>, begin: usize, name: &WireName, algorithm: &WireName, now: u64, error: u16) {
    let id = [out[begin], out[begin + 1]];
    append(out, begin, name, algorithm, &time48(now), &[], id, error);
}

#[allow(clippy::too_many_arguments)] // The fields of one record.
fn append(
    out: &mut Vec<u8>,
    begin: usize,
    name: &WireName,
    algorithm: &WireName,
    time: &[u8; 6],
    mac: &[u8],
    id: [u8; 2],
    error: u16,
) {
    out.extend(name.as_bytes());
    out.extend(rtype::TSIG.to_be_bytes());
    out.extend([0, 255, 0, 0, 0, 0]);
    let length = algorithm.as_bytes().len() + 16 + mac.len();
    out.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
    out.extend(algorithm.as_bytes());
    out.extend(time);
    out.extend(FUDGE.to_be_bytes());
    out.extend(u16::try_from(mac.len()).unwrap_or(0).to_be_bytes());
    out.extend(mac);
    out.extend(id);
    out.extend(error.to_be_bytes());
    out.extend([0, 0]);
    let additionals = u16_at(&out[begin..], 10).unwrap_or(0) + 1;
    out[begin + 10..begin + HEADER].copy_from_slice(&additionals.to_be_bytes());
}

struct Fields<'a> {
    name: WireName,
    algorithm: WireName,
    time: [u8; 6],
    fudge: u16,
    mac: &'a [u8],
    id: [u8; 2],
    error: u16,
    other: &'a [u8],
}

impl<'a> Fields<'a> {
    fn read(message: &'a [u8], at: usize) -> Option<Self> {
        let record = Record::read(message, at).filter(|record| record.class == 255 && record.ttl == 0)?;
        let (algorithm, at) = WireName::read(message, record.rdata)?;
        let time = *message.get(at..record.end)?.first_chunk()?;
        let mac_end = at + 10 + usize::from(u16_at(message, at + 8)?);
        let other = message.get(mac_end + 6..record.end)?;
        (usize::from(u16_at(message, mac_end + 4)?) == other.len()).then_some(())?;
        Some(Self {
            name: record.owner,
            algorithm,
            time,
            fudge: u16_at(message, at + 6)?,
            mac: message.get(at + 10..mac_end)?,
            id: *message.get(mac_end..)?.first_chunk()?,
            error: u16_at(message, mac_end + 2)?,
            other,
        })
    }
}

fn time48(now: u64) -> [u8; 6] {
    let bytes = now.to_be_bytes();
    [bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]
}
