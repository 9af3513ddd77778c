//! `metadata.managedFields`: its entries and how writes move fields between them.

use serde_json::{Map, Value};

use super::Writer;
use super::set::Set;
use super::tree::Comparison;
use crate::meta;

/// Updating managers that are kept apart; the oldest beyond them are one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
    time: String,
    set: Set,
}

impl Entry {
    /// Whether this is the entry that `writer` writes. Appliers are the same at any version.
    fn is(&self, writer: &Writer<'_>, apply: bool) -> bool {
        self.manager == writer.manager
            && self.apply == apply
            && self.subresource == writer.subresource
            && (apply || self.api_version == writer.api_version)
    }

    /// As conflicts name it.
    fn printed(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if !self.apply {
            text += &format!(" using {}", self.api_version);
        }
        text
    }

    fn new(writer: &Writer<'_>, apply: bool, set: Set) -> Self {
        Self {
            manager: writer.manager.into(),
            apply,
            api_version: writer.api_version.into(),
            subresource: writer.subresource.into(),
            time: writer.now.into(),
            set,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Managers(Vec<Entry>);

impl Managers {
    /// `None` if the list is not one of managed fields.
    pub fn decode(list: &Value) -> Option<Self> {
        let mut entries = Vec::new();
        for entry in list.as_array()? {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            let apply = match entry["operation"].as_str()? {
                "Apply" => true,
                "Update" => false,
                _ => return None,
            };
            entries.push(Entry {
                manager: text("manager"),
                apply,
                api_version: text("apiVersion"),
                subresource: text("subresource"),
                time: text("time"),
                set: match entry.get("fieldsV1") {
                    Some(fields) => Set::from_fields(fields)?,
                    None => Set::default(),
                },
            });
        }
        Some(Self(entries))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything anyone owns.
    pub fn all(&self) -> Set {
        let mut all = Set::default();
        self.0.iter().for_each(|entry| all.add(entry.set.clone()));
        all
    }

    /// Puts the list into the object: appliers first, then by time and name.
    pub fn write(&mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.set.is_empty());
        self.0.sort_by(|a, b| (!a.apply, &a.time, &a.manager).cmp(&(!b.apply, &b.time, &b.manager)));
        let metadata = meta::metadata_mut(object);
        if self.0.is_empty() {
            metadata.remove("managedFields");
            return;
        }
        let list: Vec<Value> = self.0.iter().map(entry).collect();
        metadata.insert("managedFields".into(), list.into());
    }

    /// An update: the writer owns what it changed, others lose it.
    pub fn updated(&mut self, writer: &Writer<'_>, found: Comparison, reset: &Set, stripped: &Set) {
        let Comparison { modified: mut changed, added, removed } = found;
        changed.add(added);
        self.yield_to(&changed, &removed, |entry| entry.is(writer, false));
        let mut taken = changed;
        taken.remove_with_all_below(reset);
        taken.remove(stripped);
        match self.0.iter_mut().find(|entry| entry.is(writer, false)) {
            Some(entry) => {
                entry.set.remove(&removed);
                if !taken.is_empty() {
                    entry.set.add(taken);
                    entry.time = writer.now.into();
                }
            }
            None if taken.is_empty() => {}
            None => self.0.push(Entry::new(writer, false, taken)),
        }
        self.cap();
    }

    /// Everyone but the writer loses what changed or went.
    fn yield_to(&mut self, changed: &Set, removed: &Set, is_writer: impl Fn(&Entry) -> bool) {
        for entry in self.0.iter_mut().filter(|entry| !is_writer(entry)) {
            entry.set.remove(changed);
            entry.set.remove(removed);
        }
    }

    /// Gives an applier its new fields; returns those it had.
    pub fn applied(&mut self, writer: &Writer<'_>, set: Set) -> Option<Set> {
        match self.0.iter_mut().find(|entry| entry.is(writer, true)) {
            Some(entry) => {
                entry.api_version = writer.api_version.into();
                Some(std::mem::replace(&mut entry.set, set))
            }
            None => {
                self.0.push(Entry::new(writer, true, set));
                None
            }
        }
    }

    /// Who else owns what an apply would change.
    pub fn conflicts(&self, writer: &Writer<'_>, found: &Comparison) -> Vec<(String, Set)> {
        let changed = found.modified.union(&found.added);
        let mut conflicts: Vec<(String, Set)> = self
            .0
            .iter()
            .filter(|entry| !entry.is(writer, true))
            .map(|entry| (entry.printed(), entry.set.intersection(&changed)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        conflicts.sort_by(|a, b| a.0.cmp(&b.0));
        conflicts
    }

    /// After an apply: others lose what it changed.
    pub fn yielded(&mut self, writer: &Writer<'_>, found: &Comparison) {
        let changed = found.modified.union(&found.added);
        self.yield_to(&changed, &found.removed, |entry| entry.is(writer, true));
    }

    /// Leaves the applier's time alone when the apply changed nothing of what it owns.
    pub fn stamp(&mut self, writer: &Writer<'_>, live: Option<&Value>) {
        let before = live
            .and_then(|live| meta::at(live, &["metadata", "managedFields"]))
            .and_then(Self::decode)
            .unwrap_or_default();
        let old = before.0.iter().find(|entry| entry.is(writer, true));
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.is(writer, true)) {
            let same = old.is_some_and(|old| old.set == entry.set && old.api_version == entry.api_version);
            if !same {
                entry.time = writer.now.into();
            }
        }
    }

    /// Folds the oldest updaters into one.
    fn cap(&mut self) {
        if self.0.len() <= MAX_UPDATERS {
            return;
        }
        let mut updaters: Vec<(String, usize)> = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, entry)| !entry.apply)
            .map(|(index, entry)| (entry.time.clone(), index))
            .collect();
        if updaters.len() <= MAX_UPDATERS {
            return;
        }
        updaters.sort();
        let oldest: Vec<usize> =
            updaters.iter().take(updaters.len() - MAX_UPDATERS + 1).map(|(_, index)| *index).collect();
        let mut folded: Vec<Entry> = Vec::new();
        let mut kept = Vec::new();
        for (index, entry) in self.0.drain(..).enumerate() {
            if !oldest.contains(&index) {
                kept.push(entry);
                continue;
            }
            match folded.iter_mut().find(|other| other.api_version == entry.api_version) {
                Some(other) => {
                    other.set.add(entry.set);
                    other.time = other.time.clone().max(entry.time);
                }
                None => folded.push(Entry { manager: ANCIENT.into(), subresource: String::new(), ..entry }),
            }
        }
        kept.extend(folded);
        self.0 = kept;
    }
}

fn entry(entry: &Entry) -> Value {
    let mut value = Map::with_capacity(7);
    let mut put = |name: &str, it: Value| value.insert(name.into(), it);
    put("manager", entry.manager.as_str().into());
    put("operation", if entry.apply { "Apply" } else { "Update" }.into());
    put("apiVersion", entry.api_version.as_str().into());
    put("time", entry.time.as_str().into());
    put("fieldsType", "FieldsV1".into());
    put("fieldsV1", entry.set.to_fields());
    if !entry.subresource.is_empty() {
        put("subresource", entry.subresource.as_str().into());
    }
    Value::Object(value)
}
