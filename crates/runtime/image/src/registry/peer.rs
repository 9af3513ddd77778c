//! A repository of another registry for those who keep it and one of theirs the same: everything that a registry can be
//! asked for, at the registry itself and never at its mirrors.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::header::{CONTENT_TYPE, LINK};
use http::{Method, StatusCode};
use hyper::body::{Body, Incoming};
use serde::Deserialize;
use serde_json::Value;

use super::auth::query_escape;
use super::client::{Ask, Payload, Session, parse_uri, read_body, resolve, text_header};
use super::push::{Source, Upload};
use super::remote::RemoteBlob;
use super::{FetchedManifest, RemoteManifest};
use crate::credentials::Auth;
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::{Digest, Error, Reference, Registries, Result};

/// More pages than any list of a registry has that is to be copied.
const MAX_PAGES: usize = 10_000;
const PAGE: usize = 1000;
const MAX_LIST_BYTES: u64 = 16 << 20;

/// A blob's bytes, opened anew from where it is asked for.
pub type Opener = Arc<
    dyn Fn(Range<u64>) -> BoxFuture<'static, std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>> + Send + Sync,
>;

/// How a registry is reached, beyond what the settings say of its host.
#[derive(Clone, Debug, Default)]
pub struct PeerOptions {
    pub auth: Auth,
    /// PEM of authorities, besides the system's.
    pub ca_pem: Option<String>,
    pub push: bool,
    pub delete: bool,
}

/// What became of a blob that was to be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Present,
    Mounted,
    Sent,
}

