//! Image archives on their way into a runtime that has no reader of ours: taken apart and checked by our own store,
//! then written anew, uncompressed and with full names.

use std::path::Path;

use dhow_image::{ArchiveFormat, ImageStore};

use crate::Error;
use crate::runtime::Reader;

/// Reads a docker-archive or oci-archive into a store made for it; returns the names it held.
pub async fn read(store: &ImageStore, archive: Reader) -> Result<Vec<String>, Error> {
    let images = store.import(archive).await;
    let images = images.map_err(|error| Error::InvalidArgument(format!("import images: {}", error.chain())))?;
    let names = |image: dhow_image::Image| {
        if image.references.is_empty() { vec![image.id] } else { image.references }
    };
    Ok(images.into_iter().flat_map(names).collect())
}

/// Writes one image as an archive.
pub async fn write(store: &ImageStore, name: &str, format: ArchiveFormat, path: &Path) -> Result<(), Error> {
    let failed = |error| Error::internal(format!("write {}", path.display()), error);
    let file = tokio::fs::File::create(path).await.map_err(failed)?;
    let written = store.export(&[name.to_owned()], format, file).await;
    written.map_err(|error| Error::internal(format!("write {}", path.display()), error))
}
