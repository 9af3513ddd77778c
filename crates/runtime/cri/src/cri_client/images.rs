//! Images of a CRI runtime.

use std::process::Stdio;

use dhow_image::{ArchiveFormat, ImageStore};
use tokio::process::Command;

use super::{Inner, answer, request};
use crate::runtime::{ImageAuth, ImageInfo, Reader};
use crate::{Error, archive, pause, proto};

/// Where containerd's CRI part keeps what is its own.
const NAMESPACE: &str = "k8s.io";

pub async fn pull(inner: &Inner, reference: &str, auth: Option<ImageAuth>) -> Result<String, Error> {
    let request = proto::PullImageRequest {
        image: Some(request::image(reference)),
        auth: auth.map(request::auth),
        sandbox_config: None,
    };
    match inner.images.clone().pull_image(request).await {
        Ok(answer) => Ok(answer.into_inner().image_ref),
        Err(status) => Err(Error::ImagePull { reference: reference.to_owned(), message: status.message().to_owned() }),
    }
}

pub async fn status(inner: &Inner, reference: &str) -> Result<Option<ImageInfo>, Error> {
    let request = proto::ImageStatusRequest { image: Some(request::image(reference)), verbose: false };
    match inner.images.clone().image_status(request).await {
        Ok(status) => Ok(status.into_inner().image.map(answer::image)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(answer::failure("image", reference, status)),
    }
}

pub async fn list(inner: &Inner) -> Result<Vec<ImageInfo>, Error> {
    let list = inner.images.clone().list_images(proto::ListImagesRequest { filter: None }).await;
    let list = list.map_err(|status| answer::failure("image", "", status))?;
    Ok(list.into_inner().images.into_iter().map(answer::image).collect())
}

pub async fn remove(inner: &Inner, reference: &str) -> Result<(), Error> {
    let request = proto::RemoveImageRequest { image: Some(request::image(reference)) };
    match inner.images.clone().remove_image(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        Err(status) => Err(answer::failure("image", reference, status)),
    }
}

/// Brings the sandboxes' image if the runtime is configured to use ours: then it needs no registry for them.
pub async fn ensure_pause(inner: &Inner) -> Result<(), Error> {
    let configured = super::runtime_info(&mut inner.runtime.clone()).await?;
    if configured["sandboxImage"] != pause::NAME || status(inner, pause::NAME).await?.is_some() {
        return Ok(());
    }
    import(inner, Box::new(std::io::Cursor::new(pause::archive()?))).await.map(drop)
}

/// CRI has no import; containerd's own tool, which comes with it, does it.
pub async fn import(inner: &Inner, reader: Reader) -> Result<Vec<String>, Error> {
    if inner.version.runtime_name != "containerd" {
        return Err(Error::FailedPrecondition(format!(
            "{} takes images from registries only; push the image to one, or load it with the runtime's own tools",
            inner.version.runtime_name
        )));
    }
    let folder = tempfile::tempdir().map_err(|error| Error::internal("make a folder for the image", error))?;
    let store =
        ImageStore::open(folder.path()).map_err(|error| Error::internal("open a store for the image", error))?;
    let names = archive::read(&store, reader).await?;
    for name in &names {
        let file = folder.path().join("image.tar");
        archive::write(&store, name, ArchiveFormat::Oci, &file).await?;
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&inner.config.socket).args([
            "--namespace",
            NAMESPACE,
            "images",
            "import",
            "--no-unpack",
        ]);
        let output = ctr.arg(&file).stdin(Stdio::null()).output().await;
        let output = output.map_err(|error| Error::internal("run containerd's `ctr`; is it installed?", error))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::InvalidArgument(format!("import {name} with ctr: {message}")));
        }
        booked(inner, name).await?;
    }
    Ok(names)
}

/// Waits until containerd's CRI part knows an image that is there: it hears of it by an event that nobody else gets.
async fn booked(inner: &Inner, name: &str) -> Result<(), Error> {
    for _ in 0..100 {
        if status(inner, name).await?.is_some() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Err(Error::NotFound { kind: "image", id: name.to_owned() })
}
