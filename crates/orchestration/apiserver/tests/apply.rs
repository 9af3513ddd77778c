//! Server-side apply and managed fields, through kubectl and raw requests.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;
use serde_json::{Value, json};

const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";

fn web(replicas: Option<u32>, image: &str) -> Value {
    let mut web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image, "resources": {"limits": {"cpu": "1000m"}}}]}}},
    });
    if let Some(replicas) = replicas {
        web["spec"]["replicas"] = json!(replicas);
    }
    web
}

fn managers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|e| {
            format!(
                "{}/{}/{}",
                e["manager"].as_str().unwrap(),
                e["operation"].as_str().unwrap(),
                e["subresource"].as_str().unwrap_or("")
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_share_an_object() {
    let cluster = Cluster::start().await;
    let apply = |manager: &str, body: Value| {
        let path = format!("{DEPLOYMENT}?fieldManager={manager}");
        let cluster = &cluster;
        async move { cluster.json("PATCH", &path, APPLY, &body).await }
    };
    let (code, created) = apply("one", web(Some(2), "a")).await;
    assert_eq!((code, managers(&created)), (201, vec!["one/Apply/".to_owned()]));
    let (code, again) = apply("one", web(Some(2), "a")).await;
    assert_eq!((code, &again), (200, &created), "applying the same writes nothing");

    // An autoscaler takes the replicas over, by the scale subresource.
    let scale = json!({"spec": {"replicas": 5}});
    let (code, _) = cluster.json("PATCH", &format!("{DEPLOYMENT}/scale"), MERGE, &scale).await;
    assert_eq!(code, 200);
    let (code, conflict) = apply("one", web(Some(2), "b")).await;
    assert_eq!(code, 409);
    assert_eq!(
        conflict["message"],
        "Apply failed with 1 conflict: conflict with \"tester\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    assert_eq!(conflict["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let (code, without) = apply("one", web(None, "b")).await;
    assert_eq!((code, &without["spec"]["replicas"]), (200, &json!(5)));
    let (code, forced) =
        cluster.json("PATCH", &format!("{DEPLOYMENT}?fieldManager=two&force=true"), APPLY, &web(Some(1), "c")).await;
    assert_eq!((code, &forced["spec"]["replicas"]), (200, &json!(1)));
    assert_eq!(forced["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);

    // The controller's status is its own.
    let status =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "status": {"replicas": 3}, "metadata": {"name": "web"}});
    let (code, reported) =
        cluster.json("PATCH", &format!("{DEPLOYMENT}/status?fieldManager=kcm"), APPLY, &status).await;
    assert_eq!((code, &reported["status"]["replicas"], &reported["spec"]["replicas"]), (200, &json!(3), &json!(1)));
    assert!(managers(&reported).contains(&"kcm/Apply/status".to_owned()), "{:?}", managers(&reported));

    // Asked to forget.
    let (_, reset) = cluster.json("PATCH", DEPLOYMENT, MERGE, &json!({"metadata": {"managedFields": [{}]}})).await;
    assert!(managers(&reset).is_empty());

    let (code, error) = cluster.json("PATCH", DEPLOYMENT, APPLY, &web(None, "x")).await;
    assert_eq!(code, 422);
    assert!(error["message"].as_str().unwrap().contains("fieldManager: Required value: is required for apply patch"));
    let (code, error) =
        apply("one", json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replica": 1}})).await;
    assert!(code == 500 && error["message"].as_str().unwrap().ends_with(".spec.replica: field not declared in schema"));
}

/// Who applies a Scale owns the workload's replicas, and nothing else of it.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_applied_through_scale() {
    let cluster = Cluster::start().await;
    let path = |rest: &str| format!("{DEPLOYMENT}{rest}");
    let (code, _) = cluster.json("PATCH", &path("?fieldManager=one"), APPLY, &web(Some(2), "a")).await;
    assert_eq!(code, 201);
    let scale = |replicas: u32| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
    let (code, conflict) = cluster.json("PATCH", &path("/scale?fieldManager=hpa"), APPLY, &scale(5)).await;
    assert_eq!(code, 409);
    assert!(conflict["message"].as_str().unwrap().contains("conflict with \"one\": .spec.replicas"), "{conflict}");
    let (code, scaled) = cluster.json("PATCH", &path("/scale?fieldManager=hpa&force=true"), APPLY, &scale(5)).await;
    assert_eq!((code, &scaled["kind"], &scaled["spec"]["replicas"]), (200, &json!("Scale"), &json!(5)));
    let (_, web) = cluster.json("GET", DEPLOYMENT, APPLY, &Value::Null).await;
    assert_eq!(web["spec"]["replicas"], json!(5));
    let list = web["metadata"]["managedFields"].as_array().unwrap();
    let owned = list.iter().find(|entry| entry["manager"] == "hpa").unwrap();
    assert_eq!((&owned["subresource"], &owned["apiVersion"]), (&json!("scale"), &json!("apps/v1")));
    assert_eq!(owned["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let (code, again) = cluster.json("PATCH", &path("/scale?fieldManager=hpa"), APPLY, &scale(5)).await;
    assert_eq!((code, again), (200, scaled), "applying the same writes nothing");
    let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 1}});
    let (code, status) = cluster.json("PATCH", &path("/scale?fieldManager=hpa"), APPLY, &other).await;
    assert!(
        code == 400 && status["message"].as_str().unwrap().contains("does not match the expected type"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_moves_from_client_side_to_server_side() {
    let cluster = Cluster::start().await;
    let manifest = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {data}\n");
    let client = cluster.run("admin", &["apply", "-f", "-"], &manifest("{x: '1', y: '2'}")).await.unwrap();
    assert_eq!(client, "configmap/a created\n");
    let server = cluster.run("admin", &["apply", "--server-side", "-f", "-"], &manifest("{x: '2'}")).await.unwrap();
    assert_eq!(server, "configmap/a serverside-applied\n");
    assert_eq!(cluster.kubectl(&["get", "cm", "a", "-o", "jsonpath={.data}"]).await, r#"{"x":"2"}"#);
    let shown = cluster.kubectl(&["get", "cm", "a", "-o", "yaml", "--show-managed-fields"]).await;
    assert!(shown.contains("manager: kubectl\n") && shown.contains("operation: Apply"), "{shown}");
    // And back.
    let client = cluster.run("admin", &["apply", "-f", "-"], &manifest("{z: '3'}")).await.unwrap();
    assert_eq!(client, "configmap/a configured\n");
    let diff =
        cluster.run("admin", &["diff", "--server-side", "--force-conflicts", "-f", "-"], &manifest("{z: '4'}")).await;
    assert!(diff.is_err(), "a difference is told by the exit code");
    let dry = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
    cluster.run("admin", &dry, &manifest("{z: '5'}")).await.unwrap();
    assert!(!cluster.kubectl(&["get", "cm", "a", "-o", "jsonpath={.data.z}"]).await.contains('5'));
    let conflict = cluster
        .run("admin", &["apply", "--server-side", "--field-manager=other", "-f", "-"], &manifest("{z: '6'}"))
        .await;
    assert!(
        conflict.unwrap_err().contains("Apply failed with 1 conflict: conflict with"),
        "kubectl shows the conflict"
    );
    cluster.kubectl(&["label", "cm", "a", "l=1"]).await;
    let shown = cluster.kubectl(&["get", "cm", "a", "-o", "yaml", "--show-managed-fields"]).await;
    assert!(shown.contains("manager: kubectl-label"), "{shown}");
}
