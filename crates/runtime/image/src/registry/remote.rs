//! A repository of another registry, for those who pass on what it has.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::{FetchedManifest, Registry};
use crate::credentials::Auth;
use crate::{Digest, Error, Reference, Registries, Result};

/// The places that a reference's repository is asked for at, mirrors included.
pub struct Remote(Registry);

impl Remote {
    pub async fn connect(registries: &Registries, reference: &Reference, auth: &Auth) -> Result<Self> {
        Registry::connect(registries, reference, auth).await.map(Self)
    }

    /// Verified against the digest asked for or promised. `target` is a tag or a digest.
    pub async fn manifest(&self, target: &str) -> Result<RemoteManifest> {
        let FetchedManifest { bytes, media_type, digest } = self.0.manifest(target).await?;
        Ok(RemoteManifest { bytes, media_type, digest })
    }

    /// Which manifest there is under a tag or digest, from the first place that has one; nothing of it is fetched.
    pub async fn digest(&self, target: &str) -> Result<Option<Digest>> {
        let (mut found, mut last) = (false, None);
        for session in self.0.sources() {
            match session.digest(target).await {
                Ok(Some(digest)) => return Ok(Some(digest)),
                Ok(None) => found = true,
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if !found => Err(error),
            _ => Ok(None),
        }
    }

    /// Begins to fetch a blob from the first place that has it.
    pub async fn blob(&self, digest: &Digest) -> Result<RemoteBlob> {
        let mut last = None;
        for session in self.0.sources() {
            let url = session.url(&format!("blobs/{digest}"));
            match session.blob(&url, 0).await {
                Ok((response, _)) => {
                    let body = response.into_body();
                    return Ok(RemoteBlob { size: body.size_hint().exact(), url, body, silence: session.silence });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Config("no configured host may be pulled from".to_owned())))
    }

    /// Descriptors of what refers to a manifest, from the first place that answers.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<serde_json::Value>> {
        let mut last = None;
        for session in self.0.sources() {
            match session.referrers(subject).await {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Config("no configured host may be pulled from".to_owned())))
    }
}

pub struct RemoteManifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

/// A blob on its way; nothing of it is verified.
pub struct RemoteBlob {
    /// As the registry says.
    pub size: Option<u64>,
    url: String,
    body: Incoming,
    silence: Duration,
}

impl RemoteBlob {
    pub(super) fn new(size: Option<u64>, url: String, body: Incoming, silence: Duration) -> Self {
        Self { size, url, body, silence }
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let broken = |source| Error::Transport { url: self.url.clone(), source };
        loop {
            let frame = match tokio::time::timeout(self.silence, self.body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|error| broken(error.into()))?,
                Err(silent) => return Err(broken(silent.into())),
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }
}
