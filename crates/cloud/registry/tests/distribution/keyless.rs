//! Signatures without keys of long life: an authority, a log and a time stamp authority of the test's own.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dhow_image::Digest;
use dhow_registry::Pattern;
use dhow_registry::signatures::{Authority, Identity, Keyless};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use serde_json::{Value, json};

use crate::harness::Server;
use crate::signatures::{SIMPLE, keep, keep_annotated, openssl, payload, signed};

const WORKFLOW: &str = "https://git.example.com/team/app/.ci/release.yml@refs/heads/main";
const LOG: &str = "log.example.com";
const ISSUER: &str = "https://token.example.com";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// How long certificates are for.
const MINUTES: Duration = Duration::from_secs(600);

/// Who gives certificates to those that somebody vouches for.
struct Fulcio {
    root: Certificate,
    between: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Fulcio {
    fn new() -> Self {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (of_root, of_between) = (authority("root"), authority("intermediate"));
        let root = of_root.self_signed(&root_key).unwrap();
        let between = of_between.signed_by(&key, &Issuer::new(of_root, root_key)).unwrap();
        Self { root, between, issuer: Issuer::new(of_between, key) }
    }

    fn pem(&self) -> String {
        self.root.pem() + &self.between.pem()
    }

    /// For so long before and after now.
    fn certify(&self, subject: &str, before: Duration, after: Duration) -> Signer {
        let now = SystemTime::now();
        self.certify_for(ExtendedKeyUsagePurpose::CodeSigning, subject, now - before, now + after)
    }

    fn certify_for(&self, usage: ExtendedKeyUsagePurpose, subject: &str, from: SystemTime, to: SystemTime) -> Signer {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let subject = subject.try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(subject)];
        params.extended_key_usages = vec![usage];
        let issuer = [&[0x0c, u8::try_from(ISSUER.len()).unwrap()], ISSUER.as_bytes()].concat();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], issuer)];
        (params.not_before, params.not_after) = (from.into(), to.into());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signer { key, certificate }
    }
}

struct Signer {
    key: KeyPair,
    certificate: Certificate,
}

/// A log that takes in what it is given.
struct Rekor(KeyPair);

impl Rekor {
    fn id(&self) -> Vec<u8> {
        sha(&self.0.subject_public_key_info())
    }

    /// As Rekor does since its second version: the key is called by the log's name, too.
    fn second_id(&self) -> Vec<u8> {
        sha(&[LOG.as_bytes(), b"\n\x01", self.0.public_key_raw()].concat())
    }

    /// That the body is the second of three in a tree.
    fn proof(&self, body: &Value, id: &[u8]) -> Value {
        let leaf = |bytes: &[u8]| sha(&[&[0], bytes].concat());
        let branch = |left: &[u8], right: &[u8]| sha(&[&[1], left, right].concat());
        let (first, own, third) = (leaf(b"first"), leaf(body.to_string().as_bytes()), leaf(b"third"));
        let root = BASE64_STANDARD.encode(branch(&branch(&first, &own), &third));
        let head = format!("{LOG}\n3\n{root}\n");
        let signature = BASE64_STANDARD.encode([&id[..4], &self.0.sign(head.as_bytes()).unwrap()].concat());
        json!({
            "logIndex": "1", "treeSize": "3", "rootHash": root,
            "hashes": [BASE64_STANDARD.encode(first), BASE64_STANDARD.encode(third)],
            "checkpoint": {"envelope": format!("{head}\n— witness.example.com AAAAAAAA\n— {LOG} {signature}\n")},
        })
    }

    /// As Rekor does since its second version: it tells no time.
    fn second_entry(&self, body: &Value) -> Value {
        json!({
            "logIndex": "1", "logId": {"keyId": BASE64_STANDARD.encode(self.second_id())},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "canonicalizedBody": BASE64_STANDARD.encode(body.to_string()),
            "inclusionProof": self.proof(body, &self.second_id()),
        })
    }

