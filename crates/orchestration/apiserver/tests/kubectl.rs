//! The machine's real kubectl against a server on a port of its own.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: default, labels: {x: one}}\n";

#[tokio::test(flavor = "multi_thread")]
async fn objects_live_and_die() {
    let cluster = Cluster::start().await;
    let namespaces = cluster.kubectl(&["get", "namespaces"]).await;
    assert!(namespaces.contains("kube-system"), "{namespaces}");

    let applied = cluster.run("admin", &["apply", "-f", "-"], &format!("{CONFIG_MAP}data: {{k: v}}\n")).await.unwrap();
    assert_eq!(applied, "configmap/a created\n");
    let again = cluster.run("admin", &["apply", "-f", "-"], &format!("{CONFIG_MAP}data: {{k: v}}\n")).await.unwrap();
    assert_eq!(again, "configmap/a unchanged\n");
    let changed = cluster.run("admin", &["apply", "-f", "-"], &format!("{CONFIG_MAP}data: {{k: w}}\n")).await.unwrap();
    assert_eq!(changed, "configmap/a configured\n");
    assert_eq!(cluster.kubectl(&["get", "cm", "a", "-o", "jsonpath={.data.k}"]).await, "w");
    assert!(cluster.kubectl(&["get", "cm", "-l", "x=one", "-o", "name"]).await.contains("configmap/a"));
    assert_eq!(cluster.kubectl(&["get", "cm", "-l", "x!=one", "-A", "-o", "name"]).await, "");
    cluster.kubectl(&["label", "cm", "a", "z=1"]).await;
    cluster.kubectl(&["patch", "cm", "a", "--type=json", "-p", r#"[{"op":"add","path":"/data/n","value":"1"}]"#]).await;
    assert_eq!(cluster.kubectl(&["get", "cm", "a", "-o", "jsonpath={.data.n}{.metadata.labels.z}"]).await, "11");
    // Sorted by what no column shows: the rows have to carry the objects.
    cluster.kubectl(&["create", "cm", "b", "--from-literal=k=a"]).await;
    let sorted = cluster.kubectl(&["get", "cm", "--sort-by=.data.k", "--no-headers"]).await;
    let names: Vec<&str> = sorted.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.ends_with(&["b", "a"]), "{sorted}");
    cluster.kubectl(&["delete", "cm", "a"]).await;
    let missing = cluster.run("admin", &["get", "cm", "a"], "").await.unwrap_err();
    assert_eq!(missing, "Error from server (NotFound): configmaps \"a\" not found\n");
    let elsewhere = CONFIG_MAP.replace("namespace: default", "namespace: nowhere");
    let refused = cluster.run("admin", &["apply", "-f", "-"], &elsewhere).await.unwrap_err();
    assert!(refused.contains("namespaces \"nowhere\" not found"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_and_ports_once() {
    let cluster = Cluster::start().await;
    let kubernetes = cluster.kubectl(&["get", "svc", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"]).await;
    assert_eq!(kubernetes, "10.43.0.1");
    let service = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: NodePort, ports: [{{port: 80, \
             nodePort: 30080}}]}}}}"
        )
    };
    cluster.run("admin", &["apply", "-f", "-"], &service("web")).await.unwrap();
    let web =
        cluster.kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP} {.spec.ports[0].nodePort}"]).await;
    assert!(web.starts_with("10.43.") && web.ends_with(" 30080"), "{web}");
    let taken = cluster.run("admin", &["apply", "-f", "-"], &service("other")).await.unwrap_err();
    assert!(taken.contains("provided port is already allocated"), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_decide() {
    let cluster = Cluster::start().await;
    cluster.kubeconfig("jane", "jane", &[]);
    let refused = cluster.run("jane", &["get", "pods"], "").await.unwrap_err();
    assert!(
        refused.contains(r#"User "jane" cannot list resource "pods" in API group "" in the namespace "default""#),
        "{refused}"
    );
    let binding = "---\n{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: jane, namespace: default}, \
                   roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}, \
                   subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: jane}]}";
    cluster.run("admin", &["apply", "-f", "-"], binding).await.unwrap();
    cluster.run("jane", &["get", "pods"], "").await.unwrap();
    assert!(cluster.run("jane", &["get", "secrets"], "").await.is_err());
    assert!(cluster.run("jane", &["get", "pods", "-n", "kube-system"], "").await.is_err());
    let review = |verb: &str| {
        format!(
            r#"{{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{{"resourceAttributes":
            {{"namespace":"default","verb":"{verb}","resource":"pods"}}}}}}"#
        )
    };
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (verb, allowed) in [("list", "\"allowed\":true"), ("delete", "\"allowed\":false")] {
        let answer = cluster.run("jane", &["create", "--raw", path, "-f", "-"], &review(verb)).await.unwrap();
        assert!(answer.contains(allowed), "{verb}: {answer}");
    }
    let who = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = cluster.run("jane", &["create", "--raw", path, "-f", "-"], who).await.unwrap();
    assert!(who.contains(r#""username":"jane""#), "{who}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_every_change() {
    let cluster = Cluster::start().await;
    let mut watch = tokio::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(cluster.folder.path().join("admin.kubeconfig"))
        .args(["get", "cm", "-n", "default", "-w", "--no-headers", "--output-watch-events", "-l", "watched=yes"])
        .env("NO_PROXY", "*")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(watch.stdout.take().unwrap()));
    let manifest = CONFIG_MAP.replace("x: one", "watched: 'yes'");
    cluster.run("admin", &["apply", "-f", "-"], &manifest).await.unwrap();
    cluster.kubectl(&["annotate", "cm", "a", "n=1"]).await;
    cluster.kubectl(&["label", "cm", "a", "--overwrite", "watched=no"]).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let line = tokio::time::timeout(std::time::Duration::from_secs(30), lines.next_line()).await.unwrap();
        seen.push(line.unwrap().unwrap().split_whitespace().next().unwrap_or_default().to_owned());
    }
    assert_eq!(seen, ["ADDED", "MODIFIED", "DELETED"]);
}

