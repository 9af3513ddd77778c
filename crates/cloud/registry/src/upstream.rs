//! Repositories that are a cache of another registry's: what is asked for and not here, or not looked after for a while, is
//! fetched there.
//!
//! A manifest is kept as soon as it comes; its blobs, and the parts of an index, follow when someone wants them. A blob goes
//! to whoever asked first and to disk at once. If the origin cannot be asked, what is here has to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dhow_image::{Auth, Digest, Hasher, Reference, Remote, RemoteBlob};
use dhow_store::BlobUpload;
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::catalog::seconds;
use crate::locks::Locks;
use crate::manifest::Parsed;
use crate::request::{Asked, Body, BoxError, answer, empty};
use crate::route::Target;
use crate::{Code, Error, Inner, Result, Rules};

/// Connections and tokens are kept for so long, for at most so many repositories.
const CONNECTED: Duration = Duration::from_secs(240);
const CONNECTIONS: usize = 256;
/// Manifests whose referrers are known to be as the origin has them.
const LOOKED: usize = 4096;
/// Referrers of one manifest that are kept; who signs more often is not asked for all.
const MAX_REFERRERS: usize = 1000;
/// Pieces that a client may be behind.
const BEHIND: usize = 32;

/// Where a repository is a cache of.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Registry and repository.
    pub reference: Reference,
    pub auth: Auth,
    /// Tags are believed for so long.
    pub check_after: Duration,
}

/// What is known of origins.
#[derive(Default)]
pub struct Origins {
    fetching: Locks,
    connected: Mutex<HashMap<String, Connected>>,
    /// When the origin last said what refers to a manifest.
    referrers: Mutex<HashMap<String, Instant>>,
}

/// An origin that was asked lately, as whom.
struct Connected {
    at: Instant,
    auth: Auth,
    remote: Arc<Remote>,
}

impl Inner {
    /// Sees to it that the manifest is here as its origin has it.
    pub async fn refresh(&self, repository: &str, target: &Target) -> Result<()> {
        let Some(upstream) = self.access.upstream(repository).await? else { return Ok(()) };
        let text = match target {
            Target::Digest(digest) => digest.to_string(),
            Target::Tag(tag) if Reference::is_tag(tag) => tag.clone(),
            Target::Tag(_) => return Ok(()),
        };
        let _one = self.origins.fetching.exclusive(&format!("{repository}:{text}")).await;
        let (is_here, is_fresh) = match target {
            Target::Digest(digest) => {
                let known = self.catalog.manifest(repository, digest).await?.is_some();
                (known, known)
            }
            Target::Tag(tag) => match self.catalog.tag(repository, tag).await? {
                Some(record) => {
                    let age = seconds(SystemTime::now()).saturating_sub(record.at);
                    (true, Duration::from_secs(age) < upstream.check_after)
                }
                None => (false, false),
            },
        };
        if is_fresh {
            return Ok(());
        }
        let tags: Vec<String> = match target {
            Target::Tag(tag) => vec![tag.clone()],
            Target::Digest(_) => Vec::new(),
        };
        match self.fetch_manifest(repository, &upstream, &text, &tags).await {
            // An old one is better than none; and a tag that must not move does not move.
            Err(error) if is_here => {
                tracing::warn!(repository, target = text, %error, "what is here has to do");
                Ok(())
            }
            other => other,
        }
    }

    async fn fetch_manifest(&self, repository: &str, upstream: &Upstream, target: &str, tags: &[String]) -> Result<()> {
        let found = match self.origin(upstream).await?.manifest(target).await {
            Ok(found) => found,
            // The answer is that of any registry that has no such manifest.
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(cannot_ask(upstream, &error)),
        };
        let parsed = Parsed::parse(Some(&found.media_type), &found.bytes)?;
        self.store_manifest(repository, &found.digest, found.bytes.into(), &parsed, tags, true).await
    }

