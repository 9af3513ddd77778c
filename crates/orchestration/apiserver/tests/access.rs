//! Who may do what: escalation, impersonation, and what a user is told about their rights.
#![allow(clippy::unwrap_used)]

mod harness;

use base64::Engine as _;
use dhow_apiserver::AccessConfig;
use dhow_base::pki::SaKey;
use harness::Cluster;
use serde_json::json;

/// A namespace's administrator: the `admin` role, bound by the cluster's administrator.
async fn jane(cluster: &Cluster) {
    cluster.kubeconfig("jane", "jane", &[]);
    cluster.kubectl(&["create", "rolebinding", "jane", "--clusterrole=admin", "--user=jane"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_more_than_they_hold() {
    let cluster = Cluster::start().await;
    jane(&cluster).await;
    let own = ["create", "role", "mine", "--verb=get", "--resource=pods"];
    cluster.run("jane", &own, "").await.unwrap();
    let more = ["create", "role", "more", "--verb=list", "--verb=get", "--resource=nodes"];
    let refused = cluster.run("jane", &more, "").await.unwrap_err();
    assert!(
        refused.contains("user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:"),
        "{refused}"
    );
    assert!(refused.contains("Resources:[\"nodes\"]"), "{refused}");
    cluster.run("jane", &["create", "rolebinding", "b", "--role=mine", "--user=joe"], "").await.unwrap();
    let all = ["create", "rolebinding", "all", "--clusterrole=cluster-admin", "--user=jane"];
    let refused = cluster.run("jane", &all, "").await.unwrap_err();
    assert!(refused.contains("rolebindings.rbac.authorization.k8s.io \"all\" is forbidden"), "{refused}");

    // `bind` and `escalate` allow it nonetheless.
    cluster
        .kubectl(&[
            "create",
            "role",
            "binder",
            "--verb=bind",
            "--resource=clusterroles.rbac.authorization.k8s.io",
            "--resource-name=cluster-admin",
        ])
        .await;
    cluster
        .kubectl(&["create", "role", "escalator", "--verb=escalate", "--resource=roles.rbac.authorization.k8s.io"])
        .await;
    for role in ["binder", "escalator"] {
        cluster.kubectl(&["create", "rolebinding", role, &format!("--role={role}"), "--user=jane"]).await;
    }
    cluster.run("jane", &more, "").await.unwrap();
    cluster.run("jane", &all, "").await.unwrap();
    // And takes effect at once.
    cluster.run("jane", &["create", "role", "any", "--verb=*", "--resource=*"], "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acting_as_somebody_else() {
    let cluster = Cluster::start().await;
    jane(&cluster).await;
    assert_eq!(cluster.kubectl(&["auth", "can-i", "list", "pods", "--as=jane"]).await, "yes\n");
    let refused = cluster.run("admin", &["get", "nodes", "--as=jane"], "").await.unwrap_err();
    assert!(refused.contains("User \"jane\" cannot list resource \"nodes\""), "{refused}");
    let who = cluster.kubectl(&["auth", "whoami", "--as=system:serviceaccount:default:x", "-o", "yaml"]).await;
    assert!(who.contains("system:serviceaccounts:default") && who.contains("system:authenticated"), "{who}");
    let who = cluster.kubectl(&["auth", "whoami", "--as=ann", "--as-group=dev", "--as-uid=7", "-o", "yaml"]).await;
    assert!(who.contains("- dev") && who.contains("uid: \"7\""), "{who}");
    let refused = cluster.run("jane", &["get", "pods", "--as=ann"], "").await.unwrap_err();
    assert!(
        refused.contains("User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_can_be_listed() {
    let cluster = Cluster::start().await;
    jane(&cluster).await;
    let list = cluster.run("jane", &["auth", "can-i", "--list"], "").await.unwrap();
    assert!(list.contains("pods/exec") && list.contains("selfsubjectaccessreviews.authorization.k8s.io"), "{list}");
    let elsewhere = cluster.run("jane", &["auth", "can-i", "--list", "-n", "kube-system"], "").await.unwrap();
    assert!(!elsewhere.contains("pods/exec"), "{elsewhere}");
    assert!(cluster.run("jane", &["auth", "can-i", "delete", "secrets", "-n", "kube-system"], "").await.is_err());
}

/// A pod that is only an object here: nothing runs it.
fn pod(name: &str, node: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: '{node}', containers: [{{name: c, image: \
         i}}], terminationGracePeriodSeconds: 0{spec}}}}}"
    )
}

async fn apply(cluster: &Cluster, manifest: &str) {
    // With `{` first, kubectl would take it for JSON.
    cluster.run("admin", &["apply", "-f", "-"], &format!("---\n{manifest}")).await.unwrap();
}

/// Who a kubeconfig's user is, or the refusal.
async fn whoami(cluster: &Cluster, file: &str) -> Result<String, String> {
    cluster.run(file, &["auth", "whoami", "-o", "yaml"], "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_tokens_let_machines_in() {
    let cluster = Cluster::start().await;
    let secret = |id: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: bootstrap-token-{id}, namespace: kube-system}}\ntype: \
             bootstrap.kubernetes.io/token\nstringData: {{token-id: {id}, token-secret: 0123456789abcdef{more}}}\n"
        )
    };
    const ON: &str = ", usage-bootstrap-authentication: 'true'";
    apply(&cluster, &secret("abcdef", &format!("{ON}, auth-extra-groups: 'system:bootstrappers:a'"))).await;
    apply(&cluster, &secret("unused", "")).await;
    apply(&cluster, &secret("passed", &format!("{ON}, expiration: '2020-01-01T00:00:00Z'"))).await;
    apply(&cluster, &secret("groups", &format!("{ON}, auth-extra-groups: 'system:masters'"))).await;
    for id in ["abcdef", "unused", "passed", "groups", "absent"] {
        cluster.kubeconfig_with_token(id, &format!("{id}.0123456789abcdef"));
    }
    let who = whoami(&cluster, "abcdef").await.unwrap();
    for part in ["username: system:bootstrap:abcdef", "- system:bootstrappers\n", "- system:bootstrappers:a\n"] {
        assert!(who.contains(part), "{who}");
    }
    cluster.kubeconfig_with_token("wrong", "abcdef.0123456789abcdeg");
    for refused in ["unused", "passed", "groups", "absent", "wrong"] {
        let error = whoami(&cluster, refused).await.unwrap_err();
        assert!(error.contains("Unauthorized") || error.contains("logged in"), "{refused}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_live_as_long_as_what_they_are_bound_to() {
    let cluster = Cluster::start().await;
    for name in ["sa", "default"] {
        cluster.kubectl(&["create", "serviceaccount", name]).await;
    }
    cluster.kubectl(&["create", "secret", "generic", "s"]).await;
    apply(&cluster, "{apiVersion: v1, kind: Node, metadata: {name: node1}}").await;
    apply(&cluster, &pod("p", "node1", ", serviceAccountName: sa")).await;
    for (kind, name) in [("Pod", "p"), ("Secret", "s"), ("Node", "node1")] {
        let args = ["create", "token", "sa", "--bound-object-kind", kind, "--bound-object-name", name];
        let token = cluster.kubectl(&args).await;
        cluster.kubeconfig_with_token(kind, token.trim());
    }
    let who = whoami(&cluster, "Pod").await.unwrap();
    for part in
        ["username: system:serviceaccount:default:sa", "kubernetes.io/pod-name", "kubernetes.io/node-uid", "JTI="]
    {
        assert!(who.contains(part), "{part} is not in {who}");
    }
    let refused = async |args: &[&str]| cluster.run("admin", args, "").await.unwrap_err();
    let error = refused(&["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name=p"]).await;
    assert!(error.contains("pod running with different serviceaccount name"), "{error}");
    let other = ["--bound-object-kind=Pod", "--bound-object-name=p", "--bound-object-uid=1"];
    let error = refused(&[&["create", "token", "sa"], &other[..]].concat()).await;
    assert!(error.contains("the UID in the bound object reference (1) does not match the UID in record"), "{error}");
    let error = refused(&["create", "token", "sa", "--duration=5m"]).await;
    assert!(error.contains("may not specify a duration less than 10 minutes"), "{error}");

    for (kind, name) in [("Pod", "p"), ("Secret", "s"), ("Node", "node1")] {
        whoami(&cluster, kind).await.unwrap();
        cluster.kubectl(&["delete", kind, name, "--force"]).await;
        whoami(&cluster, kind).await.unwrap_err();
    }
    // Something new of the same name is something else.
    cluster.kubectl(&["create", "secret", "generic", "s"]).await;
    whoami(&cluster, "Secret").await.unwrap_err();
    let token = cluster.kubectl(&["create", "token", "sa"]).await;
    cluster.kubeconfig_with_token("sa", token.trim());
    whoami(&cluster, "sa").await.unwrap();
    cluster.kubectl(&["delete", "serviceaccount", "sa"]).await;
    whoami(&cluster, "sa").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_for_an_audience() {
    let cluster = Cluster::start_with(AccessConfig { longest_token: Some(3600), ..AccessConfig::default() }).await;
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    let token = cluster.kubectl(&["create", "token", "default", "--audience=vault", "--audience=other"]).await;
    cluster.kubeconfig_with_token("vault", token.trim());
    whoami(&cluster, "vault").await.unwrap_err();
    let review = async |spec: serde_json::Value| {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        cluster.json("POST", path, "application/json", &json!({"spec": spec})).await.1["status"].clone()
    };
    let status = review(json!({"token": token.trim(), "audiences": ["vault", "none"]})).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])), "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    for audiences in [json!(["none"]), json!([])] {
        let status = review(json!({"token": token.trim(), "audiences": audiences})).await;
        assert!(status["authenticated"].is_null() && status["error"].is_string(), "{status}");
    }
    let warned = cluster.run_both("admin", &["create", "token", "default", "--duration=48h"]).await;
    assert!(warned.contains("requested expiration of 172800 seconds shortened to 3600 seconds"), "{warned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_keys_are_believed_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let old = SaKey::load_or_create(&folder.path().join("old.key")).unwrap();
    let keys = AccessConfig { verification_keys: vec![old.public_pem()], ..AccessConfig::default() };
    let cluster = Cluster::start_with(keys).await;
    cluster.kubectl(&["create", "serviceaccount", "default"]).await;
    let (_, account) =
        cluster.json("GET", "/api/v1/namespaces/default/serviceaccounts/default", "", &json!(null)).await;
    let mut claims: serde_json::Value = {
        let token = cluster.kubectl(&["create", "token", "default"]).await;
        let part = token.split('.').nth(1).unwrap();
        serde_json::from_slice(&base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    assert_eq!(claims["kubernetes.io"]["serviceaccount"]["uid"], account["metadata"]["uid"]);
    let sign = |claims: &serde_json::Value, key: &SaKey| {
        let header = jsonwebtoken::Header {
            kid: Some(key.key_id()),
            ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256)
        };
        let key = jsonwebtoken::EncodingKey::from_ec_pem(key.private_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    };
    cluster.kubeconfig_with_token("old", &sign(&claims, &old));
    whoami(&cluster, "old").await.unwrap();
    let strange = SaKey::load_or_create(&folder.path().join("strange.key")).unwrap();
    cluster.kubeconfig_with_token("strange", &sign(&claims, &strange));
    whoami(&cluster, "strange").await.unwrap_err();
    claims["exp"] = json!(claims["iat"].as_i64().unwrap() - 3600);
    cluster.kubeconfig_with_token("passed", &sign(&claims, &old));
    whoami(&cluster, "passed").await.unwrap_err();

    // Service accounts, and nobody else, may read who signs.
    let raw = async |path| cluster.run("old", &["get", "--raw", path], "").await.unwrap();
    let issuer: serde_json::Value = serde_json::from_str(&raw("/.well-known/openid-configuration").await).unwrap();
    assert_eq!(issuer["issuer"], claims["iss"]);
    assert_eq!(issuer["jwks_uri"], "https://192.0.2.1:6443/openid/v1/jwks");
    let jwks: serde_json::Value = serde_json::from_str(&raw("/openid/v1/jwks").await).unwrap();
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
    assert_eq!(jwks["keys"][1], old.jwk());
    cluster.kubeconfig("jane", "jane", &[]);
    cluster.run("jane", &["get", "--raw", "/openid/v1/jwks"], "").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_accounts_are_filled() {
    let cluster = Cluster::start().await;
    apply(
        &cluster,
        "{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token, metadata: {name: s, annotations: \
         {kubernetes.io/service-account.name: sa}}}",
    )
    .await;
    cluster.kubectl(&["create", "serviceaccount", "sa"]).await;
    cluster.kubectl(&["wait", "secret/s", "--for=jsonpath={.data.token}", "--timeout=20s"]).await;
    let read = async |path: &str| {
        let encoded = cluster.kubectl(&["get", "secret", "s", "-o", &format!("jsonpath={path}")]).await;
        String::from_utf8(base64::prelude::BASE64_STANDARD.decode(encoded).unwrap()).unwrap()
    };
    assert!(read("{.data.ca\\.crt}").await.contains("BEGIN CERTIFICATE"));
    assert_eq!(read("{.data.namespace}").await, "default");
    cluster.kubeconfig_with_token("sa", &read("{.data.token}").await);
    assert!(whoami(&cluster, "sa").await.unwrap().contains("username: system:serviceaccount:default:sa"));
    // Its use is noted, by the day.
    let used = "jsonpath={.metadata.labels.kubernetes\\.io/legacy-token-last-used}";
    let day = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    cluster.kubectl(&["wait", "secret/s", &format!("--for={used}={day}"), "--timeout=20s"]).await;
    let tracking = ["get", "configmap", "kube-apiserver-legacy-service-account-token-tracking", "-n", "kube-system"];
    assert_eq!(cluster.kubectl(&[&tracking[..], &["-o", "jsonpath={.data.since}"]].concat()).await, day);
    cluster.kubectl(&["label", "secret", "s", "kubernetes.io/legacy-token-invalid-since=2020-01-01"]).await;
    whoami(&cluster, "sa").await.unwrap_err();
    cluster.kubectl(&["label", "secret", "s", "kubernetes.io/legacy-token-invalid-since-"]).await;
    whoami(&cluster, "sa").await.unwrap();
    // The account goes, and its secret with it.
    cluster.kubectl(&["delete", "serviceaccount", "sa"]).await;
    cluster.kubectl(&["wait", "secret/s", "--for=delete", "--timeout=20s"]).await;
    whoami(&cluster, "sa").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_what_its_pods_need() {
    let cluster = Cluster::start().await;
    for node in ["node1", "node2"] {
        cluster.kubeconfig(node, &format!("system:node:{node}"), &["system:nodes"]);
        apply(&cluster, &format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}")).await;
    }
    for name in ["sa", "other"] {
        cluster.kubectl(&["create", "serviceaccount", name]).await;
    }
    for kind in [&["secret", "generic"][..], &["configmap"]] {
        for name in ["env", "volume", "projected", "pull", "foreign", "driver"] {
            cluster.kubectl(&[&["create"], kind, &[name]].concat()).await;
        }
    }
    apply(
        &cluster,
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: claim}, spec: {accessModes: [ReadWriteOnce], resources: \
         {requests: {storage: 1Gi}}, volumeName: pv, storageClassName: ''}}\n---\n{apiVersion: v1, kind: PersistentVolume, metadata: \
         {name: pv}, spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, claimRef: {namespace: default, name: claim}, \
         csi: {driver: d, volumeHandle: h, nodePublishSecretRef: {name: driver, namespace: default}}}}",
    )
    .await;
    let needs = ", serviceAccountName: sa, imagePullSecrets: [{name: pull}], volumes: [{name: a, secret: {secretName: volume}}, \
         {name: b, projected: {sources: [{secret: {name: projected}}, {configMap: {name: projected}}]}}, {name: c, configMap: {name: \
         volume}}, {name: d, persistentVolumeClaim: {claimName: claim}}], initContainers: [{name: i, image: i, envFrom: [{secretRef: \
         {name: env}}, {configMapRef: {name: env}}]}]";
    apply(&cluster, &pod("p", "node1", needs)).await;
    apply(&cluster, &pod("q", "node2", ", serviceAccountName: other")).await;

    let uid = cluster.kubectl(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]).await;
    let may = async |node: &str, args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        cluster.run(node, &args, "").await
    };
    for allowed in [
        "get node node1",
        "get pods --field-selector=spec.nodeName=node1",
        "get pod p",
        "get services -A",
        "get secret env volume projected pull driver",
        "get configmap env volume projected",
        "get pvc claim",
        "get pv pv",
        // A node has to say which pod it means, not only what it is called.
        &format!("create token sa --bound-object-kind=Pod --bound-object-name=p --bound-object-uid={uid}"),
        "label node node1 a=b",
        "delete pod p --dry-run=server",
    ] {
        may("node1", allowed).await.unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }
    for refused in [
        "get node node2",
        "get nodes",
        "get pods",
        "get pods --field-selector=spec.nodeName=node2",
        "get pod q",
        "get secrets",
        "get secret foreign",
        "get configmap foreign",
        "get configmap driver",
        "get pvc",
        "create token other",
        "label node node2 a=b",
        "get namespaces",
        "get endpointslices",
        "get deployments",
    ] {
        let error = may("node1", refused).await.expect_err(refused);
        assert!(error.contains("forbidden"), "{refused}: {error}");
    }
    for mine in ["get secret env", "get secret driver", "get pvc claim", "get pv pv", "create token sa"] {
        may("node2", mine).await.expect_err(mine);
    }
    // With the pod, what it needed goes.
    cluster.kubectl(&["delete", "pod", "p", "--force"]).await;
    may("node1", "get secret env").await.unwrap_err();
    // Who only calls himself a node is none.
    cluster.kubeconfig("joe", "system:node:node2", &[]);
    may("joe", "get pod q").await.unwrap_err();
    // Its lease, in the one namespace of leases.
    let lease = |name: &str, namespace: &str| {
        format!(
            "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {name}, namespace: {namespace}}}}}"
        )
    };
    let create = async |name, namespace| {
        cluster.run("node1", &["create", "-f", "-"], &format!("---\n{}", lease(name, namespace))).await
    };
    create("node1", "kube-node-lease").await.unwrap();
    create("node1", "default").await.unwrap_err();
    cluster.run("admin", &["create", "-f", "-"], &format!("---\n{}", lease("node2", "kube-node-lease"))).await.unwrap();
    may("node1", "-n kube-node-lease label lease node1 a=b").await.unwrap();
    may("node1", "-n kube-node-lease label lease node2 a=b").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_take_only_their_finalizer_from_only_their_volumes() {
    let cluster = Cluster::start().await;
    for node in ["node1", "node2"] {
        cluster.kubeconfig(node, &format!("system:node:{node}"), &["system:nodes"]);
    }
    let terms = "{required: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}";
    apply(
        &cluster,
        &format!(
            "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: held, labels: {{dhow.io/node: node1}}, finalizers: \
             [dhow.io/local-volume, example.com/other]}}, spec: {{accessModes: [ReadWriteOnce], capacity: {{storage: 1Gi}}, \
             local: {{path: /x}}, nodeAffinity: {terms}}}}}"
        ),
    )
    .await;
    let run = async |node: &str, args: &[&str]| cluster.run(node, args, "").await;
    run("node1", &["get", "pv", "-l", "dhow.io/node=node1"]).await.unwrap();
    for selector in ["dhow.io/node", "dhow.io/node=node2", "dhow.io/node!=node1", "dhow.io/node=node1,a!=b"] {
        let error = run("node1", &["get", "pv", "-l", selector]).await.expect_err(selector);
        assert!(error.contains("forbidden"), "{selector}: {error}");
    }
    run("node1", &["get", "pv"]).await.unwrap_err();
    let patch = async |node: &str, patch: &str| run(node, &["patch", "pv", "held", "--type=merge", "-p", patch]).await;
    for refused in [
        r#"{"metadata":{"finalizers":["dhow.io/local-volume"]}}"#,
        r#"{"metadata":{"finalizers":["dhow.io/local-volume","example.com/other","kubernetes.io/pv-protection","x.y/z"]}}"#,
        r#"{"metadata":{"labels":{"dhow.io/node":"node2"}}}"#,
        r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#,
    ] {
        let error = patch("node1", refused).await.expect_err(refused);
        assert!(
            error.contains("may only take dhow.io/local-volume and dhow.io/local-volume-filling"),
            "{refused}: {error}"
        );
    }
    let left = cluster.kubectl(&["get", "pv", "held", "-o", "jsonpath={.metadata.finalizers}"]).await;
    let left = left.replace(r#""dhow.io/local-volume","#, "").replace(r#","dhow.io/local-volume""#, "");
    let taken = format!(r#"{{"metadata":{{"finalizers":{left}}}}}"#);
    patch("node2", &taken).await.unwrap_err();
    patch("node1", &taken).await.unwrap();
    run("node1", &["delete", "pv", "held", "--wait=false"]).await.unwrap_err();
}
