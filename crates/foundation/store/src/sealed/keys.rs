//! The keys of sealed values: the first seals, all of them open.
//!
//! A sealed value is `dhow:sealed:v1:<key id>:`, a nonce of 12 bytes, then AES-256-GCM ciphertext and tag. The store's
//! key is the associated data, so a value moved below another key does not open.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};

use crate::Error;

const MAGIC: &[u8] = b"dhow:sealed:v1:";
const KEY_LEN: usize = 32;

/// The key to seal with and those that still open. Made from a key file by [`SealingKeys::parse`].
pub struct SealingKeys {
    keys: Vec<Key>,
    random: SystemRandom,
}

struct Key {
    id: String,
    key: LessSafeKey,
}

impl SealingKeys {
    /// Reads a key file: one key a line in hexadecimal (64 digits), the first of which seals. Empty lines and lines
    /// that begin with `#` are passed over.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad =
                || Error::Invalid(format!("sealing keys, line {}: not a key of 64 hexadecimal digits", number + 1));
            let key = Key::new(&unhex(line).ok_or_else(bad)?).ok_or_else(bad)?;
            if keys.iter().any(|other: &Key| other.id == key.id) {
                return Err(Error::Invalid(format!("sealing keys, line {}: the key is there twice", number + 1)));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(Error::Invalid("sealing keys: there is no key".into()));
        }
        Ok(Self { keys, random: SystemRandom::new() })
    }

    /// A new key as a line of a key file. To rotate: put it first, start anew, call [`super::SealedKv::rewrite`], then
    /// remove the older ones.
    pub fn generate() -> Result<String, Error> {
        let mut key = [0; KEY_LEN];
        fill(&SystemRandom::new(), &mut key)?;
        Ok(key.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What values are sealed with now.
    pub fn first_id(&self) -> &str {
        self.keys.first().map_or("", |key| &key.id)
    }

    /// Seals a value that will be below this key.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> Result<Bytes, Error> {
        let Some(first) = self.keys.first() else { return Err(Error::Invalid("there is no sealing key".into())) };
        let mut nonce = [0; NONCE_LEN];
        fill(&self.random, &mut nonce)?;
        let mut body = value.to_vec();
        let tag = first
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(key), &mut body)
            .map_err(|_| Error::Invalid("the value is too large to seal".into()))?;
        Ok([MAGIC, first.id.as_bytes(), b":", &nonce, &body, tag.as_ref()].concat().into())
    }

    /// The value itself; one that is not sealed is returned as it is.
    pub fn open(&self, key: &[u8], value: &Bytes) -> Result<Bytes, Error> {
        let Some(sealed) = Sealed::of(value) else { return Ok(value.clone()) };
        let failed = |message: String| Error::Sealed { key: String::from_utf8_lossy(key).into_owned(), message };
        let Some(known) = self.keys.iter().find(|known| known.id == sealed.id) else {
            let ids: Vec<&str> = self.keys.iter().map(|key| key.id.as_str()).collect();
            return Err(failed(format!(
                "it is sealed with the key {}, which is not among the sealing keys ({}); add that key to the key file",
                sealed.id,
                ids.join(", ")
            )));
        };
        let damaged = || {
            failed(format!(
                "it does not open with its key {}: it was changed, or belongs to another name; restore it from a backup",
                sealed.id
            ))
        };
        let mut body = sealed.body.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(sealed.nonce).map_err(|_| damaged())?;
        let plain = known.key.open_in_place(nonce, Aad::from(key), &mut body).map_err(|_| damaged())?.len();
        body.truncate(plain);
        Ok(body.into())
    }

    pub(super) fn is_first(&self, value: &[u8]) -> bool {
        Sealed::of(value).is_some_and(|sealed| sealed.id == self.first_id())
    }
}

pub(super) fn is_sealed(value: &[u8]) -> bool {
    Sealed::of(value).is_some()
}

/// A sealed value's parts.
struct Sealed<'a> {
    id: &'a str,
    nonce: &'a [u8],
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    fn of(value: &'a [u8]) -> Option<Self> {
        let rest = value.strip_prefix(MAGIC)?;
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let (nonce, body) = rest[colon + 1..].split_at_checked(NONCE_LEN)?;
        Some(Self { id: std::str::from_utf8(&rest[..colon]).ok()?, nonce, body })
    }
}

impl Key {
    /// A key is named by its digest, so that a name cannot be given to another key by mistake.
    fn new(bytes: &[u8]) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?);
        let digest = digest::digest(&digest::SHA256, bytes);
        let id = digest.as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { id, key })
    }
}

fn fill(random: &SystemRandom, bytes: &mut [u8]) -> Result<(), Error> {
    random.fill(bytes).map_err(|_| Error::Invalid("the system gives no randomness".into()))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || text.len() != 2 * KEY_LEN {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