/// Every kind there is: created, listed wide, explained to its last field, changed by another apply, deleted.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_lives_dies_and_explains_itself() {
    let cluster = Cluster::start().await;
    let manifest = include_str!("kinds.yaml");
    let created = cluster.run("admin", &["apply", "-f", "-"], manifest).await.unwrap();
    let objects = manifest.matches("\nkind: ").count();
    assert_eq!(created.lines().filter(|line| line.ends_with(" created")).count(), objects, "{created}");
    // Free-form parts of a schema come back as they were sent.
    let default = "jsonpath={.spec.versions[0].schema.openAPIV3Schema.properties.spec.default.size}";
    assert_eq!(cluster.kubectl(&["get", "crd", "things.x.io", "-o", default]).await, "3");
    let stored = "jsonpath={.status.storedVersions[0]}";
    assert_eq!(cluster.kubectl(&["get", "crd", "things.x.io", "-o", stored]).await, "v1");

    // Some lists are replaced whole, so that applying again sends them again; but nothing of it is news.
    let versions = async || {
        let path = "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion}{\"\\n\"}{end}";
        cluster.run("admin", &["get", "-f", "-", "-o", path], manifest).await.unwrap()
    };
    let before = versions().await;
    cluster.run("admin", &["apply", "-f", "-"], manifest).await.unwrap();
    assert_eq!(versions().await, before);

    // `kubectl api-resources` prints the version third from the end, whether or not there are short names.
    let listed = cluster.kubectl(&["api-resources", "--no-headers"]).await;
    let resources: Vec<(&str, &str)> = listed
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[0], words[words.len() - 3])
        })
        .collect();
    assert!(resources.len() > 60, "{listed}");
    let listable = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).await;
    let all = listable.lines().collect::<Vec<_>>().join(",");
    let wide = cluster.kubectl(&["get", &all, "-A", "-o", "wide"]).await;
    let silent: Vec<&str> = wide.lines().filter(|line| line.contains("<invalid>")).collect();
    assert!(silent.is_empty(), "{silent:?}");
    let named = cluster.kubectl(&["get", &all, "-A", "-o", "name"]).await;
    assert!(named.lines().count() > objects, "{named}");

    let explain = async |resource: &str, version: &str| {
        let flag = format!("--api-version={version}");
        let explained = cluster.run("admin", &["explain", resource, "--recursive", &flag], "").await;
        assert!(explained.as_ref().is_ok_and(|text| text.contains("FIELDS:")), "{resource} {version}: {explained:?}");
    };
    futures::future::join_all(resources.iter().map(|(resource, version)| explain(resource, version))).await;

    let deleted = cluster.run("admin", &["delete", "--wait=false", "-f", "-"], manifest).await.unwrap();
    assert_eq!(deleted.lines().count(), objects, "{deleted}");
}

