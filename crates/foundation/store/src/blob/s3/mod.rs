//! Blobs in a bucket of S3, or of whatever speaks its protocol: `<prefix><key>`, and `<prefix>.uploads/<id>/<offset>` for what
//! is not committed yet.
//!
//! Our own client, because the one that is there for Rust brings a second TLS provider, and has neither copies of parts nor
//! uploads that outlive it.
//!
//! Invariants: an object appears by one request, whole or not at all; S3 answers once it is durable. An upload is its pieces,
//! objects of their own that can be read, listed and taken over by another process; none but the last is smaller than a part
//! of a multipart upload has to be, so that a commit copies them within S3.

mod assembly;
mod client;
mod presign;
mod read;
mod sign;
mod upload;
mod xml;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use http::Method;
use http::header::{CONTENT_LENGTH, HeaderMap, LAST_MODIFIED};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::client::{Call, Client};
pub use self::presign::{Page as S3Page, Reader as S3Reader};
pub use self::sign::{S3Credentials, Secret as S3Secret};
use self::upload::Upload;
use super::{Blob, BlobMeta, BlobStream, BlobUpload, PendingUpload, check_id, check_key};
use crate::Error;

const UPLOADS: &str = ".uploads/";

/// Where a bucket is, and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// `https://host[:port]`; that of Amazon's region if unset.
    pub endpoint: Option<String>,
    pub bucket: String,
    pub region: String,
    /// Keys begin with it.
    pub prefix: String,
    /// Whether the bucket is in the path, and not in the host's name.
    pub path_style: bool,
    pub credentials: S3Credentials,
    /// A PEM file of authorities trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a server may be silent.
    pub timeout: Duration,
    /// How often a request that may succeed later is sent.
    pub attempts: u32,
    /// Pieces of uploads are so large; at least 5 MiB.
    pub piece: usize,
    /// Keys that one answer lists.
    pub page: u32,
}

impl S3Config {
    /// A bucket with defaults for everything else.
    pub fn new(bucket: impl Into<String>, credentials: S3Credentials) -> Self {
        Self {
            endpoint: None,
            bucket: bucket.into(),
            region: "us-east-1".to_owned(),
            prefix: String::new(),
            path_style: false,
            credentials,
            ca_file: None,
            timeout: Duration::from_secs(30),
            attempts: 4,
            piece: 8 << 20,
            page: 1000,
        }
    }
}

/// Cheap to clone; clones are the same store. Several processes may share a bucket.
#[derive(Clone)]
pub struct S3Blob(Arc<Inner>);

struct Inner {
    client: Client,
    /// Uploads of this process that are not wholly in the bucket.
    live: Mutex<HashMap<String, Live>>,
}

struct Live {
    written: u64,
    /// Ends once what a dropped upload had left is in the bucket.
    settling: Option<watch::Receiver<()>>,
}

impl S3Blob {
    /// Nothing is asked of the server yet.
    ///
    /// # Errors
    /// When the configuration makes no sense or a certificate cannot be read.
    pub fn new(config: S3Config) -> Result<Self, Error> {
        Ok(Self(Arc::new(Inner { client: Client::new(config)?, live: Mutex::default() })))
    }

    /// Whether the bucket can be used by us.
    ///
    /// # Errors
    /// Says what is wrong.
    pub async fn check(&self) -> Result<(), Error> {
        self.0.page(&self.0.client.config.prefix, None, 1).await.map(drop)
    }

    /// How an object is called in messages and by tools.
    pub fn url(&self, key: &str) -> String {
        let config = &self.0.client.config;
        format!("s3://{}/{}{key}", config.bucket, config.prefix)
    }
}

/// One object of a listing, its key below the prefix.
struct Listed {
    key: String,
    size: u64,
    modified: SystemTime,
    etag: Option<String>,
}

impl Inner {
    /// Some of the objects whose whole keys begin with `prefix`, and where the list goes on.
    async fn page(
        &self,
        prefix: &str,
        after: Option<String>,
        most: u32,
    ) -> Result<(Vec<Listed>, Option<String>), Error> {
        let mut call = Call::new("list", Method::GET, "");
        call.query = vec![("list-type", "2".to_owned()), ("max-keys", most.to_string())];
        if !prefix.is_empty() {
            call.query.push(("prefix", prefix.to_owned()));
        }
        call.query.extend(after.map(|after| ("continuation-token", after)));
        let below = prefix.strip_prefix(&self.client.config.prefix).unwrap_or_default();
        let answer = self.client.ask_xml(&call).await.map_err(|failure| self.client.error("list", below, failure))?;
        let listed = answer.all("Contents").filter_map(|object| {
            let key = object.get("Key")?.strip_prefix(&self.client.config.prefix)?.to_owned();
            let modified = object.get("LastModified")?.parse::<Timestamp>().ok()?;
            let etag = object.get("ETag").map(str::to_owned);
            Some(Listed { key, size: object.get("Size")?.parse().ok()?, modified: modified.into(), etag })
        });
        let next = answer.get("NextContinuationToken").filter(|_| answer.get("IsTruncated") == Some("true"));
        Ok((listed.collect(), next.map(str::to_owned)))
    }

