//! Admission as its users meet it: quotas, limits, pod security, what nodes may do, webhooks.
#![allow(clippy::unwrap_used)]

mod harness;
#[path = "harness/webhook.rs"]
mod webhook;

use std::time::Duration;

use bytes::Bytes;
use dhow_apiserver::UserInfo;
use harness::Cluster;
use serde_json::{Value, json};
use webhook::{Hook, Say, ca_bundle, patching};

/// A cluster whose default namespace has its service account.
async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    cluster
}

async fn apply(cluster: &Cluster, manifest: &Value) -> Result<String, String> {
    cluster.run("admin", &["apply", "-f", "-"], &manifest.to_string()).await
}

fn pod(name: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("c");
    container["image"] = json!("busybox");
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container]},
    })
}

fn quota(hard: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}})
}

/// Asks until the answer is as wanted; it has to be so soon.
async fn eventually(cluster: &Cluster, args: &[&str], wanted: &str) {
    let mut last = String::new();
    for _ in 0..50 {
        last = cluster.kubectl(args).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{args:?}: {last:?} is not {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_against_many_at_once() {
    let cluster = start().await;
    apply(&cluster, &quota(json!({"pods": "5", "count/configmaps": "2"}))).await.unwrap();
    let creations = (0..40).map(|number| {
        let (cluster, pod) = (&cluster, pod(&format!("p{number}"), json!({})));
        async move { cluster.json("POST", "/api/v1/namespaces/default/pods", "application/json", &pod).await }
    });
    let answers = futures::future::join_all(creations).await;
    let made = answers.iter().filter(|(code, _)| *code == 201).count();
    assert_eq!(made, 5);
    let (code, refused) = answers.iter().find(|(code, _)| *code != 201).unwrap();
    assert_eq!((*code, refused["reason"].as_str()), (403, Some("Forbidden")));
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"),
        "{message}"
    );

    let used = ["get", "quota", "q", "-o", "jsonpath={.status.used.pods}"];
    eventually(&cluster, &used, "5").await;
    let first = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]).await;
    cluster.kubectl(&["delete", "pod", &first]).await;
    eventually(&cluster, &used, "4").await;
    apply(&cluster, &pod("after", json!({}))).await.unwrap();

    for name in ["a", "b"] {
        cluster.kubectl(&["create", "configmap", name]).await;
    }
    let refused = cluster.run("admin", &["create", "configmap", "c"], "").await.unwrap_err();
    assert!(
        refused.contains(
            "exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=2, limited: count/configmaps=2"
        ),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_on_compute_asks_for_amounts_and_has_scopes() {
    let cluster = start().await;
    let hard = json!({"requests.cpu": "1", "limits.memory": "1Gi", "services.nodeports": "1"});
    apply(&cluster, &quota(hard)).await.unwrap();
    let refused = apply(&cluster, &pod("p", json!({}))).await.unwrap_err();
    assert!(
        refused.contains(
            "pods \"p\" is forbidden: failed quota: q: must specify limits.memory for: c; requests.cpu for: c"
        ),
        "{refused}"
    );
    let sized = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"memory": "512Mi"}}});
    apply(&cluster, &pod("a", sized("600m"))).await.unwrap();
    let refused = apply(&cluster, &pod("b", sized("600m"))).await.unwrap_err();
    assert!(
        refused.contains(
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
        ),
        "{refused}"
    );
    apply(&cluster, &pod("b", sized("400m"))).await.unwrap();

    // A Service that turns to node ports uses more than before.
    cluster.kubectl(&["create", "service", "clusterip", "s", "--tcp=80", "--tcp=81"]).await;
    let patch = ["patch", "service", "s", "-p", r#"{"spec": {"type": "NodePort"}}"#];
    let refused = cluster.run("admin", &patch, "").await.unwrap_err();
    assert!(refused.contains("requested: services.nodeports=2, used: services.nodeports=0"), "{refused}");

    cluster.kubectl(&["delete", "quota", "q"]).await;
    let mut scoped = quota(json!({"pods": "0"}));
    scoped["spec"]["scopes"] = json!(["BestEffort"]);
    apply(&cluster, &scoped).await.unwrap();
    assert!(apply(&cluster, &pod("best", json!({}))).await.unwrap_err().contains("exceeded quota: q"));
    apply(&cluster, &pod("burstable", sized("100m"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_ranges_give_and_refuse() {
    let cluster = start().await;
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l", "namespace": "default"},
        "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"},
             "maxLimitRequestRatio": {"cpu": "5"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}},
        ]},
    });
    apply(&cluster, &range).await.unwrap();
    apply(&cluster, &pod("p", json!({}))).await.unwrap();
    let given = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.spec.containers[0].resources} {.metadata.annotations.kubernetes\\.io/limit-ranger} {.status.qosClass}"]).await;
    assert_eq!(
        given,
        r#"{"limits":{"cpu":"500m"},"requests":{"cpu":"100m"}} LimitRanger plugin set: cpu request for container c; cpu limit for container c Burstable"#
    );
    let refused = apply(&cluster, &pod("big", json!({"resources": {"limits": {"cpu": "2"}}}))).await.unwrap_err();
    assert!(
        refused.contains("pods \"big\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"),
        "{refused}"
    );
    let wide = json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}}});
    let refused = apply(&cluster, &pod("wide", wide)).await.unwrap_err();
    assert!(
        refused.contains("cpu max limit to request ratio per Container is 5, but provided ratio is 10.000000"),
        "{refused}"
    );
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "v", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    });
    let refused = apply(&cluster, &claim).await.unwrap_err();
    assert!(
        refused.contains("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_security_refuses_and_warns() {
    let cluster = start().await;
    let label = |label: &'static str| ["label", "--overwrite", "namespace", "default", label];
    cluster.kubectl(&label("pod-security.kubernetes.io/enforce=restricted")).await;
    let refused = apply(&cluster, &pod("p", json!({}))).await.unwrap_err();
    let words = "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false \
                 (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities \
                 (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or \
                 container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must \
                 set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
    assert!(refused.contains(words), "{refused}");
    let good = json!({"securityContext": {
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    }});
    apply(&cluster, &pod("good", good)).await.unwrap();

    // A workload is let in, with a warning.
    let deployment = ["create", "deployment", "d", "--image=busybox", "--v=6"];
    let (code, headers, _) = send(
        &cluster,
        "/apis/apps/v1/namespaces/default/deployments",
        &json!({
            "metadata": {"name": "w"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}}},
        }),
    )
    .await;
    assert_eq!(code, 201);
    let warning = headers.get("warning").unwrap().to_str().unwrap();
    assert!(
        warning.contains(
            "would violate PodSecurity \\\"restricted:latest\\\": host namespaces (hostNetwork=true), allowPriv"
        ),
        "{warning}"
    );
    cluster.kubectl(&deployment).await;

    cluster.kubectl(&label("pod-security.kubernetes.io/enforce=privileged")).await;
    apply(&cluster, &pod("root", json!({"securityContext": {"privileged": true}}))).await.unwrap();
    let (code, headers, _) = patch(
        &cluster,
        "/api/v1/namespaces/default",
        &json!({"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30"}}}),
    )
    .await;
    assert_eq!(code, 200);
    let warnings: Vec<&str> = headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(warnings[0].contains("existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \\\"baseline:v1.30\\\""), "{warnings:?}");
    assert!(warnings[1].contains("root: privileged"), "{warnings:?}");
    let refused = cluster.run("admin", &label("pod-security.kubernetes.io/warn=strict"), "").await.unwrap_err();
    assert!(refused.contains("metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"), "{refused}");
}

