//! Workload controllers against a real API server and scheduler, seen through kubectl.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;

use fake::Cloud;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

fn template(app: &str, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "example/app:1"}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

fn job(name: &str, play: &str, spec: Value) -> Value {
    let mut template = template(name, json!({"restartPolicy": "Never"}));
    template["metadata"]["annotations"] = json!({"play": play});
    let mut whole = json!({"template": template});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": whole})
}

const NAMES: &str = "{.items[*].metadata.name}";

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_rolls_out_and_back_and_keeps_its_claims() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    cloud
        .apply(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {
                "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": template("db", json!({})),
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]
            }
        }))
        .await;
    cloud.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]).await;
    assert_eq!(cloud.get("pods", NAMES).await, "db-0 db-1 db-2");
    assert_eq!(cloud.get("pvc", NAMES).await, "data-db-0 data-db-1 data-db-2");
    let pod = "{.spec.hostname} {.spec.subdomain} {.metadata.labels.apps\\.kubernetes\\.io/pod-index}";
    assert_eq!(cloud.get("pod/db-1", pod).await, "db-1 db 1");

    cloud.kubectl(&["set", "image", "sts/db", "c=example/app:2"]).await;
    cloud.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]).await;
    let images = "{.items[*].spec.containers[0].image}";
    assert_eq!(cloud.get("pods", images).await, "example/app:2 example/app:2 example/app:2");
    let history = cloud.kubectl(&["rollout", "history", "sts/db"]).await;
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    let first = cloud.kubectl(&["rollout", "history", "sts/db", "--revision=1"]).await;
    assert!(first.contains("example/app:1"), "{first}");

    cloud.kubectl(&["rollout", "undo", "sts/db"]).await;
    cloud.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]).await;
    assert_eq!(cloud.get("pods", images).await, "example/app:1 example/app:1 example/app:1");
    assert_eq!(cloud.get("controllerrevisions", "{.items[*].revision}").await.split(' ').max(), Some("3"));
    assert_eq!(cloud.get("controllerrevisions", NAMES).await.split(' ').count(), 2, "the old revision came back");

    cloud
        .kubectl(&[
            "patch",
            "sts/db",
            "-p",
            r#"{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenScaled":"Delete"}}}"#,
        ])
        .await;
    cloud.kubectl(&["scale", "sts/db", "--replicas=1"]).await;
    cloud.until(&["get", "pods", "-o", "name"], "pod/db-0").await;
    cloud.until(&["get", "pvc", "-o", "name"], "persistentvolumeclaim/data-db-0").await;
    cloud.until(&["get", "sts/db", "-o", "jsonpath={.status.replicas} {.status.availableReplicas}"], "1 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_follows_nodes_and_rolls_out_and_back() {
    let cloud = Cloud::start().await;
    for name in ["n1", "n2"] {
        cloud.node(name, json!([])).await;
    }
    cloud.node("kept", json!([{"key": "mine", "effect": "NoSchedule"}])).await;
    cloud
        .apply(json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", json!({}))}
        }))
        .await;
    cloud.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]).await;
    let nodes = async || {
        let mut nodes: Vec<_> =
            cloud.get("pods", "{.items[*].spec.nodeName}").await.split(' ').map(str::to_owned).collect();
        nodes.sort();
        nodes
    };
    assert_eq!(nodes().await, ["n1", "n2"]);
    cloud.kubectl(&["set", "image", "ds/agent", "c=example/app:2"]).await;
    cloud.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]).await;
    let images = "{.items[*].spec.containers[0].image}";
    cloud.until(&["get", "pods", "-o", &format!("jsonpath={images}")], "example/app:2 example/app:2").await;
    cloud.kubectl(&["rollout", "undo", "ds/agent", "--to-revision=1"]).await;
    cloud.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]).await;
    cloud.until(&["get", "pods", "-o", &format!("jsonpath={images}")], "example/app:1 example/app:1").await;
    let history = cloud.kubectl(&["rollout", "history", "ds/agent"]).await;
    assert!(history.contains("\n2 ") && history.contains("\n3 "), "{history}");

    cloud.kubectl(&["taint", "node", "kept", "mine-"]).await;
    let counts = "jsonpath={.status.desiredNumberScheduled} {.status.numberAvailable} {.status.updatedNumberScheduled}";
    cloud.until(&["get", "ds/agent", "-o", counts], "3 3 3").await;
    cloud.kubectl(&["delete", "node", "n1"]).await;
    cloud.until(&["get", "ds/agent", "-o", counts], "2 2 2").await;
    cloud.until(&["get", "pods", "--no-headers", "--field-selector=spec.nodeName=n1", "-o", "name"], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_fail_and_leave() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    cloud.apply(job("good", "succeed", json!({"completions": 3, "parallelism": 2}))).await;
    cloud.kubectl(&["wait", "--for=condition=complete", "job/good", "--timeout=60s"]).await;
    let counters = "{.status.succeeded} {.status.failed} {.status.uncountedTerminatedPods}";
    assert_eq!(cloud.get("job/good", counters).await, "3  {}");
    cloud.until(&["get", "pods", "-l", "job-name=good", "-o", "jsonpath={.items[*].metadata.finalizers}"], "").await;
    let conditions = "{range .status.conditions[*]}{.type}={.reason} {end}";
    assert_eq!(
        cloud.get("job/good", conditions).await,
        "SuccessCriteriaMet=CompletionsReached Complete=CompletionsReached"
    );

    cloud.apply(job("bad", "fail", json!({"backoffLimit": 0}))).await;
    cloud.kubectl(&["wait", "--for=condition=failed", "job/bad", "--timeout=60s"]).await;
    assert_eq!(
        cloud.get("job/bad", conditions).await,
        "FailureTarget=BackoffLimitExceeded Failed=BackoffLimitExceeded"
    );

    let spec = json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 0});
    cloud.apply(job("each", "fail-0", spec)).await;
    cloud.kubectl(&["wait", "--for=condition=failed", "job/each", "--timeout=60s"]).await;
    let indexes = "{.status.completedIndexes} {.status.failedIndexes} {.status.succeeded} {.status.failed}";
    assert_eq!(cloud.get("job/each", indexes).await, "1-3 0 3 1");

    cloud.apply(job("brief", "succeed", json!({"ttlSecondsAfterFinished": 0}))).await;
    cloud.kubectl(&["wait", "--for=delete", "job/brief", "--timeout=60s"]).await;
    cloud.until(&["get", "pods", "-l", "app=brief", "-o", "name"], "").await;

    cloud.apply(job("long", "run", json!({"parallelism": 2, "completions": 2}))).await;
    cloud.until(&["get", "job/long", "-o", "jsonpath={.status.active} {.status.ready}"], "2 2").await;
    cloud.kubectl(&["patch", "job/long", "-p", r#"{"spec":{"suspend":true}}"#]).await;
    cloud.kubectl(&["wait", "--for=condition=suspended", "job/long", "--timeout=60s"]).await;
    cloud.until(&["get", "pods", "-l", "app=long", "-o", "name"], "").await;
    cloud.kubectl(&["patch", "job/long", "-p", r#"{"spec":{"suspend":false}}"#]).await;
    cloud.until(&["get", "job/long", "-o", "jsonpath={.status.active}"], "2").await;
    assert_eq!(cloud.get("job/long", "{.status.failed}").await, "", "withdrawn pods have not failed");
    cloud.kubectl(&["delete", "job/long", "--timeout=60s"]).await;
    cloud.until(&["get", "pods", "-l", "app=long", "-o", "name"], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_starts_jobs_and_keeps_a_short_history() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let spec = job("x", "succeed", json!({}))["spec"].clone();
    cloud
        .apply(json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
            "spec": {"schedule": "@every 1s", "successfulJobsHistoryLimit": 1, "concurrencyPolicy": "Forbid",
                "jobTemplate": {"spec": spec}}
        }))
        .await;
    cloud.until(&["get", "cronjob/tick", "-o", "go-template={{if .status.lastSuccessfulTime}}ran{{end}}"], "ran").await;
    let owner = cloud.get("jobs", "{.items[0].metadata.ownerReferences[0].kind}").await;
    assert_eq!(owner, "CronJob");
    // From here on there is room for one more: of two that end in the same second either may be the older one.
    let patch = r#"{"spec":{"suspend":true,"successfulJobsHistoryLimit":3}}"#;
    cloud.kubectl(&["patch", "cronjob/tick", "-p", patch]).await;
    cloud.until(&["get", "cronjob/tick", "-o", "jsonpath={.status.active}"], "").await;
    cloud.kubectl(&["create", "job", "manual", "--from=cronjob/tick"]).await;
    cloud.kubectl(&["wait", "--for=condition=complete", "job/manual", "--timeout=60s"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_refuses_what_would_be_too_much() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    cloud
        .apply(json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "old"},
            "spec": {"replicas": 2, "selector": {"app": "old"}, "template": template("old", json!({}))}
        }))
        .await;
    cloud
        .apply(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "old"},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "old"}}}
        }))
        .await;
    cloud.until(&["get", "rc/old", "-o", "jsonpath={.status.availableReplicas}"], "2").await;
    let numbers = "jsonpath={.status.disruptionsAllowed} {.status.currentHealthy} {.status.desiredHealthy} {.status.expectedPods}";
    cloud.until(&["get", "pdb/old", "-o", numbers], "1 2 1 2").await;
    // With another demand on it the budget is used up.
    cloud.kubectl(&["patch", "pdb/old", "-p", r#"{"spec":{"maxUnavailable":0}}"#]).await;
    cloud.until(&["get", "pdb/old", "-o", numbers], "0 2 2 2").await;
    let pod = cloud.get("pods", "{.items[0].metadata.name}").await;
    let evict = async || {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
        cloud.cluster.json("POST", &path, "application/json", &body).await.0
    };
    assert_eq!(evict().await, 429);
    cloud.kubectl(&["patch", "pdb/old", "-p", r#"{"spec":{"maxUnavailable":1}}"#]).await;
    cloud.until(&["get", "pdb/old", "-o", numbers], "1 2 1 2").await;
    assert_eq!(evict().await, 201);
    cloud.until(&["get", "pods", &pod, "-o", "name", "--ignore-not-found"], "").await;
    cloud.until(&["get", "pdb/old", "-o", numbers], "1 2 1 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_serve_may_go_where_its_budget_says_so() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let mut sick = template("sick", json!({}));
    sick["metadata"]["annotations"] = json!({"play": "unready"});
    cloud
        .apply(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "sick"},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "sick"}}, "template": sick}}))
        .await;
    cloud
        .apply(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "sick"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "sick"}}}}))
        .await;
    cloud.until(&["get", "pdb/sick", "-o", "jsonpath={.status.currentHealthy} {.status.expectedPods}"], "0 1").await;
    cloud.until(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"], "Running").await;
    let evict = async || {
        let pod = cloud.get("pods", "{.items[0].metadata.name}").await;
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
        cloud.cluster.json("POST", &path, "application/json", &body).await.0
    };
    assert_eq!(evict().await, 429);
    cloud.kubectl(&["patch", "pdb/sick", "-p", r#"{"spec":{"unhealthyPodEvictionPolicy":"AlwaysAllow"}}"#]).await;
    assert_eq!(evict().await, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_pod_moves_once_its_dead_node_is_fenced() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let spec = json!({"replicas": 1, "serviceName": "s", "selector": {"matchLabels": {"app": "s"}},
        "template": template("s", json!({}))});
    cloud.apply(json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"}, "spec": spec})).await;
    cloud.until(&["get", "sts/s", "-o", "jsonpath={.status.readyReplicas}"], "1").await;
    let uid = cloud.get("pod/s-0", "{.metadata.uid}").await;
    // The machine dies; another one is there.
    cloud.dead.lock().insert("n1".to_owned());
    let away = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let path = "/api/v1/nodes/n1/status";
    assert_eq!(cloud.cluster.json("PATCH", path, "application/merge-patch+json", &away).await.0, 200);
    cloud.node("n2", json!([])).await;
    cloud.kubectl(&["delete", "pod", "s-0", "--wait=false"]).await;
    // Nobody knows whether it still runs: it stays, and no other takes its name.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(cloud.get("pod/s-0", "{.metadata.uid}").await, uid);
    cloud.kubectl(&["taint", "node", "n1", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]).await;
    cloud
        .until(
            &["get", "pod/s-0", "--ignore-not-found", "-o", "jsonpath={.spec.nodeName} {.status.phase}"],
            "n2 Running",
        )
        .await;
    assert_ne!(cloud.get("pod/s-0", "{.metadata.uid}").await, uid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_somebody_else_manages_is_left_alone() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    cloud.apply(job("theirs", "succeed", json!({"managedBy": "example.com/them"}))).await;
    cloud.apply(job("ours", "succeed", json!({"managedBy": "kubernetes.io/job-controller"}))).await;
    cloud.kubectl(&["wait", "--for=condition=complete", "job/ours", "--timeout=60s"]).await;
    assert_eq!(cloud.get("job/theirs", "{.status}").await, "{}");
    assert_eq!(cloud.kubectl(&["get", "pods", "-l", "job-name=theirs", "-o", "name"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_adopted_by_whoever_selects_them() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let old = json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "old"},
        "spec": {"replicas": 2, "selector": {"app": "old"}, "template": template("old", json!({}))}
    });
    cloud.apply(old.clone()).await;
    let ready = ["get", "rc/old", "-o", "jsonpath={.status.readyReplicas}"];
    cloud.until(&ready, "2").await;
    let names = cloud.get("pods", NAMES).await;
    cloud.kubectl(&["delete", "rc/old", "--cascade=orphan"]).await;
    cloud.until(&["get", "pods", "-o", "jsonpath={.items[*].metadata.ownerReferences}"], "").await;
    cloud.apply(old).await;
    cloud.until(&ready, "2").await;
    assert_eq!(cloud.get("pods", NAMES).await, names);
    cloud.kubectl(&["label", "pods", names.split(' ').next().unwrap(), "app=other", "--overwrite"]).await;
    cloud.until(&["get", "pods", "-l", "app=other", "-o", "jsonpath={.items[*].metadata.ownerReferences}"], "").await;
    cloud.until(&ready, "2").await;
    assert_eq!(cloud.get("pods", NAMES).await.split(' ').count(), 3, "one was let go, one made");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregated_role_has_the_rules_of_those_it_selects() {
    let cloud = Cloud::start().await;
    let role = |name: &str, extra: Value| {
        let mut role =
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}});
        role.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        role
    };
    let selector = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "sum"}}]});
    cloud.apply(role("sum", json!({"aggregationRule": selector, "rules": []}))).await;
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    cloud.apply(role("part", json!({"metadata": {"name": "part", "labels": {"to": "sum"}}, "rules": rules}))).await;
    cloud.until(&["get", "clusterrole/sum", "-o", "jsonpath={.rules[*].resources[*]}"], "pods").await;
    cloud.kubectl(&["delete", "clusterrole/part"]).await;
    cloud.until(&["get", "clusterrole/sum", "-o", "jsonpath={.rules[*].resources[*]}"], "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_mirrored_or_made() {
    let cloud = Cloud::start().await;
    cloud.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "far"}, "spec": {"ports": [{"port": 80}]}})).await;
    let endpoints = |ip: &str| {
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "far"},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 8080}]}]})
    };
    cloud.apply(endpoints("192.0.2.7")).await;
    let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=far", "-o"];
    let addresses = "jsonpath={.items[*].endpoints[*].addresses[*]}:{.items[*].ports[*].port}";
    cloud.until(&[&slices[..], &[addresses]].concat(), "192.0.2.7:8080").await;
    cloud.apply(endpoints("192.0.2.8")).await;
    cloud.until(&[&slices[..], &[addresses]].concat(), "192.0.2.8:8080").await;
    cloud.kubectl(&["delete", "endpoints", "far"]).await;
    cloud.until(&[&slices[..], &["name"]].concat(), "").await;

    // A selector makes them, and takes them along.
    cloud.kubectl(&["create", "service", "clusterip", "near", "--tcp=80:8080"]).await;
    let subsets = ["get", "endpoints", "near", "--ignore-not-found", "-o", "name"];
    cloud.until(&subsets, "endpoints/near").await;
    cloud.kubectl(&["delete", "service", "near"]).await;
    cloud.until(&subsets, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_volumes_stay_while_they_are_used() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let claim = |name: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    };
    cloud.apply(claim("used")).await;
    cloud.apply(claim("idle")).await;
    let mut pod = template("p", json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]}));
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("p");
    // Bound by hand: whether the scheduler waits for the claim's volume is not what this is about.
    pod["spec"]["nodeName"] = json!("n1");
    cloud.apply(pod).await;
    cloud.kubectl(&["delete", "pvc", "used", "idle", "--wait=false"]).await;
    cloud.kubectl(&["wait", "pvc/idle", "--for=delete", "--timeout=20s"]).await;
    let used = [
        "get",
        "pvc",
        "used",
        "--ignore-not-found",
        "-o",
        "jsonpath={.metadata.finalizers[*]} {.metadata.deletionGracePeriodSeconds}",
    ];
    assert_eq!(cloud.kubectl(&used).await, "kubernetes.io/pvc-protection 0");
    cloud.kubectl(&["delete", "pod", "p", "--wait=false"]).await;
    cloud.kubectl(&["wait", "pvc/used", "--for=delete", "--timeout=20s"]).await;

    cloud
        .apply(json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/nowhere"}}}))
        .await;
    let mut holder = claim("holder");
    holder["spec"]["storageClassName"] = json!("");
    cloud.apply(holder).await;
    cloud.until(&["get", "pv/pv", "-o", "jsonpath={.status.phase}"], "Bound").await;
    cloud.kubectl(&["delete", "pv", "pv", "--wait=false"]).await;
    assert_eq!(cloud.get("pv/pv", "{.metadata.finalizers[*]}").await, "kubernetes.io/pv-protection");
    cloud.kubectl(&["delete", "pvc", "holder", "--timeout=20s"]).await;
    cloud.kubectl(&["wait", "pv/pv", "--for=delete", "--timeout=20s"]).await;
}

