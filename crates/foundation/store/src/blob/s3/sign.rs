//! Signatures of requests, version 4 as AWS has it, and the credentials they are made with.

use std::path::PathBuf;
use std::time::SystemTime;

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use parking_lot::Mutex;
use ring::{digest, hmac};

const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Where an access key and its secret come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Credentials {
    /// A file in the form that the tools of AWS have, read again when it changes.
    File(PathBuf),
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    Environment,
}

/// What a request is signed with. It has no `Debug`, so that it is in no log.
#[derive(Clone)]
pub struct Secret {
    pub(super) access_key: String,
    secret_key: String,
    pub(super) token: Option<String>,
}

impl Secret {
    /// `token` is that of a session.
    pub fn new(access_key: impl Into<String>, secret_key: impl Into<String>, token: Option<String>) -> Self {
        Self { access_key: access_key.into(), secret_key: secret_key.into(), token }
    }
}

/// The credentials of now.
pub struct Keyring {
    from: S3Credentials,
    read: Mutex<Option<(SystemTime, Secret)>>,
}

impl Keyring {
    pub fn new(from: S3Credentials) -> Self {
        Self { from, read: Mutex::new(None) }
    }

    /// The error says what to do.
    pub fn secret(&self) -> Result<Secret, String> {
        let file = match &self.from {
            S3Credentials::Environment => {
                let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
                let (access_key, secret_key) =
                    variable("AWS_ACCESS_KEY_ID").zip(variable("AWS_SECRET_ACCESS_KEY")).ok_or(
                        "there are no credentials: name a credentialsFile, or set AWS_ACCESS_KEY_ID and \
                         AWS_SECRET_ACCESS_KEY for the daemon",
                    )?;
                return Ok(Secret { access_key, secret_key, token: variable("AWS_SESSION_TOKEN") });
            }
            S3Credentials::File(file) => file,
        };
        let failed = |error: std::io::Error| format!("the credentials in {} cannot be read: {error}", file.display());
        let changed = std::fs::metadata(file).and_then(|metadata| metadata.modified()).map_err(failed)?;
        let mut read = self.read.lock();
        if let Some((at, secret)) = &*read
            && *at == changed
        {
            return Ok(secret.clone());
        }
        let text = std::fs::read_to_string(file).map_err(failed)?;
        let secret = parse(&text).ok_or_else(|| {
            format!("{} lacks aws_access_key_id and aws_secret_access_key in its section [default]", file.display())
        })?;
        *read = Some((changed, secret.clone()));
        Ok(secret)
    }
}

/// The section `[default]`, or what comes before any section.
fn parse(text: &str) -> Option<Secret> {
    let (mut access_key, mut secret_key, mut token) = (None, None, None);
    let mut ours = true;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            ours = section.trim_end_matches(']').trim() == "default";
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| ours && !line.starts_with(['#', ';'])) else {
            continue;
        };
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match name.trim() {
            "aws_access_key_id" => access_key = value,
            "aws_secret_access_key" => secret_key = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    Some(Secret { access_key: access_key?, secret_key: secret_key?, token })
}

/// What is signed beside the headers.
pub struct Signing<'a> {
    pub method: &'a Method,
    /// Encoded, as it is sent.
    pub path: &'a str,
    /// Encoded and sorted, as it is sent.
    pub query: &'a str,
    pub body: &'a [u8],
    pub region: &'a str,
    pub now: Timestamp,
}

impl Signing<'_> {
    /// Adds what proves that the request is ours, with the headers that are there by now: all of them are signed.
    pub fn sign(&self, secret: &Secret, headers: &mut HeaderMap) -> Result<(), http::header::InvalidHeaderValue> {
        let stamp = self.now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = stamp.get(..8).unwrap_or_default();
        let hash = hex(digest::digest(&digest::SHA256, self.body).as_ref());
        headers.insert(CONTENT_HASH, HeaderValue::from_str(&hash)?);
        headers.insert(DATE, HeaderValue::from_str(&stamp)?);
        if let Some(token) = &secret.token {
            let mut value = HeaderValue::from_str(token)?;
            value.set_sensitive(true);
            headers.insert(TOKEN, value);
        }
        let mut signed: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default().trim())).collect();
        signed.sort_unstable();
        let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{}\n{}\n{}\n{lines}\n{names}\n{hash}", self.method, self.path, self.query);
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}");
        let signature = hex(&mac(&key_of(secret, day, self.region), text.as_bytes()));
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
            secret.access_key
        );
        let mut value = HeaderValue::from_str(&value)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        debug_assert!(headers.contains_key(HOST), "the host is part of what is signed");
        Ok(())
    }
}

/// What requests of a day are signed with.
pub fn key_of(secret: &Secret, day: &str, region: &str) -> Vec<u8> {
    let first = format!("AWS4{}", secret.secret_key);
    [day, region, "s3", "aws4_request"].iter().fold(first.into_bytes(), |key, part| mac(&key, part.as_bytes()))
}

pub fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As signatures want it: everything but letters, digits, `-`, `.`, `_` and `~`, and the slash where it separates.
pub fn encode(text: &str, slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') || (slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example in the documentation of the Amazon S3 API.
    #[test]
    fn signs_as_documented() {
        let secret = Secret {
            access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            token: None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
        headers.insert("range", HeaderValue::from_static("bytes=0-9"));
        let signing = Signing {
            method: &Method::GET,
            path: "/test.txt",
            query: "",
            body: b"",
            region: "us-east-1",
            now: "2013-05-24T00:00:00Z".parse().unwrap(),
        };
        signing.sign(&secret, &mut headers).unwrap();
        let authorization = headers[AUTHORIZATION].to_str().unwrap();
        let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        assert!(authorization.ends_with(signature), "{authorization}");
    }

    #[test]
    fn credentials_are_read_from_the_default_section() {
        let text = "[other]\naws_access_key_id = no\naws_secret_access_key = no\n\
                    [default]\n# a comment = x\naws_access_key_id=me\naws_secret_access_key = s=cret\n";
        let secret = parse(text).unwrap();
        assert_eq!((secret.access_key.as_str(), secret.secret_key.as_str()), ("me", "s=cret"));
        assert!(parse("[default]\naws_access_key_id = me\n").is_none());
        let none = Keyring::new(S3Credentials::File("/none".into())).secret().err().unwrap();
        assert!(none.contains("/none"), "{none}");
        assert_eq!(encode("a/b c~ä", true), "a/b%20c~%C3%A4");
        assert_eq!(encode("a/b", false), "a%2Fb");
    }
}
