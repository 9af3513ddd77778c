//! What a request is about, read from its method, path and query alone.

use std::borrow::Cow;

use dhow_api::Status;
use dhow_api::custom::Catalog;
use dhow_api::registry::{KindRef, Subresource};
use http::{Method, Uri};

/// A request for objects, or for something else (discovery, health, metrics).
#[derive(Debug, Clone)]
pub enum Target {
    Resource(ResourceTarget),
    /// Objects of an extension server.
    Extension(ExtensionTarget),
    /// The path, without its query.
    Path(String),
}

#[derive(Debug, Clone)]
pub struct ResourceTarget {
    pub kind: KindRef,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<Subresource>,
    /// What follows `proxy/` in the path.
    pub rest: String,
    /// Whether the path itself asks for a watch, in the old way: `/api/v1/watch/pods`.
    pub watch: bool,
}

/// What is asked of an extension server, as far as its path says.
#[derive(Debug, Clone, Default)]
pub struct ExtensionTarget {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

/// Who wants to do what: the attributes that authorisation and audit see.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    pub verb: &'static str,
    pub target: Target,
    pub query: Query,
}

/// The query's parameters, decoded, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (unescape(name), unescape(value))
        });
        Self(pairs.collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether the parameter is there at all, also without a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True" | "t"))
    }

    /// A number, or an error that names the parameter.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let bad = |text: &str| Status::bad_request(format!("invalid value for {name}: {text:?}"));
        self.get(name).map(|text| text.parse().map_err(|_| bad(text))).transpose()
    }
}

/// Percent and plus decoding; what is not valid stays as it is.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let raw = text.as_bytes();
    let mut at = 0;
    while at < raw.len() {
        let hex = raw.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        match (raw[at], hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                at += 2;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(byte),
        }
        at += 1;
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

impl RequestInfo {
    pub fn parse(catalog: &Catalog, method: &Method, uri: &Uri) -> Result<Self, Status> {
        let query = Query::parse(uri.query().unwrap_or_default());
        let Some(target) = resource(catalog, uri.path())? else {
            return Ok(Self { verb: path_verb(method), target: Target::Path(uri.path().to_owned()), query });
        };
        let verb = resource_verb(method, &target, &query)?;
        Ok(Self { verb, target: Target::Resource(target), query })
    }
}

impl RequestInfo {
    /// Reads a request for an extension server, whose kinds are not known here. Paths that two servers could read
    /// differently are refused.
    pub fn of_extension(method: &Method, uri: &Uri) -> Result<Self, Status> {
        let query = Query::parse(uri.query().unwrap_or_default());
        let decoded: Vec<String> = uri.path()[1..].trim_end_matches('/').split('/').map(unescape_path).collect();
        if decoded.iter().any(|part| matches!(part.as_str(), "" | "." | "..") || part.contains('/')) {
            return Err(Status::no_such_resource());
        }
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let ["apis", group, version, rest @ ..] = parts.as_slice() else {
            return Ok(Self { verb: path_verb(method), target: Target::Path(uri.path().to_owned()), query });
        };
        let (watch, rest) = match rest {
            ["watch", tail @ ..] if !tail.is_empty() => (true, tail),
            _ => (false, rest),
        };
        let mut target = ExtensionTarget { group: (*group).into(), version: (*version).into(), ..Default::default() };
        let rest = match rest {
            ["namespaces", namespace, tail @ ..] => {
                (*namespace).clone_into(&mut target.namespace);
                if matches!(tail, [] | ["status" | "finalize", ..]) { rest } else { tail }
            }
            _ => rest,
        };
        let Some(resource) = rest.first() else {
            return Ok(Self { verb: path_verb(method), target: Target::Path(uri.path().to_owned()), query });
        };
        (*resource).clone_into(&mut target.resource);
        target.name = rest.get(1).map_or_else(String::new, |part| (*part).into());
        target.subresource = rest.get(2).map_or_else(String::new, |part| (*part).into());
        let one = !target.name.is_empty();
        let verb = match *method {
            Method::GET | Method::HEAD if query.flag("watch") || watch => "watch",
            Method::GET | Method::HEAD if one => "get",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if one => "delete",
            Method::DELETE => "deletecollection",
            _ => return Err(Status::method_not_allowed()),
        };
        Ok(Self { verb, target: Target::Extension(target), query })
    }
}

/// Percent decoding of a path's segment, where a plus is a plus.
fn unescape_path(text: &str) -> String {
    unescape(&text.replace('+', "%2B"))
}

fn path_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "options",
    }
}