    /// Signs that it took in this body then.
    fn promise(&self, body: &Value, at: u64) -> (String, String) {
        let body = BASE64_STANDARD.encode(body.to_string());
        let id: String = self.id().iter().map(|byte| format!("{byte:02x}")).collect();
        let message = format!(r#"{{"body":"{body}","integratedTime":{at},"logID":"{id}","logIndex":7}}"#);
        (body, BASE64_STANDARD.encode(self.0.sign(message.as_bytes()).unwrap()))
    }

    fn annotation(&self, body: &Value, at: u64) -> Value {
        let (body, promise) = self.promise(body, at);
        let id: String = self.id().iter().map(|byte| format!("{byte:02x}")).collect();
        json!({
            "SignedEntryTimestamp": promise,
            "Payload": {"body": body, "integratedTime": at, "logIndex": 7, "logID": id},
        })
    }

    fn entry(&self, body: &Value, at: u64) -> Value {
        let proof = self.proof(body, &self.id());
        let (body, promise) = self.promise(body, at);
        json!({
            "inclusionProof": proof,
            "logIndex": "7", "logId": {"keyId": BASE64_STANDARD.encode(self.id())}, "integratedTime": at.to_string(),
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "inclusionPromise": {"signedEntryTimestamp": promise}, "canonicalizedBody": body,
        })
    }
}

fn sha(bytes: &[u8]) -> Vec<u8> {
    let digest = Digest::of(bytes);
    (0..32).map(|n| u8::from_str_radix(&digest.hex()[2 * n..2 * n + 2], 16).unwrap()).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// What a log is told of a document.
fn hashed(payload: &[u8], signature: &[u8], certificate: &Certificate) -> Value {
    json!({
        "apiVersion": "0.0.1", "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": Digest::of(payload).hex()}},
            "signature": {
                "content": BASE64_STANDARD.encode(signature),
                "publicKey": {"content": BASE64_STANDARD.encode(certificate.pem())},
            },
        },
    })
}

/// The same of an envelope.
fn enveloped(payload: &[u8], signature: &[u8], certificate: &Certificate) -> Value {
    json!({
        "apiVersion": "0.0.1", "kind": "dsse",
        "spec": {
            "envelopeHash": {"algorithm": "sha256", "value": Digest::of(b"").hex()},
            "payloadHash": {"algorithm": "sha256", "value": Digest::of(payload).hex()},
            "signatures": [{
                "signature": BASE64_STANDARD.encode(signature),
                "verifier": BASE64_STANDARD.encode(certificate.pem()),
            }],
        },
    })
}

fn trust(fulcio: &str, logs: Option<&str>, clocks: Option<&str>, subject: &str, issuer: &str) -> Authority {
    let identity = Identity { subject: Pattern(subject.to_owned()), issuer: Pattern(issuer.to_owned()) };
    Authority::Keyless(Keyless::read(fulcio, logs, clocks, vec![identity]).unwrap())
}

/// Lays down a signature of the digest as cosign did for years: all that belongs to it in annotations.
async fn keep_simple(server: &Server, signature: &[u8], signer: &Signer, fulcio: &Fulcio, of: &Digest, more: Value) {
    let mut annotations = json!({
        "dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(signature),
        "dev.sigstore.cosign/certificate": signer.certificate.pem(),
        "dev.sigstore.cosign/chain": fulcio.between.pem(),
    });
    for (name, value) in more.as_object().unwrap() {
        annotations[name] = json!(value.to_string());
    }
    let tag = format!("sha256-{}.sig", of.hex());
    keep_annotated(server, Some(&tag), SIMPLE, payload(of).as_bytes(), Some(annotations), None).await;
}

