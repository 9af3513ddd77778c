//! A small parsed header of an object: what the pipeline and selectors need without a JSON tree. The server keeps one
//! beside every object, so it is packed.

use crate::custom::intern;
use crate::error::Error;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What is read often of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectHeader {
    pub api_version: &'static str,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub creation_timestamp: String,
    pub deletion_timestamp: Option<String>,
    pub labels: Labels,
    /// Where the members of `metadata` begin in the document; 0 without metadata.
    pub metadata_at: usize,
    /// The document's own `metadata.resourceVersion`, which stored ones have not.
    pub has_resource_version: bool,
}

/// Labels in one piece: `key NUL value NUL` and so on. A map would cost half a kilobyte however few they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<str>);

impl Labels {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.0.split_terminator('\0');
        std::iter::from_fn(move || parts.next().zip(parts.next()))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Labels {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let mut text = String::new();
        // Validation lets no NUL into labels.
        for (key, value) in pairs.into_iter().filter(|(key, value)| !key.contains('\0') && !value.contains('\0')) {
            for part in [key, value] {
                text.push_str(part);
                text.push('\0');
            }
        }
        Self(text.into())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw<'a> {
    #[serde(borrow, default)]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    resource_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    creation_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    deletion_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

fn owned(value: Option<Cow<'_, str>>) -> String {
    value.map(Cow::into_owned).unwrap_or_default()
}

impl ObjectHeader {
    /// Parses only the header; the rest of the document is skipped, not built.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bad = |error: serde_json::Error| Error::Decode(error.to_string());
        let raw: Raw<'_> = serde_json::from_slice(bytes).map_err(bad)?;
        let meta: RawMeta<'_> = match raw.metadata {
            Some(metadata) => serde_json::from_str(metadata.get()).map_err(bad)?,
            None => RawMeta::default(),
        };
        // The text is a part of the document: its address tells where, and one brace further are the members.
        let place = |metadata: &RawValue| metadata.get().as_ptr().addr() - bytes.as_ptr().addr() + 1;
        Ok(Self {
            api_version: intern::name(raw.api_version.as_deref().unwrap_or_default()),
            name: owned(meta.name),
            namespace: owned(meta.namespace),
            uid: owned(meta.uid),
            creation_timestamp: owned(meta.creation_timestamp),
            deletion_timestamp: meta.deletion_timestamp.map(Cow::into_owned),
            labels: meta.labels.iter().flatten().map(|(key, value)| (&**key, &**value)).collect(),
            metadata_at: raw.metadata.map_or(0, place),
            has_resource_version: meta.resource_version.is_some(),
        })
    }
}

/// `apps/v1` as `("apps", "v1")`, `v1` as `("", "v1")`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_metadata_and_skips_the_rest() {
        let document = br#"{"spec":{"deep":[1,{"a":null}]},"kind":"Pod","apiVersion":"v1","metadata":{"name":"a\u0062","namespace":"n",
            "labels":{"k":"v","e":""},"finalizers":null,"creationTimestamp":null}}"#;
        let header = ObjectHeader::parse(document).unwrap();
        assert_eq!((header.name.as_str(), header.labels.get("k"), header.labels.get("e")), ("ab", Some("v"), Some("")));
        assert_eq!(header.labels.get("v"), None);
        assert!(document[header.metadata_at..].starts_with(b"\"name\""));
        assert!(ObjectHeader::parse(b"{").is_err());
    }
}
