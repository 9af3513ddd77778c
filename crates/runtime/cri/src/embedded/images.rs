//! Images in the words of CRI.

use dhow_image::{Auth, Image, PullOptions};

use super::Inner;
use crate::Error;
use crate::archive::{self, chain};
use crate::runtime::{ImageAuth, ImageInfo, Reader};

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
            Auth::Bearer(auth.identity_token)
        };
    }
    match inner.config.images.pull(reference, options, None).await {
        Ok(image) => Ok(image.id),
        Err(error) => Err(Error::ImagePull { reference: reference.to_owned(), message: chain(&error) }),
    }
}

pub async fn import(inner: &Inner, archive: Reader) -> Result<Vec<String>, Error> {
    archive::read(&inner.config.images, archive).await
}

pub async fn remove(inner: &Inner, reference: &str) -> Result<(), Error> {
    let (images, reference) = (inner.config.images.clone(), reference.to_owned());
    super::blocking(move || match images.remove(&reference) {
        Err(error) if !error.is_not_found() => Err(Error::internal("remove the image", error)),
        _ => Ok(()),
    })
    .await
}