#[tokio::test]
async fn a_log_says_when_a_certificate_of_minutes_was_used() {
    let server = Server::new().await;
    let (fulcio, rekor) = (Fulcio::new(), Rekor(KeyPair::generate().unwrap()));
    let (digest, _) = server.web.push_image("team/app", "1", "one").await;
    // It has run out by now.
    let signer = fulcio.certify(WORKFLOW, 3 * MINUTES, Duration::ZERO);
    let then = now() - MINUTES.as_secs();
    let signature = signer.key.sign(payload(&digest).as_bytes()).unwrap();
    let body = hashed(payload(&digest).as_bytes(), &signature, &signer.certificate);
    let bundle = rekor.annotation(&body, then);
    let keep = async |bundle: Value| {
        let more = json!({"dev.sigstore.cosign/bundle": bundle});
        keep_simple(&server, &signature, &signer, &fulcio, &digest, more).await;
    };
    keep(bundle.clone()).await;
    let (pem, log) = (fulcio.pem(), rekor.0.public_key_pem());
    let ours = || trust(&pem, Some(&log), None, WORKFLOW, ISSUER);
    signed(&server, &digest, ours()).await.unwrap();
    // Without what is between, as the signature brings that along.
    signed(&server, &digest, trust(&fulcio.root.pem(), Some(&log), None, WORKFLOW, ISSUER)).await.unwrap();
    let any = "https://git.example.com/team/*";
    signed(&server, &digest, trust(&pem, Some(&log), None, any, ISSUER)).await.unwrap();

    let (other, other_log) = (Fulcio::new(), Rekor(KeyPair::generate().unwrap()).0.public_key_pem());
    let refusals = [
        (trust(&pem, Some(&log), None, "https://git.example.com/other/*", ISSUER), "not one of those trusted"),
        (trust(&pem, Some(&log), None, &WORKFLOW[..WORKFLOW.len() - 1], ISSUER), "not one of those trusted"),
        (trust(&pem, Some(&log), None, WORKFLOW, "https://other.example.com"), "not one of those trusted"),
        (trust(&other.pem(), Some(&log), None, WORKFLOW, ISSUER), "is not trusted"),
        (trust(&pem, Some(&other_log), None, WORKFLOW, ISSUER), "a log that is not known"),
    ];
    for (authority, says) in refusals {
        let refused = signed(&server, &digest, authority).await.unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
    }

    let mut late = bundle.clone();
    late["Payload"]["integratedTime"] = json!(then + 1);
    let mut moved = bundle.clone();
    moved["Payload"]["logIndex"] = json!(8);
    let strange = hashed(b"something else", &signature, &signer.certificate);
    let by_another =
        hashed(payload(&digest).as_bytes(), &signature, &fulcio.certify(WORKFLOW, MINUTES, MINUTES).certificate);
    let other_signature = signer.key.sign(payload(&digest).as_bytes()).unwrap();
    let again = hashed(payload(&digest).as_bytes(), &other_signature, &signer.certificate);
    for (bundle, says) in [
        (late, "not signed by the log"),
        (moved, "not signed by the log"),
        (rekor.annotation(&strange, then), "of another signature"),
        (rekor.annotation(&by_another, then), "of another signature"),
        (rekor.annotation(&again, then), "of another signature"),
        (rekor.annotation(&json!({"kind": "rekord", "apiVersion": "0.0.1", "spec": {}}), then), "of another signature"),
        // The log saw it before the certificate began, and after it ended.
        (rekor.annotation(&body, now() - 4 * MINUTES.as_secs()), "is not trusted"),
        (rekor.annotation(&body, now() + 60), "is not trusted"),
        (json!({}), "malformed"),
    ] {
        keep(bundle).await;
        let refused = signed(&server, &digest, ours()).await.unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
    }
    keep_simple(&server, &signature, &signer, &fulcio, &digest, json!({})).await;
    assert!(signed(&server, &digest, ours()).await.unwrap_err().contains("in no log"));
}

