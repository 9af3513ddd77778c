//! Blobs coming in: sessions, chunks, mounts.
//!
//! An upload is a pending one of the blob store, under a name that says whose it is: nothing else is written down, and a
//! restarted server goes on with it. Where blobs are files of this machine, one to which nothing was written is known to this
//! process only, and what is small and comes at once never is a file of its own. Hashes so far are remembered in memory only;
//! who finds none reads the upload again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dhow_image::{Digest, Hasher};
use dhow_store::BlobUpload;
use http::{Method, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::json;

use crate::access::Actions;
use crate::content::{self, receive};
use crate::locks::Locks;
use crate::range::ContentRange;
use crate::request::{Asked, Body, Who, answer, empty};
use crate::{Code, Error, Inner, Result};

/// How many repositories are asked whether they may give a blob away.
const LENDERS: usize = 50;

/// Uploads that were begun and have no file yet, at most. One more has a file from its beginning.
const BEGUN: usize = 10_000;

/// What is known of uploads under way in this process.
#[derive(Default)]
pub struct Uploads {
    pub writing: Locks,
    /// Hashes up to so many bytes each.
    hashes: Mutex<HashMap<String, (Hasher, u64)>>,
    /// Those without a file: how they are hashed, and since when.
    begun: Mutex<HashMap<String, (&'static str, Instant)>>,
}

impl Uploads {
    /// `false`: there are too many of them.
    fn begin(&self, id: &str, algorithm: &'static str) -> bool {
        let mut begun = self.begun.lock();
        let room = begun.len() < BEGUN;
        if room {
            begun.insert(id.to_owned(), (algorithm, Instant::now()));
        }
        room
    }

    /// Forgets those that were begun so long ago. Returns how many they were.
    pub fn forget_older(&self, grace: Duration) -> usize {
        let mut begun = self.begun.lock();
        let before = begun.len();
        begun.retain(|_, (_, since)| since.elapsed() < grace);
        before - begun.len()
    }

    pub fn forget(&self, id: &str) {
        self.begun.lock().remove(id);
        self.hashes.lock().remove(id);
    }

    fn take(&self, id: &str, written: u64) -> Option<Hasher> {
        self.hashes.lock().remove(id).filter(|(_, hashed)| *hashed == written).map(|(hasher, _)| hasher)
    }

    fn remember(&self, id: &str, hasher: Hasher, written: u64) {
        self.hashes.lock().insert(id.to_owned(), (hasher, written));
    }
}

/// Ties an upload to its repository: the part of its name behind the UUID.
fn owner(repository: &str) -> String {
    Digest::of(repository.as_bytes()).hex()[..16].to_owned()
}

fn new_id(repository: &str) -> String {
    format!("{}-{}", uuid::Uuid::new_v4(), owner(repository))
}

fn unknown(id: &str) -> Error {
    Error::new(Code::BlobUploadUnknown, "blob upload unknown to registry").detail(json!({ "id": id }))
}

fn parse_digest(text: &str) -> Result<Digest> {
    Digest::parse(text).map_err(|error| Error::new(Code::DigestInvalid, error.to_string()))
}

fn wanted_digest(asked: &Asked) -> Result<Digest> {
    parse_digest(asked.parameter("digest").ok_or_else(|| Error::new(Code::DigestInvalid, "digest missing"))?)
}

fn hasher_for(algorithm: &str) -> Result<Hasher> {
    match algorithm {
        "sha256" => Ok(Hasher::sha256()),
        "sha512" => Ok(Hasher::sha512()),
        other => Err(Error::new(Code::DigestInvalid, format!("the algorithm {other:?} is not supported"))),
    }
}

impl Inner {
    /// `POST …/blobs/uploads/`: mounts, takes the whole blob, or begins a session.
    pub async fn begin_upload(&self, asked: &mut Asked, repository: &str) -> Result<Response<Body>> {
        if let Some(digest) = asked.parameter("mount") {
            let digest = parse_digest(digest)?;
            if self.mount(asked, repository, &digest).await? {
                return Ok(created(repository, &digest));
            }
        } else if let Some(digest) = asked.parameter("digest") {
            let digest = parse_digest(digest)?;
            if self.comes_at_once(asked) {
                let content = content::whole(self, asked).await.map_err(|(error, _)| error)?;
                return self.take_small(repository, &digest, content).await;
            }
            let id = new_id(repository);
            let _held = self.uploads.writing.exclusive(&id).await;
            let upload = self.blobs.begin(&id).await.map_err(Error::store("begin an upload"))?;
            let finished = self.finish(asked, repository, &digest, upload, Some(Hasher::like(&digest))).await;
            // Nobody knows its name to go on with it.
            if finished.is_err() {
                self.give_up(&id).await?;
            }
            return finished;
        }
        let hasher = hasher_for(asked.parameter("digest-algorithm").unwrap_or("sha256"))?;
        let id = new_id(repository);
        if self.blobs.is_local() && self.uploads.begin(&id, hasher.algorithm()) {
            return Ok(self.status(StatusCode::ACCEPTED, repository, &id, 0));
        }
        let upload = self.blobs.begin(&id).await.map_err(Error::store("begin an upload"))?;
        upload.park().await.map_err(Error::store("begin an upload"))?;
        self.uploads.remember(&id, hasher, 0);
        Ok(self.status(StatusCode::ACCEPTED, repository, &id, 0))
    }

    /// Gives the repository a blob of another one that the client may pull from: the one it names, or any.
    async fn mount(&self, asked: &Asked, repository: &str, digest: &Digest) -> Result<bool> {
        let lenders = match asked.parameter("from") {
            Some(from) => vec![crate::route::repository(from)?],
            None => self.catalog.holders(digest, LENDERS).await?,
        };
        for from in lenders {
            if !self.may_lend(&asked.who, &from).await? {
                continue;
            }
            let Some(size) = self.size(digest).await? else { return Ok(false) };
            let rules = self.access.rules(repository).await?;
            if self.catalog.link_from(&from, repository, digest, size, rules.quota).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A token need not name the lender: what its user may is what counts.
    async fn may_lend(&self, who: &Who, from: &str) -> Result<bool> {
        if self.may(who, from).await?.covers(Actions::PULL) {
            return Ok(true);
        }
        match who {
            Who::Bearer(granted) => Ok(self.access.actions(granted.user.as_ref(), from).await?.covers(Actions::PULL)),
            Who::Nobody | Who::User(_) => Ok(false),
        }
    }

    /// Everything that is done with a session.
    pub async fn upload(&self, asked: &mut Asked, repository: &str, id: &str) -> Result<Response<Body>> {
        if id.rsplit_once('-').is_none_or(|(_, tail)| tail != owner(repository)) {
            return Err(unknown(id));
        }
        let reads = !matches!(asked.method, Method::PATCH | Method::PUT | Method::DELETE);
        // A client that lost its connection comes back before we notice; then what the old one sent is waited for.
        let _held = match reads {
            true => None,
            false => {
                let held = self.uploads.writing.exclusive(id);
                Some(tokio::time::timeout(self.config.silence, held).await.map_err(|_| {
                    Error::new(Code::BlobUploadInvalid, "another request is writing to this upload")
                        .with_status(StatusCode::CONFLICT)
                })?)
            }
        };
        let begun = self.uploads.begun.lock().get(id).copied();
        if let Some((algorithm, _)) = begun {
            return self.first(asked, repository, id, algorithm).await;
        }
        let resumed = self.blobs.resume(id).await;
        let upload = match resumed {
            Ok(upload) => upload.ok_or_else(|| unknown(id))?,
            Err(dhow_store::Error::Invalid(_)) => return Err(unknown(id)),
            Err(error) => return Err(Error::store("open an upload")(error)),
        };
        self.go_on(asked, repository, id, upload).await
    }

    /// The first request to an upload that has no file.
    async fn first(
        &self,
        asked: &mut Asked,
        repository: &str,
        id: &str,
        algorithm: &'static str,
    ) -> Result<Response<Body>> {
        match asked.method {
            Method::PUT if self.comes_at_once(asked) => {
                let digest = wanted_digest(asked)?;
                if self.expected(asked, 0)?.is_err() {
                    return Ok(self.out_of_order(asked, repository, id, 0).await);
                }
                match content::whole(self, asked).await {
                    Ok(content) => {
                        self.uploads.forget(id);
                        self.take_small(repository, &digest, content).await
                    }
                    Err((error, part)) => {
                        // The client may go on from there.
                        let mut upload = self.blobs.begin(id).await.map_err(Error::store("begin an upload"))?;
                        self.uploads.forget(id);
                        upload.write(vec![part]).await.map_err(Error::store("write an upload"))?;
                        upload.park().await.map_err(Error::store("write an upload"))?;
                        Err(error)
                    }
                }
            }
            Method::PUT | Method::PATCH => {
                let upload = self.blobs.begin(id).await.map_err(Error::store("begin an upload"))?;
                // Who asks meanwhile finds one or the other.
                self.uploads.forget(id);
                self.uploads.remember(id, hasher_for(algorithm)?, 0);
                self.go_on(asked, repository, id, upload).await
            }
            Method::DELETE => {
                self.uploads.forget(id);
                Ok(answer(StatusCode::NO_CONTENT, &[("docker-upload-uuid", uuid(id))], empty()))
            }
            _ => Ok(self.status(StatusCode::NO_CONTENT, repository, id, 0)),
        }
    }

    /// Whether the request brings a whole blob that needs no file at once.
    fn comes_at_once(&self, asked: &Asked) -> bool {
        asked.content_length().is_some_and(|length| self.may_wait(length))
    }

    async fn take_small(&self, repository: &str, digest: &Digest, content: Bytes) -> Result<Response<Body>> {
        let mut hasher = Hasher::like(digest);
        hasher.update(&content);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(other_digest(digest, &actual));
        }
        self.keep_small(repository, digest, content).await?;
        Ok(created(repository, digest))
    }

    async fn go_on(
        &self,
        asked: &mut Asked,
        repository: &str,
        id: &str,
        upload: Box<dyn BlobUpload>,
    ) -> Result<Response<Body>> {
        let answered = match asked.method {
            Method::PATCH => self.append(asked, repository, id, upload).await,
            Method::PUT => self.close(asked, repository, id, upload).await,
            Method::DELETE => {
                self.uploads.forget(id);
                upload.abort().await.map_err(Error::store("give up an upload"))?;
                Ok(answer(StatusCode::NO_CONTENT, &[("docker-upload-uuid", uuid(id))], empty()))
            }
            _ => Ok(self.status(StatusCode::NO_CONTENT, repository, id, upload.written())),
        };
        // What is half there would keep others from writing.
        if answered.as_ref().is_err_and(Error::is_out_of_space) {
            self.uploads.forget(id);
            self.give_up(id).await?;
        }
        answered
    }

    async fn give_up(&self, id: &str) -> Result<()> {
        if let Some(left) = self.blobs.resume(id).await.map_err(Error::store("open an upload"))? {
            left.abort().await.map_err(Error::store("give up an upload"))?;
        }
        Ok(())
    }

    async fn append(
        &self,
        asked: &mut Asked,
        repository: &str,
        id: &str,
        mut upload: Box<dyn BlobUpload>,
    ) -> Result<Response<Body>> {
        let most = match self.expected(asked, upload.written())? {
            Ok(most) => most,
            Err(()) => return Ok(self.out_of_order(asked, repository, id, upload.written()).await),
        };
        // Without a hash of what is there already, the end will read everything.
        let known = self.uploads.take(id, upload.written());
        let whole = known.is_some();
        let mut hasher = known.unwrap_or_else(Hasher::sha256);
        let body = asked.body.as_mut().ok_or_else(|| Error::Internal("a body was read twice".to_owned()))?;
        let received = receive(self, body, &mut upload, &mut hasher, most).await;
        let written = upload.written();
        // What the client is told of is there for whoever serves its next request; what broke off, as far as it came.
        let parked = upload.park().await.map_err(Error::store("write an upload"));
        let received = received?;
        parked?;
        if whole {
            self.uploads.remember(id, hasher, written);
        }
        asked.body = None;
        if most.is_some_and(|most| received != most) {
            return Err(Error::new(Code::SizeInvalid, "less came than the headers say"));
        }
        Ok(self.status(StatusCode::ACCEPTED, repository, id, written))
    }

    async fn close(
        &self,
        asked: &mut Asked,
        repository: &str,
        id: &str,
        upload: Box<dyn BlobUpload>,
    ) -> Result<Response<Body>> {
        let digest = wanted_digest(asked)?;
        let known = self.uploads.take(id, upload.written());
        if self.expected(asked, upload.written())?.is_err() {
            if let Some(hasher) = known {
                self.uploads.remember(id, hasher, upload.written());
            }
            return Ok(self.out_of_order(asked, repository, id, upload.written()).await);
        }
        self.finish(asked, repository, &digest, upload, known).await
    }

    /// Takes the rest of the blob, verifies it and keeps it. Whatever goes wrong ends the upload, unless the client broke
    /// off.
    async fn finish(
        &self,
        asked: &mut Asked,
        repository: &str,
        digest: &Digest,
        mut upload: Box<dyn BlobUpload>,
        known: Option<Hasher>,
    ) -> Result<Response<Body>> {
        let whole = known.as_ref().is_some_and(|hasher| hasher.algorithm() == digest.algorithm());
        let mut hasher = known.filter(|_| whole);
        if upload.written() == 0 {
            hasher = Some(Hasher::like(digest));
        }
        let mut unused = Hasher::sha256();
        let hashing = hasher.as_mut().unwrap_or(&mut unused);
        let most = asked.content_length();
        let body = asked.body.as_mut().ok_or_else(|| Error::Internal("a body was read twice".to_owned()))?;
        receive(self, body, &mut upload, hashing, most).await?;
        asked.body = None;
        let actual = match hasher {
            Some(hasher) => hasher.finish(),
            None => content::digest_of(&mut upload, digest).await?,
        };
        if actual != *digest {
            upload.abort().await.map_err(Error::store("give up an upload"))?;
            return Err(other_digest(digest, &actual));
        }
        self.keep(repository, digest, upload).await?;
        Ok(created(repository, digest))
    }

    /// How many bytes the request brings, if it says so; the inner error: they do not belong at the end of what is there.
    fn expected(&self, asked: &Asked, written: u64) -> Result<std::result::Result<Option<u64>, ()>> {
        let length = asked.content_length();
        let Some(header) = asked.header(header::CONTENT_RANGE) else { return Ok(Ok(length)) };
        let range = ContentRange::parse(header)
            .ok_or_else(|| Error::new(Code::BlobUploadInvalid, format!("malformed Content-Range {header:?}")))?;
        if range.first != written {
            return Ok(Err(()));
        }
        if length.is_some_and(|length| length != range.length()) {
            return Err(Error::new(Code::SizeInvalid, "Content-Length and Content-Range disagree"));
        }
        Ok(Ok(Some(range.length())))
    }

    /// 416 with where to go on.
    async fn out_of_order(&self, asked: &mut Asked, repository: &str, id: &str, written: u64) -> Response<Body> {
        self.drain(asked).await;
        self.status(StatusCode::RANGE_NOT_SATISFIABLE, repository, id, written)
    }

    fn status(&self, status: StatusCode, repository: &str, id: &str, written: u64) -> Response<Body> {
        let location = format!("/v2/{repository}/blobs/uploads/{id}");
        let range = format!("0-{}", written.saturating_sub(1));
        let headers = [("location", location.as_str()), ("range", &range), ("docker-upload-uuid", uuid(id))];
        let mut response = answer(status, &headers, empty());
        if status == StatusCode::ACCEPTED {
            response.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from_static("0"));
        }
        response
    }

    pub async fn delete_blob(&self, repository: &str, digest: &Digest) -> Result<Response<Body>> {
        let _one = self.changing.exclusive(repository).await;
        if !self.catalog.exists(repository).await? {
            return Err(Error::name_unknown(repository));
        }
        if !self.catalog.delete_link(repository, digest).await? {
            return Err(Error::blob_unknown(digest));
        }
        Ok(answer(
            StatusCode::ACCEPTED,
            &[("docker-content-digest", digest.as_str()), ("content-length", "0")],
            empty(),
        ))
    }
}

fn other_digest(digest: &Digest, actual: &Digest) -> Error {
    Error::new(Code::DigestInvalid, "provided digest did not match uploaded content")
        .detail(json!({ "digest": digest, "actual": actual }))
}

fn uuid(id: &str) -> &str {
    id.rsplit_once('-').map_or(id, |(uuid, _)| uuid)
}

fn created(repository: &str, digest: &Digest) -> Response<Body> {
    let location = format!("/v2/{repository}/blobs/{digest}");
    let headers =
        [("location", location.as_str()), ("docker-content-digest", digest.as_str()), ("content-length", "0")];
    answer(StatusCode::CREATED, &headers, empty())
}
