//! Manifests in and out, and blobs out.

use dhow_image::media::{DOCKER_INDEX, MAX_MANIFEST_BYTES, OCI_INDEX};
use dhow_image::{Digest, Hasher, Reference};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;

use crate::catalog::{Put, Record, seconds};
use crate::content::{self, key};
use crate::events::{Action, Event};
use crate::manifest::Parsed;
use crate::range::Wanted;
use crate::request::{Asked, Body, BoxError, Who, answer, empty};
use crate::route::Target;
use crate::{Code, Error, Inner, Result};

/// What the protocol wants to be possible at least in one request, several times over.
const MAX_TAGS: usize = 50;

/// What an `Accept` header takes; without one, everything.
struct Accept<'a>(Vec<&'a str>);

impl<'a> Accept<'a> {
    fn of(asked: &'a Asked) -> Self {
        let values = asked.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let kinds = values.flat_map(|value| value.split(','));
        Self(kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim()).filter(|k| !k.is_empty()).collect())
    }

    fn takes(&self, media_type: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|kind| *kind == media_type || *kind == "*/*" || *kind == "application/*")
    }
}

impl Inner {
    pub async fn get_manifest(&self, asked: &Asked, repository: &str, target: Target) -> Result<Response<Body>> {
        self.refresh(repository, &target).await?;
        let by_tag = matches!(target, Target::Tag(_));
        let (mut digest, mut record) = self.resolve(repository, &target).await?;
        let accept = Accept::of(asked);
        if !accept.takes(&record.media_type) {
            let index = matches!(record.media_type.as_str(), OCI_INDEX | DOCKER_INDEX);
            // Clients from before there were indexes mean the most usual platform.
            let usual = if index && by_tag { self.usual_platform(repository, &digest).await? } else { None };
            match usual.filter(|(_, record)| accept.takes(&record.media_type)) {
                Some((child, of_child)) => (digest, record) = (child, of_child),
                None => {
                    let message = format!("the manifest is {:?}, which the client does not accept", record.media_type);
                    return Err(Error::new(Code::ManifestUnknown, message).with_status(StatusCode::NOT_FOUND));
                }
            }
        }
        let etag = format!("\"{digest}\"");
        let length = record.size.to_string();
        let headers = [
            ("content-type", record.media_type.as_str()),
            ("docker-content-digest", digest.as_str()),
            ("etag", &etag),
            ("content-length", &length),
        ];
        if unchanged(asked, &etag) {
            return Ok(answer(StatusCode::NOT_MODIFIED, &headers[1..3], empty()));
        }
        if asked.method == Method::HEAD {
            return Ok(answer(StatusCode::OK, &headers, empty()));
        }
        let body = self.body(&digest, 0..record.size).await?.ok_or_else(|| Error::manifest_unknown(digest.as_str()))?;
        // Whoever pulls asks for one of these once, however it came to know of it.
        if record.manifests.is_empty() && record.subject.is_none() {
            self.count_pull(repository);
        }
        Ok(answer(StatusCode::OK, &headers, body))
    }

    /// Which manifest is meant.
    async fn resolve(&self, repository: &str, target: &Target) -> Result<(Digest, Record)> {
        let (digest, shown) = match target {
            Target::Digest(digest) => (Some(digest.clone()), digest.to_string()),
            Target::Tag(tag) => (self.catalog.tag(repository, tag).await?.map(|tag| tag.digest), tag.clone()),
        };
        if let Some(digest) = digest
            && let Some(record) = self.catalog.manifest(repository, &digest).await?
        {
            return Ok((digest, record));
        }
        if !self.catalog.exists(repository).await? {
            return Err(Error::name_unknown(repository));
        }
        Err(Error::manifest_unknown(&shown))
    }

    /// The image of linux/amd64 in an index.
    async fn usual_platform(&self, repository: &str, index: &Digest) -> Result<Option<(Digest, Record)>> {
        let Some(bytes) = self.whole(index).await? else { return Ok(None) };
        let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let entries = document["manifests"].as_array().cloned().unwrap_or_default();
        let usual = |entry: &&serde_json::Value| {
            entry["platform"]["os"] == "linux" && entry["platform"]["architecture"] == "amd64"
        };
        let Some(entry) = entries.iter().find(usual) else { return Ok(None) };
        let Ok(digest) = Digest::parse(entry["digest"].as_str().unwrap_or_default()) else { return Ok(None) };
        Ok(self.catalog.manifest(repository, &digest).await?.map(|record| (digest, record)))
    }

    pub async fn whole(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        self.read_whole(digest, MAX_MANIFEST_BYTES).await
    }