#[tokio::test]
async fn what_a_certificate_of_minutes_signed_is_of_one_image() {
    let server = Server::new().await;
    let (fulcio, rekor) = (Fulcio::new(), Rekor(KeyPair::generate().unwrap()));
    let (digest, _) = server.web.push_image("team/app", "1", "one").await;
    let (evil, _) = server.web.push_image("team/app", "2", "two").await;
    let signer = fulcio.certify(WORKFLOW, MINUTES, MINUTES);
    let signature = signer.key.sign(payload(&digest).as_bytes()).unwrap();
    let bundle = rekor.annotation(&hashed(payload(&digest).as_bytes(), &signature, &signer.certificate), now());
    let annotations = json!({
        "dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(&signature),
        "dev.sigstore.cosign/certificate": signer.certificate.pem(),
        "dev.sigstore.cosign/bundle": bundle.to_string(),
    });
    let tag = format!("sha256-{}.sig", evil.hex());
    let ours = || trust(&fulcio.pem(), Some(&rekor.0.public_key_pem()), None, WORKFLOW, ISSUER);
    // All is right but that it is of another image.
    keep_annotated(&server, Some(&tag), SIMPLE, payload(&digest).as_bytes(), Some(annotations.clone()), None).await;
    assert!(signed(&server, &evil, ours()).await.unwrap_err().contains(&format!("a signature is of {digest}")));
    keep_annotated(&server, Some(&tag), SIMPLE, payload(&evil).as_bytes(), Some(annotations), None).await;
    assert!(signed(&server, &evil, ours()).await.unwrap_err().contains("not by the key of its certificate"));
}

/// A bundle as cosign makes it since its third version.
fn bundle(signer: &Signer, digest: &Digest, material: impl Fn(&[u8], &[u8]) -> Value) -> Value {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {}, "subject": [{"name": "", "digest": {"sha256": digest.hex()}}],
    })
    .to_string();
    let kind = "application/vnd.in-toto+json";
    let message = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let signature = signer.key.sign(message.as_bytes()).unwrap();
    let mut material = material(statement.as_bytes(), &signature);
    material["certificate"] = json!({"rawBytes": BASE64_STANDARD.encode(signer.certificate.der())});
    json!({
        "mediaType": BUNDLE, "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": BASE64_STANDARD.encode(&statement), "payloadType": kind,
            "signatures": [{"sig": BASE64_STANDARD.encode(signature)}],
        },
    })
}

