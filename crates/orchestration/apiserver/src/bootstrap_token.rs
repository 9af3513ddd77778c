//! Bootstrap tokens: `id.secret`, kept in `kube-system/bootstrap-token-<id>`, with which a machine joins.

use dhow_api::Status;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use ring::hmac;
use ring::rand::SystemRandom;

use crate::cache::Cache;
use crate::identity::UserInfo;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Splits a bearer token that looks like one: six and sixteen lower-case letters and digits.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user of a bootstrap token that is there, meant for authentication and not expired.
pub fn user(cache: &Cache, id: &str, secret: &str) -> Result<UserInfo, Status> {
    let name = format!("bootstrap-token-{id}");
    let stored = cache.find("", "secrets", Some("kube-system"), &name).ok_or_else(Status::unauthorized)?;
    let kept: Secret = stored.read().map_err(|_| Status::unauthorized())?;
    user_of(&kept, id, secret, Timestamp::now()).ok_or_else(Status::unauthorized)
}

fn user_of(kept: &Secret, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let text = |key: &str| {
        let bytes = kept.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        std::str::from_utf8(bytes.unwrap_or_default()).ok()
    };
    let usable = kept.type_.as_deref() == Some(TYPE)
        && kept.metadata.deletion_timestamp.is_none()
        && text("token-id")? == id
        && text("usage-bootstrap-authentication")? == "true";
    // The comparison comes whatever the others say, and takes as long for a wrong secret as for a right one.
    let known = text("token-secret")?;
    if !same(known, secret) || known.is_empty() || !usable {
        return None;
    }
    let expiration = text("expiration")?;
    if !expiration.is_empty() && expiration.parse::<Timestamp>().ok()? <= now {
        return None;
    }
    let mut groups = vec![GROUP];
    for extra in text("auth-extra-groups")?.split(',').filter(|group| !group.is_empty()) {
        if !is_extra_group(extra) {
            tracing::warn!(token = id, group = extra, "a bootstrap token names a group it may not give");
            return None;
        }
        groups.push(extra);
    }
    Some(UserInfo::new(&format!("system:bootstrap:{id}"), &groups))
}

/// `system:bootstrappers:` and letters, digits, `:` and `-`, of which the last is a letter or digit.
fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|byte| plain(byte) || matches!(byte, b':' | b'-'))
        && rest.bytes().last().is_some_and(plain)
}

/// Equality in constant time: under a key that nobody knows, the two are equal if and only if their codes are.
fn same(a: &str, b: &str) -> bool {
    let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else { return false };
    hmac::verify(&key, b.as_bytes(), hmac::sign(&key, a.as_bytes()).as_ref()).is_ok()
}
