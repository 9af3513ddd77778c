//! `pods/proxy` and `services/proxy`: which address is meant, and what of an answer has to change so that a browser stays
//! behind the proxy. Upstream's rules are in its `proxyutil` and in the `ResourceLocation` of the two kinds.

use std::net::IpAddr;
use std::sync::LazyLock;

use dhow_api::{Status, meta};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use regex::Regex;
use serde_json::Value;

use crate::ApiServer;
use crate::info::ResourceTarget;
use crate::webhook::{Service, endpoints};

/// Largest page whose links are rewritten, in bytes; a larger one is passed on as it is.
pub const MAX_PAGE: usize = 8 << 20;

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Backend {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Path and query there; empty where the proxy's own path has no slash at its end.
    pub path: String,
    /// The proxy's own path, which links have to keep.
    pub prefix: String,
}

/// `[scheme:]name[:port]`, as upstream's `SplitSchemeNamePort` reads it.
fn split(text: &str) -> Option<(bool, &str, &str)> {
    let scheme = |scheme: &str| match scheme {
        "" | "http" => Some(false),
        "https" => Some(true),
        _ => None,
    };
    match text.split(':').collect::<Vec<_>>()[..] {
        [name] if !name.is_empty() => Some((false, name, "")),
        [name, port] if !name.is_empty() => Some((false, name, port)),
        [first, name, port] if !name.is_empty() => Some((scheme(first)?, name, port)),
        _ => None,
    }
}

pub async fn backend(server: &ApiServer, target: &ResourceTarget, uri: &Uri) -> Result<Backend, Status> {
    let asked = target.name.as_deref().unwrap_or_default();
    let what = if target.kind.kind == "Pod" { "pod" } else { "service" };
    let (tls, name, port) =
        split(asked).ok_or_else(|| Status::bad_request(format!("invalid {what} request \"{asked}\"")))?;
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let (host, port) = if target.kind.kind == "Pod" {
        let pod = server.store.get(&target.kind, Some(namespace), name).await?.value()?;
        pod_address(&pod, port, tls)?
    } else {
        let service = server.store.get(&target.kind, Some(namespace), name).await?.value()?;
        let number = service_port(&service, name, port)?;
        let wanted = Service { namespace: namespace.to_owned(), name: name.to_owned() };
        let unavailable =
            |error: Box<dyn std::error::Error + Send + Sync>| Status::service_unavailable(error.to_string());
        let targets = endpoints(&wanted, number, &server.store.cache).map_err(unavailable)?;
        let none = || Status::service_unavailable(format!("no endpoints available for service \"{name}\""));
        targets.into_iter().next().ok_or_else(none)?
    };
    allowed(&host)?;
    let (prefix, rest) = divide(uri.path());
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = if rest.is_empty() { String::new() } else { format!("{rest}{query}") };
    Ok(Backend { host, port, tls, path, prefix: prefix.to_owned() })
}

/// The proxy's own path, `/api/v1/namespaces/NS/KIND/NAME/proxy`, and what follows it.
fn divide(path: &str) -> (&str, &str) {
    path.match_indices('/').nth(7).map_or((path, ""), |(end, _)| path.split_at(end))
}

fn pod_address(pod: &Value, port: &str, tls: bool) -> Result<(String, u16), Status> {
    let host = meta::text(pod, &["status", "podIP"]);
    if host.is_empty() {
        return Err(Status::service_unavailable(format!("pod {} has no address yet", meta::name(pod))));
    }
    let port = if port.is_empty() {
        let containers = meta::items(pod, &["spec", "containers"]).iter();
        let mut ports = containers.flat_map(|container| meta::items(container, &["ports"]));
        let first = ports.find_map(|port| port["containerPort"].as_u64());
        first.and_then(|port| u16::try_from(port).ok()).unwrap_or(if tls { 443 } else { 80 })
    } else {
        port.parse().map_err(|_| Status::bad_request(format!("{port:?} is no port of a pod: a number is needed")))?
    };
    Ok((host.to_owned(), port))
}

/// The number of a service's port that is named, or numbered, or the only one.
fn service_port(service: &Value, name: &str, asked: &str) -> Result<u16, Status> {
    // Its name leads wherever its owner likes.
    if meta::text(service, &["spec", "type"]) == "ExternalName" {
        return Err(Status::service_unavailable(format!("no endpoints available for service \"{name}\"")));
    }
    let ports = meta::items(service, &["spec", "ports"]);
    let title = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    let found = match (asked.parse::<u16>(), ports) {
        (Ok(number), _) => ports.iter().find(|port| port["port"] == number),
        (Err(_), [only]) if asked.is_empty() => Some(only),
        (Err(_), _) => ports.iter().find(|port| title(port) == asked),
    };
    let number = found.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok());
    number
        .ok_or_else(|| Status::service_unavailable(format!("no service port \"{asked}\" found for service \"{name}\"")))
}

/// Addresses that mean the server's own machine or link are nobody's pods.
fn allowed(host: &str) -> Result<(), Status> {
    let refused = match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()
        }
        Err(_) => true,
    };
    if refused { Err(Status::bad_request("address not allowed")) } else { Ok(()) }
}

