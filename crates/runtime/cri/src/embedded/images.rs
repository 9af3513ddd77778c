//! Images in the words of CRI.

use std::time::Duration;

use dhow_image::{Auth, Image, PullOptions, Reference};

use super::Inner;
use crate::Error;
use crate::archive;
use crate::runtime::{ImageAuth, ImageFsInfo, ImageInfo, Reader};

pub fn info(image: Image) -> ImageInfo {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let name = user.split(':').next().unwrap_or_default();
    let uid = name.parse().ok();
    ImageInfo {
        id: image.id,
        repo_tags: image.references,
        repo_digests: image.digests,
        size: image.size,
        uid,
        username: (uid.is_none() && !name.is_empty()).then(|| name.to_owned()),
    }
}

pub async fn pull(inner: &Inner, reference: &str, auth: Option<ImageAuth>) -> Result<String, Error> {
    let mut options: PullOptions = inner.config.pull.clone();
    if let Some(auth) = auth {
        options.auth = if auth.identity_token.is_empty() {
            Auth::Basic { username: auth.username, password: auth.password }
        } else {
            Auth::Refresh(auth.identity_token)
        };
    }
    match inner.config.images.pull(reference, options, None).await {
        Ok(image) => Ok(image.id),
        Err(error) => Err(Error::ImagePull { reference: reference.to_owned(), message: explain(reference, &error) }),
    }
}

/// The step that failed, as containerd names it, and why.
fn explain(reference: &str, error: &dhow_image::Error) -> String {
    use dhow_image::Error as E;
    let name = Reference::parse(reference).map_or_else(|_| reference.to_owned(), |name| name.to_string());
    let chain = error.chain();
    match error {
        E::Missing { .. } => format!("failed to resolve reference {name:?}: {name}: not found ({chain})"),
        E::Unauthorized { .. } | E::RateLimited { .. } | E::Transport { .. } | E::Tls(_) => {
            format!("failed to resolve reference {name:?}: {chain}")
        }
        E::InvalidReference { .. } => chain,
        _ => format!("failed to pull and unpack image {name:?}: {chain}"),
    }
}

pub async fn import(inner: &Inner, archive: Reader) -> Result<Vec<String>, Error> {
    archive::read(&inner.config.images, archive).await
}

pub async fn fs_info(inner: &Inner) -> Result<ImageFsInfo, Error> {
    let (images, mountpoint) = (inner.config.images.clone(), inner.config.images.root().to_owned());
    super::blocking(move || {
        let usage = images.fs_usage().map_err(|error| Error::internal("measure the image store", error))?;
        Ok(ImageFsInfo {
            mountpoint,
            capacity_bytes: usage.capacity_bytes,
            available_bytes: usage.available_bytes,
            used_bytes: usage.used_bytes,
            inodes: usage.inodes,
            inodes_free: usage.inodes_free,
            inodes_used: usage.inodes_used,
        })
    })
    .await
}

pub async fn collect_garbage(inner: &Inner, want_bytes: u64, minimum_age: Duration) -> Result<u64, Error> {
    let images = inner.config.images.clone();
    super::blocking(move || {
        let collected = images.collect_garbage(want_bytes, minimum_age);
        Ok(collected.map_err(|error| Error::internal("collect unused images", error))?.freed_bytes)
    })
    .await
}

pub async fn remove(inner: &Inner, reference: &str) -> Result<(), Error> {
    let (images, reference) = (inner.config.images.clone(), reference.to_owned());
    super::blocking(move || match images.remove(&reference) {
        Err(error) if !error.is_not_found() => Err(Error::internal("remove the image", error)),
        _ => Ok(()),
    })
    .await
}