async fn send(cluster: &Cluster, path: &str, body: &Value) -> (u16, http::HeaderMap, Bytes) {
    request(cluster, UserInfo::new("admin", &["system:masters"]), "POST", path, "application/json", body).await
}

async fn patch(cluster: &Cluster, path: &str, body: &Value) -> (u16, http::HeaderMap, Bytes) {
    request(cluster, UserInfo::new("admin", &["system:masters"]), "PATCH", path, "application/merge-patch+json", body)
        .await
}

async fn request(
    cluster: &Cluster,
    user: UserInfo,
    method: &str,
    path: &str,
    media_type: &str,
    body: &Value,
) -> (u16, http::HeaderMap, Bytes) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .body(Bytes::from(body.to_string()))
        .unwrap();
    cluster.send(user, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_kept_to_what_is_its_own() {
    let cluster = start().await;
    cluster.kubeconfig("node", "system:node:n1", &["system:nodes"]);
    let as_node = async |method: &str, path: &str, body: Value| {
        let user = UserInfo::new("system:node:n1", &["system:nodes"]);
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let (code, _, answer) = request(&cluster, user, method, path, media_type, &body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        (code, answer["message"].as_str().unwrap_or_default().to_owned(), answer)
    };
    let node = |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    let (code, _, made) = as_node("POST", "/api/v1/nodes", node("n1")).await;
    assert_eq!(code, 201);
    assert_eq!(made["spec"]["taints"], json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
    let (code, message, _) = as_node("POST", "/api/v1/nodes", node("n2")).await;
    assert_eq!(
        (code, message.as_str()),
        (403, "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"")
    );
    let own = "/api/v1/nodes/n1";
    let (code, message, _) =
        as_node("PATCH", own, json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}})).await;
    assert_eq!(
        (code, message.as_str()),
        (403, "nodes \"n1\" is forbidden: is not allowed to modify labels: node-restriction.kubernetes.io/x")
    );
    let (code, message, _) = as_node("PATCH", own, json!({"spec": {"taints": []}})).await;
    assert_eq!(
        (code, message.as_str()),
        (403, "nodes \"n1\" is forbidden: node \"n1\" is not allowed to modify taints")
    );
    assert_eq!(as_node("PATCH", own, json!({"metadata": {"labels": {"rack": "r1"}}})).await.0, 200);

    // Pods: only mirrors of its own, and nothing of others'.
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        let mut bound = pod(name, json!({}));
        bound["spec"]["nodeName"] = json!(node);
        apply(&cluster, &bound).await.unwrap();
    }
    let pods = "/api/v1/namespaces/default/pods";
    let (code, message, _) = as_node("POST", pods, pod("p", json!({}))).await;
    assert_eq!(code, 403);
    assert!(message.contains("can only create mirror pods"), "{message}");
    let mut mirror = pod("mirror", json!({}));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": made["metadata"]["uid"], "controller": true}]);
    mirror["spec"]["nodeName"] = json!("n1");
    let mut secret = mirror.clone();
    secret["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
    let (code, message, _) = as_node("POST", pods, secret).await;
    assert_eq!(code, 403);
    assert!(message.contains("node \"n1\" can not create pods that reference secrets"), "{message}");
    let (code, message, _) = as_node("POST", pods, mirror).await;
    assert_eq!(code, 201, "{message}");
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(as_node("PATCH", &format!("{pods}/mine/status"), status.clone()).await.0, 200);
    let (code, message, _) = as_node("PATCH", &format!("{pods}/theirs/status"), status).await;
    assert_eq!(code, 403);
    assert!(message.contains("can only update pod status for pods with spec.nodeName set to itself"), "{message}");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "theirs"}});
    let (code, message, _) = as_node("POST", &format!("{pods}/theirs/eviction"), eviction).await;
    assert_eq!(
        (code, message.as_str()),
        (403, "pods \"theirs\" is forbidden: node n1 can only evict pods with spec.nodeName set to itself")
    );
    let refused = cluster.run("node", &["delete", "pod", "theirs"], "").await.unwrap_err();
    assert!(refused.contains("node \"n1\" can only delete pods with spec.nodeName set to itself"), "{refused}");

    // Tokens are for the pods it runs.
    let uid_of = async |pod: &str| cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).await;
    let token = async |pod: &str| {
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid_of(pod).await});
        let body = json!({"spec": {"boundObjectRef": bound}});
        as_node("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", body).await
    };
    assert_eq!(token("mine").await.0, 201);
    let (code, message, _) = token("theirs").await;
    assert_eq!(code, 403);
    assert!(message.contains("node requested token bound to a pod scheduled on a different node"), "{message}");
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(as_node("POST", leases, lease("n1")).await.0, 201);
    assert_eq!(as_node("POST", leases, lease("n2")).await.0, 403);
}

