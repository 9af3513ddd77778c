//! The cluster autoscaler against a real API server and a node provider of the test's, over upstream's gRPC interface.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;
#[path = "provider/mod.rs"]
mod provider;

use dhow_controllers::{ClusterAutoscalerConfig, ControllersConfig};
use fake::Cloud;
use provider::Provider;
use serde_json::{Value, json};

/// Everything that takes minutes takes moments.
fn config(address: &str, more: Value) -> ControllersConfig {
    let mut config = json!({
        "provider": {"address": address}, "scanInterval": "300ms", "scaleDownDelayAfterAdd": "1s",
        "scaleDownUnneededTime": "1s", "maxNodeProvisionTime": "3s", "scaleDownDelayAfterFailure": "1s",
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config: ClusterAutoscalerConfig = serde_json::from_value(config).unwrap();
    ControllersConfig { cluster_autoscaler: config.settings().unwrap(), ..ControllersConfig::default() }
}

async fn start(more: Value) -> (Cloud, Provider) {
    let provider = Provider::serve().await;
    let cloud =
        Cloud::start_configured(dhow_apiserver::AccessConfig::default(), config(&provider.address(), more)).await;
    cloud.node("own", json!([])).await;
    provider.join(&cloud);
    (cloud, provider)
}

fn deployment(name: &str, replicas: u32, cpu: &str) -> Value {
    let container = json!({"name": "c", "image": "example/app:1", "resources": {"requests": {"cpu": cpu}}});
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}})
}

/// Waits for `kubectl` to print all of the words.
async fn until_contains(cloud: &Cloud, args: &[&str], words: &[&str]) {
    let mut last = String::new();
    for _ in 0..100 {
        last = cloud.kubectl(args).await;
        if words.iter().all(|word| last.contains(word)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    panic!("{words:?} is not in {last}");
}

const RUNNING: &str = "jsonpath={.status.readyReplicas}";

async fn events(cloud: &Cloud, reason: &str) -> String {
    let of = format!("reason={reason}");
    cloud.kubectl(&["get", "events", "-A", "--field-selector", &of, "-o", "jsonpath={.items[*].message}"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_with_load_and_leave_with_it() {
    let (cloud, provider) = start(json!({})).await;
    provider.group("small", 0, 5, "2");
    // The cluster's own node has four processors: two pods find no place.
    cloud.apply(deployment("web", 4, "1900m")).await;
    cloud.until(&["get", "deploy/web", "-o", RUNNING], "4").await;
    assert_eq!(provider.size("small"), 2);
    let told = events(&cloud, "TriggeredScaleUp").await;
    assert!(told.contains("pod triggered scale-up: [{small 0->"), "{told}");
    let told = events(&cloud, "ScaledUpGroup").await;
    assert!(told.contains("Scale-up: group small size set to 2 instead of "), "{told}");
    let status =
        ["get", "configmap", "cluster-autoscaler-status", "-n", "kube-system", "-o", "jsonpath={.data.status}"];
    until_contains(&cloud, &status, &["name: small", "cloudProviderTarget: 2", "maxSize: 5"]).await;

    cloud.kubectl(&["scale", "deploy/web", "--replicas=0"]).await;
    cloud.until(&["get", "nodes", "-o", "name"], "node/own").await;
    assert_eq!(provider.size("small"), 0);
    let told = events(&cloud, "ScaleDownEmpty").await;
    assert!(told.contains("Scale-down: empty node small-"), "{told}");
    until_contains(&cloud, &status, &["status: NoCandidates", "cloudProviderTarget: 0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_emptied_before_it_goes_and_budgets_are_kept() {
    let (cloud, provider) = start(json!({})).await;
    provider.group("g", 0, 3, "4");
    cloud.apply(deployment("big", 1, "3500m")).await;
    cloud.until(&["get", "deploy/big", "-o", RUNNING], "1").await;
    cloud.apply(deployment("little", 1, "1")).await;
    cloud.until(&["get", "deploy/little", "-o", RUNNING], "1").await;
    assert_eq!(provider.size("g"), 1, "one does not fit on the cluster's own node");
    cloud
        .apply(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "little"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "little"}}}}))
        .await;
    let allowed = ["get", "pdb/little", "-o", "jsonpath={.status.currentHealthy} {.status.disruptionsAllowed}"];
    cloud.until(&allowed, "1 0").await;
    // Room for all on one node.
    cloud.kubectl(&["delete", "deploy/big"]).await;
    let on = ["get", "pods", "-l", "app=little", "-o", "jsonpath={.items[0].spec.nodeName}"];
    let machine = provider.machines("g")[0].clone();
    assert_eq!(cloud.kubectl(&on).await, machine);
    // Longer than an unneeded node stays.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(provider.size("g"), 1, "the budget allows nobody to go");
    cloud.kubectl(&["delete", "pdb/little"]).await;
    cloud.until(&["get", "nodes", "-o", "name"], "node/own").await;
    let told = events(&cloud, "ScaleDown").await;
    assert!(
        told.contains("marked the node as toBeDeleted/unschedulable")
            && told.contains("deleting pod for node scale down")
            && told.contains(&format!("Scale-down: node {machine} removed with drain")),
        "{told}"
    );
    cloud.until(&on, "own").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_fails_is_left_for_another() {
    let (cloud, provider) =
        start(json!({"expander": ["priority"], "priorities": {"1": [".*"], "2": ["^spot$"]}})).await;
    provider.group("spot", 0, 5, "8");
    provider.group("safe", 0, 5, "8");
    // Its machines never become nodes.
    provider.break_group("spot");
    cloud.apply(deployment("web", 1, "6")).await;
    cloud.until(&["get", "deploy/web", "-o", RUNNING], "1").await;
    assert_eq!((provider.size("spot"), provider.size("safe")), (0, 1));
    let told = events(&cloud, "DeleteUnregistered").await;
    assert!(told.contains("Removed unregistered node test://spot-"), "{told}");
    // What nobody can help hears why, and once.
    cloud.apply(deployment("huge", 1, "64")).await;
    let of = "reason=NotTriggerScaleUp";
    let why = ["get", "events", "--field-selector", of, "-o", "jsonpath={.items[*].message} {.items[*].count}"];
    cloud.until(&why, "pod didn't trigger scale-up: 2 Insufficient cpu 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_began_is_taken_back() {
    let provider = Provider::serve().await;
    provider.group("g", 0, 5, "4");
    let settings = config(&provider.address(), json!({"scaleDownEnabled": false}));
    let cloud = Cloud::start_without_controllers().await;
    provider.join(&cloud);
    provider.add("g", 1);
    let machine = provider.machines("g")[0].clone();
    cloud.until(&["get", "nodes", "-o", "name"], &format!("node/{machine}")).await;
    let taint = json!({"metadata": {"annotations": {"dhow.io/cordoned-by-cluster-autoscaler": "true"}},
        "spec": {"unschedulable": true, "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    cloud.kubectl(&["patch", "node", &machine, "--type=merge", "-p", &taint.to_string()]).await;
    cloud.run_controllers(settings);
    let spec = "jsonpath={.spec.taints[?(@.key=='ToBeDeletedByClusterAutoscaler')].key}{.spec.unschedulable}";
    cloud.until(&["get", "node", &machine, "-o", spec], "").await;
}
