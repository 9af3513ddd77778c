//! kubectl where controllers answer: rollouts, owners and what they own, waiting and watching.
#![allow(clippy::unwrap_used)]

mod harness;

use std::path::Path;
use std::time::Duration;

use dhow_apiserver::UserInfo;
use dhow_controllers::ControllersConfig;
use harness::Cluster;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    let client = cluster.server.client(UserInfo::new("system:kube-controller-manager", &["system:masters"]));
    tokio::spawn(dhow_controllers::run_all(client, ControllersConfig::default(), cluster.shutdown.clone()));
    cluster
}

/// No pods, so that every rollout is done at once.
fn workload(kind: &str) -> String {
    let own = match kind {
        "DaemonSet" => "",
        "StatefulSet" => "replicas: 0, serviceName: s, ",
        _ => "replicas: 0, ",
    };
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: w, namespace: default}}\nspec: {{{own}selector: {{matchLabels: \
         {{app: w}}}}, template: {{metadata: {{labels: {{app: w}}}}, spec: {{containers: [{{name: c, image: 'i:1'}}]}}}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_go_forth_and_back() {
    for kubectl in harness::kubectls() {
        for (kind, resource, done) in [
            ("Deployment", "deployment", "successfully rolled out"),
            ("StatefulSet", "statefulset", "complete"),
            ("DaemonSet", "daemonset", "successfully rolled out"),
        ] {
            let cluster = start().await;
            let manifest = workload(kind);
            let line = |text: &str| text.replace("W", &format!("{resource}/w"));
            let image = line("get W -o jsonpath={.spec.template.spec.containers[0].image}");
            let mut steps = vec![
                (line("create -f -"), manifest.as_str(), "created"),
                (line("rollout status W --timeout=20s"), "", done),
                (line("set image W c=i:2"), "", "image updated"),
                (line("rollout status W --timeout=20s"), "", done),
                (line("rollout history W"), "", "2"),
                (line("rollout history W --revision=2"), "", "i:2"),
                (line("rollout undo W"), "", "rolled back"),
                (image.clone(), "", "i:1"),
                (line("rollout status W --timeout=20s"), "", done),
                (line("rollout undo W --to-revision=2"), "", "rolled back"),
                (image, "", "i:2"),
                (line("rollout restart W"), "", "restarted"),
                (line("rollout status W --timeout=20s"), "", done),
                (
                    line("get W -o jsonpath={.spec.template.metadata.annotations}"),
                    "",
                    "kubectl.kubernetes.io/restartedAt",
                ),
            ];
            if kind == "Deployment" {
                steps.extend([
                    (line("rollout pause W"), "", "paused"),
                    (line("get W -o jsonpath={.spec.paused}"), "", "true"),
                    (line("rollout resume W"), "", "resumed"),
                    (line("annotate W kubernetes.io/change-cause=because"), "", "annotate"),
                    (line("wait --for=condition=Available W --timeout=20s"), "", "condition met"),
                ]);
            }
            let steps: Vec<(&str, &str, &str)> =
                steps.iter().map(|(line, input, words)| (line.as_str(), *input, *words)).collect();
            let wrong = cluster.wrong(&kubectl, &steps).await;
            assert!(wrong.is_empty(), "{kind}: {wrong:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owned_goes_or_stays_as_told() {
    for kubectl in harness::kubectls() {
        let cluster = start().await;
        let manifest = workload("Deployment");
        for (cascade, left) in [("background", ""), ("foreground", ""), ("orphan", "replicaset.apps/w-")] {
            let delete = format!("delete deployment w --cascade={cascade} --timeout=20s");
            let mut steps = vec![
                ("create -f -", manifest.as_str(), "created"),
                ("rollout status deployment w --timeout=20s", "", "rolled out"),
                ("get replicasets -l app=w -o name", "", "replicaset.apps/w-"),
                (&delete, "", "deleted"),
            ];
            if cascade == "background" {
                steps.push(("wait --for=delete replicaset -l app=w --timeout=20s", "", ""));
            }
            let wrong = cluster.wrong(&kubectl, &steps).await;
            assert!(wrong.is_empty(), "{cascade}: {wrong:#?}");
            let found = cluster.kubectl(&["get", "replicasets", "-l", "app=w", "-o", "name"]).await;
            assert!(if left.is_empty() { found.is_empty() } else { found.starts_with(left) }, "{cascade}: {found}");
            if cascade == "orphan" {
                let owners = "jsonpath={.items[*].metadata.ownerReferences}";
                assert_eq!(cluster.kubectl(&["get", "replicasets", "-l", "app=w", "-o", owners]).await, "");
            }
        }
    }
}

/// Lines of a kubectl that goes on watching.
async fn watch(
    cluster: &Cluster,
    kubectl: &Path,
    output: &str,
) -> (tokio::process::Child, Lines<BufReader<ChildStdout>>) {
    let mut child = tokio::process::Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(cluster.folder.path().join("admin.kubeconfig"))
        .args(["get", "configmaps", "-n", "default", "-l", "watched", "--watch"])
        .args(output.split(' '))
        .env("NO_PROXY", "*")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

/// A watch in every form shows what was there, what changed, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn watches_print_in_every_form() {
    for kubectl in harness::kubectls() {
        let cluster = Cluster::start().await;
        cluster.kubectl(&["create", "configmap", "w", "--from-literal=k=one"]).await;
        cluster.kubectl(&["label", "configmap", "w", "watched=yes"]).await;
        cluster.kubectl(&["create", "configmap", "unwatched", "--from-literal=k=no"]).await;
        let mut watches = Vec::new();
        for (output, first, second) in [
            ("-o custom-columns=N:.metadata.name,K:.data.k --no-headers", "w one", "w two"),
            ("-o jsonpath={.data.k}{\"\\n\"}", "one", "two"),
            ("-o go-template={{.data.k}}{{\"\\n\"}}", "one", "two"),
            ("-o name", "configmap/w", "configmap/w"),
            ("-o wide --no-headers", "w 1 ", "w 1 "),
            ("-o json --output-watch-events", "{\"type\":\"ADDED\",", "{\"type\":\"MODIFIED\","),
        ] {
            watches.push((output, watch(&cluster, &kubectl, output).await, first, second));
        }
        for change in ["", "two"] {
            if !change.is_empty() {
                let patch = format!(r#"{{"data":{{"k":"{change}"}}}}"#);
                cluster.kubectl(&["patch", "configmap", "w", "--type=merge", "-p", &patch]).await;
            }
            for (output, (_, lines), before, after) in &mut watches {
                let wanted = if change.is_empty() { *before } else { *after };
                let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
                let line = line.unwrap_or_else(|_| panic!("{output}: no {wanted:?}")).unwrap().unwrap();
                let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(words.starts_with(wanted), "{output}: {line:?} instead of {wanted:?}");
            }
        }
    }
}
