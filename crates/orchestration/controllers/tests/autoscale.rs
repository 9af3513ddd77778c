//! HorizontalPodAutoscalers against a real API server, with metrics that the test sets, seen through kubectl.
#![allow(clippy::unwrap_used)]

mod fake;
#[path = "../../apiserver/tests/harness/mod.rs"]
mod harness;
mod metrics;

use fake::Cloud;
use metrics::Metrics;
use serde_json::{Value, json};

async fn start() -> (Cloud, Metrics) {
    let metrics = Metrics::serve().await;
    let cloud = Cloud::start_with(metrics.access()).await;
    cloud.node("n1", json!([])).await;
    metrics.register(&cloud).await;
    (cloud, metrics)
}

async fn deploy(cloud: &Cloud, name: &str, replicas: u32) {
    let container = json!({"name": "c", "image": "example/app:1", "resources": {"requests": {"cpu": "10m"}}});
    let labels = json!({"app": name});
    cloud
        .apply(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}}))
        .await;
    cloud.kubectl(&["rollout", "status", &format!("deploy/{name}"), "--timeout=60s"]).await;
}

async fn pods(cloud: &Cloud, app: &str) -> Vec<String> {
    let of = format!("app={app}");
    let names = cloud.kubectl(&["get", "pods", "-l", &of, "-o", "jsonpath={.items[*].metadata.name}"]).await;
    names.split_whitespace().map(str::to_owned).collect()
}

/// What lets a test see the next step without minutes between them.
fn quick() -> Value {
    json!({"scaleDown": {"stabilizationWindowSeconds": 0}})
}

fn autoscaler(name: &str, spec: Value) -> Value {
    let mut whole = json!({"maxReplicas": 5, "behavior": quick(),
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}, "spec": whole})
}

const CONDITIONS: &str = "jsonpath={range .status.conditions[*]}{.type}={.status}/{.reason} {end}";