fn resource_verb(method: &Method, target: &ResourceTarget, query: &Query) -> Result<&'static str, Status> {
    let one = target.name.is_some();
    Ok(match *method {
        // A watch of one object is a watch of its collection that selects it.
        Method::GET | Method::HEAD if target.subresource.is_none() && (query.flag("watch") || target.watch) => "watch",
        Method::GET | Method::HEAD if one => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT if one => "update",
        Method::PATCH if one => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => return Err(Status::method_not_allowed()),
    })
}

/// Reads `/api/v1/…` and `/apis/<group>/<version>/…`; `None` for every other path and for discovery.
fn resource(catalog: &Catalog, path: &str) -> Result<Option<ResourceTarget>, Status> {
    let decoded: Vec<Cow<'_, str>> = path
        .trim_matches('/')
        .split('/')
        .map(|part| if part.contains('%') { Cow::Owned(unescape(part)) } else { Cow::Borrowed(part) })
        .collect();
    let parts: Vec<&str> = decoded.iter().map(AsRef::as_ref).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(None),
    };
    let (watch, rest) = match rest {
        ["watch", tail @ ..] if !tail.is_empty() => (true, tail),
        _ => (false, rest),
    };
    let find = |plural: &str| catalog.get(group, version, plural);
    // `namespaces/x/status` and `namespaces/x/finalize` are about the namespace itself.
    let (namespace, rest) = match rest {
        ["namespaces", namespace, tail @ ..] if !matches!(tail, [] | ["status" | "finalize"]) => {
            (Some((*namespace).to_owned()), tail)
        }
        _ => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some((*name).to_owned()), None),
        [plural, name, subresource, ..] => (*plural, Some((*name).to_owned()), Some(*subresource)),
        [] => return Ok(None),
    };
    let kind = find(plural).ok_or_else(Status::no_such_resource)?;
    let subresource = match subresource {
        Some(text) => Some(kind.subresource(text).ok_or_else(Status::no_such_resource)?),
        None => None,
    };
    if rest.len() > 3 && subresource != Some(Subresource::Proxy) {
        return Err(Status::no_such_resource());
    }
    let tail = rest.get(3..).unwrap_or_default().join("/");
    if kind.namespaced && namespace.is_none() && name.is_some() || !kind.namespaced && namespace.is_some() {
        return Err(Status::no_such_resource());
    }
    Ok(Some(ResourceTarget { kind, namespace, name, subresource, rest: tail, watch }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn target(path: &str) -> ResourceTarget {
        resource(&Catalog::default(), path).unwrap().unwrap()
    }

    #[test]
    fn paths_name_objects() {
        let pod = target("/api/v1/namespaces/a/pods/b/log");
        assert_eq!((pod.kind.kind, pod.namespace.as_deref(), pod.name.as_deref()), ("Pod", Some("a"), Some("b")));
        assert_eq!(pod.subresource, Some(Subresource::Log));
        let namespace = target("/api/v1/namespaces/a/finalize");
        assert_eq!((namespace.kind.kind, namespace.name.as_deref()), ("Namespace", Some("a")));
        let everywhere = target("/apis/apps/v1/deployments");
        assert!(everywhere.namespace.is_none() && everywhere.name.is_none());
        let proxied = target("/api/v1/nodes/n/proxy/images/import");
        assert_eq!(proxied.rest, "images/import");
        assert!(resource(&Catalog::default(), "/apis/apps/v1").unwrap().is_none());
        assert_eq!(resource(&Catalog::default(), "/api/v1/nonsense").unwrap_err().code, 404);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=1&x=a+b");
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch"));
        assert_eq!(query.get("x"), Some("a b"));
    }
}