    /// Sees to it that what refers to a manifest is here as the origin has it: signatures, bills of material, reports. Their
    /// manifests are kept at once, so that they are listed also when the origin is away.
    pub async fn refresh_referrers(&self, repository: &str, subject: &Digest) -> Result<()> {
        let Some(upstream) = self.access.upstream(repository).await? else { return Ok(()) };
        let name = format!("{repository}:{subject}");
        let _one = self.origins.fetching.exclusive(&format!("referrers {name}")).await;
        let looked = self.origins.referrers.lock().get(&name).copied();
        if looked.is_some_and(|at| at.elapsed() < upstream.check_after) {
            return Ok(());
        }
        match self.fetch_referrers(repository, &upstream, subject).await {
            Ok(()) => {
                let mut known = self.origins.referrers.lock();
                if known.len() >= LOOKED {
                    known.retain(|_, at| at.elapsed() < upstream.check_after);
                }
                if known.len() < LOOKED {
                    known.insert(name, Instant::now());
                }
                Ok(())
            }
            // That there are none is only for the origin to say.
            Err(error)
                if looked.is_some() || !self.catalog.referrers(repository, subject, None, 1).await?.0.is_empty() =>
            {
                tracing::warn!(repository, %subject, %error, "the referrers that are here have to do");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn fetch_referrers(&self, repository: &str, upstream: &Upstream, subject: &Digest) -> Result<()> {
        let origin = self.origin(upstream).await?;
        let listed = origin.referrers(subject).await.map_err(|error| cannot_ask(upstream, &error))?;
        let listed = crate::replicate::digests(&listed);
        for digest in listed.iter().take(MAX_REFERRERS) {
            if self.catalog.manifest(repository, digest).await?.is_some() {
                continue;
            }
            let found = match origin.manifest(digest.as_str()).await {
                Ok(found) => found,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(cannot_ask(upstream, &error)),
            };
            let parsed = Parsed::parse(Some(&found.media_type), &found.bytes)?;
            // A list that is kept by hand may name anything.
            if parsed.subject.as_ref() == Some(subject) {
                self.store_manifest(repository, digest, found.bytes.into(), &parsed, &[], true).await?;
            }
        }
        let (here, rules) = (self.catalog.referrers(repository, subject, None, 0).await?.0, Rules::default());
        for gone in crate::replicate::digests(&here).iter().filter(|digest| !listed.contains(digest)) {
            // One that a kept index needs stays.
            if let Err(error) = self.catalog.delete_manifest(repository, gone, &rules).await {
                tracing::debug!(repository, digest = %gone, %error, "a referrer stays");
            }
        }
        Ok(())
    }

    async fn origin(&self, upstream: &Upstream) -> Result<Arc<Remote>> {
        let name = upstream.reference.name();
        if let Some(Connected { at, auth, remote }) = self.origins.connected.lock().get(&name)
            && at.elapsed() < CONNECTED
            && *auth == upstream.auth
        {
            return Ok(Arc::clone(remote));
        }
        let remote = Remote::connect(&self.config.registries, &upstream.reference, &upstream.auth).await;
        let remote = Arc::new(remote.map_err(|error| cannot_ask(upstream, &error))?);
        let mut connected = self.origins.connected.lock();
        connected.retain(|_, known| known.at.elapsed() < CONNECTED);
        if connected.len() < CONNECTIONS {
            let (at, auth) = (Instant::now(), upstream.auth.clone());
            connected.insert(name, Connected { at, auth, remote: Arc::clone(&remote) });
        }
        Ok(remote)
    }

    /// A blob as the origin has it; `None`: the repository is no cache, or the origin has none.
    pub async fn origin_blob(&self, repository: &str, digest: &Digest) -> Result<Option<RemoteBlob>> {
        let Some(upstream) = self.access.upstream(repository).await? else { return Ok(None) };
        match self.origin(&upstream).await?.blob(digest).await {
            Ok(blob) => Ok(Some(blob)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(cannot_ask(&upstream, &error)),
        }
    }

    /// A blob that is not here, from the origin; `None`: the repository has none.
    pub async fn pass_on(&self, asked: &Asked, repository: &str, digest: &Digest) -> Result<Option<Response<Body>>> {
        let Some(blob) = self.origin_blob(repository, digest).await? else { return Ok(None) };
        let mut headers = vec![
            ("docker-content-digest", digest.to_string()),
            ("content-type", "application/octet-stream".to_owned()),
        ];
        headers.extend(blob.size.map(|size| ("content-length", size.to_string())));
        let headers: Vec<(&'static str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        if asked.method == Method::HEAD {
            return Ok(Some(answer(StatusCode::OK, &headers, empty())));
        }
        let inner = self.me.upgrade().ok_or_else(|| Error::Internal("the registry ends".to_owned()))?;
        let (sender, receiver) = mpsc::channel(BEHIND);
        let (repository, digest) = (repository.to_owned(), digest.clone());
        tokio::spawn(async move {
            if let Err(error) = inner.take_in(&repository, &digest, blob, sender).await {
                tracing::warn!(repository, %digest, %error, "a blob of the origin is not kept");
            }
        });
        let frames = futures::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Piece>| async {
            receiver.recv().await.map(|piece| (piece.map(Frame::data), receiver))
        });
        Ok(Some(answer(StatusCode::OK, &headers, StreamBody::new(frames).boxed_unsync())))
    }

    /// Brings a blob to disk while `listener` gets it. Who stops listening does not stop it: the next one will want it.
    async fn take_in(
        &self,
        repository: &str,
        digest: &Digest,
        mut blob: RemoteBlob,
        listener: mpsc::Sender<Piece>,
    ) -> Result<()> {
        let mut listener = Some(listener);
        let name = format!("{repository}@{digest}");
        // Two that want it at once each get it, and one of them brings it to disk.
        let held = match self.origins.fetching.busy(&name) {
            true => None,
            false => Some(self.origins.fetching.exclusive(&name).await),
        };
        let mut upload = match held {
            Some(_) => {
                Some(self.blobs.begin(&uuid::Uuid::new_v4().to_string()).await.map_err(Error::store("keep a blob"))?)
            }
            None => None,
        };
        let taken = self.pour(digest, &mut blob, &mut upload, &mut listener).await;
        match (taken, upload) {
            (Ok(()), Some(upload)) => self.keep(repository, digest, upload).await,
            (Ok(()), None) => Ok(()),
            (Err(error), upload) => {
                if let Some(listener) = listener {
                    // Otherwise the client would take it for whole.
                    let _ = listener.send(Err(error.to_string().into())).await;
                }
                if let Some(upload) = upload {
                    upload.abort().await.map_err(Error::store("give up a blob"))?;
                }
                Err(error)
            }
        }
    }

    async fn pour(
        &self,
        digest: &Digest,
        blob: &mut RemoteBlob,
        upload: &mut Option<Box<dyn BlobUpload>>,
        listener: &mut Option<mpsc::Sender<Piece>>,
    ) -> Result<()> {
        let mut hasher = Hasher::like(digest);
        loop {
            let piece = blob.next().await.map_err(|error| Error::Internal(error.chain()))?;
            let Some(piece) = piece else { break };
            hasher.update(&piece);
            if let Some(upload) = upload {
                upload.write(vec![piece.clone()]).await.map_err(Error::store("keep a blob"))?;
            }
            if let Some(sender) = listener
                && sender.send(Ok(piece)).await.is_err()
            {
                *listener = None;
            }
            if listener.is_none() && upload.is_none() {
                return Ok(());
            }
        }
        let found = hasher.finish();
        if found != *digest {
            return Err(Error::Internal(format!("the origin sent {found}")));
        }
        Ok(())
    }
}

type Piece = std::result::Result<Bytes, BoxError>;

fn cannot_ask(upstream: &Upstream, error: &dhow_image::Error) -> Error {
    let message = format!("{} cannot be asked: {}", upstream.reference.name(), error.chain());
    Error::new(Code::Unknown, message).with_status(StatusCode::BAD_GATEWAY)
}
