//! The cluster's own certificate authority and the keys that hang on it.
//!
//! Invariants: every key is ES256; a private key exists only in files of mode 0600 below directories of mode 0700;
//! a certificate's common name is the user and its organisations are the groups; issued certificates live a year and
//! are replaced when less than a third of that is left.

mod leaf;
mod request;
mod sa_key;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

use tokio_util::sync::CancellationToken;

use crate::{Error, Result, files};

pub use leaf::{expires, needs_renewal, renewal_time, serves};
pub use request::{CertRequest, new_request};
pub use sa_key::SaKey;

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks differ between machines: a fresh certificate is valid a little in the past.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A certificate (chain) and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct CertPair {
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for CertPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertPair").field("cert_pem", &self.cert_pem).field("key_pem", &"(secret)").finish()
    }
}

/// What a certificate is for; `load_or_issue` keeps a certificate on disk in step with this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertSpec {
    /// `sans` are DNS names or IP addresses.
    Server {
        cn: String,
        sans: Vec<String>,
    },
    /// A server that is a user in groups, as a kubelet's is, without the right to call as such.
    ServerOf {
        cn: String,
        groups: Vec<String>,
        sans: Vec<String>,
    },
    Client {
        user: String,
        groups: Vec<String>,
    },
    /// Serves and also calls as `user`, as a kubelet does.
    Peer {
        user: String,
        groups: Vec<String>,
        sans: Vec<String>,
    },
}

impl CertSpec {
    pub fn server(cn: &str, sans: &[String]) -> Self {
        Self::Server { cn: cn.to_owned(), sans: sans.to_vec() }
    }

    pub fn client(user: &str, groups: &[&str]) -> Self {
        Self::Client { user: user.to_owned(), groups: groups.iter().map(|&g| g.to_owned()).collect() }
    }

    fn common_name(&self) -> &str {
        match self {
            Self::Server { cn, .. } | Self::ServerOf { cn, .. } => cn,
            Self::Client { user, .. } | Self::Peer { user, .. } => user,
        }
    }

    fn groups(&self) -> &[String] {
        match self {
            Self::Server { .. } => &[],
            Self::ServerOf { groups, .. } | Self::Client { groups, .. } | Self::Peer { groups, .. } => groups,
        }
    }

    fn sans(&self) -> &[String] {
        match self {
            Self::Client { .. } => &[],
            Self::Server { sans, .. } | Self::ServerOf { sans, .. } | Self::Peer { sans, .. } => sans,
        }
    }

