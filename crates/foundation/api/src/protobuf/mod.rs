//! Protobuf documents as Go clients send them: JSON trees to wire format and back, driven by [`crate::descriptor`].
//!
//! A document is `k8s\0` and an envelope (`runtime.Unknown`) that holds the type header and the encoded object.

mod decode;
mod encode;
mod wire;

use serde_json::Value;

use crate::descriptor::{self, Message};
use wire::Reader;
pub(crate) use wire::Writer;

pub use encode::encode;

/// What every document begins with.
const MAGIC: &[u8; 4] = b"k8s\0";

/// Why a document cannot be read, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("unexpected EOF")]
    UnexpectedEof,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: {message}: illegal tag {number} (wire type {wire})")]
    IllegalTag { message: String, number: u64, wire: u8 },
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WrongWireType { wire: u8, field: String },
    #[error("proto: unexpected end of group")]
    EndOfGroup,
    #[error("the document is nested too deeply")]
    TooDeep,
    #[error("the document has too many values")]
    TooMany,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("{0}")]
    Value(String),
    /// The envelope is whole, the object in it is not.
    #[error("{kind} in version {version:?} cannot be handled as a {kind}: {why}")]
    Object { kind: String, version: String, why: Box<Error> },
}

/// Reads a document. The tree carries the envelope's type header.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let body = bytes.strip_prefix(MAGIC.as_slice()).ok_or(Error::NoMagic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &body[..0]);
    let mut reader = Reader::new(body, "Unknown");
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => {
                let mut header = Reader::new(reader.bytes(wire, "TypeMeta")?, "TypeMeta");
                while let Some((number, wire)) = header.tag()? {
                    match number {
                        1 => api_version = header.string(wire, "APIVersion")?,
                        2 => kind = header.string(wire, "Kind")?,
                        _ => header.skip(wire)?,
                    }
                }
            }
            2 => raw = reader.bytes(wire, "Raw")?,
            _ => reader.skip(wire)?,
        }
    }
    let Some(message) = descriptor::message_of(&api_version, &kind) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut value = decode::message(message, raw).map_err(|why| Error::Object {
        kind: kind.clone(),
        version: crate::header::split_api_version(&api_version).1.to_owned(),
        why: Box::new(why),
    })?;
    if let Value::Object(map) = &mut value {
        // First, as in JSON.
        map.shift_insert(0, "kind".into(), kind.into());
        map.shift_insert(1, "apiVersion".into(), api_version.into());
    }
    Ok(value)
}

/// A whole document of an encoded object.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut header = Writer::default();
    header.string(1, api_version);
    header.string(2, kind);
    let mut unknown = Writer::with_capacity(raw.len() + 64);
    unknown.raw(MAGIC);
    unknown.bytes(1, &header.finish());
    unknown.bytes(2, raw);
    unknown.string(3, "");
    unknown.string(4, "");
    unknown.finish()
}

/// A whole document of a tree with a type header.
pub fn document(value: &Value) -> Result<Vec<u8>, Error> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(message) = descriptor::message_of(api_version, kind) else {
        return Err(Error::UnknownKind { api_version: api_version.into(), kind: kind.into() });
    };
    Ok(envelope(api_version, kind, &encode(message, value)?))
}

/// A list's message from its metadata and items that are encoded already.
pub fn list<'a>(list: &Message, metadata: &Value, items: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, Error> {
    let number = |name: &str| list.fields.iter().find(|field| field.name == name).map_or(0, |field| field.number);
    let mut writer = Writer::default();
    if let Some(message) = descriptor::message("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta") {
        writer.bytes(number("metadata"), &encode(message, metadata)?);
    }
    for item in items {
        writer.bytes(number("items"), item);
    }
    Ok(writer.finish())
}