    /// All objects whose keys begin with `prefix`, by their keys.
    fn list(self: &Arc<Self>, prefix: &str) -> BoxStream<'static, Result<Listed, Error>> {
        let whole = format!("{}{prefix}", self.client.config.prefix);
        let pages = stream::try_unfold((self.clone(), Some(None)), move |(inner, at)| {
            let whole = whole.clone();
            async move {
                let Some(after) = at else { return Ok::<_, Error>(None) };
                let (listed, next) = inner.page(&whole, after, inner.client.config.page).await?;
                Ok(Some((stream::iter(listed.into_iter().map(Ok)), (inner, next.map(Some)))))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        let call = Call::new("delete", Method::DELETE, key);
        match self.client.find(&call).await? {
            // A connection goes back to the others once its answer is read.
            Some(answer) => {
                let _ = self.client.next(&mut answer.into_body()).await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What became of the last upload of this name in this process.
    async fn settled(&self, id: &str) {
        let settling = self.live.lock().get(id).and_then(|live| live.settling.clone());
        if let Some(mut settling) = settling {
            // It is never sent to: it ends with its sender.
            while settling.changed().await.is_ok() {}
        }
    }

    async fn head(&self, key: &str) -> Result<Option<HeaderMap>, Error> {
        let found = self.client.find(&Call::new("look for", Method::HEAD, key)).await?;
        Ok(found.map(|answer| answer.into_parts().0.headers))
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn modified(headers: &HeaderMap) -> Option<SystemTime> {
    let text = headers.get(LAST_MODIFIED)?.to_str().ok()?;
    DateTimeParser::new().parse_timestamp(text).ok().map(SystemTime::from)
}

#[async_trait::async_trait]
impl Blob for S3Blob {
    async fn begin(&self, id: &str) -> Result<Box<dyn BlobUpload>, Error> {
        check_id(id)?;
        self.0.settled(id).await;
        upload::sweep(&self.0, id).await?;
        Ok(Box::new(Upload::begin(&self.0, id)))
    }

    async fn resume(&self, id: &str) -> Result<Option<Box<dyn BlobUpload>>, Error> {
        check_id(id)?;
        self.0.settled(id).await;
        let upload = Upload::resume(&self.0, id).await?;
        Ok(upload.map(|upload| Box::new(upload) as Box<dyn BlobUpload>))
    }

    async fn uploads(&self) -> Result<Vec<PendingUpload>, Error> {
        let mut found: HashMap<String, PendingUpload> = HashMap::new();
        let mut listed = self.0.list(UPLOADS);
        while let Some(piece) = listed.try_next().await? {
            let Some((id, name)) = piece.key.strip_prefix(UPLOADS).and_then(|key| key.split_once('/')) else {
                continue;
            };
            let entry = found.entry(id.to_owned());
            let pending =
                entry.or_insert_with(|| PendingUpload { id: id.to_owned(), size: 0, touched: piece.modified });
            pending.touched = pending.touched.max(piece.modified);
            if upload::is_piece(name) {
                pending.size += piece.size;
            }
        }
        for (id, live) in self.0.live.lock().iter() {
            let now = SystemTime::now();
            let fresh = PendingUpload { id: id.clone(), size: live.written, touched: now };
            found.insert(id.clone(), fresh);
        }
        Ok(found.into_values().collect())
    }

    async fn head(&self, key: &str) -> Result<Option<BlobMeta>, Error> {
        check_key(key)?;
        let Some(headers) = self.0.head(key).await? else { return Ok(None) };
        let known = length(&headers).zip(modified(&headers));
        let Some((size, modified)) = known else {
            let failure = client::Failure::Nonsense("neither size nor date".to_owned());
            return Err(self.0.client.error("look for", key, failure));
        };
        Ok(Some(BlobMeta { key: key.to_owned(), size, modified }))
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Option<BlobStream>, Error> {
        check_key(key)?;
        read::open(&self.0, key, range).await
    }

    async fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<BlobMeta, Error>>, Error> {
        // What is not of this form is somebody else's, or an upload.
        let objects = self.0.list(prefix).try_filter_map(|Listed { key, size, modified, .. }| async move {
            Ok(check_key(&key).is_ok().then_some(BlobMeta { key, size, modified }))
        });
        Ok(objects.boxed())
    }

    async fn delete(&self, key: &str) -> Result<bool, Error> {
        check_key(key)?;
        // S3 says yes to whatever is asked to go.
        if self.0.head(key).await?.is_none() {
            return Ok(false);
        }
        self.0.delete(key).await?;
        Ok(true)
    }
}
