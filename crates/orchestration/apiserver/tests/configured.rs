//! What is configured about access: other issuers of tokens, the audit log, priority and fairness.
#![allow(clippy::unwrap_used)]

mod harness;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use dhow_apiserver::{AccessConfig, AuditConfig, AuditFile, AuditPolicy, AuditWebhook, AuthenticationConfig, UserInfo};
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
             claims.realm.groups}}\n    uid: {{claim: oid}}\n    extra: [{{key: example.com/team, valueExpression: \"has(claims.team) ? 'team-' + claims.team : ''\"}}]\n  userValidationRules: [{{expression: \"!user.groups.exists(g, g.startsWith('system:') && g != 'system:authenticated')\", \
             message: no system groups}}]\n{more}",
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
        "- team-blue",
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
        ("a rule about the user", es256(&with("realm", json!({"groups": ["system:masters"]})), &first)),
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
        ("claims.realm.groups", "claims.(", "Syntax error"),
        (
            "username: {claim: sub, prefix: 'sso:'}",
            "username: {expression: claims.email}",
            "claims.email_verified must be used",
        ),
        ("prefix: 'sso:'", "", "claimMappings.username.prefix: required"),
        ("https://", "http://", "issuer.url: must be an https URL"),
        ("[cloud]", "[cloud, more]", "audienceMatchPolicy: must be MatchAny"),
        ("claim: hd", "clam: hd", "clam"),
    ] {
        let error = AuthenticationConfig::parse(&text.replace(change, with)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: [quiet]
- level: None
  nonResourceURLs: ['/healthz*', /version]
- level: Metadata
  resources: [{resources: [secrets, serviceaccounts/token]}]
- level: Request
  verbs: [delete]
  namespaces: [default]
- level: RequestResponse
  resources: [{resources: [configmaps]}]
- level: Metadata
  omitStages: []
  resources: [{resources: [namespaces], resourceNames: [default]}]
- level: Metadata
  userGroups: ['system:unauthenticated']
";

/// The events in an audit log for which `wanted` holds, once there are enough of them.
async fn events(path: &std::path::Path, enough: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    for _ in 0..200 {
        let text = std::fs::read_to_string(path).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let found: Vec<Value> =
            whole.lines().map(|line| serde_json::from_str(line).unwrap()).filter(|event| wanted(event)).collect();
        if found.len() >= enough {
            return found;
        }
        // The log is a file that another thread writes; nothing tells of it.
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("no such events in {}", std::fs::read_to_string(path).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_wants_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let audit =
        AuditConfig { policy: AuditPolicy::parse(POLICY).unwrap(), file: Some(AuditFile::new(&path)), webhook: None };
    let cluster = Cluster::start_with(AccessConfig { audit: Some(audit), ..AccessConfig::default() }).await;
    cluster.kubeconfig("quiet", "quiet", &["system:masters"]);
    cluster.run("quiet", &["-n", "kube-system", "create", "configmap", "unseen"], "").await.unwrap();
    cluster.kubectl(&["create", "secret", "generic", "s", "--from-literal=password=hidden"]).await;
    cluster.kubectl(&["create", "configmap", "c", "--from-literal=a=b", "--as=ann", "--as-group=system:masters"]).await;
    cluster.run("admin", &["get", "configmap", "absent"], "").await.unwrap_err();
    cluster.kubeconfig("jane", "jane", &[]);
    cluster.run("jane", &["get", "configmap", "c"], "").await.unwrap_err();
    cluster.kubectl(&["delete", "configmap", "c"]).await;
    cluster.kubectl(&["get", "--raw", "/healthz"]).await;
    assert_eq!(cluster.curl("/api/v1/pods", &["-H", "x-forwarded-for: 192.0.2.7"]).await, "403");
    assert_eq!(
        cluster.curl("/api/v1/namespaces/default/configmaps", &["-H", "authorization: Bearer x.y.z"]).await,
        "401"
    );
    let watch = ["get", "configmaps", "--watch", "--request-timeout=1s"];
    let _ = cluster.run("admin", &watch, "").await;

    let of = |verb: &'static str, resource: &'static str| {
        move |event: &Value| event["verb"] == verb && event["objectRef"]["resource"] == resource
    };
    let event = events(&path, 1, of("create", "secrets")).await.remove(0);
    assert_eq!((&event["level"], &event["stage"]), (&json!("Metadata"), &json!("ResponseComplete")));
    assert_eq!((&event["user"]["username"], &event["responseStatus"]["code"]), (&json!("system:admin"), &json!(201)));
    assert!(event["userAgent"].as_str().unwrap().starts_with("kubectl"), "{event}");
    assert_eq!((&event["kind"], &event["sourceIPs"]), (&json!("Event"), &json!(["127.0.0.1"])));
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    let hidden = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "hidden");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        !text.contains("hidden") && !text.contains(&hidden) && !text.contains("unseen") && !text.contains("/healthz")
    );

    // The server makes some of its own.
    let created = of("create", "configmaps");
    let event = events(&path, 1, move |event| created(event) && event["objectRef"]["name"] == "c").await.remove(0);
    assert_eq!(event["impersonatedUser"]["username"], "ann");
    assert_eq!(
        (&event["requestObject"]["data"]["a"], &event["responseObject"]["data"]["a"]),
        (&json!("b"), &json!("b"))
    );
    assert!(event["responseObject"]["metadata"]["uid"].is_string(), "{event}");
    assert!(event["responseObject"]["metadata"]["managedFields"].is_null(), "{event}");
    assert_eq!((&event["objectRef"]["name"], &event["objectRef"]["namespace"]), (&json!("c"), &json!("default")));

    let failed = events(&path, 3, of("get", "configmaps")).await;
    let with_code = |code: i64| failed.iter().find(|event| event["responseStatus"]["code"] == code).unwrap();
    assert_eq!(with_code(404)["responseStatus"]["reason"], "NotFound");
    assert_eq!(with_code(403)["annotations"]["authorization.k8s.io/decision"], "forbid");
    let event = events(&path, 1, of("delete", "configmaps")).await.remove(0);
    assert_eq!((&event["level"], event["responseObject"].is_null()), (&json!("Request"), true));
    assert!(event["requestObject"].is_object(), "{event}");

    let event = events(&path, 1, |event| event["user"]["username"] == "system:anonymous").await.remove(0);
    assert_eq!(event["sourceIPs"], json!(["192.0.2.7", "127.0.0.1"]));
    let event = events(&path, 1, |event| event["responseStatus"]["code"] == 401).await.remove(0);
    assert_eq!((&event["user"], &event["stage"]), (&json!({}), &json!("ResponseStarted")));
    let watched = events(&path, 2, of("watch", "configmaps")).await;
    let stages: Vec<&Value> = watched.iter().map(|event| &event["stage"]).collect();
    assert_eq!(stages, ["ResponseStarted", "ResponseComplete"]);
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await;
    assert!(metrics.contains("apiserver_audit_error_total{plugin=\"log\"} 0"), "{metrics}");

    for (change, with, why) in [
        ("level: None", "level: All", "All"),
        ("audit.k8s.io/v1", "audit.k8s.io/v2", "cannot read Policy of audit.k8s.io/v2"),
        ("'/healthz*'", "'/a*b'", "is no path"),
        ("userGroups", "groups", "groups"),
    ] {
        let error = AuditPolicy::parse(&POLICY.replace(change, with)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    std::fs::write(folder.path().join("audit-notes.log"), "not ours").unwrap();
    let old = folder.path().join("audit-2020-01-01T00-00-00.000000.log");
    std::fs::write(&old, "too old").unwrap();
    let policy = AuditPolicy::parse("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").unwrap();
    let file = Some(AuditFile { path: path.clone(), largest: 2000, kept: 2, days: 30 });
    let audit = Some(AuditConfig { policy, file, webhook: None });
    let cluster = Cluster::start_with(AccessConfig { audit, ..AccessConfig::default() }).await;
    for i in 0..20 {
        let body = json!({"metadata": {"name": format!("c{i}")}});
        cluster.json("POST", "/api/v1/namespaces/default/configmaps", "application/json", &body).await;
    }
    cluster.kubectl(&["get", "configmap", "c0"]).await;
    events(&path, 1, |event| event["objectRef"]["name"] == "c0" && event["stage"] == "ResponseComplete").await;
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!((names.len(), names[2].as_str(), names[3].as_str()), (4, "audit-notes.log", "audit.log"), "{names:?}");
    for name in names.iter().filter(|name| *name != "audit-notes.log") {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.len() <= 2000, "{name}: {}", text.len());
        text.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
    }
}

/// A server that takes audit events, out of order at first.
async fn collector(failures: usize) -> (u16, Arc<Mutex<Vec<Value>>>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let lists = Arc::new(Mutex::new(Vec::new()));
    let (taken, left) = (lists.clone(), Arc::new(AtomicUsize::new(failures)));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (taken, left) = (taken.clone(), left.clone());
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (taken, left) = (taken.clone(), left.clone());
                async move {
                    assert_eq!(request.uri().path(), "/k8s-audit");
                    let body = http_body_util::BodyExt::collect(request.into_body()).await?.to_bytes();
                    let less = |left: usize| left.checked_sub(1);
                    let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
                    if !fails {
                        taken.lock().push(serde_json::from_slice(&body).unwrap());
                    }
                    let code = if fails { 503 } else { 200 };
                    Ok::<_, hyper::Error>(http::Response::builder().status(code).body(Full::new(Bytes::new())).unwrap())
                }
            });
            let io = TokioIo::new(tcp);
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service)
                    .into_owned(),
            );
        }
    });
    (port, lists)
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_events_go_to_a_webhook() {
    let folder = tempfile::tempdir().unwrap();
    let (port, lists) = collector(2).await;
    let config = |server: &str| {
        let path = folder.path().join("webhook.kubeconfig");
        let text = format!(
            "{{current-context: c, clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        std::fs::write(&path, text).unwrap();
        AuditWebhook::from_kubeconfig(&path)
    };
    let error = config("http://192.0.2.1/k8s-audit").err().unwrap().to_string();
    assert!(error.contains("neither https nor on this machine"), "{error}");
    let mut webhook = config(&format!("http://127.0.0.1:{port}/k8s-audit")).unwrap();
    webhook.pause = std::time::Duration::from_millis(20);
    let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, omitStages: [RequestReceived], rules: [{level: Metadata, users: [ann]}]}";
    let audit = AuditConfig { policy: AuditPolicy::parse(text).unwrap(), file: None, webhook: Some(webhook) };
    let cluster = Cluster::start_with(AccessConfig { audit: Some(audit), ..AccessConfig::default() }).await;
    let strict = "kind: Namespace\napiVersion: v1\nmetadata: {name: strict, labels: {pod-security.kubernetes.io/audit: restricted}}";
    cluster.run("admin", &["apply", "-f", "-"], strict).await.unwrap();
    cluster.kubectl(&["create", "rolebinding", "ann", "-n", "strict", "--clusterrole=edit", "--user=ann"]).await;
    cluster.kubectl(&["create", "serviceaccount", "default", "-n", "strict"]).await;
    cluster.kubeconfig("ann", "ann", &[]);
    cluster.run("ann", &["run", "p", "-n", "strict", "--image=i"], "").await.unwrap();
    cluster.run("ann", &["get", "secrets", "-A"], "").await.unwrap_err();

    let mut events: Vec<Value> = Vec::new();
    for _ in 0..400 {
        events = lists.lock().iter().flat_map(|list| list["items"].as_array().unwrap().clone()).collect();
        if events.iter().any(|event| event["objectRef"]["resource"] == "secrets") {
            break;
        }
        // The collector is another task; nothing here tells of it.
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let first = lists.lock()[0].clone();
    assert_eq!((&first["kind"], &first["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
    let of = |verb: &str, resource: &str| {
        let found = events.iter().find(|event| event["verb"] == verb && event["objectRef"]["resource"] == resource);
        found.unwrap_or_else(|| panic!("no {verb} {resource}: {events:#?}"))["annotations"].clone()
    };
    let created = of("create", "pods");
    assert_eq!(
        created["authorization.k8s.io/reason"],
        "RBAC: allowed by RoleBinding \"ann/strict\" of ClusterRole \"edit\" to User \"ann\""
    );
    assert_eq!(created["pod-security.kubernetes.io/enforce-policy"], "privileged:latest");
    let violations = created["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(violations.starts_with("would violate PodSecurity \"restricted:latest\": "), "{violations}");
    assert_eq!(of("list", "secrets")["authorization.k8s.io/decision"], "forbid");
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await;
    for wanted in
        ["apiserver_audit_level_total{level=\"Metadata\"} ", "apiserver_audit_error_total{plugin=\"webhook\"} 0"]
    {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }
}

/// Nobody waits for a webhook that takes nothing, and what it misses is counted.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_webhook_that_is_away_costs_events_only() {
    let folder = tempfile::tempdir().unwrap();
    let (port, lists) = collector(usize::MAX).await;
    let path = folder.path().join("webhook.kubeconfig");
    let text = format!(
        "{{current-context: c, clusters: [{{name: c, cluster: {{server: 'http://localhost:{port}/k8s-audit'}}}}], users: \
         [{{name: u, user: {{}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    let mut webhook = AuditWebhook::from_kubeconfig(&path).unwrap();
    webhook.pause = std::time::Duration::from_millis(1);
    let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}";
    let audit = AuditConfig { policy: AuditPolicy::parse(text).unwrap(), file: None, webhook: Some(webhook) };
    let cluster = Cluster::start_with(AccessConfig { audit: Some(audit), ..AccessConfig::default() }).await;
    let lost = "apiserver_audit_error_total{plugin=\"webhook\"} ";
    for _ in 0..400 {
        let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(lost));
        if line.is_some_and(|count| count != "0") {
            assert!(lists.lock().is_empty());
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("no event was counted as lost");
}

fn get(path: &str) -> http::Request<Bytes> {
    http::Request::builder().uri(path).body(Bytes::new()).unwrap()
}

/// With so few seats, `global-default` has one.
fn one_seat() -> AccessConfig {
    AccessConfig { seats: Some(10), ..AccessConfig::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_keeps_nobody_out() {
    const FLOOD: usize = 400;
    const CALM: usize = 20;
    let cluster = Arc::new(Cluster::start_with(one_seat()).await);
    for user in ["flood", "calm"] {
        cluster.kubectl(&["create", "clusterrolebinding", user, "--clusterrole=view", &format!("--user={user}")]).await;
    }
    let path = "/api/v1/namespaces/default/configmaps";
    for i in 0..100 {
        let body = json!({"metadata": {"name": format!("c{i}")}, "data": {"k": "x".repeat(1000)}});
        cluster.json("POST", path, "application/json", &body).await;
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let (answered, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..FLOOD {
        let (cluster, stop, answered, refused) = (cluster.clone(), stop.clone(), answered.clone(), refused.clone());
        flood.spawn(async move {
            while !stop.is_cancelled() {
                let (code, headers, _) = cluster.send(UserInfo::new("flood", &[]), get(path)).await;
                match code {
                    200 => drop(answered.fetch_add(1, Ordering::SeqCst)),
                    code => {
                        assert_eq!((code, headers["retry-after"].to_str().unwrap()), (429, "1"));
                        refused.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
    }
    // Until the flood has filled all places of its own.
    while refused.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let before = answered.load(Ordering::SeqCst);
    for _ in 0..CALM {
        let (code, _, _) = cluster.send(UserInfo::new("calm", &[]), get(path)).await;
        assert_eq!(code, 200);
    }
    let meanwhile = answered.load(Ordering::SeqCst) - before;
    stop.cancel();
    while let Some(ended) = flood.join_next().await {
        ended.unwrap();
    }
    // Each time it came after those few that had had as little, not after the hundreds that waited.
    assert!(meanwhile < CALM * 20, "{meanwhile} of the flood were answered meanwhile");
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await;
    for line in [
        "apiserver_flowcontrol_rejected_requests_total{priority_level=\"global-default\",flow_schema=\"global-default\",reason=\"queue-full\"}",
        "apiserver_flowcontrol_dispatched_requests_total{priority_level=\"exempt\",flow_schema=\"exempt\"}",
        "apiserver_flowcontrol_current_inqueue_requests{priority_level=\"global-default\"} 0",
        "apiserver_flowcontrol_current_executing_requests{priority_level=\"global-default\"} 0",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"global-default\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_classified() {
    let cluster = Cluster::start_with(one_seat()).await;
    let listed = cluster.kubectl(&["get", "flowschemas"]).await;
    assert_eq!(listed.lines().count(), 14, "{listed}");
    assert!(cluster.kubectl(&["get", "prioritylevelconfigurations"]).await.contains("workload-low"));
    let class = async |user: UserInfo, path: &str| {
        let (_, headers, _) = cluster.send(user, get(path)).await;
        let uid = headers["x-kubernetes-pf-flowschema-uid"].to_str().unwrap().to_owned();
        assert!(headers.contains_key("x-kubernetes-pf-prioritylevel-uid"));
        let names = "jsonpath={range .items[*]}{.metadata.uid} {.metadata.name}{\"\\n\"}{end}";
        let names = cluster.kubectl(&["get", "flowschemas", "-o", names]).await;
        names.lines().find_map(|line| line.strip_prefix(&format!("{uid} "))).unwrap().to_owned()
    };
    let pods = "/api/v1/namespaces/default/pods";
    let account = "system:serviceaccount:default:x";
    assert_eq!(class(UserInfo::new("admin", &["system:masters"]), pods).await, "exempt");
    assert_eq!(class(UserInfo::new("jane", &[]), pods).await, "global-default");
    assert_eq!(class(UserInfo::new("jane", &[]), "/livez").await, "probes");
    assert_eq!(class(UserInfo::new(account, &["system:serviceaccounts"]), pods).await, "service-accounts");
    let account = "system:serviceaccount:kube-system:x";
    assert_eq!(class(UserInfo::new(account, &["system:serviceaccounts"]), pods).await, "kube-system-service-accounts");
    assert_eq!(class(UserInfo::new("system:kube-scheduler", &[]), pods).await, "kube-scheduler");
    let node = || UserInfo::new("system:node:n1", &["system:nodes"]);
    assert_eq!(class(node(), "/api/v1/nodes/n1").await, "system-node-high");
    assert_eq!(class(node(), pods).await, "system-nodes");
    // A schema of one's own, and its removal, take effect at once.
    let own = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "own"},
        "spec": {
            "priorityLevelConfiguration": {"name": "workload-high"}, "matchingPrecedence": 500,
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "jane"}}],
                "resourceRules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["default"]}],
            }],
        },
    });
    cluster.run("admin", &["apply", "-f", "-"], &own.to_string()).await.unwrap();
    assert_eq!(class(UserInfo::new("jane", &[]), pods).await, "own");
    assert_eq!(class(UserInfo::new("jane", &[]), "/api/v1/pods").await, "global-default");
    cluster.kubectl(&["delete", "flowschema", "own"]).await;
    assert_eq!(class(UserInfo::new("jane", &[]), pods).await, "global-default");

    // Open watches hold no seats.
    cluster.kubectl(&["create", "clusterrolebinding", "jane", "--clusterrole=view", "--user=jane"]).await;
    cluster.kubeconfig("jane", "jane", &[]);
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(cluster.begin(UserInfo::new("jane", &[]), get(&format!("{pods}?watch=true"))).await);
    }
    assert!(watches.iter().all(|watch| watch.status() == 200));
    cluster.run("jane", &["get", "pods"], "").await.unwrap();
}
