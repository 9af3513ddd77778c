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

pub const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

pub fn openssl(folder: &Path, arguments: &str) -> Vec<u8> {
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

pub async fn signed(server: &Server, digest: &Digest, authority: Authority) -> Result<(), String> {
    verify(&Repository(server.registry.clone()), digest, &[authority], SystemTime::now()).await
}

fn cosign(pem: &str) -> Authority {
    Authority::Cosign(Key::read_all(pem).unwrap())
}

/// What cosign signs.
pub fn payload(digest: &Digest) -> String {
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
pub async fn keep(
    server: &Server,
    target: Option<&str>,
    kind: &str,
    bytes: &[u8],
    signature: Option<&[u8]>,
    subject: Option<&Value>,
) {
    let annotation = |signature| json!({"dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(signature)});
    keep_annotated(server, target, kind, bytes, signature.map(annotation), subject).await;
}

pub async fn keep_annotated(
    server: &Server,
    target: Option<&str>,
    kind: &str,
    bytes: &[u8],
    annotations: Option<Value>,
    subject: Option<&Value>,
) {
    let mut layer = descriptor(kind, bytes);
    if let Some(annotations) = annotations {
        layer["annotations"] = annotations;
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

fn sign_as(folder: &Path, signer: &Signer, message: &[u8]) -> Vec<u8> {
    std::fs::write(folder.join("message"), message).unwrap();
    match signer.rsa {
        true => openssl(
            folder,
            "dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32 -sign signer.key message",
        ),
        false => fixed(&openssl(folder, "dgst -sha256 -sign signer.key message")),
    }
}

/// A piece of CBOR: its kind, its length or number, and what is in it.
fn cbor(major: u8, length: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&[major << 5 | 26][..], &length, content].concat()
}

fn cbor_text(text: &str) -> Vec<u8> {
    cbor(3, text.len(), text.as_bytes())
}

/// As [`jws`], in the other envelope; `extra` are more headers, in CBOR, so many.
fn cose(folder: &Path, signer: &Signer, digest: &Digest, expiry: Option<usize>, extra: (usize, &[u8])) -> Vec<u8> {
    let bytes = |bytes: &[u8]| cbor(2, bytes.len(), bytes);
    // -7 or -37, as negative numbers are written.
    let algorithm = cbor(1, if signer.rsa { 36 } else { 6 }, b"");
    let mut critical = cbor_text("io.cncf.notary.signingScheme");
    if expiry.is_some() {
        critical.extend(cbor_text("io.cncf.notary.expiry"));
    }
    let mut headers = [
        &[1][..],
        &algorithm,
        &[2],
        &cbor(4, if expiry.is_some() { 2 } else { 1 }, &critical),
        &[3],
        &cbor_text("application/vnd.cncf.notary.payload.v1+json"),
        &cbor_text("io.cncf.notary.signingScheme"),
        &cbor_text("notary.x509"),
        &cbor_text("io.cncf.notary.signingTime"),
        &cbor(6, 1, &cbor(0, 1_767_225_600, b"")),
    ]
    .concat();
    if let Some(expiry) = expiry {
        headers.extend(cbor_text("io.cncf.notary.expiry"));
        headers.extend(cbor(6, 1, &cbor(0, expiry, b"")));
    }
    headers.extend_from_slice(extra.1);
    let protected = cbor(5, 5 + extra.0 + usize::from(expiry.is_some()), &headers);
    let payload = json!({"targetArtifact": {"mediaType": MANIFEST, "digest": digest, "size": 1}}).to_string();
    // What is signed is written in the shortest form.
    let short = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap();
        let head = if length < 256 { vec![0x58, length as u8] } else { [&[0x59][..], &length.to_be_bytes()].concat() };
        [&head[..], bytes].concat()
    };
    let message = [&[0x84, 0x6a][..], b"Signature1", &short(&protected), &[0x40], &short(payload.as_bytes())].concat();
    let signature = sign_as(folder, signer, &message);
    let chain: Vec<u8> = signer.chain.iter().flat_map(|text| bytes(&BASE64_STANDARD.decode(text).unwrap())).collect();
    let unprotected = cbor(5, 1, &[&cbor(0, 33, b"")[..], &cbor(4, signer.chain.len(), &chain)].concat());
    let parts = [bytes(&protected), unprotected, bytes(payload.as_bytes()), bytes(&signature)].concat();
    cbor(6, 18, &cbor(4, 4, &parts))
}

#[tokio::test]
async fn notation_signatures_in_cose() {
    let server = Server::new().await;
    for rsa in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let signer = signer(folder, rsa, 10);
        let kind = "application/cose";
        let push = async |name: &str| server.web.push_image("team/app", name, &format!("{name} {rsa}")).await;
        let (digest, manifest) = push("good").await;
        let fine = cose(folder, &signer, &digest, Some(4_000_000_000), (0, b""));
        keep(&server, None, kind, &fine, None, Some(&manifest)).await;
        signed(&server, &digest, notation(&signer.roots, &["O=Ours,CN=release"])).await.unwrap();
        let refused = signed(&server, &digest, notation(&signer.roots, &["O=Theirs"])).await.unwrap_err();
        assert!(refused.contains("not one of those trusted"), "{refused}");
        let critical = [&[2][..], &cbor(4, 1, &cbor_text("sealed"))].concat();
        let mut broken = fine.clone();
        *broken.last_mut().unwrap() ^= 1;
        for (n, (cose, says)) in [
            (fine, "a signature is of"),
            (broken, "signature is wrong"),
            (cose(folder, &signer, &digest, Some(1_600_000_000), (0, b"")), "has expired"),
            (cose(folder, &signer, &digest, None, (1, &critical)), "there twice"),
            (b"{}".to_vec(), "malformed"),
            (cbor(4, 0, b""), "no COSE_Sign1"),
        ]
        .into_iter()
        .enumerate()
        {
            let (digest, manifest) = push(&format!("bad{n}")).await;
            keep(&server, None, kind, &cose, None, Some(&manifest)).await;
            let refused = signed(&server, &digest, notation(&signer.roots, &[])).await.unwrap_err();
            assert!(refused.contains(says), "{says}: {refused}");
        }
    }
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
    let signature = sign_as(folder, signer, format!("{protected}.{payload}").as_bytes());
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
