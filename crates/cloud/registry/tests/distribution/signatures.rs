//! Signatures as cosign and notation lay them down, made by openssl.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use dhow_image::Digest;
use dhow_registry::Registry;
use dhow_registry::signatures::{Authority, Images, Key, MAX_BLOB, Roots, verify};
use serde_json::{Value, json};

use crate::harness::{MANIFEST, Server, descriptor, image};

const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

fn openssl(folder: &Path, arguments: &str) -> Vec<u8> {
    let done = Command::new("openssl").current_dir(folder).args(arguments.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Makes a key; its public half in PEM.
fn make_key(folder: &Path, name: &str, kind: &str) -> String {
    openssl(folder, &format!("genpkey -algorithm {kind} -out {name}.key"));
    String::from_utf8(openssl(folder, &format!("pkey -in {name}.key -pubout"))).unwrap()
}

fn sign(folder: &Path, name: &str, message: &[u8]) -> Vec<u8> {
    std::fs::write(folder.join("message"), message).unwrap();
    let ed = std::fs::read_to_string(folder.join(format!("{name}.kind"))).is_ok_and(|kind| kind == "ED25519");
    match ed {
        true => openssl(folder, &format!("pkeyutl -sign -rawin -inkey {name}.key -in message")),
        false => openssl(folder, &format!("dgst -sha256 -sign {name}.key message")),
    }
}

struct Repository(Registry);

#[async_trait]
impl Images for Repository {
    async fn manifest(&self, target: &str) -> Result<Option<(Digest, Vec<u8>)>, String> {
        self.0.read_manifest("team/app", target).await.map_err(|error| error.to_string())
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let found = self.0.read_blob("team/app", digest, MAX_BLOB).await.map_err(|error| error.to_string())?;
        found.ok_or_else(|| "no blob".to_owned())
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Value>, String> {
        self.0.read_referrers("team/app", subject).await.map_err(|error| error.to_string())
    }
}

async fn signed(server: &Server, digest: &Digest, authority: Authority) -> Result<(), String> {
    verify(&Repository(server.registry.clone()), digest, &[authority], SystemTime::now()).await
}

fn cosign(pem: &str) -> Authority {
    Authority::Cosign(Key::read_all(pem).unwrap())
}

/// What cosign signs.
fn payload(digest: &Digest) -> String {
    json!({
        "critical": {
            "identity": {"docker-reference": "r/team/app"}, "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
}

/// A manifest of one layer, as signatures are kept.
async fn keep(
    server: &Server,
    target: Option<&str>,
    kind: &str,
    bytes: &[u8],
    signature: Option<&[u8]>,
    subject: Option<&Value>,
) {
    let mut layer = descriptor(kind, bytes);
    if let Some(signature) = signature {
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(signature)});
    }
    let mut manifest = image(&[]);
    manifest["layers"] = json!([layer]);
    if let Some(subject) = subject {
        manifest["subject"] = descriptor(MANIFEST, subject.to_string().as_bytes());
    }
    server.web.push_blob("team/app", bytes).await;
    let digest = Digest::of(manifest.to_string().as_bytes()).to_string();
    server.web.put_manifest("team/app", target.unwrap_or(&digest), &manifest).await.expect(201);
}

#[tokio::test]
async fn cosign_signatures_of_every_kind_of_key() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, kind) in [
        ("p256", "EC -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "EC -pkeyopt ec_paramgen_curve:P-384"),
        ("rsa", "RSA -pkeyopt rsa_keygen_bits:2048"),
        ("ed", "ED25519"),
    ] {
        let (digest, manifest) = server.web.push_image("team/app", name, name).await;
        let pem = make_key(folder, name, kind);
        std::fs::write(folder.join(format!("{name}.kind")), kind).unwrap();
        let none = signed(&server, &digest, cosign(&pem)).await.unwrap_err();
        assert!(none.contains("no signature"), "{none}");
        let payload = payload(&digest);
        let signature = sign(folder, name, payload.as_bytes());
        let tag = format!("sha256-{}.sig", digest.hex());
        // By tag for some, as a referrer for others.
        match name.len() % 2 {
            0 => keep(&server, Some(&tag), SIMPLE, payload.as_bytes(), Some(&signature), None).await,
            _ => keep(&server, None, SIMPLE, payload.as_bytes(), Some(&signature), Some(&manifest)).await,
        }
        signed(&server, &digest, cosign(&pem)).await.unwrap();
        let stranger = make_key(folder, "stranger", "EC -pkeyopt ec_paramgen_curve:P-256");
        let refused = signed(&server, &digest, cosign(&stranger)).await.unwrap_err();
        assert!(refused.contains("another key"), "{refused}");
    }
}

#[tokio::test]
async fn what_was_signed_of_another_image_is_no_signature_of_this_one() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pem = make_key(folder, "k", "EC -pkeyopt ec_paramgen_curve:P-256");
    let (good, _) = server.web.push_image("team/app", "good", "good").await;
    let (evil, _) = server.web.push_image("team/app", "evil", "evil").await;
    let payload = payload(&good);
    let signature = sign(folder, "k", payload.as_bytes());
    let tag = format!("sha256-{}.sig", evil.hex());
    keep(&server, Some(&tag), SIMPLE, payload.as_bytes(), Some(&signature), None).await;
    let refused = signed(&server, &evil, cosign(&pem)).await.unwrap_err();
    assert!(refused.contains(&format!("a signature is of {good}")), "{refused}");
    // Changed after it was signed.
    let changed = payload.replace(good.as_str(), evil.as_str());
    keep(&server, Some(&tag), SIMPLE, changed.as_bytes(), Some(&signature), None).await;
    assert!(signed(&server, &evil, cosign(&pem)).await.unwrap_err().contains("another key"));
    // Any other document signed with the same key.
    let other =
        payload.replace("cosign container image signature", "something else").replace(good.as_str(), evil.as_str());
    let signature = sign(folder, "k", other.as_bytes());
    keep(&server, Some(&tag), SIMPLE, other.as_bytes(), Some(&signature), None).await;
    assert!(signed(&server, &evil, cosign(&pem)).await.unwrap_err().contains("something else"));
}

#[tokio::test]
async fn cosign_bundles() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pem = make_key(folder, "k", "EC -pkeyopt ec_paramgen_curve:P-256");
    let bundle = |predicate: &str, digest: &Digest| {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": {},
            "subject": [{"name": "", "digest": {"sha256": digest.hex()}}],
        })
        .to_string();
        let kind = "application/vnd.in-toto+json";
        let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let signature = sign(folder, "k", message.as_bytes());
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(&statement), "payloadType": kind,
                "signatures": [{"sig": BASE64_STANDARD.encode(signature)}],
            },
        })
        .to_string()
    };
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let (digest, manifest) = server.web.push_image("team/app", "1", "one").await;
    // A statement of how it was built says not that it may run.
    let provenance = bundle("https://slsa.dev/provenance/v1", &digest);
    keep(&server, None, kind, provenance.as_bytes(), None, Some(&manifest)).await;
    let refused = signed(&server, &digest, cosign(&pem)).await.unwrap_err();
    assert!(refused.contains("slsa.dev"), "{refused}");
    let signature = bundle("https://sigstore.dev/cosign/sign/v1", &digest);
    keep(&server, None, kind, signature.as_bytes(), None, Some(&manifest)).await;
    signed(&server, &digest, cosign(&pem)).await.unwrap();
}

