//! What is not objects: health, metrics, OpenAPI, compression; and the oldest and newest kubectl against all of it.
#![allow(clippy::unwrap_used)]

mod harness;

use std::io::Read;

use bytes::Bytes;
use dhow_apiserver::UserInfo;
use harness::{Cluster, kubectls};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_check_by_check() {
    let cluster = Cluster::start().await;
    for path in ["/healthz", "/livez", "/readyz", "/livez/ping", "/readyz/etcd", "/livez?exclude=etcd"] {
        assert_eq!(cluster.kubectl(&["get", "--raw", path]).await, "ok", "{path}");
    }
    let verbose = cluster.kubectl(&["get", "--raw", "/readyz?verbose&exclude=log"]).await;
    assert!(verbose.contains("[+]etcd ok\n") && verbose.contains("[+]log excluded: ok\n"), "{verbose}");
    assert!(verbose.ends_with("readyz check passed\n"), "{verbose}");
    assert!(cluster.run("admin", &["get", "--raw", "/livez/nothing"], "").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_upstreams_names() {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["get", "namespaces"]).await;
    let text = cluster.kubectl(&["get", "--raw", "/metrics"]).await;
    for line in [
        r#"apiserver_request_total{verb="LIST",dry_run="",group="",version="v1",resource="namespaces",subresource="",scope="cluster",component="apiserver",code="200"}"#,
        r#"apiserver_request_duration_seconds_bucket{verb="LIST","#,
        r#"apiserver_resource_objects{group="",resource="namespaces"} 4"#,
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_packed() {
    let cluster = Cluster::start().await;
    let body = json!({"metadata": {"name": "large"}, "data": {"k": "x".repeat(200_000)}});
    let path = "/api/v1/namespaces/default/configmaps";
    cluster.json("POST", path, "application/json", &body).await;
    let get = |encoding: &str| {
        http::Request::builder()
            .uri(format!("{path}/large"))
            .header("accept-encoding", encoding)
            .body(Bytes::new())
            .unwrap()
    };
    let admin = || UserInfo::new("admin", &["system:masters"]);
    let (_, headers, packed) = cluster.send(admin(), get("br, gzip")).await;
    assert_eq!(headers["content-encoding"], "gzip");
    assert!(packed.len() < 10_000);
    let mut plain = String::new();
    flate2::read::GzDecoder::new(packed.as_ref()).read_to_string(&mut plain).unwrap();
    assert!(plain.contains(&"x".repeat(200_000)));
    let (_, headers, _) = cluster.send(admin(), get("identity")).await;
    assert!(!headers.contains_key("content-encoding"));
}

/// What people do all day, with the oldest and the newest client.
#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_clients_work() {
    for kubectl in kubectls() {
        let cluster = Cluster::start().await;
        let run = |args: Vec<String>, input: String| {
            let (cluster, kubectl) = (&cluster, &kubectl);
            async move {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                cluster
                    .run_with(kubectl, "admin", &args, &input)
                    .await
                    .unwrap_or_else(|error| panic!("{kubectl:?} {args:?}: {error}"))
            }
        };
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let manifest = |image: &str| {
            format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, labels: {{app: d}}}}\nspec:\n  selector: {{matchLabels: \
                 {{app: d}}}}\n  template:\n    metadata: {{labels: {{app: d}}}}\n    spec:\n      containers:\n      - name: c\n        image: \
                 {image}\n        ports:\n        - containerPort: 80\n        - containerPort: 443\n"
            )
        };
        run(words("apply -f -"), manifest("a")).await;
        run(words("apply -f -"), manifest("b")).await;
        let image =
            run(words("get deploy d -o jsonpath={.spec.template.spec.containers[*].image}"), String::new()).await;
        assert_eq!(image, "b");
        run(words("apply --server-side --force-conflicts -f -"), manifest("c")).await;
        run(words("apply --dry-run=server -f -"), manifest("d")).await;
        for line in [
            "scale deploy d --replicas=3",
            "set image deploy/d c=e",
            "set env deploy/d A=b",
            "label deploy d x=y",
            "annotate deploy d x=y",
            "get deploy d -o wide",
            "get deploy,svc -A",
            "get deploy -o custom-columns=N:.metadata.name",
            "describe deploy d",
            "describe namespace default",
            "api-resources",
            "api-versions",
            "explain deployment.spec.template.spec.containers",
            "explain pods --recursive",
            "explain deployment.spec --output=plaintext-openapiv2",
            "autoscale deploy d --max=3",
            "expose deploy d --port=80",
            "rollout pause deploy d",
            "patch deploy d --type=merge -p {\"spec\":{\"paused\":false}}",
            "wait --for=jsonpath={.spec.replicas}=3 deploy/d",
            "get events",
            "version",
            "cluster-info",
            "auth can-i --list",
            "replace --force -f -",
            "delete deploy d --cascade=orphan --wait=false",
            "delete svc -l app=d",
        ] {
            run(words(line), manifest("f")).await;
        }
        let explained =
            run(words("explain deployment.spec.replicas --output=plaintext-openapiv2"), String::new()).await;
        assert!(explained.contains("<integer>"), "{explained}");
    }
}
