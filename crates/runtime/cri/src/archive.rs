//! Image archives on their way into a runtime that has no reader of ours: taken apart and checked by our own store,
//! then written anew, uncompressed and with full names.

use std::io::Seek as _;
use std::path::Path;
use std::{fs, io};

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

/// Writes one image as a docker-archive, for readers that know nothing else: the same blobs, with the list of them that
/// Docker looks for.
pub async fn write_docker(store: &ImageStore, name: &str, path: &Path) -> Result<(), Error> {
    let oci = path.with_extension("oci");
    write_oci(store, name, &oci).await?;
    let (name, path) = (name.to_owned(), path.to_owned());
    let written = tokio::task::spawn_blocking(move || convert(&oci, &name, &path)).await;
    let written = written.map_err(|error| Error::internal("write a docker-archive", error))?;
    written.map_err(|error| Error::internal("write a docker-archive", error))
}

/// From an oci-archive of one image that lists its manifest first.
fn convert(oci: &Path, name: &str, path: &Path) -> io::Result<()> {
    let read = |wanted: &str| -> io::Result<serde_json::Value> {
        for entry in tar::Archive::new(fs::File::open(oci)?).entries()? {
            let entry = entry?;
            if entry.path()?.as_os_str() == wanted {
                return Ok(serde_json::from_reader(entry)?);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no {wanted} in the archive")))
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        format!("blobs/{}", digest.replacen(':', "/", 1))
    };
    let manifest = read(&blob(&read("index.json")?["manifests"][0]))?;
    let layers: Vec<String> = manifest["layers"].as_array().into_iter().flatten().map(blob).collect();
    let zstd = |layer: &serde_json::Value| layer["mediaType"].as_str().is_some_and(|kind| kind.ends_with("zstd"));
    let packed: Vec<String> =
        manifest["layers"].as_array().into_iter().flatten().filter(|layer| zstd(layer)).map(blob).collect();
    let list = serde_json::json!([{"Config": blob(&manifest["config"]), "RepoTags": [name], "Layers": layers}]);
    let mut archive = tar::Builder::new(fs::File::create(path)?);
    for entry in tar::Archive::new(fs::File::open(oci)?).entries()? {
        let mut entry = entry?;
        let mut header = entry.header().clone();
        let name = entry.path()?.to_string_lossy().into_owned();
        if packed.contains(&name) {
            // Docker before version 23 knows no zstd. The header wants the length beforehand, so it goes by a file.
            let mut layer = tempfile::tempfile()?;
            zstd::stream::copy_decode(&mut entry, &mut layer)?;
            header.set_size(layer.stream_position()?);
            layer.rewind()?;
            archive.append_data(&mut header, &name, layer)?;
        } else {
            archive.append(&header, &mut entry)?;
        }
    }
    let list = list.to_string();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(list.len() as u64);
    archive.append_data(&mut header, "manifest.json", list.as_bytes())?;
    archive.into_inner()?.sync_all()
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