#[tokio::test]
async fn bundles_bring_the_logs_entry_along() {
    let server = Server::new().await;
    let (fulcio, rekor) = (Fulcio::new(), Rekor(KeyPair::generate().unwrap()));
    let signer = fulcio.certify(WORKFLOW, 3 * MINUTES, Duration::ZERO);
    let then = now() - MINUTES.as_secs();
    let logged = |payload: &[u8], signature: &[u8]| json!({"tlogEntries": [rekor.entry(&enveloped(payload, signature, &signer.certificate), then)]});
    let ours = || trust(&fulcio.pem(), Some(&rekor.0.public_key_pem()), None, WORKFLOW, ISSUER);
    let (good, manifest) = server.web.push_image("team/app", "1", "one").await;
    let fine = bundle(&signer, &good, logged);
    keep(&server, None, BUNDLE, fine.to_string().as_bytes(), None, Some(&manifest)).await;
    signed(&server, &good, ours()).await.unwrap();
    let wrong = trust(&fulcio.pem(), Some(&rekor.0.public_key_pem()), None, WORKFLOW, "https://other.example.com");
    assert!(signed(&server, &good, wrong).await.unwrap_err().contains("not one of those trusted"));

    let mut tampered = fine.clone();
    tampered["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = json!((then + 1).to_string());
    let mut bare = fine.clone();
    bare["verificationMaterial"]["tlogEntries"] = json!([]);
    let entry = "/verificationMaterial/tlogEntries/0";
    let changed = |path: &str, value: Value| {
        let mut bundle = fine.clone();
        *bundle.pointer_mut(&format!("{entry}/{path}")).unwrap() = value;
        bundle
    };
    let mut nothing = changed("inclusionProof", Value::Null);
    *nothing.pointer_mut(&format!("{entry}/inclusionPromise")).unwrap() = Value::Null;
    // The proof alone does not say when.
    let unpromised = changed("inclusionPromise", Value::Null);
    let unproven = changed("inclusionProof", Value::Null);
    let elsewhere = changed("inclusionProof/logIndex", json!("2"));
    let corrupt = changed("inclusionProof/hashes/1", json!(BASE64_STANDARD.encode([0; 32])));
    let head = fine.pointer(&format!("{entry}/inclusionProof/checkpoint/envelope")).unwrap().as_str().unwrap();
    let larger = changed("inclusionProof/checkpoint/envelope", json!(head.replace("\n3\n", "\n4\n")));
    let renamed = changed("inclusionProof/checkpoint/envelope", json!(head.replace(LOG, "other.example.com")));
    let headless_tree = changed("inclusionProof/checkpoint/envelope", json!("\n\n"));
    // The first version of bundles needs no proof.
    let mut first = unproven.clone();
    first["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.1");
    let (digest, manifest) = server.web.push_image("team/app", "first", "one").await;
    assert_eq!(digest, good);
    keep(&server, None, BUNDLE, first.to_string().as_bytes(), None, Some(&manifest)).await;
    signed(&server, &good, ours()).await.unwrap();
    let mut headless = fine.clone();
    headless["verificationMaterial"]["certificate"] = Value::Null;
    let clock = SystemTime::now();
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let server_key = fulcio.certify_for(usage, WORKFLOW, clock - MINUTES, clock + MINUTES);
    let by_server = |payload: &[u8], signature: &[u8]| json!({"tlogEntries": [rekor.entry(&enveloped(payload, signature, &server_key.certificate), now())]});
    let hashed = |payload: &[u8], signature: &[u8]| json!({"tlogEntries": [rekor.entry(&hashed(payload, signature, &signer.certificate), then)]});
    for (n, (bundle, says)) in [
        (tampered, "not signed by the log"),
        (bare, "in no log"),
        (nothing, "not signed by the log"),
        (unpromised, "no time stamp"),
        (unproven, "not proven"),
        (elsewhere, "not proven"),
        (corrupt, "not proven"),
        (larger, "not signed by the log"),
        (renamed, "not signed by the log"),
        (headless_tree, "malformed"),
        (headless, "no certificate"),
        (bundle(&signer, &good, hashed), "of another signature"),
        (bundle(&signer, &good, logged), "another image"),
        (bundle(&server_key, &good, by_server), "not for signing code"),
    ]
    .into_iter()
    .enumerate()
    {
        let (digest, manifest) = server.web.push_image("team/app", &format!("bad{n}"), &format!("bad{n}")).await;
        keep(&server, None, BUNDLE, bundle.to_string().as_bytes(), None, Some(&manifest)).await;
        let refused = signed(&server, &digest, ours()).await.unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
    }
}

/// A time stamp authority of openssl's.
struct Clock<'a> {
    folder: &'a Path,
    root: String,
}

