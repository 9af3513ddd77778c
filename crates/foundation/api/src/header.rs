//! A small parsed header of an object: what the pipeline, indexes and selectors need without a JSON tree.

use crate::error::Error;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// An owner reference.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// Metadata and the fields that field selectors can name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectHeader {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub generate_name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub creation_timestamp: String,
    pub deletion_timestamp: Option<String>,
    pub deletion_grace_period_seconds: Option<i64>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owner_references: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw<'a> {
    #[serde(borrow, default)]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    metadata: Option<RawMeta<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    generate_name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    resource_version: Option<Cow<'a, str>>,
    generation: Option<i64>,
    #[serde(borrow)]
    creation_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    deletion_timestamp: Option<Cow<'a, str>>,
    deletion_grace_period_seconds: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
}

fn owned(value: Option<Cow<'_, str>>) -> String {
    value.map(Cow::into_owned).unwrap_or_default()
}

impl ObjectHeader {
    /// Parses only the header; the rest of the document is skipped, not built.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let raw: Raw<'_> = serde_json::from_slice(bytes).map_err(|error| Error::Decode(error.to_string()))?;
        let meta = raw.metadata.unwrap_or_default();
        Ok(Self {
            api_version: owned(raw.api_version),
            kind: owned(raw.kind),
            name: owned(meta.name),
            generate_name: owned(meta.generate_name),
            namespace: owned(meta.namespace),
            uid: owned(meta.uid),
            resource_version: owned(meta.resource_version),
            generation: meta.generation.unwrap_or_default(),
            creation_timestamp: owned(meta.creation_timestamp),
            deletion_timestamp: meta.deletion_timestamp.map(Cow::into_owned),
            deletion_grace_period_seconds: meta.deletion_grace_period_seconds,
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
            owner_references: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
        })
    }

    /// The group and version of `apiVersion`.
    pub fn group_version(&self) -> (&str, &str) {
        split_api_version(&self.api_version)
    }

    /// The owner that is the managing controller.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
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
        let header = ObjectHeader::parse(
            br#"{"spec":{"deep":[1,{"a":null}]},"kind":"Pod","apiVersion":"v1","metadata":{"name":"a\u0062","namespace":"n","labels":{"k":"v"},"finalizers":null,
            "ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","uid":"u","controller":true}],"creationTimestamp":null}}"#,
        )
        .unwrap();
        assert_eq!((header.name.as_str(), header.labels["k"].as_str()), ("ab", "v"));
        assert_eq!(header.controller().unwrap().name, "r");
        assert!(ObjectHeader::parse(b"{").is_err());
    }
}
