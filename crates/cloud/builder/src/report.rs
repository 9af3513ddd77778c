//! What a build used and made, for whoever writes it down.

use std::collections::BTreeMap;

use dhow_image::{Digest, Image, Layer, Platform, Reference};
use jiff::Timestamp;

use crate::build::Build;

/// One build, looked back at.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every step, made or found, by its key, with all layers that it came to.
    pub steps: Vec<(Digest, Vec<Layer>)>,
    /// What came from elsewhere.
    pub materials: Vec<Material>,
    pub started: Timestamp,
    pub finished: Timestamp,
}

/// Something from elsewhere, as package URLs and in-toto name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    pub uri: String,
    /// By algorithm.
    pub digest: BTreeMap<String, String>,
}

impl Material {
    /// A base image, by what was pulled: the index if there was one.
    pub fn image(name: &str, platform: &Platform, image: &Image) -> Self {
        let parsed = Reference::parse(name).ok();
        let of = |parsed: &Reference| {
            let prefix = format!("{}@", parsed.name());
            let mut digests = image.digests.iter().filter_map(|digest| digest.strip_prefix(&prefix));
            digests.clone().find(|digest| **digest != image.manifest).or_else(|| digests.next_back()).map(str::to_owned)
        };
        let digest = parsed.as_ref().and_then(of).unwrap_or_else(|| image.manifest.clone());
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", &digest));
        let name = match &parsed {
            Some(parsed) => {
                let full = parsed.name();
                let short = full.strip_prefix("docker.io/").unwrap_or(&full);
                let short = short.strip_prefix("library/").unwrap_or(short);
                format!("{short}@{}", parsed.tag.as_deref().unwrap_or("latest"))
            }
            None => name.to_owned(),
        };
        let platform = platform.to_string().replace('/', "%2F");
        Material {
            uri: format!("pkg:docker/{name}?platform={platform}"),
            digest: BTreeMap::from([(algorithm.to_owned(), hex.to_owned())]),
        }
    }

    /// A file by its address.
    pub fn file(address: &str, digest: &Digest) -> Self {
        let digest = BTreeMap::from([(digest.algorithm().to_owned(), digest.hex().to_owned())]);
        Material { uri: address.to_owned(), digest }
    }

    /// An artifact of a registry.
    pub fn artifact(name: &Reference, digest: &Digest) -> Self {
        let full = name.name();
        let short = full.rsplit('/').next().unwrap_or_default();
        let url = full.replace('/', "%2F");
        let digest = BTreeMap::from([(digest.algorithm().to_owned(), digest.hex().to_owned())]);
        Material { uri: format!("pkg:oci/{short}?repository_url={url}"), digest }
    }

    /// A commit of a repository.
    pub fn commit(address: &str, commit: &str) -> Self {
        Material { uri: address.to_owned(), digest: BTreeMap::from([("sha1".to_owned(), commit.to_owned())]) }
    }
}

impl Report {
    /// Of a build that begins.
    pub fn begin() -> Self {
        let now = Timestamp::now();
        Report { started: now, finished: now, ..Report::default() }
    }

    /// Notes something from elsewhere, once.
    pub fn uses(&mut self, material: Material) {
        if !self.materials.contains(&material) {
            self.materials.push(material);
        }
    }
}

impl Build {
    /// Notes what a key was made into.
    pub fn note(&self, key: &Digest, layers: &[Layer]) {
        self.report.lock().steps.push((key.clone(), layers.to_vec()));
    }
}
