//! Small content that waits in the records for a file.

use bytes::Bytes;
use dhow_image::Digest;
use dhow_store::{Compare, Op, Revision, Txn};

use super::{Catalog, remove};
use crate::{Error, Result};

/// Content in the records, and the revision that it came with.
pub struct Fresh {
    pub digest: Digest,
    pub content: Bytes,
    pub revision: Revision,
}

impl Catalog {
    pub async fn fresh(&self, digest: &Digest) -> Result<Option<Bytes>> {
        Ok(self.one(self.fresh_key(digest)).await?.map(|kv| kv.value))
    }

    /// Some of what waits, in order of digests, after `after`.
    pub async fn fresh_after(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<Fresh>> {
        let (page, _) = self.page('f', "", after.map(Digest::as_str), limit).await?;
        let fresh = |(name, kv): (String, dhow_store::KeyValue)| {
            let digest = Digest::parse(&name)
                .map_err(|_| Error::Internal(format!("a record of fresh content names no digest: {name}")))?;
            Ok(Fresh { digest, content: kv.value, revision: kv.mod_revision })
        };
        page.into_iter().map(fresh).collect()
    }

    /// Forgets what has a file now, unless it came once more: that file may be deleted already.
    pub async fn settled(&self, fresh: &[Fresh]) -> Result<()> {
        for chunk in fresh.chunks(50) {
            if !self.forget_fresh(chunk).await? {
                for one in chunk {
                    self.forget_fresh(std::slice::from_ref(one)).await?;
                }
            }
        }
        Ok(())
    }

    async fn forget_fresh(&self, fresh: &[Fresh]) -> Result<bool> {
        let compare =
            fresh.iter().map(|one| Compare::mod_revision(self.fresh_key(&one.digest), one.revision)).collect();
        let success: Vec<Op> = fresh.iter().map(|one| remove(self.fresh_key(&one.digest))).collect();
        // Whoever finds such a record again after a power cut makes the same file again.
        let txn = Txn { compare, success, relaxed: true, ..Txn::default() };
        Ok(self.kv.txn(txn).await.map_err(Error::store("write the registry's records"))?.succeeded)
    }
}
