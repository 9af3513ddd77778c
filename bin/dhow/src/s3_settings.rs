//! A bucket in the settings, and `s3://` where a file could be named.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use dhow_store::{S3Blob, S3Config, S3Credentials};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const SCHEME: &str = "s3://";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct S3Settings {
    /// `https://host[:port]` of the server; Amazon's of the region if unset.
    pub endpoint: Option<String>,
    /// A bucket that is there.
    pub bucket: String,
    /// As the server wants it in signatures.
    pub region: String,
    /// What all keys begin with.
    pub prefix: String,
    /// A file with `aws_access_key_id` and `aws_secret_access_key`; if unset, the daemon's `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`.
    pub credentials_file: Option<PathBuf>,
    /// A PEM file of authorities trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the bucket is in the path and not in the host's name; if unset, where an endpoint is named.
    pub path_style: Option<bool>,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            bucket: String::new(),
            region: "us-east-1".to_owned(),
            prefix: String::new(),
            credentials_file: None,
            ca_file: None,
            path_style: None,
        }
    }
}

impl S3Settings {
    /// Mistakes that show without asking anybody; `of` is where it stands.
    pub fn check(&self, of: &str) -> Result<()> {
        for (name, file) in [("credentialsFile", &self.credentials_file), ("caFile", &self.ca_file)] {
            ensure!(file.as_ref().is_none_or(|file| file.is_absolute()), "{of}.{name}: an absolute path");
        }
        self.config().check().map_err(|error| anyhow!("{of}: {error}"))
    }

    /// The bucket; the server is not asked for anything.
    pub fn open(&self, of: &str) -> Result<S3Blob> {
        S3Blob::new(self.config()).map_err(|error| anyhow!("{of}: {}", dhow_base::chain(&error)))
    }

    fn config(&self) -> S3Config {
        let credentials = match &self.credentials_file {
            Some(file) => S3Credentials::File(file.clone()),
            None => S3Credentials::Environment,
        };
        S3Config {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            prefix: self.prefix.clone(),
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            ca_file: self.ca_file.clone(),
            ..S3Config::new(self.bucket.clone(), credentials)
        }
    }

    /// How tools that know only a URL are told of the rest.
    fn from_environment() -> Self {
        let variable =
            |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok()).filter(|value| !value.is_empty());
        Self {
            endpoint: variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
            region: variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| Self::default().region),
            credentials_file: variable(&["AWS_SHARED_CREDENTIALS_FILE"]).map(PathBuf::from),
            ca_file: variable(&["AWS_CA_BUNDLE"]).map(PathBuf::from),
            ..Self::default()
        }
    }
}

/// What `s3://bucket/key` names; `None`: it is a file. Endpoint and credentials are those of `settings`, without them those
/// of the environment.
pub fn object(place: &Path, settings: Option<&S3Settings>) -> Result<Option<(S3Blob, String)>> {
    let Some(rest) = place.to_str().and_then(|text| text.strip_prefix(SCHEME)) else { return Ok(None) };
    let named = || format!("{} is not {SCHEME}BUCKET/KEY", place.display());
    let (bucket, whole) = rest.split_once('/').with_context(named)?;
    // Keys of ours begin below the prefix, which may have characters that keys have not.
    let (prefix, key) = whole.rsplit_once('/').unwrap_or(("", whole));
    ensure!(!bucket.is_empty() && whole.split('/').all(|part| !part.is_empty()), named());
    let known = settings.cloned().unwrap_or_else(S3Settings::from_environment);
    let settings = S3Settings { bucket: bucket.to_owned(), prefix: prefix.to_owned(), ..known };
    Ok(Some((settings.open(&place.display().to_string())?, key.to_owned())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_files() {
        let settings = S3Settings { endpoint: Some("http://127.0.0.1:9".to_owned()), ..S3Settings::default() };
        let (bucket, key) = object(Path::new("s3://b/x/y/z.backup"), Some(&settings)).unwrap().unwrap();
        assert_eq!((bucket.url(&key).as_str(), key.as_str()), ("s3://b/x/y/z.backup", "z.backup"));
        assert!(object(Path::new("/b/x"), None).unwrap().is_none());
        for bad in ["s3://b", "s3:///x", "s3://b/", "s3://b/x//y"] {
            assert!(object(Path::new(bad), Some(&settings)).is_err(), "{bad}");
        }
    }
}
