//! What is configured about access: other issuers of tokens, the audit log, priority and fairness.
#![allow(clippy::unwrap_used)]

mod harness;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use dhow_apiserver::{AccessConfig, AuthenticationConfig};
use dhow_base::pki::{ClusterCa, SaKey};
use dhow_base::tls;
use harness::Cluster;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The RSA key of an issuer: nothing in our tree makes one.
const RSA: &str = include_str!("data/issuer-rsa.pem");
const RSA_MODULUS: &str = "jwkcnkg0RLL__86msSxvvKcZ4IoMvnLO70bcAQ5seYzTE9M9b5RReMKxtlMiQjMKYCPQzs8vY_npf0zHOaJXxPIZKJP-lam9ms2cVbe5lK0gZYvNNyKvfC_Em-28fsh0O-HXS2_oyFxBYFhFDPBQLN2u_VlFObBFi16kS27IrnLl0K6ifpfyaQ1vk8frMOO1dCGqC_d5nO9A1H_RDVeHYs9H-aJTcqGjV9pF5yKa-fxwIk3D3y170KyM39kRaI_MDfmVy1AAQwAVPleKonPHaHLz6jFFH_tNgIXA-J4yjvYLJS6HJFyyYRullDQKh5Zs3aFkyPjH7DdCmMIMnDgC5Q";

