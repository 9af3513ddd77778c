//! What a manifest refers to: OCI and Docker schema 2, images and indexes.

use std::collections::BTreeMap;

use dhow_image::Digest;
use dhow_image::media::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use serde::Deserialize;

use crate::{Code, Error, Result};

/// More than any image has, less than what would make a transaction or a listing slow.
const MAX_REFERENCES: usize = 2000;

/// What the registry needs to know of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub media_type: String,
    /// Config and layers; the repository must have them.
    pub blobs: Vec<Digest>,
    /// Layers that are to be fetched elsewhere; kept if they are here.
    pub foreign: Vec<Digest>,
    /// Of an index; the repository must have them.
    pub manifests: Vec<Digest>,
    /// What this is about; it need not be here.
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: i64,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

impl Descriptor {
    fn is_foreign(&self) -> bool {
        let elsewhere = self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.");
        elsewhere && self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::ManifestInvalid, message)
}

impl Parsed {
    /// `content_type` is the client's word for it, without parameters; the document's own must agree.
    ///
    /// # Errors
    /// When it is not one of the four kinds, or refers to something by a malformed descriptor.
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("manifest invalid: {error}")))?;
        if document.schema_version != 2 {
            return Err(invalid(format!("schema version {} is not supported", document.schema_version)));
        }
        let said = content_type.filter(|said| !said.is_empty() && *said != "application/json");
        if let (Some(own), Some(said)) = (document.media_type.as_deref(), said)
            && own != said
        {
            return Err(invalid(format!("the manifest is {own:?}, but was sent as {said:?}")));
        }
        let index = document.manifests.is_some();
        // A document that is both could mean one thing to a scanner and another to a runtime.
        if index && (document.layers.is_some() || document.config.is_some()) {
            return Err(invalid("the document is both an index and an image"));
        }
        let shape = if index { OCI_INDEX } else { OCI_MANIFEST };
        let media_type = document.media_type.as_deref().or(said).unwrap_or(shape).to_owned();
        match (media_type.as_str(), index) {
            (OCI_INDEX | DOCKER_INDEX, true) | (OCI_MANIFEST | DOCKER_MANIFEST, false) => {}
            (OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST, _) => {
                return Err(invalid(format!("the document has not the shape of {media_type:?}")));
            }
            _ => return Err(invalid(format!("manifests of type {media_type:?} are not supported"))),
        }
        let config = document.config;
        if !index && config.is_none() {
            return Err(invalid("the image has no config"));
        }
        let (layers, manifests) = (document.layers.unwrap_or_default(), document.manifests.unwrap_or_default());
        if layers.len() + manifests.len() > MAX_REFERENCES {
            return Err(invalid(format!("it refers to more than {MAX_REFERENCES} others")));
        }
        let all = config.iter().chain(&layers).chain(&manifests).chain(&document.subject);
        if let Some(bad) = all.clone().find(|descriptor| descriptor.size < 0) {
            return Err(invalid(format!("the size of {} is negative", bad.digest)));
        }
        if let Some(bad) = all.clone().find(|descriptor| descriptor.media_type.is_empty()) {
            return Err(invalid(format!("{} has no media type", bad.digest)));
        }
        let (foreign, own): (Vec<_>, Vec<_>) = layers.into_iter().partition(Descriptor::is_foreign);
        // Where an image does not say what kind of artifact it is, its config does.
        let of_config = config.as_ref().map(|config| config.media_type.clone());
        let artifact_type = document.artifact_type.filter(|kind| !kind.is_empty()).or(of_config);
        let digests = |descriptors: Vec<Descriptor>| descriptors.into_iter().map(|d| d.digest).collect::<Vec<_>>();
        Ok(Parsed {
            media_type,
            blobs: digests(config.into_iter().chain(own).collect()),
            foreign: digests(foreign),
            manifests: digests(manifests),
            subject: document.subject.map(|subject| subject.digest),
            artifact_type,
            annotations: document.annotations.unwrap_or_default(),
        })
    }
}

/// The config of an image's manifest.
pub fn config(bytes: &[u8]) -> Option<Digest> {
    let document: Document = serde_json::from_slice(bytes).ok()?;
    document.config.map(|config| config.digest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn descriptor(media_type: &str, content: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": content.len()})
    }

    #[test]
    fn reads_images_and_indexes() {
        let mut foreign = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", "f");
        foreign["urls"] = json!(["https://example.com/f"]);
        let image = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor("application/x.config", "c"),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", "l"), foreign],
            "subject": descriptor(OCI_MANIFEST, "s"), "annotations": {"a": "b"}, "unknown": {"kept": true},
        });
        let parsed = Parsed::parse(Some(OCI_MANIFEST), image.to_string().as_bytes()).unwrap();
        assert_eq!(parsed.blobs, [Digest::of(b"c"), Digest::of(b"l")]);
        assert_eq!(parsed.foreign, [Digest::of(b"f")]);
        assert_eq!(parsed.subject, Some(Digest::of(b"s")));
        assert_eq!(parsed.artifact_type.as_deref(), Some("application/x.config"));
        assert_eq!(parsed.annotations["a"], "b");
        let index = json!({
            "schemaVersion": 2, "artifactType": "x/y", "manifests": [descriptor(OCI_MANIFEST, "m")]
        });
        let parsed = Parsed::parse(None, index.to_string().as_bytes()).unwrap();
        assert_eq!((parsed.media_type.as_str(), parsed.artifact_type.as_deref()), (OCI_INDEX, Some("x/y")));
        assert_eq!(parsed.manifests, [Digest::of(b"m")]);
    }

    #[test]
    fn refuses_what_is_ambiguous_or_broken() {
        let config = descriptor("application/x.config", "c");
        let mut negative = config.clone();
        negative["size"] = json!(-1);
        let mut strange = config.clone();
        strange["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e");
        for bad in [
            json!({"schemaVersion": 1, "name": "x"}),
            json!({"schemaVersion": 2}),
            json!({"schemaVersion": 2, "manifests": [], "layers": []}),
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": config, "layers": []}),
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []}),
            json!({"schemaVersion": 2, "mediaType": "text/plain", "config": config, "layers": []}),
            json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": []}),
            json!({"schemaVersion": 2, "config": negative, "layers": []}),
            json!({"schemaVersion": 2, "config": strange, "layers": []}),
            json!({"schemaVersion": 2, "config": config, "layers": [{}]}),
            json!([]),
        ] {
            assert!(Parsed::parse(Some(OCI_MANIFEST), bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        assert!(Parsed::parse(None, b"{\"schemaVersion\":2").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>, kind: Option<String>) {
            let _ = Parsed::parse(kind.as_deref(), &bytes);
        }

        #[test]
        fn documents_cut_or_changed_are_read_without_harm(at in 0usize..300, byte: u8, cut: bool) {
            let image = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor("application/x.config", "c"),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", "l")],
            });
            let mut bytes = image.to_string().into_bytes();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            let _ = Parsed::parse(Some(OCI_MANIFEST), &bytes);
        }
    }
}
