//! Signs what was approved for the signers of the cluster's own authority.

use std::sync::Arc;
use std::time::Duration;

use dhow_api::node_parts;
use dhow_base::pki::ClusterCa;
use dhow_client::{Client, Error, Informer, Key, Outcome, Queue, Reconcile};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::check::refusal;
use super::{CLIENT, LEGACY, NODE_CLIENT, NODE_SERVING, asked, certificate, condition, new_condition};

/// How long a certificate lasts if nobody asks for less.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest life that may be asked for.
const SHORTEST: Duration = Duration::from_secs(600);

pub struct Signer {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    ca: Arc<ClusterCa>,
}

impl Signer {
    pub fn new(
        client: Client,
        requests: Informer<CertificateSigningRequest>,
        ca: Arc<ClusterCa>,
        queue: &Queue,
    ) -> Arc<Self> {
        let to = queue.clone();
        requests.on_change(move |change| to.add(Key::of(&change.object().metadata)));
        Arc::new(Self { client, requests, ca })
    }
}

/// The certificate, or why there is none.
fn sign(request: &CertificateSigningRequest, ca: &ClusterCa) -> Result<String, String> {
    let spec = &request.spec;
    let usages = spec.usages.as_deref().unwrap_or_default();
    let (pem, read) = asked(request)?;
    if let Some(why) = refusal(&spec.signer_name, &read, usages) {
        return Err(why);
    }
    let wanted = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let life = wanted.map_or(LIFE, |seconds| Duration::from_secs(seconds).clamp(SHORTEST, LIFE));
    ca.sign_request(&pem, usages, life).map_err(|error| error.to_string())
}

#[async_trait::async_trait]
impl Reconcile for Signer {
    fn name(&self) -> &'static str {
        "csr-signer"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(request) = self.requests.get(key) else { return Ok(Outcome::Done) };
        let ours = [CLIENT, NODE_CLIENT, NODE_SERVING, LEGACY, node_parts::SIGNER];
        let approved = condition(&request, "Approved").is_some() && condition(&request, "Denied").is_none();
        let over = certificate(&request).is_some() || condition(&request, "Failed").is_some();
        if !approved || over || !ours.contains(&request.spec.signer_name.as_str()) {
            return Ok(Outcome::Done);
        }
        let mut changed = CertificateSigningRequest::clone(&request);
        let status = changed.status.get_or_insert_default();
        match sign(&request, &self.ca) {
            Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
            Err(why) => {
                tracing::warn!(request = %key.name, why, "cannot sign");
                let failed = new_condition("Failed", "SignerValidationFailure", &why);
                status.conditions.get_or_insert_default().push(failed);
            }
        }
        match self.client.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dhow_base::pki::{CertSpec, expires, new_request, serves};
    use std::time::SystemTime;

    #[test]
    fn signs_what_it_should_for_as_long_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(folder.path()).unwrap();
        let spec = CertSpec::client("system:node:a", &["system:nodes"]);
        let (pem, key) = new_request(&spec).unwrap();
        let mut request = CertificateSigningRequest::default();
        request.spec.request = ByteString(pem.into_bytes());
        request.spec.signer_name = NODE_CLIENT.into();
        request.spec.usages = Some(vec!["digital signature".into(), "client auth".into()]);
        request.spec.expiration_seconds = Some(3600);
        let signed = sign(&request, &ca).unwrap();
        assert!(serves(&signed, &key, &spec));
        let left = expires(&signed).unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
        request.spec.signer_name = NODE_SERVING.into();
        assert!(sign(&request, &ca).is_err());
    }
}