/// A root, a signer with a certificate of it, and what turns openssl's signatures into those of JSON web signatures.
struct Signer {
    roots: String,
    chain: Vec<String>,
    rsa: bool,
}

fn signer(folder: &Path, rsa: bool, days: u32) -> Signer {
    let kind = if rsa { "RSA -pkeyopt rsa_keygen_bits:2048" } else { "EC -pkeyopt ec_paramgen_curve:P-256" };
    make_key(folder, "root", kind);
    make_key(folder, "signer", kind);
    openssl(
        folder,
        "req -x509 -new -key root.key -days 30 -out root.pem -subj /O=Roots -addext basicConstraints=critical,CA:TRUE",
    );
    openssl(folder, "req -new -key signer.key -out signer.csr -subj /C=SE/O=Ours/CN=release");
    std::fs::write(folder.join("ext"), "keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n").unwrap();
    openssl(
        folder,
        &format!(
            "x509 -req -in signer.csr -CA root.pem -CAkey root.key -CAcreateserial -days {days} -extfile ext -out signer.pem"
        ),
    );
    let der = |name: &str| BASE64_STANDARD.encode(openssl(folder, &format!("x509 -in {name}.pem -outform DER")));
    Signer {
        roots: std::fs::read_to_string(folder.join("root.pem")).unwrap(),
        chain: vec![der("signer"), der("root")],
        rsa,
    }
}

/// r and s of a signature in DER, each 32 bytes.
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut at = 2;
    let mut all = Vec::new();
    for _ in 0..2 {
        let length = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        all.extend(std::iter::repeat_n(0, 32 - number.len()));
        all.extend_from_slice(number);
        at += 2 + length;
    }
    all
}