    /// The first `most` bytes of content that is there.
    pub async fn read_whole(&self, digest: &Digest, most: u64) -> Result<Option<Vec<u8>>> {
        let stream = self.blobs.get(&key(digest), 0..most).await.map_err(Error::store("read a manifest"))?;
        let Some(stream) = stream else { return Ok(None) };
        let pieces: Vec<bytes::Bytes> = stream.try_collect().await.map_err(Error::store("read a manifest"))?;
        Ok(Some(pieces.concat()))
    }

    async fn body(&self, digest: &Digest, range: std::ops::Range<u64>) -> Result<Option<Body>> {
        let stream = self.blobs.get(&key(digest), range).await.map_err(Error::store("read a blob"))?;
        let frames = |stream: dhow_store::BlobStream| {
            let frames = stream.map(|piece| piece.map(Frame::data).map_err(BoxError::from));
            BodyExt::boxed_unsync(StreamBody::new(frames))
        };
        Ok(stream.map(frames))
    }

    pub async fn put_manifest(&self, asked: &mut Asked, repository: &str, target: Target) -> Result<Response<Body>> {
        let mut tags: Vec<String> =
            asked.query.iter().filter(|(name, _)| name == "tag").map(|(_, tag)| tag.clone()).collect();
        if tags.len() > MAX_TAGS {
            let message = format!("at most {MAX_TAGS} tags in one request");
            return Err(Error::new(Code::TagInvalid, message).with_status(StatusCode::URI_TOO_LONG));
        }
        let expected = match target {
            Target::Digest(digest) => Some(digest),
            Target::Tag(tag) => {
                tags = vec![tag];
                None
            }
        };
        if let Some(bad) = tags.iter().find(|tag| !Reference::is_tag(tag)) {
            return Err(Error::new(Code::TagInvalid, "manifest tag did not match URI").detail(json!({ "tag": bad })));
        }
        let mut named = std::collections::HashSet::new();
        tags.retain(|tag| named.insert(tag.clone()));
        let bytes = self.read_manifest(asked).await?;
        let mut hasher = expected.as_ref().map_or_else(Hasher::sha256, Hasher::like);
        hasher.update(&bytes);
        let digest = hasher.finish();
        if expected.as_ref().is_some_and(|expected| *expected != digest) {
            return Err(Error::new(Code::DigestInvalid, "provided digest did not match uploaded content")
                .detail(json!({ "digest": expected, "actual": digest })));
        }
        let kind = asked.header(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).map(str::trim);
        let parsed = Parsed::parse(kind, &bytes)?;
        let size = Some(bytes.len() as u64);
        self.store_manifest(repository, &digest, bytes.into(), &parsed, &tags, false).await?;
        self.events.tell(Event {
            action: Action::Push,
            repository: repository.to_owned(),
            digest: Some(digest.clone()),
            media_type: Some(parsed.media_type.clone()),
            size,
            tags: tags.clone(),
            user: asked.who.name().to_owned(),
        });
        if !tags.is_empty() {
            self.count_push(repository, tags.len());
        }
        let location = format!("/v2/{repository}/manifests/{digest}");
        let headers =
            [("location", location.as_str()), ("docker-content-digest", digest.as_str()), ("content-length", "0")];
        let mut response = answer(StatusCode::CREATED, &headers, empty());
        let mut add = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().append(name, value);
            }
        };
        if let Some(subject) = &parsed.subject {
            add("oci-subject", subject.as_str());
        }
        if expected.is_some() {
            tags.iter().for_each(|tag| add("oci-tag", tag));
        }
        Ok(response)
    }

    async fn read_manifest(&self, asked: &mut Asked) -> Result<Vec<u8>> {
        let too_large = || {
            let message = format!("a manifest has at most {MAX_MANIFEST_BYTES} bytes");
            Error::new(Code::ManifestInvalid, message).with_status(StatusCode::PAYLOAD_TOO_LARGE)
        };
        if asked.content_length().is_some_and(|length| length > MAX_MANIFEST_BYTES) {
            return Err(too_large());
        }
        let body = asked.body.as_mut().ok_or_else(|| Error::Internal("a body was read twice".to_owned()))?;
        let mut bytes = Vec::new();
        while let Some(data) = content::next(self, body).await? {
            bytes.extend_from_slice(&data);
            if bytes.len() as u64 > MAX_MANIFEST_BYTES {
                return Err(too_large());
            }
        }
        asked.body = None;
        Ok(bytes)
    }

    /// A sparse one may come before what it refers to.
    pub async fn store_manifest(
        &self,
        repository: &str,
        digest: &Digest,
        bytes: bytes::Bytes,
        parsed: &Parsed,
        tags: &[String],
        sparse: bool,
    ) -> Result<()> {
        let rules = self.access.rules(repository).await?;
        let mut missing = Vec::new();
        for blob in parsed.blobs.iter().filter(|_| !sparse) {
            if self.catalog.linked(repository, blob).await?.is_none() || self.size(blob).await?.is_none() {
                missing.push(blob.clone());
            }
        }
        if !missing.is_empty() {
            return Err(Error::Missing(missing));
        }
        let record = Record {
            media_type: parsed.media_type.clone(),
            size: bytes.len() as u64,
            at: seconds(std::time::SystemTime::now()),
            blobs: parsed.blobs.iter().chain(&parsed.foreign).cloned().collect(),
            manifests: parsed.manifests.clone(),
            subject: parsed.subject.clone(),
            artifact_type: parsed.artifact_type.clone(),
            annotations: parsed.annotations.clone(),
        };
        // Its own content can be taken away again before the record says what it is; then it is brought once more.
        let _one = self.changing.exclusive(repository).await;
        loop {
            let known = self.catalog.linked(repository, digest).await?.is_some() && self.size(digest).await?.is_some();
            let waits = !known && self.may_wait(record.size);
            if !known && !waits {
                let id = uuid::Uuid::new_v4().to_string();
                let mut upload = self.blobs.begin(&id).await.map_err(Error::store("write a manifest"))?;
                upload.write(vec![bytes.clone()]).await.map_err(Error::store("write a manifest"))?;
                self.keep(repository, digest, upload).await?;
            }
            let needed = (!sparse).then_some(parsed.blobs.as_slice());
            let put = Put { digest, record: &record, content: waits.then_some(&bytes), needed, tags };
            if self.catalog.put_manifest(repository, &put, &rules).await? {
                if waits {
                    self.waits(bytes.len());
                    self.grown.notify_one();
                }
                return Ok(());
            }
        }
    }

    pub async fn delete_manifest(&self, who: &Who, repository: &str, target: Target) -> Result<Response<Body>> {
        let _one = self.changing.exclusive(repository).await;
        if !self.catalog.exists(repository).await? {
            return Err(Error::name_unknown(repository));
        }
        let rules = self.access.rules(repository).await?;
        let (gone, shown) = match &target {
            Target::Tag(tag) if rules.is_immutable(tag) => {
                return Err(Error::new(Code::Denied, format!("the tag {tag} of {repository} is immutable")));
            }
            Target::Tag(tag) => (self.catalog.delete_tag(repository, tag).await?, tag.clone()),
            Target::Digest(digest) => {
                (self.catalog.delete_manifest(repository, digest, &rules).await?, digest.to_string())
            }
        };
        if !gone {
            return Err(Error::manifest_unknown(&shown));
        }
        let (digest, tags) = match target {
            Target::Tag(tag) => (None, vec![tag]),
            Target::Digest(digest) => (Some(digest), Vec::new()),
        };
        self.events.tell(Event::gone(repository, digest, tags, who));
        Ok(answer(StatusCode::ACCEPTED, &[("content-length", "0")], empty()))
    }

    pub async fn get_blob(&self, asked: &Asked, repository: &str, digest: &Digest) -> Result<Response<Body>> {
        let size = match self.catalog.linked(repository, digest).await? {
            Some(_) => self.size(digest).await?,
            None => None,
        };
        let Some(size) = size else {
            let passed = self.pass_on(asked, repository, digest).await?;
            return passed.ok_or_else(|| Error::blob_unknown(digest));
        };
        let etag = format!("\"{digest}\"");
        let always = [
            ("docker-content-digest", digest.as_str()),
            ("etag", etag.as_str()),
            ("cache-control", "max-age=31536000"),
            ("accept-ranges", "bytes"),
        ];
        if unchanged(asked, &etag) {
            return Ok(answer(StatusCode::NOT_MODIFIED, &always, empty()));
        }
        // A part of another version is of no use to the client.
        let same = asked.header(header::IF_RANGE).is_none_or(|known| known == etag);
        let range = asked.header(header::RANGE).filter(|_| same && asked.method == Method::GET);
        let (status, range) = match Wanted::parse(range, size) {
            Wanted::All => (StatusCode::OK, 0..size),
            Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            Wanted::Unsatisfiable => {
                let range = format!("bytes */{size}");
                return Ok(answer(StatusCode::RANGE_NOT_SATISFIABLE, &[("content-range", &range)], empty()));
            }
        };
        let length = (range.end - range.start).to_string();
        let body = match asked.method {
            Method::HEAD => empty(),
            _ => self.body(digest, range.clone()).await?.ok_or_else(|| Error::blob_unknown(digest))?,
        };
        let mut response = answer(status, &always, body);
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
        };
        set("content-type", "application/octet-stream");
        set("content-length", &length);
        if status == StatusCode::PARTIAL_CONTENT {
            set("content-range", &format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
        Ok(response)
    }
}

/// Whether the client has it already.
fn unchanged(asked: &Asked, etag: &str) -> bool {
    let known = asked.header(header::IF_NONE_MATCH).unwrap_or_default();
    known
        .split(',')
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == etag || tag == "*" || tag == etag.trim_matches('"'))
}