/// One frame of a watch: its length, then `metav1.WatchEvent` around a whole document.
pub fn frame(kind: &str, document: &[u8]) -> Vec<u8> {
    let mut object = Writer::with_capacity(document.len() + 8);
    object.bytes(1, document);
    let mut event = Writer::with_capacity(document.len() + 32);
    event.string(1, kind);
    event.bytes(2, &object.finish());
    let event = event.finish();
    let mut frame = Vec::with_capacity(event.len() + 4);
    frame.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&event);
    frame
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod() -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "labels": {"x": "y"}, "creationTimestamp": "2026-01-02T03:04:05Z",
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}]},
            "spec": {
                "volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "w", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1500m"}},
                    "livenessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 5},
                    "readinessProbe": {"tcpSocket": {"port": 80}}}],
                "terminationGracePeriodSeconds": 0, "nodeSelector": {"a": "b"}},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}]},
        })
    }

    #[test]
    fn objects_survive_the_round() {
        assert_eq!(decode(&document(&pod()).unwrap()).unwrap(), pod());
        for value in [
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "data": {"a": "aGk="}, "type": "t"}),
            json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "l"},
                "spec": {"leaseDurationSeconds": 1, "renewTime": "2026-01-02T03:04:05.678901Z"}}),
            json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "gracePeriodSeconds": 0, "propagationPolicy": "Orphan"}),
            json!({"kind": "ControllerRevision", "apiVersion": "apps/v1", "data": {"any": [1, {"thing": null}]}, "revision": 3}),
            json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {"user": "u", "extra": {"k": ["a", "b"]}},
                "status": {"allowed": true}}),
        ] {
            assert_eq!(decode(&document(&value).unwrap()).unwrap(), value);
        }
    }

    #[test]
    fn bad_documents_are_refused() {
        assert_eq!(decode(b"{}").unwrap_err(), Error::NoMagic);
        assert_eq!(decode(b"k8s\0\x0a\xff").unwrap_err(), Error::UnexpectedEof);
        assert!(matches!(decode(&envelope("v1", "Poodle", b"")), Err(Error::UnknownKind { .. })));
        // A length that leads beyond the end.
        let message = |raw: &[u8]| decode(&envelope("v1", "Pod", raw)).unwrap_err().to_string();
        let handled = "Pod in version \"v1\" cannot be handled as a Pod";
        assert_eq!(message(b"\x0a\x7f\x00"), format!("{handled}: unexpected EOF"));
        assert_eq!(message(b"\x08\x01"), format!("{handled}: proto: wrong wireType = 0 for field metadata"));
        // A schema in a schema, without end.
        let mut raw = Vec::new();
        for _ in 0..5000 {
            let mut outer = Writer::default();
            outer.bytes(27, &raw);
            raw = outer.finish();
        }
        let mut deep = raw;
        for number in [1, 3, 7, 1] {
            let mut outer = Writer::default();
            outer.bytes(number, &deep);
            deep = outer.finish();
        }
        let crd = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &deep);
        assert!(decode(&crd).is_err() || decode(&crd).unwrap().is_object());
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let mut raw = Writer::default();
        raw.string(500, "new");
        raw.bytes(1, &{
            let mut metadata = Writer::default();
            metadata.string(1, "a");
            metadata.finish()
        });
        let value = decode(&envelope("v1", "ConfigMap", &raw.finish())).unwrap();
        assert_eq!(value["metadata"], json!({"name": "a"}));
    }

    proptest! {
        #[test]
        fn noise_never_panics(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            for (api_version, kind) in [("v1", "Pod"), ("v1", "DeleteOptions"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition")] {
                let _ = decode(&envelope(api_version, kind, &raw));
            }
            let _ = decode(&raw);
        }

        #[test]
        fn damage_never_panics(at in 0usize..600, byte in any::<u8>(), cut in 0usize..600) {
            let mut bytes = document(&pod()).unwrap();
            let (at, cut) = (at % bytes.len(), cut % bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
            bytes.truncate(cut);
            let _ = decode(&bytes);
        }
    }
}
