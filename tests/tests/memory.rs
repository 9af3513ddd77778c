//! The memory of a server that many clients send the worst they have, at once and again and again.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use dhow_e2e::Server;
use futures::StreamExt;
use http::{Method, Request};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

/// As large as a body may be.
const LARGE: usize = (3 << 20) - 1000;
/// Clients at once.
const CLIENTS: usize = 16;
/// What all of them together may cost at any moment, however their worst moments fall together.
const MOST: u64 = 3 << 29;
/// A server that kept from each what it took for it would need more by the last.
const ROUNDS: usize = 4;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

/// Method, path, media type, body.
type Bad = (Method, &'static str, &'static str, Vec<u8>);

/// A JSON object around as many small things as fit.
fn full_of(kind: &str, small: &str) -> Vec<u8> {
    let head = format!(r#"{{"kind":"{kind}","metadata":{{"name":"x"}},"spec":["#);
    let things = vec![small; LARGE / (small.len() + 1)].join(",");
    format!("{head}{things}]}}").into_bytes()
}

fn bad() -> Vec<Bad> {
    let patch: Vec<Value> = (0..60).map(|n| json!({"op": "copy", "from": "", "path": format!("/c{n}")})).collect();
    let fields: Vec<String> = (0..LARGE / 16).map(|n| format!("\"k{n:08}\":{{}}")).collect();
    let twice = format!("{{{}}}", vec!["\"a\":{}"; LARGE / 8].join(","));
    let aliases = (1..40).fold("a0: &a0 [x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        text + &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 8].join(","))
    });
    vec![
        (Method::POST, MAPS, "application/json", full_of("ConfigMap", "{}")),
        (Method::POST, MAPS, "application/json", full_of("ConfigMap", "[[]]")),
        (Method::POST, THINGS, "application/json", full_of("Thing", "{}")),
        (Method::POST, THINGS, "application/json", full_of("Thing", "\"\"")),
        (
            Method::POST,
            THINGS,
            "application/json",
            format!("{{\"metadata\":{{\"name\":\"x\"}},\"spec\":{{{}}}}}", fields.join(",")).into_bytes(),
        ),
        (Method::POST, THINGS, "application/json", twice.into_bytes()),
        (Method::POST, THINGS, "application/json", b"{\"a\":".repeat(LARGE / 5)),
        (Method::POST, THINGS, "application/yaml", aliases.into_bytes()),
        (Method::POST, THINGS, "application/yaml", b"- {}\n".repeat(LARGE / 5)),
        (Method::POST, THINGS, "application/cbor", [vec![0x9f], vec![0xa0; LARGE], vec![0xff]].concat()),
        (
            Method::POST,
            MAPS,
            "application/vnd.kubernetes.protobuf",
            [b"k8s\0".to_vec(), b"\x0a\x00".repeat(LARGE / 2)].concat(),
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/default",
            "application/json-patch+json",
            json!(patch).to_string().into_bytes(),
        ),
        (Method::PATCH, "/api/v1/namespaces/default", "application/merge-patch+json", full_of("Namespace", "{}")),
        (
            Method::PATCH,
            "/api/v1/namespaces/default?fieldManager=m",
            "application/apply-patch+yaml",
            full_of("Namespace", "{}"),
        ),
    ]
}

async fn send(client: &Client, (method, path, media_type, body): Bad) {
    let request = Request::builder().method(method).uri(path).header("content-type", media_type);
    let answer = client.send(request.body(Body::from(body)).unwrap()).await;
    // A server that has enough may close before it was told everything; of a ConfigMap it takes what it knows.
    if let Ok(answer) = answer {
        assert!(!answer.status().is_server_error(), "{path} {media_type}: {}", answer.status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_take_no_more_than_their_share() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = tokio::task::spawn_blocking(|| Server::start().unwrap()).await.unwrap();
    let file = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.proxy_url = None;
    config.default_retry = false;
    let client = Client::try_from(config).unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": open}}]},
    });
    definitions.create(&PostParams::default(), &serde_json::from_value(definition).unwrap()).await.unwrap();
    await_condition(definitions, "things.example.com", conditions::is_crd_established()).await.unwrap();

    let (before, _) = server.resident().unwrap();
    let round = async || {
        let all = bad();
        let requests = all.into_iter().map(|bad| send(&client, bad));
        futures::stream::iter(requests).buffer_unordered(CLIENTS).collect::<Vec<()>>().await;
        server.resident().unwrap().1
    };
    for number in 0..ROUNDS {
        let most = round().await;
        eprintln!("{} MiB before, at most {} MiB in round {number}", before >> 20, most >> 20);
        assert!(most - before < MOST, "{} MiB in round {number}", (most - before) >> 20);
    }
    // Others are served.
    assert_eq!(client.apiserver_version().await.unwrap().minor, "35");
}
