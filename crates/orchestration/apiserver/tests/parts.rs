//! Subresources that change one part of an object: ephemeral containers, resize, approval, eviction.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
/// A certificate request for `CN=x`.
const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIR01HNENBUUF3RERFS01BZ0dBMVVFQXd3QmVEQlpNQk1HQnlx\
    R1NNNDlBZ0VHQ0NxR1NNNDlBd0VIQTBJQQpCR0tFMTRhaEdXaFBkcGV0UG8xOFp6V05QakNoS0ZUYzRRaHdSMmduc1hGNG96ZXl6\
    TlA2SFd3bnlaOWo1QkZmCmVKZitxaS9UMkFEb1NuKzNtQmgrNlY2Z0FEQUtCZ2dxaGtqT1BRUURBZ05JQURCRkFpRUF3eWQzQmE2\
    WHhkN3QKMjFGVGJFa2JveW9DZ0lIRzBjUjJxQnljeXRNN1IvRUNJSHlWSzJnMTRLcnVWaWJFNHBDa3JTQUorU2I4d2Z5SwpGeVVP\
    U0NxeDNYTmsKLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg==";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

async fn pod(cluster: &Cluster) {
    let account = json!({"metadata": {"name": "default"}});
    cluster.json("POST", "/api/v1/namespaces/default/serviceaccounts", "application/json", &account).await;
    let pod = json!({"metadata": {"name": "p", "labels": {"app": "p"}}, "spec": {"containers": [{"name": "c", "image": "i",
        "resources": {"requests": {"cpu": "1"}}}]}});
    let (code, answer) = cluster.json("POST", PODS, "application/json", &pod).await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_debugged_and_resized() {
    let cluster = Cluster::start().await;
    pod(&cluster).await;
    cluster.kubectl(&["debug", "pod/p", "--image=busybox", "--container=d", "--attach=false", "-q"]).await;
    assert_eq!(cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.spec.ephemeralContainers[*].name}"]).await, "d");
    let change = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "other"}]}});
    let (code, refused) = cluster.json("PATCH", &format!("{PODS}/p/ephemeralcontainers"), STRATEGIC, &change).await;
    assert!(code == 422 && refused["message"].as_str().unwrap().contains("may not be changed"), "{refused}");

    let resources =
        |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    cluster.kubectl(&["patch", "pod", "p", "--subresource", "resize", "-p", &resources("2").to_string()]).await;
    assert_eq!(
        cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.spec.containers[0].resources.requests.cpu}"]).await,
        "2"
    );
    let image = json!({"spec": {"containers": [{"name": "c", "image": "other"}]}});
    let (code, refused) = cluster.json("PATCH", &format!("{PODS}/p/resize"), STRATEGIC, &image).await;
    assert!(
        code == 422 && refused["message"].as_str().unwrap().contains("only cpu and memory resources are mutable"),
        "{refused}"
    );
    let class = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"memory": "1Gi"}}}]}});
    let (code, refused) = cluster.json("PATCH", &format!("{PODS}/p/resize"), STRATEGIC, &class).await;
    assert!(code == 422 && refused["message"].as_str().unwrap().contains("Pod QOS Class may not change"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_request_is_approved_by_who_may() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("jane", "jane", &[]);
    cluster
        .kubectl(&[
            "create",
            "clusterrole",
            "approver",
            "--verb=get,update",
            "--resource=certificatesigningrequests,certificatesigningrequests/approval",
        ])
        .await;
    cluster.kubectl(&["create", "clusterrolebinding", "approver", "--clusterrole=approver", "--user=jane"]).await;
    let request = json!({"metadata": {"name": "r"}, "spec": {"request": REQUEST, "signerName": "example.com/one",
        "usages": ["client auth"], "username": "somebody-else"}});
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let (code, made) = cluster.json("POST", path, "application/json", &request).await;
    assert_eq!((code, &made["spec"]["username"]), (201, &json!("admin")));
    let refused = cluster.run("jane", &["certificate", "approve", "r"], "").await.unwrap_err();
    assert!(
        refused.contains("user not permitted to approve requests with signerName \"example.com/one\""),
        "{refused}"
    );
    let signer = json!({"metadata": {"name": "signer"}, "rules": [{"apiGroups": ["certificates.k8s.io"],
        "resources": ["signers"], "resourceNames": ["example.com/*"], "verbs": ["approve"]}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    cluster.json("POST", roles, "application/json", &signer).await;
    cluster.kubectl(&["create", "clusterrolebinding", "signer", "--clusterrole=signer", "--user=jane"]).await;
    cluster.run("jane", &["certificate", "approve", "r"], "").await.unwrap();
    let kind = cluster.kubectl(&["get", "csr", "r", "-o", "jsonpath={.status.conditions[*].type}"]).await;
    assert_eq!(kind, "Approved");
    // kubectl itself would not even try, so the server is asked without it.
    let text = cluster.kubectl(&["get", "csr", "r", "-o", "json"]).await;
    let mut both: serde_json::Value = serde_json::from_str(&text).unwrap();
    let denial = json!({"type": "Denied", "status": "True", "reason": "x", "message": "y"});
    both["status"]["conditions"].as_array_mut().unwrap().push(denial);
    let (code, denied) = cluster.json("PUT", &format!("{path}/r/approval"), "application/json", &both).await;
    assert!(code == 422 && denied["message"].as_str().unwrap().contains("mutually exclusive"), "{denied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_used_up_by_evictions() {
    let cluster = Cluster::start().await;
    pod(&cluster).await;
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.json("PATCH", &format!("{PODS}/p/status"), STRATEGIC, &running).await;
    cluster.kubectl(&["create", "pdb", "b", "--selector=app=p", "--min-available=1"]).await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/b";
    let allow = |count: u32| json!({"status": {"observedGeneration": 1, "disruptionsAllowed": count, "desiredHealthy": 1, "currentHealthy": 1, "expectedPods": 1}});
    let evict = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let (code, early) = cluster.json("POST", &path, "application/json", &evict).await;
    assert!(code == 429 && early.to_string().contains("still being processed"), "{early}");
    cluster.json("PATCH", &format!("{budgets}/status"), "application/merge-patch+json", &allow(0)).await;
    let (code, refused) = cluster.json("POST", &path, "application/json", &evict).await;
    assert_eq!(
        (code, refused["message"].as_str().unwrap()),
        (429, "Cannot evict pod as it would violate the pod's disruption budget.")
    );
    cluster.json("PATCH", &format!("{budgets}/status"), "application/merge-patch+json", &allow(1)).await;
    let (code, _) = cluster.json("POST", &format!("{path}?dryRun=All"), "application/json", &evict).await;
    assert_eq!(code, 201);
    let (code, _) = cluster.json("POST", &path, "application/json", &evict).await;
    assert_eq!(code, 201);
    let (_, budget) = cluster.json("GET", budgets, "", &Value::Null).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
}