/// An OpenID Connect issuer with a certificate of its own authority.
struct Issuer {
    url: String,
    ca_pem: String,
    keys: Arc<Mutex<Vec<Value>>>,
    /// How often its keys were fetched.
    fetched: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(folder: &std::path::Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = ClusterCa::load_or_create(&folder.join("issuer")).unwrap();
        let pair = ca.issue_server("issuer", &["127.0.0.1".into()]).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(tls::server_config(&pair, None).unwrap());
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let issuer =
            Self { url: url.clone(), ca_pem: ca.cert_pem().to_owned(), keys: Arc::default(), fetched: Arc::default() };
        let (keys, fetched) = (issuer.keys.clone(), issuer.fetched.clone());
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(tcp).await else { continue };
                let (keys, fetched, url) = (keys.clone(), fetched.clone(), url.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let document = match request.uri().path() {
                            "/.well-known/openid-configuration" => {
                                json!({"issuer": url, "jwks_uri": format!("{url}/keys")})
                            }
                            _ => {
                                fetched.fetch_add(1, Ordering::SeqCst);
                                json!({"keys": *keys.lock()})
                            }
                        };
                        let body = Full::new(Bytes::from(document.to_string()));
                        async move { Ok::<_, Infallible>(http::Response::new(body)) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        issuer
    }

    fn configuration(&self, more: &str) -> String {
        let ca = self.ca_pem.replace('\n', "\n        ");
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    audiences: \
             [cloud]\n    certificateAuthority: |\n        {ca}\n  claimValidationRules: [{{claim: hd, requiredValue: \
             example.com}}]\n  claimMappings:\n    username: {{claim: sub, prefix: 'sso:'}}\n    groups: {{expression: \
             claims.realm.groups}}\n    uid: {{claim: oid}}\n    extra: [{{key: example.com/team, valueExpression: claims.team}}]\n{more}",
            self.url
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_other_issuers_are_believed() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(folder.path()).await;
    let first = SaKey::load_or_create(&folder.path().join("first.key")).unwrap();
    issuer.keys.lock().push(first.jwk());
    // A key of a kind that we know nothing about does no harm.
    issuer.keys.lock().push(json!({"kty": "LATTICE", "kid": "new"}));
    let text = issuer.configuration("anonymous: {enabled: true, conditions: [{path: /livez}]}\n");
    let authentication = Some(AuthenticationConfig::parse(&text).unwrap());
    let cluster = Cluster::start_with(AccessConfig { authentication, ..AccessConfig::default() }).await;

    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let claims = json!({
        "iss": issuer.url, "aud": ["other", "cloud"], "exp": now + 600, "sub": "ann", "hd": "example.com",
        "oid": "42", "realm": {"groups": ["dev", "ops"]}, "team": "blue",
    });
    let es256 = |claims: &Value, key: &SaKey| {
        let header = Header { kid: Some(key.key_id()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_pem(key.private_pem().as_bytes()).unwrap()).unwrap()
    };
    let rs256 = |claims: &Value, id: &str| {
        let header = Header { kid: Some(id.into()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap()).unwrap()
    };
    let whoami = async |token: &str| {
        cluster.kubeconfig_with_token("user", token);
        cluster.run("user", &["auth", "whoami", "-o", "yaml"], "").await
    };
    let who = whoami(&es256(&claims, &first)).await.unwrap();
    for part in [
        "username: sso:ann",
        "- dev\n",
        "- ops\n",
        "- system:authenticated",
        "uid: \"42\"",
        "example.com/team:",
        "- blue",
    ] {
        assert!(who.contains(part), "{part} is not in {who}");
    }
    assert_eq!(issuer.fetched.load(Ordering::SeqCst), 1);
    cluster.kubectl(&["create", "clusterrolebinding", "dev", "--clusterrole=view", "--group=dev"]).await;
    cluster.run("user", &["get", "pods", "-A"], "").await.unwrap();

    let with = |field: &str, value: Value| {
        let mut changed = claims.clone();
        changed[field] = value;
        changed
    };
    let strange = SaKey::load_or_create(&folder.path().join("strange.key")).unwrap();
    let mut posing = Header { kid: Some(first.key_id()), ..Header::new(Algorithm::HS256) };
    let public = EncodingKey::from_secret(first.public_pem().as_bytes());
    let confused = jsonwebtoken::encode(&posing, &claims, &public).unwrap();
    posing.alg = Algorithm::ES256;
    let foreign = EncodingKey::from_ec_pem(strange.private_pem().as_bytes()).unwrap();
    let forged = jsonwebtoken::encode(&posing, &claims, &foreign).unwrap();
    for (what, token) in [
        ("another audience", es256(&with("aud", json!("other")), &first)),
        ("expired", es256(&with("exp", json!(now - 600)), &first)),
        ("without an end", es256(&with("exp", json!(null)), &first)),
        ("not yet", es256(&with("nbf", json!(now + 600)), &first)),
        ("rule", es256(&with("hd", json!("example.org")), &first)),
        ("no name", es256(&with("sub", json!("")), &first)),
        ("groups", es256(&with("realm", json!({"groups": [1]})), &first)),
        ("another issuer", es256(&with("iss", json!("https://elsewhere")), &first)),
        ("public key as secret", confused),
        ("another's signature", forged),
    ] {
        whoami(&token).await.expect_err(what);
    }
    // A key that comes later is found; keys that are nowhere do not make us ask for each.
    issuer
        .keys
        .lock()
        .push(json!({"kty": "RSA", "kid": "rsa", "alg": "RS256", "use": "sig", "n": RSA_MODULUS, "e": "AQAB"}));
    assert!(whoami(&rs256(&claims, "rsa")).await.unwrap().contains("username: sso:ann"));
    for attempt in 0..10 {
        whoami(&rs256(&claims, &format!("nowhere-{attempt}"))).await.unwrap_err();
    }
    assert!(issuer.fetched.load(Ordering::SeqCst) <= 4, "{issuer:?}", issuer = issuer.fetched);

    assert_eq!((cluster.curl("/livez", &[]).await, cluster.curl("/version", &[]).await), ("200".into(), "401".into()));
    let (_, status) = cluster
        .json(
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            "application/json",
            &json!({"spec": {"token": es256(&claims, &first)}}),
        )
        .await;
    assert_eq!(status["status"]["user"]["username"], "sso:ann");

    for (change, with, why) in [
        ("claims.realm.groups", "claims.groups + claims.roles", "of CEL only a claim's path"),
        ("prefix: 'sso:'", "", "claimMappings.username.prefix: required"),
        ("https://", "http://", "issuer.url: must be an https URL"),
        ("[cloud]", "[cloud, more]", "audienceMatchPolicy: must be MatchAny"),
        ("claim: hd", "clam: hd", "clam"),
    ] {
        let error = AuthenticationConfig::parse(&text.replace(change, with)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
