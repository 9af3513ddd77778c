//! Files in a bucket, as S3 has them: one archive, or everything whose key begins alike.

use std::fs::{self, File};
use std::path::Path;

use dhow_image::DownloadOptions;
use dhow_store::{S3Page, S3Reader, S3Secret};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::MOST;
use super::files::{check, open};
use crate::copy::At;
use crate::error::{Error, Result, blocking};

/// How long an address may be used that was signed for one file.
const SECONDS: u32 = 3600;
/// Most files of a bucket that are a context.
const FILES: usize = 20_000;
/// Largest page of a list.
const PAGE: u64 = 16 << 20;
/// Files at the same time.
const PARALLEL: usize = 8;

/// What of which bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Bucket {
    /// `https://host[:port]`.
    pub endpoint: String,
    pub name: String,
    pub region: String,
    /// The key of an archive; without one all files below `prefix` are meant.
    pub object: String,
    pub prefix: String,
    pub checksum: Option<String>,
    /// Nothing of these: anyone may read it.
    pub access_key: String,
    pub secret_key: String,
    pub session_token: String,
    /// PEM of authorities that are believed as well.
    pub authorities: Option<String>,
}

impl Bucket {
    pub fn shown(&self) -> String {
        let what = if self.object.is_empty() { &self.prefix } else { &self.object };
        format!("{}/{}/{what}", self.endpoint.trim_end_matches('/'), self.name)
    }

    pub async fn bring(&self, into: &Path, beside: &Path, guarded: bool) -> Result<()> {
        let session = Some(self.session_token.clone()).filter(|token| !token.is_empty());
        let secret = (!self.access_key.is_empty()).then(|| S3Secret::new(&self.access_key, &self.secret_key, session));
        let region = if self.region.is_empty() { "us-east-1" } else { &self.region };
        let reader = S3Reader { endpoint: &self.endpoint, bucket: &self.name, region, secret: secret.as_ref() };
        if self.object.is_empty() {
            return self.folder(&reader, into, beside, guarded).await;
        }
        let path = beside.join("archive");
        self.download(reader.object(&self.object, SECONDS), &path, MOST, guarded).await?;
        let (checksum, into, shown) = (self.checksum.clone(), into.to_owned(), self.shown());
        blocking(move || {
            if let Some(checksum) = &checksum {
                check(&path, checksum, &shown)?;
            }
            open(&path, &into, &shown)
        })
        .await
    }

    /// Everything whose key begins with the prefix.
    async fn folder(&self, reader: &S3Reader<'_>, into: &Path, beside: &Path, guarded: bool) -> Result<()> {
        let list = beside.join("list");
        let mut found: Vec<(String, u64)> = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let address = reader.page(&self.prefix, next.as_deref(), SECONDS);
            self.download(address, &list, PAGE, guarded).await?;
            let text = fs::read(&list).at("read the list of a bucket")?;
            let wrong = || Error::Invalid(format!("{} is no list of a bucket", self.shown()));
            let page = S3Page::parse(&text).ok_or_else(wrong)?;
            found.extend(page.objects);
            let bytes: u64 = found.iter().map(|(_, size)| *size).sum();
            if found.len() > FILES || bytes > MOST {
                let why = format!("{} has more than {FILES} files or {MOST} bytes", self.shown());
                return Err(Error::Invalid(why));
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        // What stands for a folder itself has no name, or ends in a slash.
        let files = found.into_iter().filter_map(|(key, size)| {
            let rest = key.strip_prefix(&self.prefix)?.trim_start_matches('/');
            let relative = dhow_image::clean(rest);
            (!relative.is_empty() && !rest.ends_with('/')).then_some((key, relative, size))
        });
        let files: Vec<_> = files.collect();
        if files.is_empty() {
            return Err(Error::Invalid(format!("{} has no files", self.shown())));
        }
        let fetch = |(key, relative, size): (String, String, u64)| async move {
            let path = into.join(&relative);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).at("make a folder of the context")?;
            }
            self.download(reader.object(&key, SECONDS), &path, size, guarded).await
        };
        stream::iter(files).map(fetch).buffer_unordered(PARALLEL).try_collect().await
    }

    async fn download(&self, address: Option<String>, to: &Path, most: u64, guarded: bool) -> Result<()> {
        let wrong = || Error::Invalid(format!("{:?} is no address of a bucket", self.endpoint));
        let options =
            DownloadOptions { guarded, most: Some(most), authorities: self.authorities.clone(), authorization: None };
        let file = File::create(to).at("make a file of the context")?;
        dhow_image::download(&address.ok_or_else(wrong)?, &options, file).await?;
        Ok(())
    }
}
