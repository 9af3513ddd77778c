//! The ways kubectl writes, finds, describes and removes objects, with its oldest and newest version.
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Cluster;

const ONE: &str =
    "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: default, labels: {x: one}}, data: {k: one}}";
const TWO: &str =
    "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: default, labels: {x: one}}, data: {k: two}}";
const OTHER: &str = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: default, labels: {x: one}}}";
const UNKNOWN: &str = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: u, namespace: default}, dato: {k: v}}";
const BUDGET: &str = "---\n{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: p, namespace: default}, spec: \
                      {minAvailable: 1, selector: {}}}";
const BUDGET_STATUS: &str = "---\n{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: p, namespace: default}, \
                             status: {currentHealthy: 3, desiredHealthy: 1, expectedPods: 3, disruptionsAllowed: 2}}";
const ROLE: &str = "---\n{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r, namespace: default}, rules: \
                    [{apiGroups: [''], resources: [pods], verbs: [get]}]}";

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_in_every_way() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        let both = format!("{ONE}\n{OTHER}\n");
        let jane = ROLE.replace("[get]", "[list]");
        let map = "/api/v1/namespaces/default/configmaps";
        let raw_create = format!("create --raw {map} -f -");
        let raw_replace = format!("replace --raw {map}/raw -f -");
        let raw_delete = format!("delete --raw {map}/raw");
        let raw = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"raw"},"data":{"k":"v"}}"#;
        let wrong = cluster
            .wrong(
                &kubectl,
                &[
                    ("apply --dry-run=server -f -", ONE, "configmap/a created (server dry run)"),
                    ("apply -f -", &both, "configmap/b created"),
                    ("apply view-last-applied configmap/a", "", "k: one"),
                    (
                        "get configmap a -o jsonpath={.metadata.managedFields[*].manager}",
                        "",
                        "kubectl-client-side-apply",
                    ),
                    ("apply --prune -l x=one --prune-allowlist=core/v1/ConfigMap -f -", ONE, "configmap/b pruned"),
                    ("apply set-last-applied -f -", ONE, "configmap/a"),
                    // From client-side to server-side: kubectl hands its fields over.
                    ("apply --server-side -f -", TWO, "configmap/a serverside-applied"),
                    ("get configmap a -o jsonpath={.data.k}", "", "two"),
                    ("apply --server-side --dry-run=server -f -", ONE, "(server dry run)"),
                    ("get configmap a -o jsonpath={.data.k}", "", "two"),
                    (
                        "apply --server-side --force-conflicts --field-manager=other -f -",
                        ONE,
                        "configmap/a serverside-applied",
                    ),
                    ("get configmap a -o jsonpath={.data.k}", "", "one"),
                    (
                        "get configmap a --show-managed-fields -o jsonpath={.metadata.managedFields[*].manager}",
                        "",
                        "other",
                    ),
                    ("create --validate=warn -f -", UNKNOWN, "configmap/u created"),
                    ("replace --validate=ignore -f -", UNKNOWN, "configmap/u replaced"),
                    (&raw_create, raw, "\"uid\":"),
                    (&raw_replace, &raw.replace("\"v\"", "\"w\""), "\"k\":\"w\""),
                    (&raw_delete, "", "\"Success\""),
                    ("create -f -", BUDGET, "poddisruptionbudget.policy/p created"),
                    ("replace --subresource=status -f -", BUDGET_STATUS, "replaced"),
                    ("get pdb p --no-headers", "", "2"),
                    ("get pdb p --subresource=status -o jsonpath={.status.currentHealthy}", "", "3"),
                    ("create -f -", ROLE, "role.rbac.authorization.k8s.io/r created"),
                    ("auth reconcile --remove-extra-permissions -f -", &jane, "reconciled"),
                    ("get role r -o jsonpath={.rules[*].verbs[*]}", "", "list"),
                ],
            )
            .await;
        assert!(wrong.is_empty(), "{wrong:#?}");
        let run = async |line: &str, input: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            cluster.run_with(&kubectl, "admin", &args, input).await.unwrap_err()
        };
        let conflict = run("apply --server-side -f -", TWO).await;
        assert!(conflict.contains("Apply failed with 1 conflict: conflict with \"other\""), "{conflict}");
        assert!(conflict.contains("\n") && conflict.contains(".data.k"), "{conflict}");
        let strict = run("create --validate=strict -f -", UNKNOWN).await;
        assert!(strict.contains("strict decoding error: unknown field \"dato\""), "{strict}");
        let stale = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","resourceVersion":"1"}}"#;
        let stale = run("replace -f -", stale).await;
        let words = "Error from server (Conflict): error when replacing \"STDIN\": Operation cannot be fulfilled on configmaps \"a\": \
                     the object has been modified; please apply your changes to the latest version and try again";
        assert!(stale.contains(words), "{stale}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_found_named_and_removed() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        let both = format!("{ONE}\n{OTHER}\n");
        let verbose = "get --raw /readyz?verbose";
        let wrong = cluster
            .wrong(
                &kubectl,
                &[
                    ("create -f -", &both, "configmap/b created"),
                    ("label configmap --all z=1", "", "configmap/b labeled"),
                    ("label configmap a --list", "", "z=1"),
                    ("label configmap a z=2 --overwrite", "", "configmap/a labeled"),
                    ("annotate configmap -l x=one note=some~words", "", "configmap/b annotate"),
                    ("annotate configmap a --list", "", "note=some words"),
                    ("annotate configmap a note-", "", "configmap/a annotate"),
                    ("get configmap -l z=2 -o name", "", "configmap/a\n"),
                    ("get configmap -l z~in~(2,3),x!=two -o name", "", "configmap/a\n"),
                    ("get configmap -L x,z --no-headers", "", "one   2"),
                    ("get configmap --field-selector metadata.name=b -o name", "", "configmap/b\n"),
                    ("get configmap --chunk-size=1 -o name", "", "configmap/a\nconfigmap/b\n"),
                    ("get configmap a b -o jsonpath={.items[*].metadata.name}", "", "a b"),
                    ("get configmap/a configmap/b --no-headers", "", "b "),
                    ("get all -A", "", "service/kubernetes"),
                    ("get --raw /healthz", "", "ok"),
                    (verbose, "", "[+]etcd ok"),
                    ("get --raw /metrics", "", "apiserver_request_total"),
                    ("get --raw /version", "", "\"gitVersion\""),
                    ("explain pods.spec.containers.livenessProbe.httpGet.port", "", "IntOrString"),
                    ("explain deployments --api-version=apps/v1", "", "VERSION:"),
                    ("explain configmaps --recursive --output=plaintext-openapiv2", "", "binaryData"),
                    ("api-resources --namespaced=false -o wide --sort-by=kind", "", "apiservices"),
                    ("api-resources --verbs=deletecollection,watch -o name", "", "pods"),
                    ("auth can-i get /healthz", "", "yes"),
                    ("auth can-i get pods/log", "", "yes"),
                    ("auth can-i --list -n default", "", "*.*"),
                    ("create serviceaccount default", "", "created"),
                    ("run p --image=i --labels=a=b --env=K=V --dry-run=server", "", "pod/p created (server dry run)"),
                    ("run p --image=i --restart=Never", "", "pod/p created"),
                    ("events --for=pod/p", "", ""),
                    ("get events --sort-by=.lastTimestamp", "", ""),
                    ("set env pod/p --list", "", "# Pod p, container p"),
                    ("delete pod p --now", "", "pod \"p\" deleted"),
                    ("delete configmap none --ignore-not-found", "", ""),
                    ("delete configmap -l z=2", "", "configmap \"a\" deleted"),
                    ("delete configmap --all", "", "configmap \"b\" deleted"),
                    ("delete configmap --all", "", ""),
                ],
            )
            .await;
        assert!(wrong.is_empty(), "{wrong:#?}");
        let taken =
            cluster.run_with(&kubectl, "admin", &["label", "ns", "default", "kubernetes.io/metadata.name=x"], "").await;
        assert!(taken.unwrap_err().contains("--overwrite is false"));
    }
}

