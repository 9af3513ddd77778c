//! Artifacts of registries: files in layers, as Flux pushes a folder and ORAS its files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use dhow_image::{Auth, Digest, Hasher, Reference, Registries, Remote};
use serde::Deserialize;

use super::MOST;
use super::files::open;
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::Step;
use crate::report::Material;

/// Most layers of an artifact.
const LAYERS: usize = 1000;
/// What a file is called.
const TITLE: &str = "org.opencontainers.image.title";
/// On an archive of a folder that is called so.
/// Of files ORAS says the same without `+gzip`, whatever they are.
const PACKED: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const UNPACK: &str = "io.deis.oras.content.unpack";

#[derive(Deserialize)]
struct Manifest {
    layers: Option<Vec<Layer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What a layer is.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// An archive whose files belong at the top.
    Archive,
    File(String),
}

impl Layer {
    fn part(&self) -> Result<Part> {
        let title = self.annotations.get(TITLE).map(|title| dhow_image::clean(title)).filter(|title| !title.is_empty());
        let marked = self.annotations.get(UNPACK).is_some_and(|unpack| unpack == "true");
        // ORAS's client for Python does not mark folders: it packs nothing but them, and files of these names come as they are.
        let packed = |title: &String| [".gz", ".tgz"].iter().any(|end| title.ends_with(end));
        let folder = marked || self.media_type == PACKED && !title.as_ref().is_some_and(packed);
        let is_tar = self.media_type.split(['.', '+', '/', '-']).any(|word| matches!(word, "tar" | "tgz"));
        match title {
            // The names in the archive begin with the folder's.
            Some(_) if folder => Ok(Part::Archive),
            Some(title) => Ok(Part::File(title)),
            None if is_tar => Ok(Part::Archive),
            None => {
                let why = format!("its layer {} is neither an archive nor a file with a name", self.media_type);
                Err(Error::Invalid(why))
            }
        }
    }
}

/// Brings the files of all layers.
pub async fn bring(
    registries: &Registries,
    name: &str,
    auth: Auth,
    into: &Path,
    beside: &Path,
    step: &Step,
) -> Result<Material> {
    let reference = Reference::parse(name)?;
    let remote = Remote::connect(registries, &reference, &auth).await?;
    let manifest = remote.manifest(reference.target()).await?;
    let wrong = |why: String| Error::Invalid(format!("{name} is no artifact with files: {why}"));
    let read: Manifest = serde_json::from_slice(&manifest.bytes).map_err(|error| wrong(error.to_string()))?;
    let layers = read.layers.filter(|layers| !layers.is_empty()).ok_or_else(|| wrong("it has no layers".to_owned()))?;
    let bytes: u64 = layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    if layers.len() > LAYERS || bytes > MOST {
        return Err(wrong(format!("it has more than {LAYERS} layers or {MOST} bytes")));
    }
    for layer in &layers {
        let part = layer.part().map_err(|error| wrong(error.to_string()))?;
        let path = beside.join("layer");
        fetch(&remote, layer, &path).await?;
        step.output(false, format!("{} {} bytes\n", layer.digest, layer.size).as_bytes());
        let (into, called) = (into.to_owned(), format!("a layer of {name}"));
        blocking(move || match part {
            Part::Archive => open(&path, &into, &called),
            Part::File(title) => {
                let to = into.join(title);
                if let Some(folder) = to.parent() {
                    fs::create_dir_all(folder).at("make a folder of the context")?;
                }
                fs::rename(&path, &to).at("name a file of the context")
            }
        })
        .await?;
    }
    Ok(Material::artifact(&reference, &manifest.digest))
}

async fn fetch(remote: &Remote, layer: &Layer, path: &Path) -> Result<()> {
    let want = Digest::parse(&layer.digest)?;
    let mut blob = remote.blob(&want).await?;
    let (mut file, mut hasher) = (File::create(path).at("make a file")?, Hasher::like(&want));
    let mut have = 0;
    while let Some(bytes) = blob.next().await? {
        have += bytes.len() as u64;
        if have > layer.size {
            break;
        }
        hasher.update(&bytes);
        file.write_all(&bytes).at("write a file of the context")?;
    }
    let got = hasher.finish();
    if have != layer.size || got != want {
        return Err(Error::Invalid(format!("digest mismatch {got}: {want} was expected of a layer")));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn layers_are_archives_or_files() {
        let part = |media_type: &str, annotations: serde_json::Value| {
            let layer = json!({"mediaType": media_type, "digest": "", "size": 1, "annotations": annotations});
            serde_json::from_value::<Layer>(layer).unwrap().part()
        };
        let none = json!({});
        assert_eq!(part("application/vnd.cncf.flux.content.v1.tar+gzip", none.clone()).unwrap(), Part::Archive);
        let file = part("application/vnd.oci.image.layer.v1.tar", json!({TITLE: "../a/x.tar"})).unwrap();
        assert_eq!(file, Part::File("a/x.tar".to_owned()));
        let folder = json!({TITLE: "site", UNPACK: "true"});
        assert_eq!(part("application/vnd.oci.image.layer.v1.tar+gzip", folder).unwrap(), Part::Archive);
        assert_eq!(part(PACKED, json!({TITLE: "site"})).unwrap(), Part::Archive);
        assert_eq!(part(PACKED, json!({TITLE: "site.tgz"})).unwrap(), Part::File("site.tgz".to_owned()));
        assert!(part("application/json", none).unwrap_err().to_string().contains("neither"));
    }
}