fn jws(folder: &Path, signer: &Signer, digest: &Digest, expiry: Option<&str>) -> String {
    let mut protected = json!({
        "alg": if signer.rsa { "PS256" } else { "ES256" },
        "cty": "application/vnd.cncf.notary.payload.v1+json",
        "crit": ["io.cncf.notary.signingScheme"],
        "io.cncf.notary.signingScheme": "notary.x509",
        "io.cncf.notary.signingTime": "2026-01-01T00:00:00Z",
    });
    if let Some(expiry) = expiry {
        protected["io.cncf.notary.expiry"] = json!(expiry);
        protected["crit"] = json!(["io.cncf.notary.signingScheme", "io.cncf.notary.expiry"]);
    }
    let payload = json!({"targetArtifact": {"mediaType": MANIFEST, "digest": digest, "size": 1}});
    let protected = BASE64_URL_SAFE_NO_PAD.encode(protected.to_string());
    let payload = BASE64_URL_SAFE_NO_PAD.encode(payload.to_string());
    std::fs::write(folder.join("message"), format!("{protected}.{payload}")).unwrap();
    let signature = match signer.rsa {
        true => openssl(
            folder,
            "dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32 -sign signer.key message",
        ),
        false => fixed(&openssl(folder, "dgst -sha256 -sign signer.key message")),
    };
    json!({
        "payload": payload, "protected": protected, "signature": BASE64_URL_SAFE_NO_PAD.encode(signature),
        "header": {"x5c": signer.chain, "io.cncf.notary.signingAgent": "openssl"},
    })
    .to_string()
}

fn notation(roots: &str, subjects: &[&str]) -> Authority {
    let subjects: Vec<String> = subjects.iter().map(|&text| text.to_owned()).collect();
    Authority::Notation(Roots::read(roots, &subjects).unwrap())
}

#[tokio::test]
async fn notation_signatures_lead_to_a_root() {
    let server = Server::new().await;
    for rsa in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let signer = signer(folder, rsa, 10);
        let name = if rsa { "rsa" } else { "ec" };
        let (digest, manifest) = server.web.push_image("team/app", name, name).await;
        let jws = jws(folder, &signer, &digest, None);
        keep(&server, None, "application/jose+json", jws.as_bytes(), None, Some(&manifest)).await;
        signed(&server, &digest, notation(&signer.roots, &[])).await.unwrap();
        signed(&server, &digest, notation(&signer.roots, &["CN=other", "O=Ours, CN=release"])).await.unwrap();
        let refused = signed(&server, &digest, notation(&signer.roots, &["CN=release,O=Theirs"])).await.unwrap_err();
        assert!(refused.contains("not one of those trusted"), "{refused}");
        let later = SystemTime::now() + Duration::from_secs(20 * 86_400);
        let authority = [notation(&signer.roots, &[])];
        let expired = verify(&Repository(server.registry.clone()), &digest, &authority, later).await.unwrap_err();
        assert!(expired.contains("certificate"), "{expired}");
        // Another root of the same name.
        let other = tempfile::tempdir().unwrap();
        let stranger = self::signer(other.path(), rsa, 10);
        let refused = signed(&server, &digest, notation(&stranger.roots, &[])).await.unwrap_err();
        assert!(refused.contains("not trusted"), "{refused}");
        let key = String::from_utf8(openssl(folder, "pkey -in signer.key -pubout")).unwrap();
        let refused = signed(&server, &digest, cosign(&key)).await.unwrap_err();
        assert!(refused.contains("of the kind"), "{refused}");
    }
}

#[tokio::test]
async fn notation_signatures_end_and_are_of_one_image() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let signer = signer(folder, false, 10);
    let (digest, manifest) = server.web.push_image("team/app", "1", "one").await;
    let (other, _) = server.web.push_image("team/app", "2", "two").await;
    for (jws, says) in [
        (jws(folder, &signer, &digest, Some("2020-01-01T00:00:00Z")), "expired"),
        (jws(folder, &signer, &other, None), "a signature is of"),
        (jws(folder, &signer, &digest, None).replace("\"signature\":\"", "\"signature\":\"AAAA"), "signature is wrong"),
        ("{}".to_owned(), "malformed"),
    ] {
        keep(&server, None, "application/jose+json", jws.as_bytes(), None, Some(&manifest)).await;
        let refused = signed(&server, &digest, notation(&signer.roots, &[])).await.unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
    }
}
