//! From another registry to here.

use dhow_image::{Digest, Hasher, RemoteBlob};
use dhow_store::BlobUpload;

use super::side::{Ours, Theirs};
use super::{Run, elsewhere};
use crate::events::{Action, Event};
use crate::manifest::Parsed;
use crate::projects::project_of;
use crate::request::Who;
use crate::route::Target;
use crate::{Code, Error, Result, content};

/// Repositories of the same project that are asked for a blob.
const LENDERS: usize = 50;

impl Run<'_> {
    pub(super) async fn fetch_blob(&self, ours: &Ours<'_>, theirs: &Theirs, digest: &Digest) -> Result<()> {
        let (inner, repository) = (ours.inner, ours.repository.as_str());
        if let Some(size) = inner.size(digest).await? {
            if inner.catalog.linked(repository, digest).await?.is_some() {
                return Ok(());
            }
            let quota = inner.access.rules(repository).await?.quota;
            // The other registry may name what it does not have: only what the project has anyway is given to it.
            let lenders = inner.catalog.holders(digest, LENDERS).await?;
            for from in lenders.iter().filter(|from| project_of(from) == project_of(repository)) {
                if inner.catalog.link_from(from, repository, digest, size, quota).await? {
                    return Ok(());
                }
            }
        }
        // Always the same name, so that what a run that was killed has fetched is there for the next.
        let id = format!("replica-{}-{}", digest.hex(), &Digest::of(repository.as_bytes()).hex()[..16]);
        let _held = inner.uploads.writing.exclusive(&id).await;
        let resumed = inner.blobs.resume(&id).await.map_err(Error::store("go on with a blob"))?;
        let mut upload = match resumed {
            Some(upload) => upload,
            None => inner.blobs.begin(&id).await.map_err(Error::store("fetch a blob"))?,
        };
        let have = upload.written();
        let (blob, goes_on) = theirs.peer.blob(digest, have).await.map_err(|error| elsewhere(&error))?;
        if !goes_on {
            upload = inner.blobs.begin(&id).await.map_err(Error::store("fetch a blob"))?;
        }
        match self.pour(blob, &mut upload).await {
            Ok(()) => {}
            // What came is kept for the next run, unless it is in the way.
            Err(error) if error.is_out_of_space() => {
                upload.abort().await.map_err(Error::store("give up a blob"))?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        let found = content::digest_of(&mut upload, digest).await?;
        if found != *digest {
            upload.abort().await.map_err(Error::store("give up a blob"))?;
            return Err(Error::Internal(format!("the registry sent {found} for {digest}")));
        }
        inner.keep(repository, digest, upload).await
    }

    async fn pour(&self, mut blob: RemoteBlob, upload: &mut Box<dyn BlobUpload>) -> Result<()> {
        while let Some(piece) = blob.next().await.map_err(|error| elsewhere(&error))? {
            self.throttle.pass(piece.len()).await;
            self.report.lock().bytes += piece.len() as u64;
            upload.write(vec![piece]).await.map_err(Error::store("fetch a blob"))?;
        }
        Ok(())
    }

    pub(super) async fn put_here(
        &self,
        ours: &Ours<'_>,
        digest: &Digest,
        tag: Option<&str>,
        parsed: &Parsed,
        bytes: Vec<u8>,
    ) -> Result<()> {
        let mut hasher = Hasher::like(digest);
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            return Err(Error::new(Code::DigestInvalid, format!("the registry sent another manifest than {digest}")));
        }
        let tags: Vec<String> = tag.map(str::to_owned).into_iter().collect();
        let size = bytes.len() as u64;
        ours.inner.store_manifest(&ours.repository, digest, bytes.into(), parsed, &tags, false).await?;
        self.report.lock().bytes += size;
        ours.inner.events.tell(Event {
            action: Action::Push,
            repository: ours.repository.clone(),
            digest: Some(digest.clone()),
            media_type: Some(parsed.media_type.clone()),
            size: Some(size),
            tags,
            user: self.task.user.clone(),
        });
        Ok(())
    }

    pub(super) async fn delete_here(&self, ours: &Ours<'_>, tag: &str) -> Result<bool> {
        let who = Who::User(crate::User { name: self.task.user.clone(), ..crate::User::default() });
        match ours.inner.delete_manifest(&who, &ours.repository, Target::Tag(tag.to_owned())).await {
            Ok(_) => Ok(true),
            Err(Error::Refused { code: Code::ManifestUnknown | Code::NameUnknown, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