/// One autoscaler and one event, seen through both of the forms they have.
#[tokio::test(flavor = "multi_thread")]
async fn shared_storage_shows_each_form() {
    let cluster = Cluster::start().await;
    let get = async |path: &str| cluster.kubectl(&["get", "--raw", path]).await;
    let autoscaler = "apiVersion: autoscaling/v1\nkind: HorizontalPodAutoscaler\nmetadata: {name: h, namespace: default}\n\
                      spec: {maxReplicas: 3, targetCPUUtilizationPercentage: 60, scaleTargetRef: {kind: Deployment, name: d}}\n";
    cluster.run("admin", &["create", "-f", "-"], autoscaler).await.unwrap();
    let (v1, v2) = ("/apis/autoscaling/v1/namespaces/default", "/apis/autoscaling/v2/namespaces/default");
    let old = get(&format!("{v1}/horizontalpodautoscalers/h")).await;
    assert!(old.contains("\"targetCPUUtilizationPercentage\":60") && old.contains("\"autoscaling/v1\""), "{old}");
    let new = get(&format!("{v2}/horizontalpodautoscalers/h")).await;
    assert!(new.contains("\"averageUtilization\":60") && new.contains("\"autoscaling/v2\""), "{new}");
    // A write through one form is seen through the other, in lists and in watches from before it.
    let patch = "{\"spec\":{\"targetCPUUtilizationPercentage\":70}}";
    let object = "horizontalpodautoscalers.v1.autoscaling/h";
    cluster.kubectl(&["patch", object, "--type=merge", "-p", patch]).await;
    let list = get(&format!("{v2}/horizontalpodautoscalers")).await;
    assert!(list.contains("\"averageUtilization\":70") && !list.contains("\"targetCPU"), "{list}");
    let watched = get(&format!("{v1}/horizontalpodautoscalers?watch=true&resourceVersion=1&timeoutSeconds=1")).await;
    assert!(watched.contains("\"targetCPUUtilizationPercentage\":70") && !watched.contains("averageUtil"), "{watched}");

    let event = "apiVersion: events.k8s.io/v1\nkind: Event\nmetadata: {name: e, namespace: default}\nreason: Ran\n\
                 action: Run\ntype: Normal\nnote: it ran\neventTime: 2026-01-01T00:00:00.000000Z\n\
                 reportingController: a.b/c\nreportingInstance: i\nregarding: {kind: Pod, name: p, namespace: default}\n";
    cluster.run("admin", &["create", "-f", "-"], event).await.unwrap();
    let core = get("/api/v1/namespaces/default/events/e").await;
    assert!(core.contains("\"involvedObject\"") && core.contains("\"message\":\"it ran\""), "{core}");
    let selected = "/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp";
    assert!(get(selected).await.contains("\"note\":\"it ran\""));
}