    fn usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Self::Server { .. } | Self::ServerOf { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Self::Client { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Self::Peer { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// The authority every component of one cluster trusts.
pub struct ClusterCa {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCa").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// Uses `dir/ca.crt` and `dir/ca.key`, making both when neither is there. Half a pair is an error: replacing it
    /// silently would cut off everyone who trusts the old authority.
    pub fn load_or_create(dir: &Path) -> Result<Self> {
        files::create_private_dir(dir)?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (files::read_optional(&cert_path)?, files::read_optional(&key_path)?) {
            (Some(cert_pem), Some(key_pem)) => Self::load(cert_pem, &key_pem, &cert_path, &key_path),
            (None, None) => Self::create(&cert_path, &key_path),
            // The key is written first, so a lone key is a first start that was cut off before anyone saw its
            // certificate.
            (None, Some(_)) => Self::create(&cert_path, &key_path),
            (Some(_), None) => Err(Error::BadFile {
                path: key_path,
                message: "the CA's private key is missing; restore it, or remove ca.crt too for a new authority \
                          (every existing certificate then stops working)"
                    .to_owned(),
            }),
        }
    }

    fn create(cert_path: &Path, key_path: &Path) -> Result<Self> {
        let failed = |source| Error::Issue { subject: "dhow-ca".to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "dhow-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let now = SystemTime::now();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + CA_LIFE).into();
        let cert_pem = params.self_signed(&key).map_err(failed)?.pem();
        files::write_private(key_path, key.serialize_pem().as_bytes())?;
        files::write_private(cert_path, cert_pem.as_bytes())?;
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    fn load(cert_pem: String, key_pem: &str, cert_path: &Path, key_path: &Path) -> Result<Self> {
        let bad = |path: &Path, message: String| Error::BadFile { path: path.to_owned(), message };
        let key = KeyPair::from_pem(key_pem).map_err(|e| bad(key_path, format!("not a private key: {e}")))?;
        if !leaf::same_key(&cert_pem, &key)? {
            return Err(bad(cert_path, "does not belong to the private key beside it (ca.key)".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(|e| bad(cert_path, format!("not a CA: {e}")))?;
        Ok(Self { cert_pem, issuer })
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// How those who are to trust this authority know it: `sha256:` and the digest of its public key (RFC 7469).
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&self.cert_pem)
    }

    pub fn issue_server(&self, cn: &str, sans: &[String]) -> Result<CertPair> {
        self.issue(&CertSpec::server(cn, sans))
    }

    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<CertPair> {
        self.issue(&CertSpec::client(user, groups))
    }

    pub fn issue(&self, spec: &CertSpec) -> Result<CertPair> {
        self.issue_between(spec, SystemTime::now() - BACKDATE, SystemTime::now() + LEAF_LIFE)
    }

    fn issue_between(&self, spec: &CertSpec, not_before: SystemTime, not_after: SystemTime) -> Result<CertPair> {
        let failed = |source| Error::Issue { subject: spec.common_name().to_owned(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = leaf::parameters(spec)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = spec.usages();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let cert_pem = params.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(CertPair { cert_pem, key_pem: key.serialize_pem() })
    }

    /// Uses `dir/<name>.crt` and `dir/<name>.key` while they are this authority's, match `spec` and have life left;
    /// otherwise issues and writes a new pair.
    pub fn load_or_issue(&self, dir: &Path, name: &str, spec: &CertSpec) -> Result<CertPair> {
        files::create_private_dir(dir)?;
        let (cert_path, key_path) = pair_paths(dir, name);
        if let (Some(cert_pem), Some(key_pem)) = (files::read_optional(&cert_path)?, files::read_optional(&key_path)?)
            && leaf::still_good(&cert_pem, &key_pem, &self.cert_pem, spec)
        {
            return Ok(CertPair { cert_pem, key_pem });
        }
        let pair = self.issue(spec)?;
        // A crash between the two leaves a mismatched pair, which `still_good` rejects at the next start.
        files::write_private(&key_path, pair.key_pem.as_bytes())?;
        files::write_private(&cert_path, pair.cert_pem.as_bytes())?;
        Ok(pair)
    }
}

fn pair_paths(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
}

/// Renews a pair kept by [`ClusterCa::load_or_issue`] for as long as the process runs; `renewed` gets each new one.
pub async fn keep_renewed(
    ca: &ClusterCa,
    dir: &Path,
    name: &str,
    spec: &CertSpec,
    mut current: CertPair,
    renewed: impl Fn(&CertPair),
    shutdown: CancellationToken,
) {
    // Timers stand still while a machine sleeps, so the clock is looked at again at least this often.
    const LOOK: Duration = Duration::from_secs(3600);
    const RETRY: Duration = Duration::from_secs(60);
    loop {
        let due = renewal_time(&current.cert_pem).unwrap_or(SystemTime::UNIX_EPOCH);
        let left = due.duration_since(SystemTime::now()).unwrap_or_default();
        let mut pause = left.min(LOOK);
        if left.is_zero() {
            match ca.load_or_issue(dir, name, spec) {
                Ok(pair) => {
                    tracing::info!(certificate = name, "renewed");
                    renewed(&pair);
                    current = pair;
                    continue;
                }
                Err(error) => {
                    tracing::error!(certificate = name, %error, "renew; trying again");
                    pause = RETRY;
                }
            }
        }
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = shutdown.cancelled() => return }
    }
}

/// `sha256:` and the digest of a certificate's public key, in hexadecimal.
pub fn fingerprint(cert_pem: &str) -> Result<String> {
    let info = leaf::public_key_info(cert_pem)?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &info);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// The same as [`ClusterCa::load_or_issue`].
pub fn load_or_issue(ca: &ClusterCa, dir: &Path, name: &str, spec: &CertSpec) -> Result<CertPair> {
    ca.load_or_issue(dir, name, spec)
}

#[cfg(test)]
#[path = "pki/tests.rs"]
mod tests;