/// A template of the second version, whose pods play what is said.
fn second(play: &str) -> String {
    let metadata = json!({"labels": {"app": "w"}, "annotations": {"play": play}});
    let spec = json!({"containers": [{"name": "c", "image": "example/app:2"}]});
    json!({"spec": {"template": {"metadata": metadata, "spec": spec}}}).to_string()
}

/// Applies a workload that goes back by itself, waits for its first version, and gives it a second that is no good.
async fn fails_to_roll(cloud: &Cloud, kind: &str, spec: Value, play: &str) -> String {
    let what = format!("{}/w", kind.to_lowercase());
    let mut whole = json!({"selector": {"matchLabels": {"app": "w"}}, "template": template("w", json!({}))});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let annotations = json!({"dhow.io/auto-rollback": "true", "dhow.io/progress-deadline-seconds": "2"});
    let metadata = json!({"name": "w", "annotations": annotations});
    cloud.apply(json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": whole})).await;
    cloud.kubectl(&["rollout", "status", &what, "--timeout=60s"]).await;
    let revisions = if kind == "Deployment" { "replicasets" } else { "controllerrevisions" };
    let marks = "jsonpath={.items[*].metadata.annotations.dhow\\.io/completed}";
    cloud.until(&["get", revisions, "-o", marks], "1").await;
    cloud.kubectl(&["patch", &what, "-p", &second(play)]).await;
    let image = "jsonpath={.spec.template.spec.containers[0].image} {.metadata.annotations.dhow\\.io/rolled-back}";
    // The record is there with the first template.
    let mut seen = String::new();
    for _ in 0..150 {
        seen = cloud.kubectl(&["get", &what, "-o", image]).await;
        if seen.starts_with("example/app:1 {") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert!(seen.starts_with("example/app:1 {"), "{seen}\n{}", cloud.kubectl(&["get", "events,pods,rs"]).await);
    cloud.kubectl(&["rollout", "status", &what, "--timeout=60s"]).await;
    let images =
        "jsonpath={.items[*].spec.containers[0].image} {.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    cloud.until(&["get", "pods", "-l", "app=w", "-o", images], "example/app:1 example/app:1 True True").await;
    let condition = "jsonpath={.status.conditions[?(@.type==\"RolledBack\")].reason}";
    let reason = if play == "crash" { "CrashLoopBackOff" } else { "ProgressDeadlineExceeded" };
    cloud.until(&["get", &what, "-o", condition], reason).await;
    let events = ["get", "events", "--field-selector=reason=AutoRollback", "-o", "jsonpath={.items[*].message}"];
    let message = cloud.kubectl(&events).await;
    assert!(message.starts_with("Rolled back from revision 2 (w-"), "{message}");
    assert_eq!(message.matches("Rolled back").count(), 1, "{message}");
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_fails_goes_back_and_says_why() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let spec = json!({"replicas": 2, "progressDeadlineSeconds": 2});
    let said = fails_to_roll(&cloud, "Deployment", spec, "unready").await;
    assert!(said.contains("has timed out progressing: pod w-"), "{said}");
    // What was put back and then replaced by something good is forgotten.
    cloud.kubectl(&["set", "image", "deploy/w", "c=example/app:3"]).await;
    cloud.kubectl(&["rollout", "status", "deploy/w", "--timeout=60s"]).await;
    cloud
        .until(&["get", "deploy/w", "-o", "jsonpath={.status.conditions[?(@.type==\"RolledBack\")].reason}"], "")
        .await;
    // A pod that keeps ending is not waited for; back to the version that was up last.
    let forever = r#"{"spec":{"progressDeadlineSeconds":600}}"#;
    cloud.kubectl(&["patch", "deploy/w", "-p", forever]).await;
    cloud.kubectl(&["patch", "deploy/w", "-p", &second("crash")]).await;
    cloud
        .until(
            &["get", "deploy/w", "-o", "jsonpath={.status.conditions[?(@.type==\"RolledBack\")].reason}"],
            "CrashLoopBackOff",
        )
        .await;
    assert_eq!(cloud.get("deploy/w", "{.spec.template.spec.containers[0].image}").await, "example/app:3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_that_fails_goes_back_and_says_why() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    let said = fails_to_roll(&cloud, "StatefulSet", json!({"replicas": 2, "serviceName": "w"}), "unready").await;
    assert!(said.contains("pod w-1 is not ready after 2 seconds: container c waits: CrashLoopBackOff"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_that_fails_goes_back_and_says_why() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    cloud.node("n2", json!([])).await;
    let said = fails_to_roll(&cloud, "DaemonSet", json!({}), "crash").await;
    assert!(said.contains("ended 3 times, the last time with exit code 3"), "{said}");
}

/// Lets every pod of an application be in a crash loop.
async fn crash(cloud: &Cloud, app: &str) {
    let of = format!("app={app}");
    let names = cloud.kubectl(&["get", "pods", "-l", &of, "-o", "jsonpath={.items[*].metadata.name}"]).await;
    let now = Timestamp::now().to_string();
    let status = json!({"status": {
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
        "containerStatuses": [{"name": "c", "image": "x", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 3}}}]}});
    for name in names.split_whitespace() {
        let path = format!("/api/v1/namespaces/default/pods/{name}/status");
        let (code, answer) = cloud.cluster.json("PATCH", &path, "application/merge-patch+json", &status).await;
        assert!(code == 200 || code == 404, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_ready_for_a_moment_goes_back_too() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    for (kind, app, more) in [
        ("Deployment", "d", json!({"replicas": 1, "progressDeadlineSeconds": 120})),
        ("StatefulSet", "s", json!({"replicas": 1, "serviceName": "s"})),
        ("DaemonSet", "e", json!({})),
    ] {
        let what = format!("{}/{app}", kind.to_lowercase());
        let mut whole = json!({"selector": {"matchLabels": {"app": app}}, "template": template(app, json!({}))});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let metadata = json!({"name": app, "annotations": {"dhow.io/auto-rollback": "true"}});
        cloud.apply(json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": whole})).await;
        cloud.kubectl(&["rollout", "status", &what, "--timeout=60s"]).await;
        let revisions = if kind == "Deployment" { "replicasets" } else { "controllerrevisions" };
        let marks = "jsonpath={.items[*].metadata.annotations.dhow\\.io/completed}";
        let of = format!("app={app}");
        cloud.until(&["get", revisions, "-l", &of, "-o", marks], "1").await;
        cloud.kubectl(&["set", "image", &what, "c=example/app:2"]).await;
        cloud.kubectl(&["rollout", "status", &what, "--timeout=60s"]).await;
        // All is well, and said to be.
        let by = "--sort-by=.metadata.annotations.dhow\\.io/completed";
        cloud.until(&["get", revisions, "-l", &of, "-o", marks, by], "1 2").await;
        crash(&cloud, app).await;
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        cloud.until(&["get", &what, "-o", image], "example/app:1").await;
        let condition = "jsonpath={.status.conditions[?(@.type==\"RolledBack\")].reason}";
        cloud.until(&["get", &what, "-o", condition], "CrashLoopBackOff").await;
        cloud.kubectl(&["rollout", "status", &what, "--timeout=60s"]).await;
        // What was put back stays, whatever becomes of it.
        crash(&cloud, app).await;
        cloud.kubectl(&["annotate", &what, "look=again"]).await;
        assert_eq!(cloud.kubectl(&["get", &what, "-o", image]).await, "example/app:1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_ends_with_its_pods_first_and_says_what_is_left() {
    let cloud = Cloud::start().await;
    cloud.node("n1", json!([])).await;
    cloud.kubectl(&["create", "namespace", "ending"]).await;
    let held = json!({"name": "held", "namespace": "ending", "finalizers": ["example.com/hold"]});
    cloud.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held})).await;
    let spec = template("p", json!({}))["spec"].clone();
    cloud.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": held, "spec": spec})).await;
    cloud.kubectl(&["delete", "namespace", "ending", "--wait=false"]).await;
    let remaining = "jsonpath={.status.conditions[?(@.type==\"NamespaceContentRemaining\")].message}";
    let namespace = ["get", "namespace", "ending", "-o"];
    cloud
        .until(&[&namespace[..], &[remaining]].concat(), "Some resources are remaining: pods. has 1 resource instances")
        .await;
    let deleted = ["get", "configmap", "held", "-n", "ending", "-o", "jsonpath={.metadata.deletionTimestamp}"];
    assert_eq!(cloud.kubectl(&deleted).await, "", "what pods may need stays until they are gone");
    let free = r#"{"metadata":{"finalizers":null}}"#;
    cloud.kubectl(&["patch", "pod", "held", "-n", "ending", "-p", free]).await;
    cloud
        .until(
            &[&namespace[..], &[remaining]].concat(),
            "Some resources are remaining: configmaps. has 1 resource instances",
        )
        .await;
    let finalizers = "jsonpath={.status.conditions[?(@.type==\"NamespaceFinalizersRemaining\")].message}";
    let said = cloud.kubectl(&[&namespace[..], &[finalizers]].concat()).await;
    assert!(said.ends_with("example.com/hold in 1 resource instances"), "{said}");
    cloud.kubectl(&["patch", "configmap", "held", "-n", "ending", "-p", free]).await;
    cloud.kubectl(&["wait", "namespace/ending", "--for=delete", "--timeout=30s"]).await;
}
