//! Reading in this process, for parts of the cloud that look at what images are: no request, so nobody is asked who they are.

use dhow_image::{Digest, Hasher};

use crate::route::Target;
use crate::{Error, Registry, Result};

impl Registry {
    /// A manifest of a repository by tag or digest, of a cache also the origin's; `None`: there is none.
    ///
    /// # Errors
    /// When the stores cannot be read or an origin cannot be asked.
    pub async fn read_manifest(&self, repository: &str, target: &str) -> Result<Option<(Digest, Vec<u8>)>> {
        let inner = &self.0;
        let target = Digest::parse(target).map_or_else(|_| Target::Tag(target.to_owned()), Target::Digest);
        inner.refresh(repository, &target).await?;
        let digest = match target {
            Target::Digest(digest) => Some(digest),
            Target::Tag(tag) => inner.catalog.tag(repository, &tag).await?.map(|tag| tag.digest),
        };
        let Some(digest) = digest else { return Ok(None) };
        if inner.catalog.manifest(repository, &digest).await?.is_none() {
            return Ok(None);
        }
        Ok(inner.whole(&digest).await?.map(|bytes| (digest, bytes)))
    }

    /// A small blob of a repository, of a cache also the origin's; `None`: there is none so small.
    ///
    /// # Errors
    /// As [`Registry::read_manifest`].
    pub async fn read_blob(&self, repository: &str, digest: &Digest, most: u64) -> Result<Option<Vec<u8>>> {
        let inner = &self.0;
        if inner.catalog.linked(repository, digest).await?.is_some()
            && let Some(size) = inner.size(digest).await?
        {
            return if size > most { Ok(None) } else { inner.read_whole(digest, most).await };
        }
        let Some(mut blob) = inner.origin_blob(repository, digest).await? else { return Ok(None) };
        let (mut bytes, mut hasher) = (Vec::new(), Hasher::like(digest));
        while let Some(piece) = blob.next().await.map_err(|error| Error::Internal(error.chain()))? {
            hasher.update(&piece);
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > most {
                return Ok(None);
            }
        }
        if hasher.finish() != *digest {
            return Err(Error::Internal(format!("the origin sent another blob than {digest}")));
        }
        Ok(Some(bytes))
    }

    /// Descriptors of what refers to a manifest.
    ///
    /// # Errors
    /// As [`Registry::read_manifest`].
    pub async fn read_referrers(&self, repository: &str, subject: &Digest) -> Result<Vec<serde_json::Value>> {
        self.0.refresh_referrers(repository, subject).await?;
        Ok(self.0.catalog.referrers(repository, subject, None, 0).await?.0)
    }
}
