//! How a registry wants to be talked to: its challenge, and the token service it names.

use std::collections::HashMap;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::client::{AGENT, Session, back_off, empty, header, message_of, parse_uri, read_body};
use crate::credentials::Auth;
use crate::{Error, Result};

/// Tries to get a token.
const ATTEMPTS: u32 = 4;

impl Session {
    /// Gets the credential that the registry asks for in its refusal, and remembers it.
    pub(super) async fn answer_challenge(&self, url: &str, response: Response<Incoming>) -> Result<()> {
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|v| parse_challenge(v.to_str().ok()?))
            .max_by_key(|c| matches!(c, Challenge::Bearer { .. }));
        let credential = match challenge {
            Some(Challenge::Basic) => self.basic()?,
            Some(Challenge::Bearer { realm, service, scope }) => {
                let token = self.token(url, &realm, service.as_deref(), scope.as_deref()).await?;
                Some(header(&format!("Bearer {token}"))?)
            }
            None => None,
        };
        match credential {
            Some(credential) => *self.credential.lock() = Some(credential),
            None => {
                let message = message_of(url, response, self.silence).await;
                return Err(Error::Unauthorized { url: url.to_owned(), message });
            }
        }
        Ok(())
    }

    fn basic(&self) -> Result<Option<HeaderValue>> {
        match &self.auth {
            Auth::Basic { username, password } => {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                Ok(Some(header(&format!("Basic {pair}"))?))
            }
            Auth::Anonymous | Auth::Bearer(_) | Auth::Refresh(_) => Ok(None),
        }
    }

    async fn token(&self, url: &str, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String> {
        let realm_uri = parse_uri(realm)?;
        if self.endpoint.base.starts_with("https:") && realm_uri.scheme_str() != Some("https") {
            let message = "token service is on plain HTTP; refusing to send credentials there".to_owned();
            return Err(Error::Registry { url: realm.to_owned(), status: 401, message });
        }
        // A push begins with reading; one token is to do for all of it.
        let whole = format!("repository:{}:{}", self.endpoint.repository, self.actions);
        let scope = scope.filter(|_| self.actions == "pull").map_or(whole, str::to_owned);
        let mut query = format!("scope={}", query_escape(&scope));
        if let Some(service) = service {
            query.push_str(&format!("&service={}", query_escape(service)));
        }
        let joint = if realm.contains('?') { '&' } else { '?' };
        let address = parse_uri(&format!("{realm}{joint}{query}"))?;
        for attempt in 0..ATTEMPTS {
            let request = match &self.auth {
                Auth::Refresh(token) => {
                    let form = format!("grant_type=refresh_token&client_id=dhow&refresh_token={}", query_escape(token));
                    let body = Full::new(Bytes::from(format!("{form}&{query}"))).map_err(|never| match never {});
                    Request::post(&realm_uri)
                        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                        .header(USER_AGENT, AGENT)
                        .body(body.boxed_unsync())
                }
                _ => {
                    let mut request = Request::get(&address).header(USER_AGENT, AGENT);
                    if let Some(basic) = self.basic()? {
                        request = request.header(AUTHORIZATION, basic);
                    }
                    request.body(empty())
                }
            };
            let request = request.map_err(|e| super::client::transport(&realm_uri, e.into()))?;
            let last = attempt + 1 == ATTEMPTS;
            match self.send(&realm_uri, request).await {
                Ok(response) if response.status().is_success() => return self.read_token(url, realm, response).await,
                Ok(response) => match response.status() {
                    s if !last && (s == StatusCode::TOO_MANY_REQUESTS || s.is_server_error()) => {}
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                        let message = message_of(realm, response, self.silence).await;
                        return Err(Error::Unauthorized { url: url.to_owned(), message });
                    }
                    status => {
                        let message = message_of(realm, response, self.silence).await;
                        return Err(Error::Registry { url: realm.to_owned(), status: status.as_u16(), message });
                    }
                },
                Err(e) if last => return Err(e),
                Err(_) => {}
            }
            tokio::time::sleep(back_off(attempt)).await;
        }
        Err(Error::Unauthorized { url: url.to_owned(), message: "the token service did not answer".to_owned() })
    }

    async fn read_token(&self, url: &str, realm: &str, response: Response<Incoming>) -> Result<String> {
        let body = read_body(realm, response, 1 << 20, self.silence).await?;
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer: Answer = serde_json::from_slice(&body).map_err(|e| Error::Registry {
            url: realm.to_owned(),
            status: 200,
            message: format!("token service's answer is not JSON: {e}"),
        })?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let message = "the token service gave no token".to_owned();
        token.ok_or_else(|| Error::Unauthorized { url: url.to_owned(), message })
    }
}
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads one `WWW-Authenticate` value; `None` for schemes we do not speak.
pub fn parse_challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest);
    Some(Challenge::Bearer {
        realm: parameters.remove("realm")?,
        service: parameters.remove("service"),
        scope: parameters.remove("scope"),
    })
}

fn parameters(mut rest: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, remaining) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut escaped = false;
                let mut end = quoted.len();
                for (i, c) in quoted.char_indices() {
                    match c {
                        _ if escaped => {
                            value.push(c);
                            escaped = false;
                        }
                        '\\' => escaped = true,
                        '"' => {
                            end = i + 1;
                            break;
                        }
                        c => value.push(c),
                    }
                }
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.insert(key, value);
        rest = remaining;
    }
    found
}

/// Percent-encodes a query value.
pub fn query_escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let header =
            r#"Bearer realm="https://auth.example/token",service="reg \"x\"",scope="repository:a/b:pull,push""#;
        assert_eq!(
            parse_challenge(header).unwrap(),
            Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("reg \"x\"".into()),
                scope: Some("repository:a/b:pull,push".into()),
            }
        );
        assert_eq!(parse_challenge("Basic realm=x").unwrap(), Challenge::Basic);
        assert_eq!(parse_challenge("Negotiate"), None);
    }
}
