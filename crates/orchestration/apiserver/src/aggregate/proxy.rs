//! Passes a request on to an extension server, with the caller's name in place of the caller's credentials.

use std::sync::Arc;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::{Body, full};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;

use super::{Remote, metrics};
use crate::ApiServer;
use crate::audit::Trail;
use crate::identity::{TOKEN_PROTOCOL, UserInfo};
use crate::stream;

/// Headers that belong to one connection (RFC 9110, 7.6.1).
const OF_CONNECTION: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];
/// The client's proofs of who it is.
const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "sec-websocket-protocol"];

/// The extension server's answer; its body and the request's stream.
pub async fn pass_on(
    server: &Arc<ApiServer>,
    remote: &Remote,
    user: &UserInfo,
    mut request: Request<Body>,
    trail: Option<&Trail>,
) -> Result<Response<Body>, Status> {
    if !remote.state().available {
        return Ok(unavailable("service unavailable".into()));
    }
    if remote.is_here() {
        return metrics::answer(server, &request.into_parts().0).await;
    }
    let client = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut passed = Request::new(body);
    *passed.method_mut() = parts.method;
    *passed.uri_mut() = parts.uri;
    *passed.headers_mut() = headers(&parts.headers, user)?;
    let mut answer = match remote.send(passed).await {
        Ok(answer) => answer,
        Err(why) => {
            remote.suspect();
            server.aggregator.suspected.notify_one();
            return Ok(unavailable(format!("error trying to reach service: {why}")));
        }
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Ok(unavailable("the service switches to a protocol that was not asked for".into()));
        };
        return Ok(stream::switch(client, answer, trail.cloned()));
    }
    OF_CONNECTION.iter().for_each(|name| drop(answer.headers_mut().remove(*name)));
    *answer.version_mut() = http::Version::HTTP_11;
    Ok(answer.map(|body| {
        body.map_err(|error| dhow_client::Error::connection("the extension server's answer broke off", error))
            .boxed_unsync()
    }))
}

/// As upstream says it: in plain text.
fn unavailable(text: String) -> Response<Body> {
    let mut response = Response::new(full(Bytes::from(text + "\n")));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// The client's headers without what proves, claims or impersonates anybody; then who it is.
fn headers(from_client: &HeaderMap, user: &UserInfo) -> Result<HeaderMap, Status> {
    let named = from_client.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> = named.flat_map(|value| value.split(',')).map(|name| name.trim().to_lowercase()).collect();
    let dropped = |name: &HeaderName| {
        let name = name.as_str();
        // Servers may take `_` for `-`.
        let spelled = name.replace('_', "-");
        OF_CONNECTION.contains(&name)
            || CREDENTIALS.contains(&spelled.as_str())
            || name == "host"
            || spelled.starts_with("x-remote-")
            || spelled.starts_with("impersonate-")
            || named.iter().any(|one| one == name)
    };
    let kept = from_client.iter().filter(|(name, _)| !dropped(name));
    let mut headers: HeaderMap = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    let bad = || Status::internal("the caller's name does not fit into a header");
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).map_err(|_| bad());
    if let Some(protocol) = from_client.get(header::UPGRADE) {
        headers.insert(header::UPGRADE, protocol.clone());
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let offered =
            from_client.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        let offered = offered.flat_map(|list| list.split(',')).map(str::trim);
        // Among the protocols a browser may hide its token.
        let others: Vec<&str> = offered.filter(|one| !one.starts_with(TOKEN_PROTOCOL)).collect();
        if !others.is_empty() {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(&others.join(", "))?);
        }
    }
    headers.insert("x-remote-user", value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let name = HeaderName::try_from(format!("x-remote-extra-{}", escape(key))).map_err(|_| bad())?;
        for one in values {
            headers.append(name.clone(), value(one)?);
        }
    }
    Ok(headers)
}

/// A key as part of a header's name: what may not stand there is percent-encoded.
fn escape(key: &str) -> String {
    let mut text = String::new();
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => text.push(char::from(byte)),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text.to_lowercase()
}
