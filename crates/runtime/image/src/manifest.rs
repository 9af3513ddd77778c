//! Manifests and indexes, OCI and Docker schema 2, and the choice of a platform among them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Result};

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Two bytes, `{}`: the configuration of what has none.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// A manifest is metadata; registries cap it near this size and so do we.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Where else a layer is that registries may not hand out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            platform: None,
            annotations: None,
        }
    }

    /// A layer that is fetched from where it says and pushed nowhere.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
}

impl Manifest {
    /// Of an image.
    pub fn image(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        let media_type = OCI_MANIFEST.to_owned();
        Manifest { schema_version: 2, media_type, artifact_type: None, config, layers, subject: None }
    }

    /// Everything it speaks of that a registry has to have, once.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        let mut blobs: Vec<&Descriptor> = Vec::new();
        for blob in self.layers.iter().filter(|layer| !layer.is_foreign()).chain([&self.config]) {
            if blobs.iter().all(|known| known.digest != blob.digest) {
                blobs.push(blob);
            }
        }
        blobs
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

/// Either of the two documents a manifest endpoint may answer with.
// There are few at a time.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// `media_type` is the transport's word for it; the document's own and its shape win.
    pub fn parse(what: &str, media_type: &str, bytes: &[u8]) -> Result<Self> {
        let fail = |message: String| Error::Manifest { what: what.to_owned(), message };
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<u32>,
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(|e| fail(format!("manifest is not JSON: {e}")))?;
        if shape.schema_version == Some(1) {
            return Err(fail("media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer supported; rebuild the \
                 image with a current tool and push it again"
                    .to_owned()));
        }
        // A document that is both could mean one thing to a scanner and another to us.
        if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
            return Err(fail("document is both an index and a manifest".to_owned()));
        }
        let declared = shape.media_type.as_deref().unwrap_or(media_type);
        if shape.manifests.is_some() {
            if declared == OCI_MANIFEST || declared == DOCKER_MANIFEST {
                return Err(fail(format!("an index declares media type {declared}")));
            }
            let index = serde_json::from_slice(bytes).map_err(|e| fail(format!("malformed index: {e}")))?;
            return Ok(Document::Index(index));
        }
        if declared == OCI_INDEX || declared == DOCKER_INDEX {
            return Err(fail(format!("a manifest declares media type {declared}")));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| fail(format!("malformed manifest: {e}")))?;
        if manifest.layers.len() > 512 {
            return Err(fail(format!("{} layers; the limit is 512", manifest.layers.len())));
        }
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(fail(format!("larger than {MAX_MANIFEST_BYTES} bytes")));
        }
        Ok(Document::Manifest(manifest))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// What this machine runs.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    /// `os/arch[/variant]`, as on a command line.
    pub fn parse(s: &str) -> Option<Self> {
        let mut parts = s.split('/');
        let (os, architecture, variant) = (parts.next()?, parts.next()?, parts.next());
        if os.is_empty() || architecture.is_empty() || parts.next().is_some() {
            return None;
        }
        Some(Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) })
    }

    /// Whether a machine of this platform runs what is for that one.
    pub fn runs(&self, offered: &Platform) -> bool {
        self.distance(offered).is_some()
    }

    /// How well `self` can run `offered`: `None` not at all, smaller is better.
    fn distance(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |variant: &Option<String>| -> Option<u32> {
            match variant {
                None => None,
                Some(v) => v.trim_start_matches('v').parse().ok(),
            }
        };
        let wanted = level(&self.variant).or(match self.architecture.as_str() {
            "arm64" => Some(8),
            "arm" => Some(7),
            _ => None,
        });
        match (wanted, level(&offered.variant)) {
            (_, None) => Some(if self.architecture == "arm" { 100 } else { 0 }),
            (Some(wanted), Some(offered)) if offered <= wanted => Some(wanted - offered),
            (None, Some(1)) => Some(0),
            _ => None,
        }
    }

    /// The best entry of an index. Entries without a platform count only if nothing else matches.
    pub fn select<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let best = manifests
            .iter()
            .filter_map(|d| Some((self.distance(d.platform.as_ref()?)?, d)))
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, d)| d);
        best.or_else(|| match manifests {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> Descriptor {
        let mut d = Descriptor::new(OCI_MANIFEST, Digest::of(platform.as_bytes()), 1);
        d.platform = Platform::parse(platform);
        d
    }

    #[test]
    fn picks_the_best_platform() {
        let index = ["linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "windows/amd64"].map(entry);
        let pick =
            |p: &str| Platform::parse(p).unwrap().select(&index).map(|d| d.platform.clone().unwrap().to_string());
        assert_eq!(pick("linux/amd64").as_deref(), Some("linux/amd64"));
        assert_eq!(pick("linux/arm/v7").as_deref(), Some("linux/arm/v7"));
        assert_eq!(pick("linux/arm/v6").as_deref(), Some("linux/arm/v6"));
        assert_eq!(pick("linux/arm64").as_deref(), Some("linux/arm64/v8"));
        assert_eq!(pick("linux/s390x"), None);
    }

    #[test]
    fn refuses_ambiguous_documents() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(Document::parse("x", OCI_INDEX, both).is_err());
        let v1 = br#"{"schemaVersion":1,"name":"x"}"#;
        assert!(Document::parse("x", "", v1).unwrap_err().to_string().contains("no longer supported"));
    }
}