impl<'a> Clock<'a> {
    fn new(folder: &'a Path) -> Self {
        let run = |arguments: &str| openssl(folder, arguments);
        for name in ["root", "tsa"] {
            run(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"));
        }
        run(
            "req -x509 -new -key root.key -days 30 -out root.pem -subj /O=Clocks -addext basicConstraints=critical,CA:TRUE",
        );
        run("req -new -key tsa.key -out tsa.csr -subj /O=Clocks/CN=clock");
        std::fs::write(folder.join("ext"), "extendedKeyUsage=critical,timeStamping\n").unwrap();
        run("x509 -req -in tsa.csr -CA root.pem -CAkey root.key -CAcreateserial -days 10 -extfile ext -out tsa.pem");
        std::fs::write(folder.join("serial"), "01").unwrap();
        let configuration = "[tsa]\ndefault_tsa = one\n[one]\nserial = serial\nsigner_digest = sha256\n\
            default_policy = 1.2.3.4\ndigests = sha256, sha384\nordering = no\ntsa_name = no\n";
        std::fs::write(folder.join("tsa.cnf"), configuration).unwrap();
        Self { folder, root: std::fs::read_to_string(folder.join("root.pem")).unwrap() }
    }

    /// With the authority's certificate.
    fn stamp(&self, seen: &[u8], hash: &str) -> Vec<u8> {
        self.answer(seen, &format!("{hash} -cert"))
    }

    fn answer(&self, seen: &[u8], query: &str) -> Vec<u8> {
        std::fs::write(self.folder.join("seen"), seen).unwrap();
        openssl(self.folder, &format!("ts -query -data seen -{query} -out query"));
        openssl(self.folder, "ts -reply -config tsa.cnf -queryfile query -signer tsa.pem -inkey tsa.key -out reply");
        std::fs::read(self.folder.join("reply")).unwrap()
    }
}

#[tokio::test]
async fn time_stamps_say_when_as_well() {
    let server = Server::new().await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (clock, stranger) = (Clock::new(folders[0].path()), Clock::new(folders[1].path()));
    let fulcio = Fulcio::new();
    let signer = fulcio.certify(WORKFLOW, MINUTES, MINUTES);
    let stamps = |stamp: Vec<u8>| {
        json!({"timestampVerificationData": {
            "rfc3161Timestamps": [{"signedTimestamp": BASE64_STANDARD.encode(stamp)}],
        }})
    };
    let ours = || trust(&fulcio.pem(), None, Some(&clock.root), WORKFLOW, ISSUER);
    for hash in ["sha256", "sha384"] {
        let (digest, manifest) = server.web.push_image("team/app", hash, hash).await;
        let fine = bundle(&signer, &digest, |_, signature| stamps(clock.stamp(signature, hash)));
        keep(&server, None, BUNDLE, fine.to_string().as_bytes(), None, Some(&manifest)).await;
        signed(&server, &digest, ours()).await.unwrap();
        // Who believes a log wants it there.
        let log = KeyPair::generate().unwrap().public_key_pem();
        let logged = trust(&fulcio.pem(), Some(&log), Some(&clock.root), WORKFLOW, ISSUER);
        assert!(signed(&server, &digest, logged).await.unwrap_err().contains("in no log"));
    }
    // Some come without certificates.
    let (digest, manifest) = server.web.push_image("team/app", "bare", "bare").await;
    let bare = bundle(&signer, &digest, |_, signature| stamps(clock.answer(signature, "sha256")));
    keep(&server, None, BUNDLE, bare.to_string().as_bytes(), None, Some(&manifest)).await;
    let refused = signed(&server, &digest, ours()).await.unwrap_err();
    assert!(refused.contains("somebody unknown"), "{refused}");
    let all = clock.root.clone() + &std::fs::read_to_string(clock.folder.join("tsa.pem")).unwrap();
    signed(&server, &digest, trust(&fulcio.pem(), None, Some(&all), WORKFLOW, ISSUER)).await.unwrap();

    let now = SystemTime::now();
    let usage = ExtendedKeyUsagePurpose::CodeSigning;
    let expired = fulcio.certify_for(usage, WORKFLOW, now - 3 * MINUTES, now - MINUTES);
    let changed = |mut stamp: Vec<u8>| {
        // A digit of the time.
        let at = stamp.windows(2).position(|two| two == b"20").unwrap();
        stamp[at + 1] = b'1';
        stamp
    };
    for (n, (signer, says, stamp)) in [
        (
            &signer,
            "is not trusted",
            &(|signature: &[u8]| stamps(stranger.stamp(signature, "sha256"))) as &dyn Fn(&[u8]) -> Value,
        ),
        (&signer, "of another signature", &|_: &[u8]| stamps(clock.stamp(b"other", "sha256"))),
        (&signer, "was changed", &|signature: &[u8]| stamps(changed(clock.stamp(signature, "sha256")))),
        (&signer, "no time stamp", &|_: &[u8]| json!({})),
        (&signer, "missing", &|_: &[u8]| stamps(vec![0x30, 0])),
        (&expired, "is not trusted", &|signature: &[u8]| stamps(clock.stamp(signature, "sha256"))),
    ]
    .into_iter()
    .enumerate()
    {
        let (digest, manifest) = server.web.push_image("team/app", &format!("bad{n}"), &format!("bad{n}")).await;
        let bad = bundle(signer, &digest, |_, signature| stamp(signature));
        keep(&server, None, BUNDLE, bad.to_string().as_bytes(), None, Some(&manifest)).await;
        let refused = signed(&server, &digest, ours()).await.unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
    }
}

#[tokio::test]
async fn a_log_that_tells_no_time_proves_what_it_has() {
    let server = Server::new().await;
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::new(folder.path());
    let new = || Rekor(KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    let (fulcio, rekor, other) = (Fulcio::new(), new(), new());
    let signer = fulcio.certify(WORKFLOW, MINUTES, MINUTES);
    // An envelope is there by what is signed of it.
    let body = |message: &[u8], signature: &[u8]| {
        json!({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": {
            "data": {"algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode(sha(message))},
            "signature": {"content": BASE64_STANDARD.encode(signature), "verifier": {
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "x509Certificate": {"rawBytes": BASE64_STANDARD.encode(signer.certificate.der())},
            }},
        }}})
    };
    let logged = |payload: &[u8], signature: &[u8]| {
        let kind = "application/vnd.in-toto+json";
        let message = [format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).as_bytes(), payload].concat();
        let stamp = BASE64_STANDARD.encode(clock.stamp(signature, "sha256"));
        json!({
            "tlogEntries": [rekor.second_entry(&body(&message, signature))],
            "timestampVerificationData": {"rfc3161Timestamps": [{"signedTimestamp": stamp}]},
        })
    };
    let by = |log: &Rekor| trust(&fulcio.pem(), Some(&log.0.public_key_pem()), Some(&clock.root), WORKFLOW, ISSUER);
    let (good, manifest) = server.web.push_image("team/app", "1", "one").await;
    let fine = bundle(&signer, &good, logged);
    keep(&server, None, BUNDLE, fine.to_string().as_bytes(), None, Some(&manifest)).await;
    signed(&server, &good, by(&rekor)).await.unwrap();
    assert!(signed(&server, &good, by(&other)).await.unwrap_err().contains("a log that is not known"));

