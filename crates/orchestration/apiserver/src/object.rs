//! A stored object: its bytes as they go over the wire, beside the small part that is read often.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dhow_api::selectors::{FieldSelector, LabelSelector, field_value, field_values};
use dhow_api::{Kind, ObjectHeader, Status, protobuf};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::encode::{self, Accept, Shape, Wire};

/// One version of one object. Shared by every reader and watcher.
#[derive(Debug)]
pub struct Stored {
    /// The key in the store.
    pub key: Arc<str>,
    pub header: ObjectHeader,
    /// JSON without `metadata.resourceVersion`, which is the revision: where the row shows what is stored, the store's
    /// own bytes.
    document: Bytes,
    /// `mod_revision` of the write.
    pub revision: u64,
    /// The encoded message, made when first asked for; `None` where the kind has none.
    protobuf: OnceLock<Option<Bytes>>,
    /// The kind's selectable fields beyond name and namespace, and their values.
    fields: (&'static [&'static str], Box<[Box<str>]>),
    /// The object in the forms of other rows that share its storage, by definition, made when first asked for.
    forms: Mutex<Vec<(&'static str, Arc<Stored>)>>,
    /// The bytes in the store where the row shows something else: one of another version, or of an older schema.
    kept: Option<Bytes>,
}

impl Stored {
    /// From the bytes in the store. Without a row, as they are.
    pub fn decode(kind: Option<&Kind>, key: &[u8], value: &Bytes, revision: u64) -> Result<Self, Status> {
        let bad = |error: &dyn std::fmt::Display| {
            Status::internal(format!("object {} cannot be read: {error}", String::from_utf8_lossy(key)))
        };
        let mut header = ObjectHeader::parse(value).map_err(|error| bad(&error))?;
        let mut document = value.clone();
        let mut kept = None;
        let names = kind.map_or(&[][..], |kind| kind.selectable_fields);
        let custom = kind.and_then(|kind| Some((kind, kind.custom.as_ref()?)));
        // The server comes by here with every write: a whole tree is made only of what is to be changed.
        let values = if custom.is_some() || header.has_resource_version || header.metadata_at == 0 {
            let mut object: Value = serde_json::from_slice(value).map_err(|error| bad(&error))?;
            if let Some((kind, _)) = custom {
                let before = object.clone();
                kind.from_storage(&mut object);
                kept = (object != before).then(|| value.clone());
            }
            if kept.is_some() || header.has_resource_version || header.metadata_at == 0 {
                let metadata = dhow_api::meta::metadata_mut(&mut object);
                metadata.remove("resourceVersion");
                document = exact(serde_json::to_vec(&object).map_err(|error| bad(&error))?);
                header = ObjectHeader::parse(&document).map_err(|error| bad(&error))?;
            }
            let value = |path: &&'static str| match custom {
                Some((_, served)) => served.field(&object, path),
                None => field_value(&object, path),
            };
            names.iter().map(value).collect()
        } else {
            field_values(value, names).map_err(|error| bad(&error))?
        };
        let fields = (names, values.into_iter().map(Into::into).collect());
        let key = std::str::from_utf8(key).map_err(|error| bad(&error))?;
        Ok(Self {
            key: Arc::from(key),
            header,
            document,
            revision,
            protobuf: OnceLock::new(),
            fields,
            forms: Mutex::default(),
            kept,
        })
    }

    /// The object again, as another row keeps it.
    pub fn again(&self, kind: Option<&Kind>) -> Result<Self, Status> {
        Self::decode(kind, self.key.as_bytes(), self.kept(), self.revision)
    }

    /// The bytes in the store.
    pub fn kept(&self) -> &Bytes {
        self.kept.as_ref().unwrap_or(&self.document)
    }

    /// The object as a row of the registry shows it. Call it on what is stored.
    pub fn in_form(self: &Arc<Self>, kind: &Kind) -> Arc<Self> {
        if !self.differs(kind) {
            return self.clone();
        }
        let mut forms = self.forms.lock();
        if let Some((_, form)) = forms.iter().find(|(definition, _)| *definition == kind.definition) {
            return form.clone();
        }
        if by_webhook(kind) {
            // Only `convert` can make it.
            return self.clone();
        }
        let form = match self.convert(kind) {
            Ok(form) => Arc::new(form),
            Err(status) => {
                tracing::error!(key = %self.key, message = status.message, "an object has no other form");
                return self.clone();
            }
        };
        forms.push((kind.definition, form.clone()));
        form
    }

    /// Whether a webhook has yet to be asked for this form.
    pub fn lacks_form(&self, kind: &Kind) -> bool {
        by_webhook(kind)
            && self.differs(kind)
            && !self.forms.lock().iter().any(|(definition, _)| *definition == kind.definition)
    }

    /// Keeps what a webhook made of the object.
    pub fn keep_form(&self, kind: &Kind, converted: &Value) -> Result<(), Status> {
        let bytes = serde_json::to_vec(converted).map_err(|error| Status::internal(error.to_string()))?;
        let form = Self::decode(Some(kind), self.key.as_bytes(), &exact(bytes), self.revision)?;
        let mut forms = self.forms.lock();
        if !forms.iter().any(|(definition, _)| *definition == kind.definition) {
            forms.push((kind.definition, Arc::new(form)));
        }
        Ok(())
    }

    fn differs(&self, kind: &Kind) -> bool {
        match &kind.custom {
            Some(served) => self.header.api_version != served.api_version,
            None => kind.conversion.is_some(),
        }
    }

    fn convert(&self, kind: &Kind) -> Result<Self, Status> {
        if kind.custom.is_some() {
            return self.again(Some(kind));
        }
        let mut object = self.value()?;
        kind.from_storage(&mut object);
        let bytes = serde_json::to_vec(&object).map_err(|error| Status::internal(error.to_string()))?;
        Self::decode(Some(kind), self.key.as_bytes(), &exact(bytes), self.revision)
    }

    /// The object as a tree.
    pub fn value(&self) -> Result<Value, Status> {
        let mut object: Value = self.read()?;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        Ok(object)
    }

    /// The object as a type that does not ask for its resource version.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Status> {
        serde_json::from_slice(&self.document)
            .map_err(|error| Status::internal(format!("decode {}: {error}", self.key)))
    }

    /// Length of what [`Self::write_json`] writes, give or take a few bytes.
    pub fn size(&self) -> usize {
        self.document.len() + 40
    }

    /// Appends the object as JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let (before, after) = self.document.split_at(self.header.metadata_at.min(self.document.len()));
        out.extend_from_slice(before);
        out.extend_from_slice(format!("\"resourceVersion\":\"{}\"", self.revision).as_bytes());
        if !after.starts_with(b"}") {
            out.push(b',');
        }
        out.extend_from_slice(after);
    }

    /// The object as JSON.
    pub fn json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.size());
        self.write_json(&mut out);
        out.into()
    }

    /// The object as a protobuf message, without envelope.
    pub fn protobuf(&self, kind: &Kind) -> Result<Option<Bytes>, Status> {
        if let Some(known) = self.protobuf.get() {
            return Ok(known.clone());
        }
        let made = match kind.message() {
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
        selection.labels.matches_with(|key| self.header.labels.get(key))
            && selection.fields.terms.iter().all(|term| (self.field(&term.path) == term.value) != term.negated)
    }

    /// The value of a selectable field.
    pub fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => &self.header.name,
            "metadata.namespace" => &self.header.namespace,
            _ => {
                let (names, values) = &self.fields;
                names.iter().zip(values).find(|(name, _)| **name == path).map_or("", |(_, value)| value)
            }
        }
    }
}