/// Kinds that became stable after the clients' time.
const NEWER: [&str; 2] = ["ipaddresses.networking.k8s.io", "volumeattributesclasses.storage.k8s.io"];

/// `kubectl describe` reads each kind's fields and asks for what belongs to it.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_described() {
    let cluster = Cluster::start().await;
    cluster.run("admin", &["apply", "-f", "-"], include_str!("kinds.yaml")).await.unwrap();
    let listable = cluster.kubectl(&["api-resources", "--verbs=list,get", "-o", "name"]).await;
    for kubectl in harness::kubectls() {
        let describe = async |resource: &str| {
            let described = cluster.run_with(&kubectl, "admin", &["describe", resource, "-A"], "").await;
            match described {
                Ok(text) if text.is_empty() || text.contains("Name:") => None,
                // These clients look for versions of these APIs that are no more.
                Err(_) if NEWER.contains(&resource) => None,
                other => Some(format!("{kubectl:?} {resource}: {other:?}")),
            }
        };
        let all = futures::future::join_all(listable.lines().map(describe)).await;
        let wrong: Vec<String> = all.into_iter().flatten().collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let folder = cluster.folder.path().join("dump");
        let dump = ["cluster-info", "dump", "--output-directory", folder.to_str().unwrap(), "--namespaces", "default"];
        cluster.run_with(&kubectl, "admin", &dump, "").await.unwrap();
        assert!(std::fs::read_to_string(folder.join("default/pods.json")).unwrap().contains("PodList"));
    }
}