/// A configuration with one hook for these resources, whose other fields `more` sets.
fn configuration(kind: &str, name: &str, resources: &[&str], client: Value, more: Value) -> Value {
    let mut hook = json!({
        "name": format!("{name}.example.com"),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "clientConfig": client,
        "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}],
        // Nothing but the test's own writes.
        "objectSelector": {"matchLabels": {"hooked": "yes"}},
    });
    for (key, value) in more.as_object().unwrap() {
        hook[key] = value.clone();
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": [hook],
    })
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", "labels": {"hooked": "yes"}},
        "data": {"a": "b"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_deny_warn_and_see_everything() {
    let cluster = start().await;
    let hook = Hook::serve(&cluster, |path, request| match path {
        "/deny" if request["object"]["data"]["a"] == "bad" => {
            Say::Answer(json!({"allowed": false, "status": {"code": 418, "message": "no bad things"}}))
        }
        "/deny" if request["operation"] == "DELETE" && request["oldObject"]["data"]["a"] == "keep" => {
            Say::Answer(json!({"allowed": false}))
        }
        _ => Say::Answer(json!({"allowed": true, "warnings": ["mind the gap"]})),
    })
    .await;
    let client = hook.client_config(&cluster, "/deny");
    let only_that = configuration(VALIDATING, "deny", &["configmaps", "pods/exec", "*/scale"], client, json!({}));
    apply(&cluster, &only_that).await.unwrap();
    // What configures webhooks goes to none of them.
    assert!(hook.asked.lock().is_empty());

    let (code, headers, _) = send(&cluster, "/api/v1/namespaces/default/configmaps", &config_map("a")).await;
    assert_eq!(code, 201);
    assert_eq!(headers.get("warning").unwrap(), "299 - \"mind the gap\"");
    let (_, request) = hook.asked.lock().last().unwrap().clone();
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(
        (&request["operation"], &request["name"], &request["namespace"]),
        (&json!("CREATE"), &json!("a"), &json!("default"))
    );
    assert_eq!((&request["dryRun"], &request["oldObject"]), (&json!(false), &Value::Null));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["options"], json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}));
    assert_eq!((&request["object"]["kind"], &request["object"]["data"]), (&json!("ConfigMap"), &json!({"a": "b"})));
    // It sees the object as it is stored.
    assert!(request["object"]["metadata"]["uid"].is_string());

    let mut bad = config_map("bad");
    bad["data"]["a"] = json!("bad");
    let (code, answer) = cluster.json("POST", "/api/v1/namespaces/default/configmaps", "application/json", &bad).await;
    assert_eq!(code, 418);
    assert_eq!(answer["message"], "admission webhook \"deny.example.com\" denied the request: no bad things");
    let refused = apply(&cluster, &bad).await.unwrap_err();
    assert!(refused.contains("admission webhook \"deny.example.com\" denied the request: no bad things"), "{refused}");

    // Updates and deletes show what was.
    cluster.kubectl(&["patch", "cm", "a", "-p", r#"{"data": {"a": "keep"}}"#]).await;
    let (_, request) = hook.asked.lock().last().unwrap().clone();
    assert_eq!((&request["operation"], &request["oldObject"]["data"]["a"]), (&json!("UPDATE"), &json!("b")));
    assert_eq!(request["options"]["kind"], "PatchOptions");
    for args in [&["delete", "cm", "a"][..], &["delete", "cm", "--all"]] {
        let refused = cluster.run("admin", args, "").await.unwrap_err();
        assert!(
            refused.contains("admission webhook \"deny.example.com\" denied the request without explanation"),
            "{refused}"
        );
    }
    let (_, request) = hook.asked.lock().last().unwrap().clone();
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(request["options"]["kind"], "DeleteOptions");
    // All of that took one connection.
    assert_eq!(hook.connections.load(std::sync::atomic::Ordering::SeqCst), 1);

    // A stream is asked about before it opens.
    let connect = json!({"objectSelector": {}, "rules": [
        {"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/exec"]}]});
    let client = hook.client_config(&cluster, "/connect");
    apply(&cluster, &configuration(VALIDATING, "connect", &[], client, connect)).await.unwrap();
    let mut bound = pod("p", json!({}));
    bound["spec"]["nodeName"] = json!("nowhere");
    apply(&cluster, &bound).await.unwrap();
    cluster.run("admin", &["exec", "p", "--", "id", "-u"], "").await.unwrap_err();
    let (_, request) = hook.asked.lock().last().unwrap().clone();
    assert_eq!((&request["operation"], &request["subResource"]), (&json!("CONNECT"), &json!("exec")));
    assert_eq!(
        (&request["object"]["kind"], &request["object"]["command"]),
        (&json!("PodExecOptions"), &json!(["id", "-u"]))
    );

    // Subresources that speak a kind of their own.
    let workload = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default", "labels": {"hooked": "yes"}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    apply(&cluster, &workload).await.unwrap();
    cluster.kubectl(&["scale", "deployment", "d", "--replicas=3"]).await;
    let (_, request) = hook.asked.lock().last().unwrap().clone();
    assert_eq!((&request["subResource"], &request["kind"]["kind"]), (&json!("scale"), &json!("Scale")));
    assert_eq!(
        (&request["object"]["spec"]["replicas"], &request["oldObject"]["spec"]["replicas"]),
        (&json!(3), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_webhooks_take_turns() {
    let cluster = start().await;
    let hook = Hook::serve(&cluster, |path, request| {
        let labels = &request["object"]["metadata"]["labels"];
        match path {
            // Goes first by name, and wants to see what others add.
            "/first" if labels["second"].is_null() => {
                patching(&json!([{"op": "add", "path": "/metadata/labels/first", "value": "alone"}]))
            }
            "/first" => patching(&json!([{"op": "add", "path": "/metadata/labels/first", "value": "again"}])),
            "/second" => patching(&json!([
                {"op": "add", "path": "/metadata/labels/second", "value": labels["first"]},
                {"op": "add", "path": "/spec/containers/-", "value": {"name": "sidecar", "image": "side"}},
                {"op": "add", "path": "/spec/nonsense", "value": 1},
            ])),
            _ => Say::Fail(500),
        }
    })
    .await;
    let create = json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    let first = json!({"rules": create, "reinvocationPolicy": "IfNeeded"});
    let second = json!({"rules": create});
    let config = |name: &str, more: Value| {
        configuration(MUTATING, name, &[], hook.client_config(&cluster, &format!("/{name}")), more)
    };
    apply(&cluster, &config("second", second)).await.unwrap();
    apply(&cluster, &config("first", first)).await.unwrap();
    let mut hooked = pod("p", json!({}));
    hooked["metadata"]["labels"] = json!({"hooked": "yes"});
    apply(&cluster, &hooked).await.unwrap();
    assert_eq!(hook.paths(), ["/first", "/second", "/first"]);
    let made: Value = serde_json::from_str(&cluster.kubectl(&["get", "pod", "p", "-o", "json"]).await).unwrap();
    assert_eq!(made["metadata"]["labels"], json!({"hooked": "yes", "first": "again", "second": "alone"}));
    assert!(made["spec"]["nonsense"].is_null());
    // The new container has its defaults and the token that the others have.
    let sidecar = &made["spec"]["containers"][1];
    assert_eq!(
        (&sidecar["imagePullPolicy"], &sidecar["terminationMessagePath"]),
        (&json!("Always"), &json!("/dev/termination-log"))
    );
    assert_eq!(sidecar["volumeMounts"], made["spec"]["containers"][0]["volumeMounts"]);
    assert_eq!(made["spec"]["volumes"].as_array().unwrap().len(), 1);
    // Who created the pod does not own what webhooks made of it.
    let owned = cluster
        .kubectl(&["get", "pod", "p", "--show-managed-fields", "-o", "jsonpath={.metadata.managedFields}"])
        .await;
    assert!(!owned.contains("f:second") && owned.contains("f:hooked"), "{owned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_webhook_counts_as_its_policy_says() {
    let cluster = start().await;
    let hook = Hook::serve(&cluster, |path, _| match path {
        "/hang" => Say::Hang,
        "/fail" => Say::Fail(500),
        "/uid" => Say::Document(json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {"uid": "x", "allowed": true}})),
        _ => Say::Document(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"})),
    })
    .await;
    let cases = [
        ("hang", "context deadline exceeded"),
        ("fail", "an error on the server"),
        ("uid", "expected response.uid="),
        ("absent", "webhook response was absent"),
    ];
    for (kind, number) in [(MUTATING, 0), (VALIDATING, 1)] {
        for (name, words) in cases {
            let client = hook.client_config(&cluster, &format!("/{name}"));
            let config = |policy: &str| {
                let more = json!({"failurePolicy": policy, "timeoutSeconds": 1});
                configuration(kind, name, &["configmaps"], client.clone(), more)
            };
            apply(&cluster, &config("Fail")).await.unwrap();
            let path = "/api/v1/namespaces/default/configmaps";
            let map = config_map(&format!("{name}-{number}"));
            let (code, answer) = cluster.json("POST", path, "application/json", &map).await;
            assert_eq!((code, &answer["reason"]), (500, &json!("InternalError")), "{answer}");
            let message = answer["message"].as_str().unwrap();
            let head = format!("Internal error occurred: failed calling webhook \"{name}.example.com\": ");
            assert!(message.starts_with(&head) && message.contains(words), "{message}");
            apply(&cluster, &config("Ignore")).await.unwrap();
            assert_eq!(cluster.json("POST", path, "application/json", &map).await.0, 201);
            cluster.kubectl(&["delete", kind, name]).await;
        }
    }
    // Nobody listens there.
    let gone = json!({"url": "https://127.0.0.1:1/", "caBundle": ca_bundle(&cluster)});
    apply(&cluster, &configuration(VALIDATING, "gone", &["configmaps"], gone, json!({}))).await.unwrap();
    // The server itself starts and works nonetheless.
    let server = UserInfo::new("system:apiserver", &["system:masters"]);
    let path = "/api/v1/namespaces/default/configmaps";
    let (code, ..) = request(&cluster, server, "POST", path, "application/json", &config_map("own")).await;
    assert_eq!(code, 201);
    let refused = apply(&cluster, &config_map("gone")).await.unwrap_err();
    assert!(
        refused.contains("Post \"https://127.0.0.1:1/?timeout=10s\": ") && refused.contains("refused"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_behind_services_and_selectors() {
    let cluster = start().await;
    let hook =
        Hook::serve(&cluster, |_, _| Say::Answer(json!({"allowed": false, "status": {"reason": "Closed"}}))).await;
    let client = json!({"service": {"namespace": "default", "name": "hook", "path": "/s", "port": 8443}, "caBundle": ca_bundle(&cluster)});
    let more = json!({"namespaceSelector": {"matchLabels": {"watched": "yes"}}});
    apply(&cluster, &configuration(VALIDATING, "svc", &["configmaps"], client, more)).await.unwrap();
    // Another namespace is not its business.
    apply(&cluster, &config_map("before")).await.unwrap();
    cluster.kubectl(&["label", "namespace", "default", "watched=yes"]).await;
    let refused = apply(&cluster, &config_map("a")).await.unwrap_err();
    assert!(refused.contains("service \"hook\" not found"), "{refused}");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "default"},
        "spec": {"ports": [{"name": "https", "port": 8443, "targetPort": 1}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hook-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "hook"}},
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": hook.port, "protocol": "TCP"}],
    });
    apply(&cluster, &service).await.unwrap();
    let refused = apply(&cluster, &config_map("a")).await.unwrap_err();
    assert!(refused.contains("no endpoints available for service \"hook\""), "{refused}");
    apply(&cluster, &slice).await.unwrap();
    let refused = apply(&cluster, &config_map("a")).await.unwrap_err();
    assert!(refused.contains("admission webhook \"svc.example.com\" denied the request: Closed"), "{refused}");
    assert_eq!(hook.paths(), ["/s"]);
    // Neither is what its conditions leave out.
    let conditions = json!([
        {"name": "mine", "expression": "request.userInfo.username != 'system:admin' || object.data.a == 'judged'"},
        {"name": "new", "expression": "oldObject == null"},
    ]);
    let more = json!({"matchConditions": conditions, "namespaceSelector": {"matchLabels": {"watched": "yes"}}});
    let client = json!({"service": {"namespace": "default", "name": "hook", "path": "/s", "port": 8443}, "caBundle": ca_bundle(&cluster)});
    apply(&cluster, &configuration(VALIDATING, "svc", &["configmaps"], client.clone(), more)).await.unwrap();
    apply(&cluster, &config_map("unjudged")).await.unwrap();
    let mut judged = config_map("judged");
    judged["data"]["a"] = json!("judged");
    let refused = apply(&cluster, &judged).await.unwrap_err();
    assert!(refused.contains("denied the request: Closed"), "{refused}");
    let broken = json!({"matchConditions": [{"name": "broken", "expression": "object.nothing.at.all == 1"}]});
    apply(&cluster, &configuration(VALIDATING, "svc", &["configmaps"], client, broken)).await.unwrap();
    let refused = apply(&cluster, &config_map("broken")).await.unwrap_err();
    assert!(refused.contains("configmaps \"broken\" is forbidden: expression 'object.nothing.at.all == 1' resulted in error: no such key: nothing"), "{refused}");
    // Unlabelled objects are nobody's.
    cluster.kubectl(&["create", "configmap", "plain"]).await;

    // A webhook with side effects does not judge dry runs.
    let effects = json!({"sideEffects": "Some"});
    let config = configuration(MUTATING, "effects", &["secrets"], hook.client_config(&cluster, "/e"), effects);
    let refused = apply(&cluster, &config).await;
    if refused.is_ok() {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default", "labels": {"hooked": "yes"}}});
        let refused =
            cluster.run("admin", &["apply", "--dry-run=server", "-f", "-"], &secret.to_string()).await.unwrap_err();
        assert!(refused.contains("admission webhook \"effects.example.com\" does not support dry run"), "{refused}");
    }
    // Rules hold for other versions of what they name.
    let rules =
        json!([{"operations": ["CREATE"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"], "resources": ["*"]}]);
    let config = configuration(VALIDATING, "old", &[], hook.client_config(&cluster, "/old"), json!({"rules": rules}));
    apply(&cluster, &config).await.unwrap();
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "namespace": "default", "labels": {"hooked": "yes"}},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
                 "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
    });
    apply(&cluster, &scaler).await.unwrap_err();
    let (_, request) = hook.asked.lock().last().unwrap().clone();
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    assert_eq!(request["object"]["spec"]["targetCPUUtilizationPercentage"], 50);
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_of_webhooks_ask_what_the_user_may_do() {
    let cluster = start().await;
    let hook = Hook::serve(&cluster, |_, _| Say::Answer(json!({"allowed": false}))).await;
    let conditions = json!({"matchConditions": [
        {"name": "not-for-breakers", "expression":
            "!authorizer.group('admissionregistration.k8s.io').resource('validatingwebhookconfigurations').name('x').check('breakglass').allowed()"},
        {"name": "may", "expression": "authorizer.requestResource.check('create').allowed() && namespaceObject == null"},
    ]});
    let client = hook.client_config(&cluster, "/deny");
    apply(&cluster, &configuration(VALIDATING, "deny", &["configmaps"], client, conditions)).await.unwrap();
    cluster.kubectl(&["create", "clusterrole", "writer", "--verb=*", "--resource=configmaps"]).await;
    cluster.kubectl(&["create", "clusterrolebinding", "ann", "--clusterrole=writer", "--user=ann"]).await;
    cluster.kubeconfig("ann", "ann", &[]);
    let create = ["create", "-f", "-"];
    let refused = cluster.run("ann", &create, &config_map("a").to_string()).await.unwrap_err();
    assert!(refused.contains("denied the request"), "{refused}");
    // Administrators may break glass.
    cluster.run("admin", &create, &config_map("b").to_string()).await.unwrap();
    assert_eq!(hook.asked.lock().len(), 1);
}