/// A repository of another registry.
pub struct Peer {
    session: Session,
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Repositories {
    repositories: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Referrers {
    manifests: Option<Vec<Value>>,
}

impl Peer {
    pub async fn connect(registries: &Registries, reference: &Reference, options: &PeerOptions) -> Result<Self> {
        let all = registries.endpoints(reference)?;
        let own = all.into_iter().find(|endpoint| endpoint.namespace.is_none());
        let mut endpoint = own.ok_or_else(|| {
            Error::Config(format!("no configured host is the registry {} itself", reference.registry))
        })?;
        if let Some(pem) = &options.ca_pem {
            endpoint.tls.ca_pem.push(pem.clone());
        }
        let actions = match (options.push, options.delete) {
            (false, _) => "pull",
            (true, false) => "pull,push",
            (true, true) => "pull,push,delete",
        };
        Ok(Self { session: Session::open(registries, endpoint, &options.auth, actions).await? })
    }

    /// Verified against the digest asked for or promised; `None`: there is none.
    pub async fn manifest(&self, target: &str) -> Result<Option<RemoteManifest>> {
        match self.session.manifest(target).await {
            Ok(FetchedManifest { bytes, media_type, digest }) => Ok(Some(RemoteManifest { bytes, media_type, digest })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which manifest there is under a tag or digest.
    pub async fn digest(&self, target: &str) -> Result<Option<Digest>> {
        self.session.digest(target).await
    }

    /// A blob's bytes from `offset` on, or from the beginning where the registry cannot do that: then the flag is `false`.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<(RemoteBlob, bool)> {
        let url = self.session.url(&format!("blobs/{digest}"));
        let (response, resumed) = self.session.blob(&url, offset).await?;
        let body: Incoming = response.into_body();
        let size = body.size_hint().exact();
        Ok((RemoteBlob::new(size, url, body, self.session.silence), resumed || offset == 0))
    }

    /// Brings a blob into the repository; `mount_from` are others there that may have it.
    pub async fn push_blob(&self, digest: &Digest, size: u64, open: Opener, mount_from: &[String]) -> Result<Pushed> {
        let source = Source { content: Content::Opened(open), size, mount_from: mount_from.to_vec() };
        Ok(match self.session.push_blob(digest, &source, None, |_| ()).await? {
            Upload::Present => Pushed::Present,
            Upload::Mounted => Pushed::Mounted,
            Upload::Sent => Pushed::Sent,
        })
    }

    /// Puts a manifest under a tag or digest. Whether the registry will list it among the referrers of its subject by itself.
    pub async fn push_manifest(&self, target: &str, media_type: &str, bytes: Vec<u8>) -> Result<bool> {
        self.session.push_manifest(target, media_type, bytes).await
    }

    /// `false`: it does not delete what is named so.
    pub async fn delete_manifest(&self, target: &str) -> Result<bool> {
        let refusals = &[
            StatusCode::NOT_FOUND,
            StatusCode::BAD_REQUEST,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::NOT_IMPLEMENTED,
        ];
        let url = self.session.url(&format!("manifests/{target}"));
        let response = self.session.request(&Ask { accepted: refusals, ..Ask::new(Method::DELETE, url) }).await?;
        Ok(response.status().is_success())
    }

    /// All tags; none where there is no such repository.
    pub async fn tags(&self) -> Result<Vec<String>> {
        let url = self.session.url_with("tags/list", &format!("n={PAGE}"));
        match self.pages(url, |page: Tags| page.tags).await {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }

    /// Every repository of the registry, as far as it tells.
    pub async fn repositories(&self) -> Result<Vec<String>> {
        let url = format!("{}/_catalog?n={PAGE}", self.session.endpoint.base);
        self.pages(url, |page: Repositories| page.repositories).await
    }

    /// Descriptors of what refers to a manifest.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<Value>> {
        self.session.referrers(subject).await
    }

    async fn pages<T: for<'a> Deserialize<'a>>(
        &self,
        mut url: String,
        items: impl Fn(T) -> Option<Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for _ in 0..MAX_PAGES {
            let response = self.session.request(&Ask::new(Method::GET, &url)).await?;
            let next = next_page(&url, text_header(&response, LINK.as_str()).as_deref())?;
            let body = read_body(&url, response, MAX_LIST_BYTES, self.session.silence).await?;
            let page: T = serde_json::from_slice(&body).map_err(|error| not_a_list(&url, &error))?;
            all.extend(items(page).unwrap_or_default());
            match next {
                Some(next) => url = next,
                None => return Ok(all),
            }
        }
        Err(not_a_list(&url, &"it has no end"))
    }
}

impl Session {
    /// Which manifest there is under a tag or digest.
    pub async fn digest(&self, target: &str) -> Result<Option<Digest>> {
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let url = self.url(&format!("manifests/{target}"));
        let ask = Ask { accept: Some(accept), accepted: &[StatusCode::NOT_FOUND], ..Ask::new(Method::HEAD, url) };
        let response = self.request(&ask).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if let Some(Ok(digest)) = text_header(&response, "docker-content-digest").as_deref().map(Digest::parse) {
            return Ok(Some(digest));
        }
        // Not every registry says it.
        match self.manifest(target).await {
            Ok(found) => Ok(Some(found.digest)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Descriptors of what refers to a manifest: the registry's own list, or where it keeps none, the index under the tag
    /// that stands for it.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<Value>> {
        let mut url = self.url(&format!("referrers/{subject}"));
        let mut found: Vec<Value> = Vec::new();
        for _ in 0..MAX_PAGES {
            let none = &[StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST, StatusCode::METHOD_NOT_ALLOWED];
            let ask = Ask { accept: Some(OCI_INDEX.to_owned()), accepted: none, ..Ask::new(Method::GET, &url) };
            let response = self.request(&ask).await?;
            let kind = text_header(&response, CONTENT_TYPE.as_str()).unwrap_or_default();
            if !response.status().is_success() || !kind.starts_with(OCI_INDEX) {
                let tag = format!("{}-{}", subject.algorithm(), subject.hex());
                let index = match self.manifest(&tag).await {
                    Ok(index) => index,
                    Err(error) if error.is_not_found() => return Ok(found),
                    Err(error) => return Err(error),
                };
                return entries(&tag, &index.bytes);
            }
            let next = next_page(&url, text_header(&response, LINK.as_str()).as_deref())?;
            let body = read_body(&url, response, MAX_MANIFEST_BYTES, self.silence).await?;
            found.extend(entries(&url, &body)?);
            match next {
                Some(next) => url = next,
                None => return Ok(found),
            }
        }
        Err(not_a_list(&url, &"it has no end"))
    }
}

fn entries(what: &str, index: &[u8]) -> Result<Vec<Value>> {
    let list: Referrers = serde_json::from_slice(index).map_err(|error| not_a_list(what, &error))?;
    Ok(list.manifests.unwrap_or_default())
}

fn not_a_list(url: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Registry { url: url.to_owned(), status: 200, message: format!("no list: {error}") }
}

/// Where `Link` says that a list goes on: on the same host, or the credentials would go elsewhere.
fn next_page(url: &str, link: Option<&str>) -> Result<Option<String>> {
    let next = link.into_iter().flat_map(|link| link.split(',')).find(|part| part.contains("rel=\"next\""));
    let target = next.and_then(|next| next.split_once('<')?.1.split_once('>')).map(|(target, _)| target);
    let Some(target) = target else { return Ok(None) };
    let here = parse_uri(url)?;
    let next = resolve(&here, target)?;
    // What a registry behind a proxy believes of its own address is not to be relied on.
    let path = next.path_and_query().map_or("/", |path| path.as_str());
    let authority = here.authority().map_or("", |authority| authority.as_str());
    Ok(Some(format!("{}://{authority}{path}", here.scheme_str().unwrap_or("https"))))
}

/// Where the bytes of a blob to push are.
#[derive(Clone)]
pub(crate) enum Content {
    File(PathBuf),
    Opened(Opener),
}

impl Content {
    pub fn payload(&self, from: u64, length: u64) -> Payload {
        match self {
            Content::File(path) => Payload::File { path: path.clone(), from, length },
            Content::Opened(open) => Payload::Opened { open: Arc::clone(open), from, length },
        }
    }
}

/// The query of a mount.
pub(super) fn mount(digest: &Digest, from: &str) -> String {
    format!("mount={}&from={}", query_escape(digest.as_str()), query_escape(from))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_on_where_they_say_but_nowhere_else() {
        let next = |link: Option<&str>| next_page("https://r.io/v2/a/tags/list?n=2", link).unwrap();
        assert_eq!(next(None), None);
        assert_eq!(
            next(Some("</v2/a/tags/list?last=b&n=2>; rel=\"next\"")).unwrap(),
            "https://r.io/v2/a/tags/list?last=b&n=2"
        );
        assert_eq!(next(Some("<http://evil.io/v2/x>; rel=\"next\"")).unwrap(), "https://r.io/v2/x");
        assert_eq!(next(Some("<?last=b>; rel=\"prev\"")), None);
    }
}