#[tokio::test(flavor = "multi_thread")]
async fn processors_scale_up_and_down_and_every_step_is_told() {
    let (cloud, metrics) = start().await;
    deploy(&cloud, "web", 1).await;
    metrics.cpu(&pods(&cloud, "web").await, "30m");
    cloud.kubectl(&["autoscale", "deploy/web", "--cpu-percent=100", "--min=1", "--max=4"]).await;
    // Three times the target.
    cloud.until(&["get", "deploy/web", "-o", "jsonpath={.spec.replicas}"], "3").await;
    let status = "jsonpath={.status.desiredReplicas} {.status.currentMetrics[0].resource.current.averageUtilization} {.status.currentMetrics[0].resource.current.averageValue}";
    cloud.until(&["get", "hpa/web", "-o", status], "3 300 30m").await;
    cloud.until(&["get", "hpa/web", "-o", CONDITIONS],
        "AbleToScale=True/SucceededRescale ScalingActive=True/ValidMetricFound ScalingLimited=False/DesiredWithinRange").await;
    let described = cloud.kubectl(&["describe", "hpa", "web"]).await;
    assert!(
        described.contains("SuccessfulRescale")
            && described.contains("New size: 3; reason: cpu resource utilization (percentage of request) above target"),
        "{described}"
    );
    assert!(described.contains("300% (30m) / 100%"), "{described}");

    // Idle: down, once nothing holds it. The loop looks again by itself.
    cloud.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]).await;
    metrics.cpu(&pods(&cloud, "web").await, "1m");
    cloud.kubectl(&["patch", "hpa/web", "-p", &json!({"spec": {"behavior": quick()}}).to_string()]).await;
    cloud.until(&["get", "deploy/web", "-o", "jsonpath={.spec.replicas}"], "1").await;
    let events =
        cloud.kubectl(&["get", "events", "-o", "jsonpath={.items[?(@.reason==\"SuccessfulRescale\")].message}"]).await;
    assert!(events.contains("New size: 1; reason: All metrics below target"), "{events}");
    cloud.until(&["get", "deploy/web", "-o", "jsonpath={.status.replicas}"], "1").await;
    metrics.cpu(&pods(&cloud, "web").await, "20m");
    cloud.until(&["get", "deploy/web", "-o", "jsonpath={.spec.replicas}"], "2").await;

    // Out of bounds by hand, and switched off by hand.
    cloud.kubectl(&["scale", "deploy/web", "--replicas=7"]).await;
    cloud.until(&["get", "deploy/web", "-o", "jsonpath={.spec.replicas}"], "4").await;
    cloud.kubectl(&["scale", "deploy/web", "--replicas=0"]).await;
    cloud
        .until(
            &["get", "hpa/web", "-o", "jsonpath={.status.conditions[?(@.type==\"ScalingActive\")].reason}"],
            "ScalingDisabled",
        )
        .await;
    assert_eq!(cloud.get("deploy/web", "{.spec.replicas}").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pods_objects_and_the_outside_tell_scales_too() {
    let (cloud, metrics) = start().await;
    deploy(&cloud, "app", 1).await;
    let value = |value: &str, name: &str| json!({"describedObject": {"kind": "Pod", "name": name}, "metric": {"name": "m"}, "timestamp": "2026-01-01T00:00:00Z", "value": value});
    // Nobody tells the metric yet.
    let pods_metric = json!({"type": "Pods", "pods": {"metric": {"name": "requests"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
    cloud.apply(autoscaler("app", json!({"metrics": [pods_metric]}))).await;
    let active = "jsonpath={.status.conditions[?(@.type==\"ScalingActive\")].reason}";
    cloud.until(&["get", "hpa/app", "-o", active], "FailedGetPodsMetric").await;
    let said = cloud.get("hpa/app", "{.status.conditions[?(@.type==\"ScalingActive\")].message}").await;
    assert!(
        said.contains("unable to get metric requests: unable to fetch metrics from custom metrics API: no such metric"),
        "{said}"
    );
    let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/*/requests";
    metrics.set(path, json!([value("19500m", &pods(&cloud, "app").await[0])]));
    cloud.kubectl(&["label", "hpa", "app", "again=1"]).await;
    cloud.until(&["get", "deploy/app", "-o", "jsonpath={.spec.replicas}"], "2").await;
    assert!(metrics.asked.lock()[path].contains("labelSelector=app%3Dapp"));

    // An object's value, and one from outside; the greater proposal counts.
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "front"});
    let object = json!({"type": "Object", "object": {"describedObject": ingress, "metric": {"name": "hits"}, "target": {"type": "Value", "value": "100"}}});
    let external = json!({"type": "External", "external": {"metric": {"name": "queue", "selector": {"matchLabels": {"q": "a"}}}, "target": {"type": "AverageValue", "averageValue": "5"}}});
    metrics.set(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/ingresses.networking.k8s.io/front/hits",
        json!([value("110", "front")]),
    );
    metrics.set(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue",
        json!([{"value": "12"}, {"value": "8"}]),
    );
    cloud.kubectl(&["rollout", "status", "deploy/app", "--timeout=60s"]).await;
    cloud.apply(autoscaler("app", json!({"metrics": [object, external]}))).await;
    cloud.until(&["get", "deploy/app", "-o", "jsonpath={.spec.replicas}"], "4").await;
    assert_eq!(
        metrics.asked.lock()["/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue"],
        "labelSelector=q%3Da"
    );
    let shown = "jsonpath={.status.currentMetrics[0].object.current.value} {.status.currentMetrics[1].external.current.averageValue}";
    cloud.until(&["get", "hpa/app", "-o", shown], "110 10").await;

    // Nothing waits outside: to zero where that is allowed, and back.
    metrics.set("/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue", json!([{"value": "0"}]));
    let external = |least: u32| {
        let metric = json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "5"}}});
        autoscaler("app", json!({"minReplicas": least, "metrics": [metric]}))
    };
    cloud.apply(external(0)).await;
    cloud.until(&["get", "deploy/app", "-o", "jsonpath={.spec.replicas}"], "0").await;
    cloud.until(&["get", "pods", "-l", "app=app", "-o", "name"], "").await;
    metrics.set("/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue", json!([{"value": "7"}]));
    cloud.until(&["get", "deploy/app", "-o", "jsonpath={.spec.replicas}"], "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_that_cannot_says_why() {
    let (cloud, metrics) = start().await;
    let condition = |name: &str| format!("jsonpath={{.status.conditions[?(@.type==\"{name}\")].reason}}");
    cloud.apply(autoscaler("absent", json!({}))).await;
    cloud.until(&["get", "hpa/absent", "-o", &condition("AbleToScale")], "FailedGetScale").await;
    let events =
        ["get", "events", "--field-selector=reason=FailedGetScale", "-o", "jsonpath={.items[*].involvedObject.name}"];
    cloud.until(&events, "absent").await;

    // Two of the same pods.
    deploy(&cloud, "both", 1).await;
    metrics.cpu(&pods(&cloud, "both").await, "40m");
    let mut second = autoscaler("both", json!({}));
    cloud.apply(second.clone()).await;
    cloud.until(&["get", "hpa/both", "-o", &condition("ScalingActive")], "ValidMetricFound").await;
    second["metadata"]["name"] = json!("second");
    cloud.apply(second).await;
    cloud.until(&["get", "hpa/second", "-o", &condition("ScalingActive")], "AmbiguousSelector").await;
    cloud.kubectl(&["delete", "hpa", "both"]).await;
    cloud.until(&["get", "hpa/second", "-o", &condition("ScalingActive")], "ValidMetricFound").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vertical_autoscaler_recommends_and_resizes_in_place() {
    let (cloud, metrics) = start().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../examples/vertical-autoscaler");
    cloud.kubectl(&["apply", "-f", folder.join("crd.yaml").to_str().unwrap()]).await;
    let definition = "crd/verticalpodautoscalers.autoscaling.k8s.io";
    cloud.kubectl(&["wait", "--for=condition=established", definition, "--timeout=30s"]).await;
    deploy(&cloud, "web", 2).await;
    metrics.cpu(&pods(&cloud, "web").await, "500m");
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let vertical = |mode: &str| {
        json!({"apiVersion": "autoscaling.k8s.io/v1", "kind": "VerticalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"targetRef": target, "updatePolicy": {"updateMode": mode},
                "resourcePolicy": {"containerPolicies": [{"containerName": "*", "controlledResources": ["cpu"], "maxAllowed": {"cpu": "550m"}}]}}})
    };
    cloud.apply(vertical("Off")).await;
    let recommended = "jsonpath={.status.recommendation.containerRecommendations[0].target.cpu}";
    cloud.until(&["get", "vpa/web", "-o", recommended], "550m").await;
    let requests = "jsonpath={.items[*].spec.containers[0].resources.requests.cpu}";
    let all = ["get", "pods", "-l", "app=web", "-o", requests];
    assert_eq!(cloud.kubectl(&all).await, "10m 10m", "a recommendation alone changes nothing");
    let before = pods(&cloud, "web").await;
    cloud.apply(vertical("InPlaceOrRecreate")).await;
    cloud.until(&all, "550m 550m").await;
    assert_eq!(pods(&cloud, "web").await, before, "resized where they are");
    let shown = cloud.kubectl(&["get", "vpa"]).await;
    assert!(shown.contains("InPlaceOrRecreate") && shown.contains("550m") && shown.contains("True"), "{shown}");
    // A new pod gets what is recommended at once.
    cloud.kubectl(&["scale", "deploy/web", "--replicas=3"]).await;
    cloud.until(&all, "550m 550m 550m").await;
}