    let mut timeless = fine.clone();
    timeless["verificationMaterial"]["timestampVerificationData"] = Value::Null;
    let mut unproven = fine.clone();
    unproven["verificationMaterial"]["tlogEntries"][0]["inclusionProof"] = Value::Null;
    let entry = &fine["verificationMaterial"]["tlogEntries"][0];
    let by_another = other.proof(&body(b"", b""), &rekor.second_id());
    let mut foreign = fine.clone();
    foreign["verificationMaterial"]["tlogEntries"][0]["inclusionProof"] = by_another;
    let mut of_another = fine.clone();
    of_another["verificationMaterial"]["tlogEntries"][0] = rekor.second_entry(&body(b"something else", b"signature"));
    assert_eq!(entry["logId"], of_another["verificationMaterial"]["tlogEntries"][0]["logId"]);
    for (n, (bundle, says)) in [
        (timeless, "no time stamp"),
        (unproven, "a log that is not known"),
        (foreign, "not signed by the log"),
        (of_another, "of another signature"),
    ]
    .into_iter()
    .enumerate()
    {
        let (digest, manifest) = server.web.push_image("team/app", &format!("bad{n}"), &format!("bad{n}")).await;
        keep(&server, None, BUNDLE, bundle.to_string().as_bytes(), None, Some(&manifest)).await;
        let refused = signed(&server, &digest, by(&rekor)).await.unwrap_err();
        assert!(refused.contains(says), "{says}: {refused}");
    }
}

#[test]
fn what_nobody_could_be_trusted_by_is_refused() {
    let fulcio = Fulcio::new();
    let read = |pem: &str, logs, named: bool| {
        let identity = Identity { subject: Pattern("*".to_owned()), issuer: Pattern(ISSUER.to_owned()) };
        Keyless::read(pem, logs, None, named.then_some(identity).into_iter().collect()).unwrap_err()
    };
    let log = KeyPair::generate().unwrap().public_key_pem();
    assert!(read(&fulcio.pem(), None, true).contains("it needs keys of logs"));
    assert!(read(&fulcio.pem(), Some(&log), false).contains("no identity"));
    assert!(read(&fulcio.between.pem(), Some(&log), true).contains("is a root"));
    assert!(read("", Some(&log), true).contains("no CERTIFICATE"));
    assert!(read(&fulcio.pem(), Some(&fulcio.pem()), true).contains("not a PUBLIC KEY"));
}
