//! A stored object: its bytes as they go over the wire, beside the small part that is read often.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dhow_api::selectors::{FieldSelector, LabelSelector, field_value};
use dhow_api::{Kind, ObjectHeader, Status, descriptor, protobuf};
use serde_json::{Value, json};

use crate::encode::{self, Accept, Shape, Wire};

/// One version of one object. Shared by every reader and watcher.
#[derive(Debug)]
pub struct Stored {
    /// The key in the store.
    pub key: Arc<str>,
    pub header: ObjectHeader,
    /// Canonical JSON with `metadata.resourceVersion` set.
    pub bytes: Bytes,
    /// `mod_revision` of the write.
    pub revision: u64,
    /// The encoded message, made when first asked for; `None` where the kind has none.
    protobuf: OnceLock<Option<Bytes>>,
    /// Values of the kind's selectable fields beyond name and namespace.
    fields: Vec<(&'static str, String)>,
    /// The object in the form of the other row that shares its storage, made when first asked for.
    other: OnceLock<Arc<Stored>>,
}

impl Stored {
    /// From the bytes in the store.
    pub fn decode(kind: &Kind, key: &[u8], value: &[u8], revision: u64) -> Result<Self, Status> {
        let bad = |error: &dyn std::fmt::Display| {
            Status::internal(format!("object {} cannot be read: {error}", String::from_utf8_lossy(key)))
        };
        let mut object: Value = serde_json::from_slice(value).map_err(|error| bad(&error))?;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let bytes = serde_json::to_vec(&object).map_err(|error| bad(&error))?;
        let header = ObjectHeader::parse(&bytes).map_err(|error| bad(&error))?;
        let fields = kind.selectable_fields.iter().map(|path| (*path, field_value(&object, path))).collect();
        let key = std::str::from_utf8(key).map_err(|error| bad(&error))?;
        Ok(Self {
            key: Arc::from(key),
            header,
            bytes: bytes.into(),
            revision,
            protobuf: OnceLock::new(),
            fields,
            other: OnceLock::new(),
        })
    }

    /// The object as a row of the registry shows it. Call it on what is stored.
    pub fn in_form(self: &Arc<Self>, kind: &Kind) -> Arc<Self> {
        if kind.conversion.is_none() {
            return self.clone();
        }
        let convert = || {
            let mut object = self.value()?;
            kind.from_storage(&mut object);
            let bytes = serde_json::to_vec(&object).map_err(|error| Status::internal(error.to_string()))?;
            Self::decode(kind, self.key.as_bytes(), &bytes, self.revision)
        };
        let form = || match convert() {
            Ok(other) => Arc::new(other),
            Err(status) => {
                tracing::error!(key = %self.key, message = status.message, "an object has no other form");
                self.clone()
            }
        };
        self.other.get_or_init(form).clone()
    }

    /// The object as a tree.
    pub fn value(&self) -> Result<Value, Status> {
        serde_json::from_slice(&self.bytes).map_err(|error| Status::internal(format!("decode {}: {error}", self.key)))
    }

    /// The object as a protobuf message, without envelope.
    pub fn protobuf(&self, kind: &Kind) -> Result<Option<Bytes>, Status> {
        if let Some(known) = self.protobuf.get() {
            return Ok(known.clone());
        }
        let made = match descriptor::message(kind.definition) {
            Some(message) => {
                let bytes = protobuf::encode(message, &self.value()?)
                    .map_err(|error| Status::internal(format!("encode {}: {error}", self.key)))?;
                Some(Bytes::from(bytes))
            }
            None => None,
        };
        Ok(self.protobuf.get_or_init(|| made).clone())
    }

    pub fn matches(&self, selection: &Selection) -> bool {
        selection.labels.matches(&self.header.labels)
            && selection.fields.terms.iter().all(|term| (self.field(&term.path) == term.value) != term.negated)
    }

    /// The value of a selectable field.
    pub fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => &self.header.name,
            "metadata.namespace" => &self.header.namespace,
            _ => self.fields.iter().find(|(name, _)| *name == path).map_or("", |(_, value)| value),
        }
    }
}

/// Which objects of a kind a request is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Selection {
    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels == LabelSelector::default() && self.fields.terms.is_empty()
    }
}

/// One write as watchers see it. Its frames are encoded once and shared.
#[derive(Debug)]
pub struct Change {
    pub revision: u64,
    /// The object now; for a delete, as it was last, at the revision of the delete.
    pub object: Arc<Stored>,
    pub previous: Option<Arc<Stored>>,
    pub deleted: bool,
    json_frames: [OnceLock<Bytes>; 3],
    protobuf_frames: [OnceLock<Bytes>; 3],
    /// The change in the form of the other row that shares the storage.
    other: OnceLock<Arc<Change>>,
}

/// What a watcher is told of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Added,
    Modified,
    Deleted,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Change {
    pub fn new(revision: u64, object: Arc<Stored>, previous: Option<Arc<Stored>>, deleted: bool) -> Self {
        Self {
            revision,
            object,
            previous,
            deleted,
            json_frames: Default::default(),
            protobuf_frames: Default::default(),
            other: OnceLock::new(),
        }
    }

    /// The change as a row of the registry shows it.
    pub fn in_form(self: &Arc<Self>, kind: &Kind) -> Arc<Self> {
        if kind.conversion.is_none() {
            return self.clone();
        }
        let form = || {
            let previous = self.previous.as_ref().map(|previous| previous.in_form(kind));
            Arc::new(Self::new(self.revision, self.object.in_form(kind), previous, self.deleted))
        };
        self.other.get_or_init(form).clone()
    }

    /// What this change is to someone who sees only a selection: an object whose labels move into it is added,
    /// one whose labels move out is deleted.
    pub fn verdict(&self, selection: &Selection) -> Option<Verdict> {
        let now = !self.deleted && self.object.matches(selection);
        let before = self.previous.as_ref().is_some_and(|previous| previous.matches(selection));
        match (before, now) {
            (false, true) => Some(Verdict::Added),
            (true, true) => Some(Verdict::Modified),
            (true, false) => Some(Verdict::Deleted),
            (false, false) => None,
        }
    }

    /// The frame of this change in the client's form; those of whole objects are made once.
    pub fn frame(&self, kind: &Kind, verdict: Verdict, accept: &Accept) -> Result<Bytes, Status> {
        let slots = match (accept.shape, accept.wire) {
            (Shape::Whole, Wire::Protobuf) => &self.protobuf_frames,
            (Shape::Whole, Wire::Json | Wire::Yaml) => &self.json_frames,
            _ => return encode::watch_frame(kind, verdict.as_str(), &self.object, accept),
        };
        let slot = &slots[verdict as usize];
        if let Some(frame) = slot.get() {
            return Ok(frame.clone());
        }
        let frame = encode::watch_frame(kind, verdict.as_str(), &self.object, accept)?;
        Ok(slot.get_or_init(|| frame).clone())
    }
}
