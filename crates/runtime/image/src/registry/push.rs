//! Pushing: what the registry has already is not sent, what it has elsewhere is mounted.

use bytes::Bytes;
use http::header::LOCATION;
use http::{Method, Response, StatusCode, Uri};
use hyper::body::Incoming;

use super::auth::query_escape;
use super::client::{Ask, Payload, Session, parse_uri, resolve, text_header};
use super::config::Registries;
use super::peer::{Content, mount};
use crate::credentials::Auth;
use crate::{Digest, Error, Reference, Result};

/// A blob to push.
pub(crate) struct Source {
    pub content: Content,
    pub size: u64,
    /// Repositories of the same registry that may have it.
    pub mount_from: Vec<String>,
}

/// What became of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    Present,
    Mounted,
    Sent,
}

impl Session {
    /// To the one place of a repository that takes pushes.
    pub async fn open_for_push(registries: &Registries, reference: &Reference, auth: &Auth) -> Result<Session> {
        let endpoint = registries.endpoints(reference)?.into_iter().find(|endpoint| endpoint.push);
        let endpoint = endpoint
            .ok_or_else(|| Error::Config(format!("no host is configured to push {} to", reference.registry)))?;
        Session::open(registries, endpoint, auth, "pull,push").await
    }

    /// Brings a blob into the repository. With `chunk`, in pieces of that many bytes, each acknowledged; `sent` is told
    /// how many bytes the registry has.
    pub async fn push_blob(
        &self,
        digest: &Digest,
        source: &Source,
        chunk: Option<u64>,
        sent: impl Fn(u64) + Send,
    ) -> Result<Upload> {
        let here = self.url(&format!("blobs/{digest}"));
        let head = Ask { accepted: &[StatusCode::NOT_FOUND], ..Ask::new(Method::HEAD, here) };
        if self.request(&head).await?.status().is_success() {
            return Ok(Upload::Present);
        }
        let mut started = None;
        for from in &source.mount_from {
            let url = self.url_with("blobs/uploads/", &mount(digest, from));
            match self.request(&Ask::new(Method::POST, url)).await {
                Ok(response) if response.status() == StatusCode::CREATED => return Ok(Upload::Mounted),
                // The registry would rather have it uploaded, and has begun.
                Ok(response) => {
                    started = Some(response);
                    break;
                }
                Err(Error::Unauthorized { .. } | Error::Missing { .. } | Error::Registry { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let response = match started {
            Some(response) => response,
            None => self.request(&Ask::new(Method::POST, self.url("blobs/uploads/"))).await?,
        };
        let minimum = text_header(&response, "oci-chunk-min-length").and_then(|text| text.parse::<u64>().ok());
        let mut location = self.location(&response)?;
        let octets = || Some("application/octet-stream".to_owned());
        let chunk = chunk.map(|chunk| chunk.max(minimum.unwrap_or(0)).max(1));
        let mut payload = source.content.payload(0, source.size);
        if let Some(chunk) = chunk.filter(|chunk| *chunk < source.size) {
            let mut from = 0;
            while from < source.size {
                let length = chunk.min(source.size - from);
                let ask = Ask {
                    content_type: octets(),
                    content_range: Some(format!("{from}-{}", from + length - 1)),
                    payload: source.content.payload(from, length),
                    ..Ask::new(Method::PATCH, location.to_string())
                };
                let response = self.request(&ask).await?;
                location = self.location(&response)?;
                from += length;
                sent(from);
            }
            payload = Payload::Nothing;
        }
        let joint = if location.query().is_some() { '&' } else { '?' };
        let finish = format!("{location}{joint}digest={}", query_escape(digest.as_str()));
        let ask = Ask { content_type: octets(), payload, ..Ask::new(Method::PUT, finish) };
        self.request(&ask).await?;
        sent(source.size);
        Ok(Upload::Sent)
    }

    /// Names what was pushed; the registry has all that the manifest speaks of. Whether the registry will list it among the
    /// referrers of its subject by itself.
    pub async fn push_manifest(&self, target: &str, media_type: &str, bytes: Vec<u8>) -> Result<bool> {
        let ask = Ask {
            content_type: Some(media_type.to_owned()),
            payload: Payload::Bytes(Bytes::from(bytes)),
            ..Ask::new(Method::PUT, self.url(&format!("manifests/{target}")))
        };
        Ok(self.request(&ask).await?.headers().contains_key("oci-subject"))
    }

    pub(super) fn url_with(&self, rest: &str, query: &str) -> String {
        let url = self.url(rest);
        let joint = if url.contains('?') { '&' } else { '?' };
        format!("{url}{joint}{query}")
    }

    fn location(&self, response: &Response<Incoming>) -> Result<Uri> {
        let location = text_header(response, LOCATION.as_str()).ok_or_else(|| Error::Registry {
            url: self.endpoint.base.clone(),
            status: response.status().as_u16(),
            message: "an upload without a location".to_owned(),
        })?;
        resolve(&parse_uri(&self.endpoint.base)?, &location)
    }
}