/// Tells the backend under which address it is seen.
pub fn forwarded(headers: &mut HeaderMap, original: &HeaderMap, backend_path: &str, prefix: &str) {
    let path = backend_path.split('?').next().unwrap_or_default();
    if let Ok(uri) = HeaderValue::try_from(format!("{prefix}{path}")) {
        headers.insert("x-forwarded-uri", uri);
    }
    if let Some(host) = original.get(header::HOST) {
        headers.insert("x-forwarded-host", host.clone());
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
}

/// A `Location` within the backend, seen through the proxy; others stay.
pub fn location(status: StatusCode, headers: &mut HeaderMap, backend: &str, prefix: &str) {
    if !status.is_redirection() && status != StatusCode::CREATED {
        return;
    }
    let Some(text) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else { return };
    let Ok(uri) = text.parse::<Uri>() else { return };
    if uri.authority().is_some_and(|authority| authority.as_str() != backend) || !uri.path().starts_with('/') {
        return;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(value) = HeaderValue::try_from(format!("{prefix}{}{query}", uri.path())) {
        headers.insert(header::LOCATION, value);
    }
}

/// Whether an answer is a page whose links lead somewhere.
pub fn is_page(headers: &HeaderMap) -> bool {
    let html = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    html && !headers.contains_key(header::CONTENT_ENCODING)
}

/// Links of a page to its own server, led through the proxy.
pub fn page(text: &str, prefix: &str) -> String {
    static TAG: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"<[a-zA-Z][^<>]*>").ok());
    static LINK: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(
            r#"(?i)(\s(?:action|background|cite|classid|codebase|data|formaction|href|icon|longdesc|manifest|poster|profile|src|usemap)\s*=\s*["']?)(/(?:[^/"'\s>][^"'\s>]*)?)(["'\s>])"#,
        )
        .ok()
    });
    let (Some(tag), Some(link)) = (&*TAG, &*LINK) else { return text.to_owned() };
    tag.replace_all(text, |tag: &regex::Captures<'_>| {
        link.replace_all(&tag[0], |found: &regex::Captures<'_>| {
            if found[2].starts_with(prefix) {
                found[0].to_owned()
            } else {
                format!("{}{prefix}{}{}", &found[1], &found[2], &found[3])
            }
        })
        .into_owned()
    })
    .into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_say_scheme_and_port() {
        assert_eq!(split("a"), Some((false, "a", "")));
        assert_eq!(split("a:80"), Some((false, "a", "80")));
        assert_eq!(split("https:a:web"), Some((true, "a", "web")));
        assert_eq!(split("https:a:"), Some((true, "a", "")));
        for wrong in ["", ":80", "ftp:a:1", "a:b:c:d", "http::80"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
        assert_eq!(divide("/api/v1/namespaces/n/pods/p:1/proxy"), ("/api/v1/namespaces/n/pods/p:1/proxy", ""));
        assert_eq!(divide("/api/v1/namespaces/n/pods/p/proxy/a/b/"), ("/api/v1/namespaces/n/pods/p/proxy", "/a/b/"));
    }

    #[test]
    fn ports_of_pods_and_services() {
        let pod = json!({"status": {"podIP": "10.0.0.1"}, "spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]}});
        assert_eq!(pod_address(&pod, "", false).unwrap(), ("10.0.0.1".into(), 8080));
        assert_eq!(pod_address(&pod, "9", true).unwrap().1, 9);
        let bare = json!({"status": {"podIP": "10.0.0.1"}});
        assert_eq!([false, true].map(|tls| pod_address(&bare, "", tls).unwrap().1), [80, 443]);
        assert!(pod_address(&bare, "web", false).is_err() && pod_address(&json!({}), "", false).is_err());
        let service = json!({"spec": {"ports": [{"name": "web", "port": 80}, {"name": "tls", "port": 443}]}});
        assert_eq!(service_port(&service, "s", "tls").unwrap(), 443);
        assert_eq!(service_port(&service, "s", "80").unwrap(), 80);
        assert!(service_port(&service, "s", "").is_err() && service_port(&service, "s", "81").is_err());
        assert_eq!(service_port(&json!({"spec": {"ports": [{"port": 5}]}}), "s", "").unwrap(), 5);
        assert!(service_port(&json!({"spec": {"type": "ExternalName", "ports": [{"port": 5}]}}), "s", "").is_err());
        for (host, good) in
            [("10.1.2.3", true), ("127.0.0.1", false), ("169.254.0.1", false), ("::1", false), ("x", false)]
        {
            assert_eq!(allowed(host).is_ok(), good, "{host}");
        }
    }

    #[test]
    fn links_and_redirects_stay_behind_the_proxy() {
        let seen = |text: &str| page(text, "/p");
        assert_eq!(seen(r#"<a href="/x">test</a>"#), r#"<a href="/p/x">test</a>"#);
        assert_eq!(
            seen(r#"<img alt='' src='/'><a class=b href=/y>"#),
            r#"<img alt='' src='/p/'><a class=b href=/p/y>"#
        );
        for kept in [
            r#"<a href="//cdn/x">"#,
            r#"<a href="x">"#,
            r#"<a href="https://a/x">"#,
            "a href=\"/x\"",
            r#"<a href="/p/x">"#,
        ] {
            assert_eq!(seen(kept), kept);
        }
        let mut headers = HeaderMap::new();
        for (from, to) in [("/x?q=1", "/p/x?q=1"), ("http://b:1/x", "/p/x"), ("http://other/x", "http://other/x")] {
            headers.insert(header::LOCATION, HeaderValue::from_str(from).unwrap());
            location(StatusCode::FOUND, &mut headers, "b:1", "/p");
            assert_eq!(headers[header::LOCATION], to);
        }
    }
}
