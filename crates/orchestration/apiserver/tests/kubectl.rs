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
    assert_eq!(cluster.kubectl(&["get", "cm", "-l", "x!=one", "-o", "name"]).await, "");
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
        // Its types are in no document.
        .filter(|(_, version)| *version != "metrics.k8s.io/v1beta1")
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

const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: default}\nspec:\n  selector: \
                          {matchLabels: {app: d}}\n  template:\n    metadata: {labels: {app: d}}\n    spec: {containers: \
                          [{name: c, image: a}]}\n";

/// Every other verb and flag, with the oldest and the newest client; what each says, or at least that it works.
#[tokio::test(flavor = "multi_thread")]
async fn every_verb_works_with_old_and_new_clients() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        let run = async |line: &str, input: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            cluster.run_with(&kubectl, "admin", &args, input).await
        };
        let csr = rcgen::CertificateParams::new(vec!["jane".into()])
            .unwrap()
            .serialize_request(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let csr = |name: &str| {
            use base64::Engine as _;
            let pem = base64::engine::general_purpose::STANDARD.encode(csr.pem().unwrap());
            format!(
                "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec: \
                 {{request: {pem}, signerName: example.com/own, usages: [client auth]}}\n"
            )
        };
        let mut wrong = Vec::new();
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n";
        let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reconciled, namespace: default}\n\
                    rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]\n";
        let changed = DEPLOYMENT.replace("image: a", "image: b");
        let status = r#"{"status":{"observedGeneration":7}}"#;
        let csrs = format!("{}---\n{}", csr("csr-a"), csr("csr-b"));
        for (line, input, words) in [
            ("create serviceaccount default", "", "serviceaccount/default created"),
            ("create -f -", DEPLOYMENT, "deployment.apps/d created"),
            ("patch deploy d --type=strategic -p {\"metadata\":{\"labels\":{\"s\":\"1\"}}}", "", "patched"),
            ("patch deploy d --type=merge -p {\"metadata\":{\"labels\":{\"m\":\"1\"}}}", "", "patched"),
            (
                "patch deploy d --type=json -p [{\"op\":\"add\",\"path\":\"/metadata/labels/j\",\"value\":\"1\"}]",
                "",
                "patched",
            ),
            (&format!("patch deploy d --subresource=status --type=merge -p {status}"), "", "patched"),
            (
                "get deploy d -o jsonpath={.status.observedGeneration}{.metadata.labels}",
                "",
                r#"7{"j":"1","m":"1","s":"1"}"#,
            ),
            ("get deploy d --subresource=status -o name", "", "deployment.apps/d"),
            ("patch deploy d --subresource=scale --type=merge -p {\"spec\":{\"replicas\":2}}", "", "patched"),
            ("get deploy d -o custom-columns=R:.spec.replicas --no-headers", "", "2"),
            ("get deploy d -o json", "", "\"kind\": \"Deployment\""),
            ("get deploy d -o yaml --show-managed-fields", "", "managedFields"),
            ("get deploy d -o go-template={{.metadata.name}}", "", "d"),
            ("get deploy -A --sort-by=.metadata.name --show-labels", "", "j=1"),
            ("scale deploy d --replicas=3 --current-replicas=2", "", "scaled"),
            ("set image deploy/d c=x", "", "image updated"),
            ("set env deploy/d A=b", "", "env updated"),
            ("set resources deploy/d --limits=cpu=1", "", "resource requirements updated"),
            ("set serviceaccount deploy/d default", "", "serviceaccount updated"),
            ("rollout restart deploy/d", "", "restarted"),
            ("rollout pause deploy/d", "", "paused"),
            ("rollout resume deploy/d", "", "resumed"),
            ("rollout history deploy/d", "", "d"),
            ("wait --for=jsonpath={.spec.replicas}=3 deploy/d --timeout=20s", "", "condition met"),
            ("expose deploy d --port=80", "", "service/d exposed"),
            ("set selector svc/d app=other", "", "selector updated"),
            ("autoscale deploy d --max=3", "", "autoscaled"),
            ("run p --image=i --restart=Never --port=80", "", "pod/p created"),
            ("label pod p a=b", "", "labeled"),
            ("label pod p a-", "", "unlabeled"),
            ("annotate pod p a=b", "", "pod/p annotate"),
            ("events", "", ""),
            ("create -f -", node, "node/node-a created"),
            ("taint node node-a a=b:NoSchedule", "", "tainted"),
            ("taint node node-a a-", "", "untainted"),
            ("cordon node-a", "", "cordoned"),
            ("uncordon node-a", "", "uncordoned"),
            ("drain node-a --force --ignore-daemonsets", "", "drained"),
            ("create role r --verb=get --resource=pods", "", "created"),
            ("create rolebinding r --role=r --user=jane", "", "created"),
            ("set subject rolebinding r --group=dev", "", "subjects updated"),
            ("create service loadbalancer l --tcp=80", "", "service/l created"),
            ("auth can-i create pods", "", "yes"),
            ("auth can-i --list --as=jane", "", "selfsubjectaccessreviews"),
            ("auth reconcile -f -", role, "reconciled"),
            ("create -f -", &csrs, "certificatesigningrequest.certificates.k8s.io/csr-a created"),
            ("certificate approve csr-a", "", "approved"),
            ("certificate deny csr-b", "", "denied"),
            ("get csr", "", "Denied"),
            ("api-resources --api-group=apps -o name", "", "deployments.apps"),
            ("api-versions", "", "apps/v1"),
            ("cluster-info", "", "Kubernetes control plane"),
            ("replace -f -", &changed, "replaced"),
            ("replace --force -f -", &changed, "replaced"),
            ("delete deploy d --cascade=foreground --wait=false", "", "deleted"),
            ("delete svc d --cascade=background", "", "deleted"),
            ("delete svc l --cascade=orphan --wait=false", "", "deleted"),
            ("delete pod p --force --grace-period=0", "", "deleted"),
        ] {
            match run(line, input).await {
                Ok(said) if said.contains(words) => {}
                other => wrong.push(format!("{kubectl:?} {line}: {other:?}")),
            }
        }
        for (line, input, words) in [
            ("diff -f -", DEPLOYMENT, ""),
            ("top nodes", "", "metrics not available yet"),
            ("rollout undo deploy/none", "", "not found"),
            ("auth can-i create pods --as=jane", "", ""),
            ("get nonsense", "", "the server doesn't have a resource type \"nonsense\""),
            ("wait --for=delete node/node-a --timeout=1s", "", "timed out"),
        ] {
            match run(line, input).await {
                Err(said) if said.contains(words) => {}
                other => wrong.push(format!("{kubectl:?} {line}: {other:?}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    // The oldest asks for a version of this API that is no more.
    let cluster = Cluster::start().await;
    let newest = harness::kubectls().pop().unwrap();
    let who = cluster.run_with(&newest, "admin", &["auth", "whoami"], "").await.unwrap();
    assert!(who.contains("system:admin"), "{who}");
}

/// `kubectl edit` with an editor that changes one word, and `kubectl diff` that shows what an apply would do.
#[tokio::test(flavor = "multi_thread")]
async fn edit_and_diff_see_the_object() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        let manifest = format!("{CONFIG_MAP}data: {{k: before}}\n");
        cluster.run_with(&kubectl, "admin", &["apply", "-f", "-"], &manifest).await.unwrap();
        let command = |args: &[&str]| {
            let mut command = tokio::process::Command::new(&kubectl);
            command.arg("--kubeconfig").arg(cluster.folder.path().join("admin.kubeconfig")).args(args);
            command.env("NO_PROXY", "*").env("KUBE_EDITOR", "sed -i s/before/after/").kill_on_drop(true);
            command
        };
        let edited = command(&["edit", "cm", "a"]).output().await.unwrap();
        assert!(edited.status.success(), "{edited:?}");
        assert_eq!(cluster.kubectl(&["get", "cm", "a", "-o", "jsonpath={.data.k}"]).await, "after");
        let file = cluster.folder.path().join("manifest.yaml");
        std::fs::write(&file, &manifest).unwrap();
        let diff = command(&["diff", "-f", file.to_str().unwrap()]).output().await.unwrap();
        let shown = String::from_utf8(diff.stdout).unwrap();
        assert!(diff.status.code() == Some(1) && shown.contains("-  k: after\n+  k: before\n"), "{shown}");
    }
}