/// What is kept long is not to hold the space it grew in.
pub fn exact(bytes: Vec<u8>) -> Bytes {
    bytes.into_boxed_slice().into()
}

fn by_webhook(kind: &Kind) -> bool {
    kind.custom.as_ref().is_some_and(|served| served.definition.webhook.is_some())
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
    /// The change in the forms of other rows that share the storage, by definition.
    forms: Mutex<Vec<(&'static str, Arc<Change>)>>,
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
            forms: Mutex::default(),
        }
    }

    /// The change as a row of the registry shows it. What only a webhook converts was converted before.
    pub fn in_form(self: &Arc<Self>, kind: &Kind) -> Arc<Self> {
        if !self.states().any(|stored| stored.differs(kind)) {
            return self.clone();
        }
        let mut forms = self.forms.lock();
        if let Some((_, form)) = forms.iter().find(|(definition, _)| *definition == kind.definition) {
            return form.clone();
        }
        let previous = self.previous.as_ref().map(|previous| previous.in_form(kind));
        let form = Arc::new(Self::new(self.revision, self.object.in_form(kind), previous, self.deleted));
        forms.push((kind.definition, form.clone()));
        form
    }

    /// Bytes it may hold: the object, a frame of it, and what was before.
    pub fn weight(&self) -> usize {
        2 * self.object.size() + self.previous.as_ref().map_or(0, |previous| previous.size())
    }

    /// The object now, and as it was before.
    pub fn states(&self) -> impl Iterator<Item = &Arc<Stored>> {
        std::iter::once(&self.object).chain(&self.previous)
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
