//! Kubernetes' URL library. URLs are read as Go's `url.ParseRequestURI` reads them.

use std::collections::BTreeMap;

use super::Result1;
use crate::cel::eval::EvalError;
use crate::cel::value::{Key, Value};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// An absolute URL or an absolute path.
    pub fn parse(text: &str) -> Option<Self> {
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return None;
        }
        let scheme_end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).unwrap_or(text.len());
        let (scheme, rest) = match text[scheme_end..].strip_prefix(':') {
            Some(rest) if text.starts_with(|c: char| c.is_ascii_alphabetic()) => (&text[..scheme_end], rest),
            Some(_) => return None,
            None => ("", text),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            _ if rest.starts_with('/') => ("", rest),
            // An opaque URL, such as `mailto:x`.
            _ if !scheme.is_empty() && !rest.is_empty() => ("", ""),
            _ => return None,
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let port = host.rsplit_once(':').filter(|_| !host.ends_with(']')).map_or("", |(_, port)| port);
        let strange = |c: char| !c.is_ascii_alphanumeric() && !"-._~!$&'()*+,;=:[]%\"<>".contains(c) && c.is_ascii();
        if !port.bytes().all(|b| b.is_ascii_digit()) || host.contains(strange) || !well_escaped(path) {
            return None;
        }
        Some(Self { scheme: scheme.to_ascii_lowercase(), host: host.into(), path: path.into(), query: query.into() })
    }

    fn split_host(&self) -> (&str, &str) {
        let (name, port) = match self.host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (self.host.as_str(), ""),
        };
        (name.trim_start_matches('[').trim_end_matches(']'), port)
    }
}

fn well_escaped(text: &str) -> bool {
    text.match_indices('%').all(|(at, _)| {
        text.as_bytes().get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

pub fn make(name: &str, text: &str) -> Result1 {
    match (Url::parse(text), name) {
        (parsed, "isURL") => Ok(Value::Bool(parsed.is_some())),
        (Some(url), _) => Ok(Value::Url(url.into())),
        (None, _) => Err(EvalError::new(&format!(
            "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
        ))),
    }
}

pub fn call(url: &Url, name: &str) -> Result1 {
    let (hostname, port) = url.split_host();
    Ok(match name {
        "getScheme" => Value::text(&url.scheme),
        "getHost" => Value::text(&url.host),
        "getHostname" => Value::text(hostname),
        "getPort" => Value::text(port),
        "getEscapedPath" => Value::text(&escaped(&url.path)),
        "getQuery" => query(&url.query)?,
        _ => return Err(EvalError::no_overload()),
    })
}

/// A path with what it may not hold escaped.
fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/$&+,:;=@%!'()*[]".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn query(text: &str) -> Result1 {
    let mut found: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        found.entry(Key::String(decoded(name).into())).or_default().push(Value::text(&decoded(value)));
    }
    let lists = found.into_iter().map(|(name, values)| Ok((name, Value::list(values)?)));
    Value::map(lists.collect::<Result<_, EvalError>>()?, None)
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
