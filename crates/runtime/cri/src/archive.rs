//! Image archives on their way into a runtime that has no reader of ours: taken apart and checked by our own store,
//! then written anew, uncompressed and with full names.

use std::path::Path;

use dhow_image::ImageStore;

use crate::Error;
use crate::runtime::Reader;

/// Reads a docker-archive or oci-archive into a store made for it; returns the names it held.
pub async fn read(store: &ImageStore, archive: Reader) -> Result<Vec<String>, Error> {
    let images = store.import(archive).await;
    let images = images.map_err(|error| Error::InvalidArgument(format!("import images: {}", chain(&error))))?;
    let names = |image: dhow_image::Image| {
        if image.references.is_empty() { vec![image.id] } else { image.references }
    };
    Ok(images.into_iter().flat_map(names).collect())
}

/// Writes one image as an oci-archive.
pub async fn write_oci(store: &ImageStore, name: &str, path: &Path) -> Result<(), Error> {
    let failed = |error| Error::internal(format!("write {}", path.display()), error);
    let file = tokio::fs::File::create(path).await.map_err(failed)?;
    store.export(name, file).await.map_err(|error| Error::internal(format!("write {}", path.display()), error))
}

/// An error and its causes in one line, as a person sees it in a pod's status.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}
