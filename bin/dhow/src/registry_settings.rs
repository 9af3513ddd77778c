//! The `registry` section of the settings: whether the cluster has a registry of images of its own, and where.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dhow_base::duration::go_seconds;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::place::Place;
use crate::s3_settings::S3Settings;

/// Where it is unless told otherwise.
pub const PORT: u16 = 5443;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Unset: where this server keeps the cluster's state itself, or where `storage` is named.
    pub enabled: Option<bool>,
    /// 5443 if unset; a port that is named must be free.
    pub port: Option<u16>,
    /// Where the blobs are: a folder, or a bucket as `s3`. Servers that share etcd share it too. A folder below the data
    /// folder if unset.
    pub storage: Option<Storage>,
    /// Between collections of garbage.
    pub collect_every: String,
    /// A push that finds the disk so full has garbage collected at once; 100: never.
    pub collect_at_disk_percent: u8,
    /// How long an upload may lie untouched, and what nothing refers to stays.
    pub grace: String,
    /// Manifests without a tag go after so long; never if unset.
    pub keep_untagged: Option<String>,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            enabled: None,
            port: None,
            storage: None,
            collect_every: "24h".to_owned(),
            collect_at_disk_percent: 85,
            grace: "24h".to_owned(),
            keep_untagged: None,
        }
    }
}

/// Where the blobs are.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Storage {
    Folder(PathBuf),
    S3(Bucket),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// A bucket of S3, or of a server that speaks its protocol.
    pub s3: S3Settings,
}

/// By hand, so that a mistake within it is named.
impl<'de> Deserialize<'de> for Storage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Storage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a folder, or s3 with a bucket")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Storage, E> {
                Ok(Storage::Folder(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Storage, A::Error> {
                Bucket::deserialize(MapAccessDeserializer::new(map)).map(Storage::S3)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The same, understood.
pub struct Resolved {
    pub port: u16,
    /// Whether somebody wants just this port.
    pub port_is_asked: bool,
    pub storage: Storage,
    pub collect_every: Duration,
    pub collect_at: u8,
    pub grace: Duration,
    pub keep_untagged: Option<Duration>,
}

impl RegistrySettings {
    pub fn check(&self) -> Result<()> {
        self.durations()?;
        ensure!(self.port != Some(0), "registry.port: 1 to 65535");
        ensure!((1..=100).contains(&self.collect_at_disk_percent), "registry.collectAtDiskPercent: 1 to 100");
        match &self.storage {
            Some(Storage::S3(Bucket { s3 })) => s3.check("registry.storage.s3"),
            Some(Storage::Folder(path)) if !path.is_absolute() => bail!("registry.storage: an absolute path"),
            Some(Storage::Folder(_)) | None => Ok(()),
        }
    }

    /// `None`: this server has no registry.
    pub fn resolve(&self, place: &Place) -> Result<Option<Resolved>> {
        // Records in etcd are every server's; a folder of one server's would not have the others' blobs.
        if !self.enabled.unwrap_or(place.etcd.is_none() || self.storage.is_some()) {
            return Ok(None);
        }
        let (collect_every, grace, keep_untagged) = self.durations()?;
        Ok(Some(Resolved {
            port: self.port.unwrap_or(PORT),
            port_is_asked: self.port.is_some(),
            storage: self.storage.clone().unwrap_or_else(|| Storage::Folder(place.data_dir.join("registry"))),
            collect_every,
            collect_at: self.collect_at_disk_percent,
            grace,
            keep_untagged,
        }))
    }

    fn durations(&self) -> Result<(Duration, Duration, Option<Duration>)> {
        let of = |name: &str, text: &String| {
            let seconds = go_seconds(text).filter(|seconds| *seconds >= 1.0);
            let length = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            length.with_context(|| format!("registry.{name}: {text:?} is no duration such as 24h"))
        };
        let untagged = self.keep_untagged.as_ref().map(|text| of("keepUntagged", text)).transpose()?;
        Ok((of("collectEvery", &self.collect_every)?, of("grace", &self.grace)?, untagged))
    }
}
